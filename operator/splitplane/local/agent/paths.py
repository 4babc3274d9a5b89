"""Paths inside a container, on a machine where containers have no file system of their own.

A volume is mounted by giving the container the path of the pod's own folder wherever its command, arguments and
environment name a path under the ``mountPath``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from splitplane.local.agent.errors import StartError

# A mount path counts only where it starts a path (also after a scheme's `://`) and ends at the end of a component.
_NAME = r"[\w.\-~%@+*?]"
_STARTS = rf"(?<!{_NAME})(?<![)}}\]])(?:(?<=://)|(?<!/))"
_ENDS = rf"(?!{_NAME})"


@dataclass(frozen=True)
class Mount:
    """Where a path of the container really is."""

    mount_path: str
    target: Path


def normal(path: str) -> str:
    """A mount path without trailing or doubled slashes.

    Raises :class:`StartError` for a path that cannot be a mount point here.
    """
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not path.startswith("/") or not parts or ".." in parts:
        raise StartError(
            "CreateContainerConfigError", f"mountPath {path!r}: must be absolute, below / and without '..' here"
        )
    return "/" + "/".join(parts)


class Rewriter:
    """Replaces mount paths by the paths that stand for them; of nested mounts the inner one wins."""

    def __init__(self, mounts: Iterable[Mount]) -> None:
        self._targets = {mount.mount_path: str(mount.target) for mount in mounts}
        longest_first = sorted(self._targets, key=len, reverse=True)
        alternatives = "|".join(re.escape(path) for path in longest_first)
        self._pattern = re.compile(f"{_STARTS}(?:{alternatives}){_ENDS}") if longest_first else None

    def __call__(self, text: str) -> str:
        """`text` with every path under a mount replaced: plain, in file:// URIs, in JSON, in PATH-like lists."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._targets[match.group()], text)


def inside(base: Path, relative: str) -> Path:
    """`base/relative`. Raises :class:`StartError` where that would lead out of `base`."""
    if relative.startswith("/") or ".." in relative.split("/"):
        raise StartError("CreateContainerConfigError", f"path {relative!r} must be relative and without '..'")
    return base / relative

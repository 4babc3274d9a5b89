"""What components and agents write, for people: the end of it, or all of it, and what comes."""

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from splitplane.local.errors import LocalError

_POLL_SECONDS = 0.2


def names(folder: Path) -> list[str]:
    """Everything that has a log."""
    return sorted(path.name.removesuffix(".log") for path in folder.glob("*.log"))


def read(folder: Path, name: str, *, lines: int = 0, follow: bool = False) -> Iterator[str]:
    """The last ``lines`` of a log (0: all of it); with ``follow``, what is written from then on, for ever.

    Raises:
        LocalError: nothing of that name has a log; the message says what has.
    """
    known = names(folder)
    if name not in known:
        raise LocalError(f"There is no log of {name!r}; there is {', '.join(known) or 'none yet'}.")
    path = folder / f"{name}.log"
    file = path.open(errors="replace")
    try:
        if lines:
            yield from deque(file, maxlen=lines)
        while True:
            while text := file.read(65536):
                yield text
            if not follow:
                return
            time.sleep(_POLL_SECONDS)
            if path.exists() and path.stat().st_ino != _inode(file.fileno()):  # rotated
                file.close()
                file = path.open(errors="replace")
    finally:
        file.close()


def _inode(descriptor: int) -> int:
    return Path(f"/proc/self/fd/{descriptor}").stat().st_ino

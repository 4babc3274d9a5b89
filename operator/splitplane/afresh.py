"""Programs that may begin again, as a process in which nothing has happened yet but what they are told.

Tracing a model calls its code on tensors without memory. Code that keeps such a tensor where nothing can put it back
(an object of another module, a closure) would compute with it ever after.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TOLD = "SPLITPLANE_TOLD"
"""Names the environment variable that holds what a program had found out before it began again, after its process id.

The id tells a program that has begun again from one that such a program starts.
"""

_programs: list[list[str]] = []
_folders: list[Path] = []


def may_begin_again() -> None:
    """To be called by a program before it does anything: the same command line leads to the same place once more."""
    _programs[:] = [[sys.executable, *sys.orig_argv[1:]]]


def begin_again(told: str) -> None:
    """Replace this process by its program's beginning, which keeps its id and its parent.

    Returns where the process is none that may (a library's user, a worker of several), or has begun again before: what
    it was told then did not help, so it would do so for ever.
    """
    if _told()[0] == str(os.getpid()):
        return
    for program in _programs:
        for folder in _folders:
            shutil.rmtree(folder, ignore_errors=True)
        sys.stdout.flush()
        sys.stderr.flush()
        environment = {**os.environ, TOLD: f"{os.getpid()} {told}"}
        os.execve(program[0], program, environment)  # noqa: S606 - its own command line


def told() -> str | None:
    """What this program, or the one that started it, had found out before it began again, if it did."""
    return _told()[1] or None


def _told() -> tuple[str, str]:
    process, _, told = os.environ.get(TOLD, "").partition(" ")
    return process, told


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that is removed at the end, and where the program begins again within, which ends no ``with``."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        folder = Path(name)
        _folders.append(folder)
        try:
            yield folder
        finally:
            _folders.remove(folder)

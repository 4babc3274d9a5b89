"""Programs that may begin again, as a process in which nothing has happened yet but what they are told.

Tracing a model calls its code on tensors without memory. Code that keeps such a tensor where nothing can put it back
(an object of another module, a closure) would compute with it ever after.
"""

import os
import sys

TOLD = "SPLITPLANE_TOLD"
"""Names the environment variable that holds what a program had found out before it began again."""

_programs: list[list[str]] = []


def may_begin_again() -> None:
    """To be called by a program before it does anything: the same command line leads to the same place once more."""
    _programs[:] = [[sys.executable, *sys.orig_argv[1:]]]


def begin_again(told: str) -> None:
    """Replace this process by its program's beginning, which keeps its id and its parent.

    Returns where the process is none that may (a library's user, a worker of several).
    """
    for program in _programs:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(program[0], program, {**os.environ, TOLD: told})  # noqa: S606 - its own command line


def told() -> str | None:
    """What this program had found out before it began again, if it did."""
    return os.environ.get(TOLD)

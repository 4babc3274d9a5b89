"""Imports at the start of a program, when nothing but the imports stands between a pod and its being ready."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Keep the garbage collector at rest meanwhile, and what was made out of its sight from then on.

    Modules stay as long as the process. Looking for garbage among their objects takes a sixth of a gateway's start and
    a fifth of a stage's, and once more each time that it is done afterwards.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(
            gc.unfreeze
        )  # or the interpreter's end would leave them, and native libraries complain of leaks

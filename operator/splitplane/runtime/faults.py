"""How servers log a request that failed in a way that nothing foresaw: in a line, and once with where it came from.

A model that raises on some input does so for each request that has it, and a traceback for each would bury all else.
"""

import logging
from traceback import walk_tb

MOST_KINDS = 256
"""More are told in a line alone, so that kinds without end cannot fill memory either."""
MOST_CHARACTERS = 500
"""Of an error's own text, which a library may make as long as it likes."""


class Faults:
    """Errors told to ``log``. Those of one type from one line of code are of one kind."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._kinds: set[tuple[type[BaseException], str, int]] = set()

    def tell(self, error: BaseException) -> None:
        """Type and text in a line; the traceback with the first of a kind, and at debug level with all."""
        kind = _kind(error)
        is_new = kind not in self._kinds and len(self._kinds) < MOST_KINDS
        if is_new:
            self._kinds.add(kind)
        shown = error if is_new or self._log.isEnabledFor(logging.DEBUG) else None
        self._log.error("a request failed in a way that nothing foresaw: %s", described(error), exc_info=shown)


def described(error: BaseException) -> str:
    """An error's type and text on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:MOST_CHARACTERS]}" if text else type(error).__name__


def _kind(error: BaseException) -> tuple[type[BaseException], str, int]:
    where = ("", 0)
    for frame, line in walk_tb(error.__traceback__):
        where = (frame.f_code.co_filename, line)
    return (type(error), *where)

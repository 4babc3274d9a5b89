"""Time as a dependency, so that back-off, windows and deadlines can be tested without waiting for them."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since the Unix epoch: they are written into status and must mean the same after a restart."""

    def now(self) -> float: ...


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> float:
        return time.time()

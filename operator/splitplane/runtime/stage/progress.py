"""How long the piece of work that the compute thread does has been running, and whether it will hardly end.

The event loop answers health checks, so it lives on while the thread hangs: in a device that is gone, or a lock that is
never freed. What a piece may take is known only roughly beforehand: a first call sets kernels up, and a large batch
takes many times what a small one does. So a thread counts as stuck late, and by what this process has seen itself.
"""

import time
from collections.abc import Callable

STUCK_SECONDS = 60.0
"""No piece of work counts as stuck sooner."""
STUCK_FACTOR = 10.0
"""Nor before it has taken so many times what the longest one took, or as many samples would at the slowest rate; nor
before the time is up that those who wait for it have given it."""


class Progress:
    """Written by the compute thread, read by the event loop; ``clock`` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: tuple[float, float] | None = None
        """When the present piece began, and how many seconds it may take."""
        self._longest = self._longest_sample = 0.0

    def begin(self, samples: int, given_seconds: float = 0.0) -> None:
        """A piece of work for so many samples begins; whoever waits for it longest does so for so many seconds."""
        usual = max(self._longest, samples * self._longest_sample)
        self._running = self._clock(), max(STUCK_SECONDS, STUCK_FACTOR * usual, given_seconds)

    def end(self, samples: int) -> None:
        """It has ended, however it did."""
        self.took(samples, self.busy_seconds())
        self._running = None

    def took(self, samples: int, seconds: float) -> None:
        """So many samples took so long."""
        self._longest = max(self._longest, seconds)
        self._longest_sample = max(self._longest_sample, seconds / max(samples, 1))

    def busy_seconds(self) -> float:
        """How long the present piece has been running; 0 where there is none."""
        running = self._running
        return 0.0 if running is None else self._clock() - running[0]

    def is_stuck(self) -> bool:
        """Whether it has been running for so long that only a restart will help."""
        running = self._running
        return running is not None and self._clock() - running[0] > running[1]

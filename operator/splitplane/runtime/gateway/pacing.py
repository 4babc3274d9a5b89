"""When to try again, and when to begin to doubt an attempt that has not come back. Pure; times come in as arguments.

Retries are paced, not refused: a request whose retry is over budget waits for it, as long as its deadline lets it. So a
lost node, which fails everything on its way at once, is hidden, while a fault that stays cannot multiply the load.
Errors that are probably the request's own draw nothing from that budget, or one client's bad inputs would use up what
others need when a node is lost: they are repeated once and at once, which no more than doubles their own load.
"""

from collections import deque
from collections.abc import Iterable
from math import inf

from splitplane.runtime.inference import Failure

RETRYABLE = frozenset(
    {
        Failure.UNAVAILABLE,
        Failure.RESOURCE_EXHAUSTED,
        Failure.CANCELLED,
        Failure.INTERNAL,
        Failure.DEADLINE_EXCEEDED,
        Failure.FAILED_PRECONDITION,
    }
)
"""Failures that another replica or route may not have; inference changes nothing, so repeating it is safe."""
ONCE = frozenset({Failure.INTERNAL, Failure.FAILED_PRECONDITION})
"""Of these, the ones that are probably the request's own: tried at one other place only, outside the budget."""

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
RENEWED_EVERY = 16
"""A percentile of the last 200 is looked at anew after so many more."""


def pause_seconds(attempt: int) -> float:
    """Pause after failed attempt number ``attempt`` (from 1) when it has to be repeated at the same place."""
    return float(min(FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1), LONGEST_PAUSE_SECONDS))


class RetryBudget:
    """Retries allowed: ``share`` of the requests, ``floor_per_second`` besides, saved up to ``burst``."""

    def __init__(self, *, share: float = 0.2, floor_per_second: float = 10.0, burst: float = 256.0) -> None:
        self._share = share
        self._floor = floor_per_second
        self.burst = burst
        self._tokens = burst
        self._at: float | None = None

    def request(self) -> None:
        """A request arrived."""
        self._tokens = min(self.burst, self._tokens + self._share)

    def take(self, now: float, remaining: float) -> float | None:
        """Take one retry, in debt if need be: seconds to wait before it.

        ``None``, and nothing is taken, when that is not within the ``remaining`` seconds of the request: so the debt is
        what can be paid while the requests that owe it wait.
        """
        if self._at is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self._floor)
        self._at = now
        seconds = max(0.0, (1 - self._tokens) / self._floor)
        if seconds >= remaining:
            return None
        self._tokens -= 1
        return seconds

    def give_back(self) -> None:
        """A retry that was taken is not made."""
        self._tokens = min(self.burst, self._tokens + 1)


class Patience:
    """How long an attempt may take before its endpoints are asked whether they live: 5 x the recent p99, 1 to 10 s.

    And how long computing it may, before something must be wrong there: 5 x the p99 as well, with no upper bound, and
    by the size of the inputs too, as a large batch takes many times what a small one does.
    """

    def __init__(self, *, shortest: float = 1.0, longest: float = 10.0, factor: float = 5.0, window: int = 200) -> None:
        self._shortest = shortest
        self._longest = longest
        self._factor = factor
        self._seconds: deque[float] = deque(maxlen=window)
        self._per_byte: deque[float] = deque(maxlen=window)
        self._usual: tuple[float, float] | None = None
        """Seconds, and seconds per byte of the inputs."""
        self._count = 0
        self._patience = shortest

    def completed(self, seconds: float, size: int = 0) -> None:
        """An attempt came back, whose inputs had so many bytes."""
        self._seconds.append(seconds)
        self._per_byte.append(seconds / max(size, 1))
        self._count += 1
        if self._count < RENEWED_EVERY or self._count % RENEWED_EVERY == 0:
            p99 = _p99(self._seconds)
            self._usual = p99, _p99(self._per_byte)
            self._patience = min(max(self._shortest, self._factor * p99), self._longest)

    def seconds(self) -> float:
        return self._patience

    @property
    def is_known(self) -> bool:
        """Whether any came back yet."""
        return self._usual is not None

    def hanging_seconds(self, size: int = 0) -> float:
        """What runs for so long hangs, for inputs of so many bytes; infinity where none came back yet to compare."""
        if self._usual is None:
            return inf
        seconds, per_byte = self._usual
        return max(self._shortest, self._factor * max(seconds, per_byte * size))


def _p99(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[int(0.99 * (len(ordered) - 1))]

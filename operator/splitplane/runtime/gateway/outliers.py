"""Which replica of a stage is much slower than the others, so that it is left out for a while. Pure: times come in.

A replica whose node is throttled answers, and healthily, but each request that meets it is late. As Envoy ejects hosts
by their success rate, replicas of one stage are compared over an interval, each by its median, and one must stand out
by far. What a request waited in a replica's queue is taken off, since that is load, which balancing is for. How many
may be left out at once, and for how long, is ``Endpoints``' matter.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from statistics import mean, median

INTERVAL_SECONDS = 10.0
FEWEST_REQUESTS, MOST_REQUESTS = 5, 128
FACTOR, LEAST_SECONDS = 3.0, 0.02
"""A replica stands out that takes so many times what the others do, and so much longer."""
FACTOR_OF_TWO, WAIT_OF_TWO = 5.0, 1.0
"""Where there is one other only: so much slower, the replica has at most a sixth of what both can do. That much may be
missed where requests wait for the other, on average, no longer than they take there: else it would be full alone."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A replica's median and that of the others' medians, in seconds."""

    address: str
    seconds: float
    usual: float
    factor: float = FACTOR

    @property
    def slow(self) -> bool:
        return self.seconds > max(self.factor * self.usual, self.usual + LEAST_SECONDS)


class Outliers:
    """Times of one interval, by stage and range, and by replica."""

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._interval = interval_seconds
        self._since: float | None = None
        self._seconds: defaultdict[object, defaultdict[str, deque[tuple[float, float]]]] = defaultdict(
            lambda: defaultdict(lambda: deque(maxlen=MOST_REQUESTS))
        )

    def observe(self, work: object, address: str, seconds: float, queued: float) -> None:
        """A replica took so long for a request after it had ``queued`` for so long; only equal ``work`` is compared."""
        self._seconds[work][address].append((seconds, queued))

    def judge(self, now: float) -> list[Verdict]:
        """Once per interval, what can be said of each replica; the slowest first."""
        if self._since is None:
            self._since = now
        if now - self._since < self._interval:
            return []
        verdicts = sorted(self._verdicts(), key=lambda verdict: -verdict.seconds)
        self._since = now
        self._seconds.clear()
        return verdicts

    def _verdicts(self) -> Iterator[Verdict]:
        for replicas in self._seconds.values():
            known = {a: list(zip(*seen, strict=True)) for a, seen in replicas.items() if len(seen) >= FEWEST_REQUESTS}
            medians = {address: median(seconds) for address, (seconds, _) in known.items()}
            for address, seconds in medians.items():
                others = [other for other in medians if other != address]
                if not others:
                    continue
                usual, factor = median(medians[other] for other in others), FACTOR
                if len(others) == 1:
                    is_free = mean(known[others[0]][1]) <= WAIT_OF_TWO * usual
                    factor = FACTOR_OF_TWO if is_free else inf
                yield Verdict(address, seconds, usual, factor)

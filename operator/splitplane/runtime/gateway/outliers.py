"""Which replica of a stage is much slower than the others, so that it is left out for a while. Pure: times come in.

A replica whose node is throttled answers, and healthily, but each request that meets it is late. As Envoy ejects hosts
by their success rate, replicas of one stage are compared over an interval, each by its median, and one must stand out
by far. What a request waited in a replica's queue is taken off, since that is load, which balancing is for. How many
may be left out at once, and for how long, is ``Endpoints``' matter.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

INTERVAL_SECONDS = 10.0
FEWEST_REQUESTS, MOST_REQUESTS, FEWEST_REPLICAS = 5, 128, 3
FACTOR, LEAST_SECONDS = 3.0, 0.02
"""A replica stands out that takes so many times what the others do, and so much longer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A replica's median and that of the others' medians, in seconds."""

    address: str
    seconds: float
    usual: float

    @property
    def slow(self) -> bool:
        return self.seconds > max(FACTOR * self.usual, self.usual + LEAST_SECONDS)


class Outliers:
    """Times of one interval, by stage and range, and by replica."""

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._interval = interval_seconds
        self._since: float | None = None
        self._seconds: defaultdict[object, defaultdict[str, deque[float]]] = defaultdict(
            lambda: defaultdict(lambda: deque(maxlen=MOST_REQUESTS))
        )

    def observe(self, work: object, address: str, seconds: float) -> None:
        """A replica took so long for a request, its queue not counted; only equal ``work`` is compared."""
        self._seconds[work][address].append(seconds)

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
            medians = {a: median(seconds) for a, seconds in replicas.items() if len(seconds) >= FEWEST_REQUESTS}
            if len(medians) < FEWEST_REPLICAS:
                continue
            for address, seconds in medians.items():
                yield Verdict(address, seconds, median(each for a, each in medians.items() if a != address))

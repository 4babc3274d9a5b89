"""Which replica of a stage is much slower than the others, so that it is left out for a while. Pure: times come in.

A replica whose node is throttled answers, and healthily, but each request that meets it is late. As Envoy ejects hosts
by their success rate, replicas of one stage are compared over an interval, each by its median, and one must stand out
by far: by its own clock, or by that of whoever called it, as a process that is held up may not notice before it reads
a request. What a request waited in a replica's queue is taken off, since that is load, which balancing is for. How many
may be left out at once, and for how long, is ``Endpoints``' matter.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import mean, median

from splitplane.runtime.inference import Tensor
from splitplane.runtime.routes import HopTrace

INTERVAL_SECONDS = 10.0
FEWEST_REQUESTS, MOST_REQUESTS = 5, 128
FACTOR, LEAST_SECONDS = 3.0, 0.02
"""A replica stands out that takes so many times what the others do, and so much longer."""
FACTOR_OF_TWO, WAIT_OF_TWO = 5.0, 1.0
"""Where there is one other only: so much slower, the replica has at most a sixth of what both can do. That much may be
missed where requests wait for the other, on average, no longer than they take there: else it would be full alone. The
same holds by the clock of callers, where what is slow may be the way there: then the replica can do as much as any."""


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
        self._seconds: defaultdict[object, defaultdict[str, deque[tuple[float, float, float]]]] = defaultdict(
            lambda: defaultdict(lambda: deque(maxlen=MOST_REQUESTS))
        )

    def observe(self, work: object, address: str, seconds: float, called: float, queued: float) -> None:
        """A replica took so long for a request, and its caller waited so long, after it had ``queued`` for so long.

        Only equal ``work`` is compared.
        """
        self._seconds[work][address].append((seconds, called, queued))

    def answered(
        self, addresses: Sequence[str], trace: Sequence[HopTrace], seconds: float, inputs: Sequence[Tensor]
    ) -> None:
        """A request that went over these replicas was answered, so long after it was sent to the first."""
        shapes, called = tuple(tensor.shape for tensor in inputs), (seconds, *(hop.hop for hop in trace))
        for address, hop, waited in zip(addresses, trace, called, strict=False):
            work, not_its_own = (hop.stage, hop.first, hop.last, shapes), hop.hop + hop.queue
            self.observe(work, address, hop.server - not_its_own, waited - not_its_own, hop.queue)

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
            if len(known) < 2:
                continue
            queued = {address: mean(each) for address, (_, _, each) in known.items()}
            own, called = ({address: median(each[clock]) for address, each in known.items()} for clock in (0, 1))
            for address in known:
                verdict = _verdict(address, own, queued, few=2)
                yield verdict if verdict.slow else _verdict(address, called, queued)


def _verdict(address: str, medians: Mapping[str, float], queued: Mapping[str, float], *, few: float = inf) -> Verdict:
    """Up to ``few`` replicas are compared as two are."""
    others = [other for other in medians if other != address]
    usual, factor = median(medians[other] for other in others), FACTOR
    if len(medians) <= few:
        is_free = mean(queued[other] for other in others) <= WAIT_OF_TWO * usual
        factor = FACTOR_OF_TWO if is_free else inf
    return Verdict(address, medians[address], usual, factor)

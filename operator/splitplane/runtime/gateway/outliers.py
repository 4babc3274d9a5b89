"""Which replica of a stage is much slower than the others, so that it is left out for a while. Pure: times come in.

A replica whose node is throttled answers, and healthily, but each request that meets it is late. As Envoy ejects hosts
by their success rate, replicas of one stage are compared over an interval, each by its median, and one must stand out
by far: by its own clock, or by that of whoever called it, as a process that is held up may not notice before it reads
a request. A caller may be held up as well before it reads an answer, and so its clock compares only those replicas that
it called itself. What a request waited in a replica's queue is taken off, since that is load, which balancing is for.
How many may be left out at once, and for how long, is ``Endpoints``' matter.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
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


_Times = defaultdict[str, deque[tuple[float, float]]]
"""By replica: seconds of each request, and what it had waited in that replica's queue."""


class Outliers:
    """Times of one interval: by stage and range, by whoever told them, and by replica."""

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._interval = interval_seconds
        self._since: float | None = None
        self._own: defaultdict[object, _Times] = defaultdict(_times)
        self._called: defaultdict[tuple[object, str], _Times] = defaultdict(_times)

    def observe(
        self, work: object, address: str, seconds: float, called: float, queued: float, caller: str = ""
    ) -> None:
        """A replica took so long for a request, and its caller waited so long, after it had ``queued`` for so long.

        Only equal ``work`` is compared. ``caller`` is the replica that called it; none where the gateway did.
        """
        self._own[work][address].append((seconds, queued))
        self._called[work, caller][address].append((called, queued))

    def answered(
        self, addresses: Sequence[str], trace: Sequence[HopTrace], seconds: float, inputs: Sequence[Tensor]
    ) -> None:
        """A request that went over these replicas was answered, so long after it was sent to the first."""
        shapes, called = tuple(tensor.shape for tensor in inputs), (seconds, *(hop.hop for hop in trace))
        for caller, address, hop, waited in zip(("", *addresses), addresses, trace, called, strict=False):
            work, not_its_own = (hop.stage, hop.first, hop.last, shapes), hop.hop + hop.queue
            self.observe(work, address, hop.server - not_its_own, waited - not_its_own, hop.queue, caller)

    def judge(self, now: float) -> list[Verdict]:
        """Once per interval, what can be said of each replica; the slowest first."""
        if self._since is None:
            self._since = now
        if now - self._since < self._interval:
            return []
        verdicts = sorted(self._verdicts(), key=lambda verdict: -verdict.seconds)
        self._since = now
        self._own.clear()
        self._called.clear()
        return verdicts

    def _verdicts(self) -> Iterator[Verdict]:
        by_callers: defaultdict[tuple[object, str], list[Verdict]] = defaultdict(list)
        for (work, _), replicas in self._called.items():
            for verdict in _compared(replicas):
                by_callers[work, verdict.address].append(verdict)
        for work, replicas in self._own.items():
            for own in _compared(replicas, few=2):
                # A replica is slow for all that call it; where it is so for one, that may be the way between the two.
                called = min(by_callers[work, own.address], key=lambda verdict: verdict.slow, default=own)
                yield own if own.slow else called


def _times() -> _Times:
    return defaultdict(lambda: deque(maxlen=MOST_REQUESTS))


def _compared(replicas: _Times, *, few: float = inf) -> Iterator[Verdict]:
    """Each with the others, as far as enough is known. Up to ``few`` replicas are compared as two are."""
    known = {address: seen for address, seen in replicas.items() if len(seen) >= FEWEST_REQUESTS}
    medians = {address: median(seconds for seconds, _ in seen) for address, seen in known.items()}
    queued = {address: mean(waited for _, waited in seen) for address, seen in known.items()}
    for address in known:
        others = [other for other in known if other != address]
        if not others:
            return
        usual, factor = median(medians[other] for other in others), FACTOR
        if len(known) <= few:
            is_free = mean(queued[other] for other in others) <= WAIT_OF_TWO * usual
            factor = FACTOR_OF_TWO if is_free else inf
        yield Verdict(address, medians[address], usual, factor)

"""The estimates of all links that this gateway can tell of, fed from traces of answered requests and from probes."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from splitplane.runtime.gateway.linkqueues import LinkQueue
from splitplane.runtime.gateway.links import LinkEstimate, LinkEstimator
from splitplane.runtime.gateway.pulses import Pulse
from splitplane.runtime.hops import Call
from splitplane.runtime.metrics import GatewayMetrics
from splitplane.runtime.routes import HopTrace

logger = logging.getLogger(__name__)

LinkName = tuple[str, str]
"""(source tier, target tier)."""
DOWN_TOLD_SECONDS = 10.0
"""How long a link is silent before it is told as one that passes nothing, which makes the operator plan without it.
Until then it is unknown, which makes it wait: what comes back soon is left to the routes."""


class LinkBook:
    """Estimators by link, and whether each passes anything.

    ``down`` holds links that are silent, with the time since when. ``on_change`` is called when it has changed.
    """

    def __init__(self, *, tier: str, metrics: GatewayMetrics, on_change: Callable[[], None] = lambda: None) -> None:
        self._tier = tier
        self._metrics = metrics
        self._on_change = on_change
        self._estimators: dict[LinkName, LinkEstimator] = {}
        self._pulses: dict[LinkName, Pulse] = {}
        self._queues: defaultdict[LinkName, LinkQueue] = defaultdict(LinkQueue)
        self._fall: asyncio.Future[None] | None = None
        self._back: dict[LinkName, float] = {}
        self.down: dict[LinkName, float] = {}

    def estimator(self, link: LinkName) -> LinkEstimator:
        return self._estimators.setdefault(link, LinkEstimator())

    def pulse(self, link: LinkName, now: float) -> Pulse:
        """The pulse of a link that is probed; it begins with the first call."""
        return self._pulses.setdefault(link, Pulse(now))

    def tick(self, link: LinkName, now: float, round_trip_seconds: float = 0.0) -> None:
        """Judge a probed link anew."""
        pulse = self.pulse(link, now)
        pulse.tick(now, round_trip_seconds)
        if pulse.down and link not in self.down:
            logger.warning("link %s to %s: nothing comes back", *link)
            self.down[link] = now
            # Nothing that was measured holds any more.
            self.estimator(link).forget()
            self._queues[link].forget()
            if self._fall is not None:
                self._fall.set_result(None)
                self._fall = None
            self._on_change()
        elif not pulse.down and link in self.down:
            logger.info("link %s to %s: answers again", *link)
            del self.down[link]
            self._back[link] = now
            self._on_change()

    def forsake(self, link: LinkName) -> None:
        """A link that is probed no longer is not down either."""
        self._pulses.pop(link, None)
        if self.down.pop(link, None) is not None:
            self._on_change()

    def fall(self) -> "asyncio.Future[None]":
        """Done when the next link falls. Shared: do not cancel it."""
        if self._fall is None:
            self._fall = asyncio.get_running_loop().create_future()
        return self._fall

    @contextmanager
    def carrying(self, links: Sequence[LinkName], now: float, size: int | None = None) -> Iterator[None]:
        """While a request, sent now, is on its way over these links; of so many bytes, if it crosses the first one as
        it came."""
        queues = [self._queues[link] for link in links]
        messages = [queue.begin(now, None if place else size) for place, queue in enumerate(queues)]
        try:
            yield
        finally:
            for queue, message in zip(queues, messages, strict=True):
                queue.end(message)

    def backlog_seconds(self, link: LinkName, now: float) -> float:
        """How long the link takes for what requests may have on it; 0 while its rate is not known."""
        rate = self._estimators[link].estimate(now).bandwidth_bytes_per_second if link in self._estimators else None
        return self._queues[link].backlog_seconds(now, rate) if rate else 0.0

    def observe(self, call: Call, trace: tuple[HopTrace, ...], now: float) -> None:
        """Take from an answered call what its trace tells of links between tiers."""
        for index, crossing in enumerate(_crossings(self._tier, call, trace)):
            link, size, seconds = crossing.link, crossing.size, crossing.seconds
            if link[0] == link[1]:
                continue
            if index == 0:  # the stages count what they send themselves
                self._metrics.links.transferred(source=link[0], target=link[1], size=size, seconds=seconds)
            if (pulse := self._pulses.get(link)) is not None:
                pulse.heard(now)
            queue, handed, passed = self._queues[link], now - call.seconds + crossing.before, now - crossing.after
            queue.passed(handed, passed, size, crossing.before if index else None)
            # What was on its way in a cut tells how long that was.
            if link in self.down or now - call.seconds < self._back.get(link, -inf):
                continue
            if (rate := self.estimator(link).transfer(now, size, seconds)) is not None:
                queue.told(rate, handed, passed, size)

    def probed(self, link: LinkName, now: float, size: int, seconds: float, echo_seconds: float | None = None) -> float:
        """A probe's payload has crossed, after an echo where that was asked for: how long it occupied the link."""
        rate = self.estimator(link).probe(now, size, seconds, echo_seconds)
        if rate is None:
            return 0.0
        self._queues[link].told(rate, now - size / rate, now, size)
        return size / rate

    def estimates(self, now: float) -> dict[LinkName, LinkEstimate]:
        """What is known now, unknown links included."""
        return {link: self._estimate(link, now) for link in sorted(self._estimators)}

    def bandwidth(self, link: LinkName, now: float) -> float | None:
        """Bytes per second of a link; ``None`` while it is not known, or while it is down."""
        if link in self.down or link not in self._estimators:
            return None
        return self._estimators[link].estimate(now).bandwidth_bytes_per_second

    def _estimate(self, link: LinkName, now: float) -> LinkEstimate:
        if now - self.down.get(link, now) >= DOWN_TOLD_SECONDS:
            return LinkEstimate(0.0, None)
        return self._estimators[link].estimate(now)

    def publish(self, now: float) -> None:
        """Bring the gauges up to date."""
        for (source, target), estimate in self.estimates(now).items():
            self._metrics.set_link(
                source=source,
                target=target,
                bandwidth_bytes_per_second=estimate.bandwidth_bytes_per_second,
                delay_seconds=estimate.delay_seconds,
            )


@dataclass(frozen=True, slots=True)
class _Crossing:
    """A hop of an answered call: bytes both ways, and the seconds that these were on the link.

    ``before`` is how long the request was on its way until it was handed to the link, or longer; ``after`` how long
    it was at the far end.
    """

    link: LinkName
    size: int
    seconds: float
    before: float
    after: float


def _crossings(tier: str, call: Call, trace: tuple[HopTrace, ...]) -> Iterator[_Crossing]:
    """A sender's hop less the receiver's own time was on the link."""
    if not trace:
        return
    first = trace[0].server
    yield _Crossing((tier, trace[0].tier), call.sent + call.received, call.seconds - first, 0.0, first)
    for sender, receiver in pairwise(trace):
        yield _Crossing(
            (sender.tier, receiver.tier), sender.sent + sender.received, sender.hop - receiver.server,
            call.seconds - sender.hop, receiver.server,
        )  # fmt: skip

"""The estimates of all links that this gateway can tell of, fed from traces of answered requests and from probes."""

import logging
from collections.abc import Iterator
from itertools import pairwise

from splitplane.runtime.gateway.links import SMALL_BYTES, LinkEstimate, LinkEstimator
from splitplane.runtime.hops import Call
from splitplane.runtime.metrics import GatewayMetrics
from splitplane.runtime.routes import HopTrace

logger = logging.getLogger(__name__)

LinkName = tuple[str, str]
"""(source tier, target tier)."""
DOWN_TOLD_SECONDS = 10.0
"""How long a link's probes fail before it is told as one that passes nothing, which makes the operator plan without it.
Until then it is unknown, which makes it wait: what comes back soon is left to the routes."""


class LinkBook:
    """Estimators by link.

    ``down`` holds links whose probes fail, with the time since when; what crosses one in spite of that clears it.
    """

    def __init__(self, *, tier: str, metrics: GatewayMetrics) -> None:
        self._tier = tier
        self._metrics = metrics
        self._estimators: dict[LinkName, LinkEstimator] = {}
        self.down: dict[LinkName, float] = {}

    def estimator(self, link: LinkName) -> LinkEstimator:
        return self._estimators.setdefault(link, LinkEstimator())

    def mark_down(self, link: LinkName, now: float) -> None:
        """Probes of the link fail: nothing that was measured holds any more."""
        if link not in self.down:
            logger.warning("link %s to %s: its probes fail", *link)
            self.down[link] = now
            self.estimator(link).forget()

    def mark_up(self, link: LinkName) -> None:
        if link in self.down:
            logger.info("link %s to %s: answers again", *link)
            del self.down[link]

    def observe(self, call: Call, trace: tuple[HopTrace, ...], now: float) -> None:
        """Take from an answered call what its trace tells of links between tiers."""
        for index, (link, size, seconds) in enumerate(_crossings(self._tier, call, trace)):
            if link[0] == link[1]:
                continue
            if index == 0:  # the stages count what they send themselves
                self._metrics.links.transferred(source=link[0], target=link[1], size=size, seconds=seconds)
            self.mark_up(link)
            estimator = self.estimator(link)
            estimator.transfer(now, size, seconds)
            if size <= SMALL_BYTES:
                estimator.round_trip(now, seconds)

    def estimates(self, now: float) -> dict[LinkName, LinkEstimate]:
        """What is known now, unknown links included."""
        return {link: self._estimate(link, now) for link in sorted(self._estimators)}

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


def _crossings(tier: str, call: Call, trace: tuple[HopTrace, ...]) -> Iterator[tuple[LinkName, int, float]]:
    """(link, bytes both ways, seconds on it) of each hop: a sender's hop less the receiver's own time."""
    if not trace:
        return
    yield (tier, trace[0].tier), call.sent + call.received, call.seconds - trace[0].server
    for sender, receiver in pairwise(trace):
        yield (sender.tier, receiver.tier), sender.sent + sender.received, sender.hop - receiver.server

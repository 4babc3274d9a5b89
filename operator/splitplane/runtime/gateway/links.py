"""Rate and delay of a link, estimated from what crosses it. Pure: times come in as arguments.

A message of ``b`` bytes that is answered after ``t`` seconds, the far end's own time taken off, has spent one round
trip and ``b / bandwidth`` on the link. Small messages tell the round trip (their minimum: everything that disturbs
them only adds), large ones the bandwidth. What disturbs large ones adds time too (transfers that share the link, a
busy event loop), so a quantile above the median is taken; what takes time off (a server that overstates its own
share) is rare and is outvoted. Of only two samples the newer counts: what slowed the very first one down is over with
the second. A change of rate shows when the last two samples lie on the same side of the older ones, by more than
``CHANGE_FACTOR``: then the older ones are forgotten, so a new rate holds from its second sample on.
"""

from collections import deque
from dataclasses import dataclass
from math import inf

TELLING_BYTES = 32_768
"""Smallest transfer that says something about bandwidth in ordinary traffic."""
SMALL_BYTES = 2_048
"""Largest message that says something about the round trip."""
STALE_SECONDS = 30.0
"""After so long without a sample nothing is known any more."""
CHANGE_FACTOR = 1.6
WINDOW = 15
ROUND_TRIPS = 5
QUANTILE = 0.7
FLOOR_SECONDS = 2e-4
"""Shortest time on the link that a Python process can tell from noise; it bounds the bandwidth that can be measured."""


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """Bytes per second and one-way seconds; ``None`` is unknown. A bandwidth of 0 is a link that passes nothing."""

    bandwidth_bytes_per_second: float | None
    delay_seconds: float | None


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    value: float


class LinkEstimator:
    """One direction between two tiers. Not thread-safe."""

    def __init__(self) -> None:
        self._rates: deque[_Sample] = deque(maxlen=WINDOW)
        self._round_trips: deque[_Sample] = deque(maxlen=ROUND_TRIPS)
        self._last_transfer = -inf

    def round_trip(self, now: float, seconds: float) -> None:
        """A message of at most ``SMALL_BYTES`` was answered in ``seconds``, the far end's own time taken off."""
        if seconds > 0:
            self._round_trips.append(_Sample(now, seconds))

    def transfer(self, now: float, size: int, seconds: float) -> None:
        """``size`` bytes crossed and were answered in ``seconds``, the far end's own time taken off.

        Ordinary traffic: below ``TELLING_BYTES`` it is ignored.
        """
        if size < TELLING_BYTES or seconds <= 0:
            return
        self._last_transfer = now
        self._add_rate(now, size, seconds)

    def probe(self, now: float, size: int, seconds: float) -> None:
        """As ``transfer``, but for a probe's payload, which was sized to tell and needs no smallest size."""
        if size > 0 and seconds > 0:
            self._add_rate(now, size, seconds)

    def idle_seconds(self, now: float) -> float:
        """Seconds since ordinary traffic last told the bandwidth."""
        return now - self._last_transfer

    def forget(self) -> None:
        """The link went down: what was measured before says nothing about when it comes back."""
        self._rates.clear()
        self._round_trips.clear()
        self._last_transfer = -inf

    def doubtful(self, now: float) -> bool:
        """Whether the bandwidth rests on a single sample, which anything may have slowed down."""
        return sum(now - sample.at <= STALE_SECONDS for sample in self._rates) == 1

    def estimate(self, now: float) -> LinkEstimate:
        rates = [sample.value for sample in self._rates if now - sample.at <= STALE_SECONDS]
        round_trip = self._round_trip(now)
        return LinkEstimate(
            _typical(rates) if rates else None,
            None if round_trip is None else round_trip / 2,
        )

    def _round_trip(self, now: float) -> float | None:
        return min((sample.value for sample in self._round_trips if now - sample.at <= STALE_SECONDS), default=None)

    def _add_rate(self, now: float, size: int, seconds: float) -> None:
        round_trip = self._round_trip(now) or 0.0
        # A delay that has just fallen leaves a round trip that is too long; some of the time is the link's anyhow.
        on_link = max(seconds - round_trip, seconds / 10, FLOOR_SECONDS)
        self._rates.append(_Sample(now, size / on_link))
        if len(self._rates) < 3:
            return
        *older, last_but_one, last = self._rates
        before = _typical([sample.value for sample in older])
        ratios = (last_but_one.value / before, last.value / before)
        if max(ratios) < 1 / CHANGE_FACTOR or min(ratios) > CHANGE_FACTOR:
            self._rates.clear()
            self._rates.extend((last_but_one, last))


def _typical(rates: list[float]) -> float:
    """Of what is in the order in which it was measured."""
    return rates[-1] if len(rates) == 2 else sorted(rates)[int(QUANTILE * (len(rates) - 1))]

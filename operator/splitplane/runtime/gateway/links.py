"""Rate and delay of a link, estimated from what crosses it. Pure: times come in as arguments.

A message of ``b`` bytes that is answered after ``t`` seconds, the far end's own time taken off, has spent one round
trip and ``b / bandwidth`` on the link. Small messages tell the round trip (their minimum: everything that disturbs
them only adds), large ones the bandwidth. What disturbs large ones adds time too (transfers that share the link, a
busy event loop), so a quantile above the median is taken; what takes time off (a server that overstates its own
share) is rare and is outvoted. Of only two samples the newer counts: what slowed the very first one down is over with
the second. A change of rate shows when the last two samples lie on the same side of the older ones, by more than
``CHANGE_FACTOR``: then the older ones are forgotten, so a new rate holds from its second sample on.

What is neither small nor large tells no rate, but where it takes notably longer than the rate allows for, time after
time, that puts it in doubt: the link may be slower, its round trip longer, or an end too busy to say how busy it is. A
payload that is sent then tells which, against echoes from right before it: what these took as well made it no slower.
If it took long all the same, another one has to confirm that, as what held up the messages may hold up a payload, too;
but one that took longer than that would counts as two, as where more is sent than the link passes each waits longer.

Where all messages are large, the round trip has to be asked for, but not for ever: a change of it is in their times as
well, and looks like one of the rate. So once it was measured ``ROUND_TRIPS`` times at one rate, it holds for as long as
transfers tell that rate.
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
SAME_FACTOR = 1.25
"""Rates closer than that are one: so a round trip changes unseen by a quarter of what transfers take at most."""
WINDOW = 15
ROUND_TRIPS = 5
QUANTILE = 0.7
DOUBTS = 2
"""So many messages in a row that are neither small nor large, each slower than the rate allows for, put it in doubt."""
JITTER_SECONDS = 0.01
"""How much slower, beyond ``CHANGE_FACTOR``: what busy processes at either end add without a word."""
CONVINCING_SECONDS = 0.25
"""A payload that took so long on the link, where much smaller messages seemed to, was held up by no busy process."""
MOST_RISE = 6.0
"""By so much a payload that is to confirm a higher rate is larger, at most: more than the 16 kB that a token bucket may
let through at once, and no burden where that is what happened."""
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
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS)
        self._round_trip_at = -inf
        """When it was measured last, or else confirmed."""
        self._rate_then: float | None = None
        """The rate when it was asked for, and how many times it was asked for at that rate."""
        self._times = 0
        self._last_small = -inf
        self._last_transfer = -inf
        self._doubts: deque[float] = deque(maxlen=DOUBTS)
        """Rates that are no lower than what the last messages in a row took, all slower than the rate allows for."""

    def round_trip(self, now: float, seconds: float) -> None:
        """An echo came back after ``seconds``, the far end's own time taken off."""
        if seconds <= 0:
            return
        self._add_round_trip(now, seconds)
        rate = self._rate(now)
        if _are_one(rate, self._rate_then):
            self._times += 1
        else:
            self._rate_then, self._times = rate, 1

    def transfer(self, now: float, size: int, seconds: float) -> float | None:
        """``size`` bytes crossed and were answered in ``seconds``, the far end's own time taken off.

        Ordinary traffic. Returns the bytes a second that it tells, if any: what is neither small nor large can only put
        the rate in doubt.
        """
        if seconds <= 0:
            return None
        if size <= SMALL_BYTES:
            self._last_small = now
            self._add_round_trip(now, seconds)
        elif size >= TELLING_BYTES:
            self._last_transfer = now
            self._doubts.clear()
            rate = self._add(now, size / self._on_link(now, seconds))
            if self._confirms_round_trip(now):
                self._round_trip_at = now
            return rate
        else:
            self._compare(now, size, seconds)
        return None

    def probe(self, now: float, size: int, seconds: float, echo_seconds: float | None = None) -> float | None:
        """As ``transfer``, but for a probe's payload, which was sized to tell and needs no smallest size.

        ``echo_seconds`` is what an echo took right before it, where that was asked for: so much is not the payload's.
        """
        if size <= 0 or seconds <= 0:
            return None
        rate = size / self._on_link(now, seconds)
        if (known := self._rate(now)) is not None and echo_seconds is not None:
            rate = max(rate, min(known, size / max(seconds - echo_seconds, FLOOR_SECONDS)))
        if self.seems_slower and size / rate >= CONVINCING_SECONDS:
            self._add(now, rate)
        self._doubts.clear()
        return self._add(now, rate)

    def idle_seconds(self, now: float) -> float:
        """Seconds since ordinary traffic last told the bandwidth."""
        return now - self._last_transfer

    def needs_echo(self, now: float, within: float) -> bool:
        """Whether ordinary traffic of the last ``within`` seconds leaves the delay in doubt."""
        if now - self._last_small < within:
            return False
        return self.idle_seconds(now) >= within or not self._confirms_round_trip(now)

    def forget(self) -> None:
        """The link went down: what was measured before says nothing about when it comes back."""
        self._rates.clear()
        self._round_trips.clear()
        self._doubts.clear()
        self._rate_then, self._times = None, 0
        self._last_small = self._last_transfer = -inf

    def doubtful(self, now: float) -> bool:
        """Whether the bandwidth rests on a single sample, which anything may have slowed down, or the last one differs
        notably, which is a change if the next one does as well."""
        rates = self._recent(now)
        return len(rates) == 1 or (len(rates) > 2 and not _within(CHANGE_FACTOR, rates[-1], _typical(rates)))

    @property
    def seems_slower(self) -> bool:
        """Whether messages that are neither small nor large have put the bandwidth in doubt since it was last told."""
        return len(self._doubts) == DOUBTS

    def possible(self, now: float) -> float | None:
        """Bytes per second by which to size what is to remove a doubt, so that it is not long on a link that has become
        slow, but tells enough of one that may have become fast; as estimated where there is none."""
        if not (rates := self._recent(now)):
            return None
        typical, last = _typical(rates), rates[-1]
        if self.seems_slower or last * CHANGE_FACTOR < typical:
            return min(typical, last, *self._doubts)
        return min(last, MOST_RISE * typical) if last > CHANGE_FACTOR * typical else typical

    def estimate(self, now: float) -> LinkEstimate:
        round_trip = self._round_trip(now)
        return LinkEstimate(self._rate(now), None if round_trip is None else round_trip / 2)

    def _rate(self, now: float) -> float | None:
        rates = self._recent(now)
        return _typical(rates) if rates else None

    def _recent(self, now: float) -> list[float]:
        return [sample.value for sample in self._rates if now - sample.at <= STALE_SECONDS]

    def _round_trip(self, now: float) -> float | None:
        if now - self._round_trip_at > STALE_SECONDS:
            return None
        return min(self._round_trips, default=None)

    def _add_round_trip(self, now: float, seconds: float) -> None:
        if now - self._round_trip_at > STALE_SECONDS:
            self._round_trips.clear()
        self._round_trips.append(seconds)
        self._round_trip_at = now

    def _confirms_round_trip(self, now: float) -> bool:
        """Whether the rate is the one at which the round trip was measured often enough."""
        return self._times >= ROUND_TRIPS and _are_one(self._rate(now), self._rate_then)

    def _compare(self, now: float, size: int, seconds: float) -> None:
        """What a message that is neither small nor large says of the rate."""
        rate, round_trip = self._rate(now), self._round_trip(now)
        if rate is None or round_trip is None:
            return
        on_link = seconds - round_trip
        if on_link > CHANGE_FACTOR * size / rate + JITTER_SECONDS:
            self._doubts.append(size / on_link)
        else:
            self._doubts.clear()

    def _on_link(self, now: float, seconds: float) -> float:
        # A delay that has just fallen leaves a round trip that is too long; some of the time is the link's anyhow.
        return max(seconds - (self._round_trip(now) or 0.0), seconds / 10, FLOOR_SECONDS)

    def _add(self, now: float, rate: float) -> float:
        self._rates.append(_Sample(now, rate))
        if len(self._rates) < 3:
            return rate
        *older, last_but_one, last = self._rates
        before = _typical([sample.value for sample in older])
        ratios = (last_but_one.value / before, last.value / before)
        if max(ratios) < 1 / CHANGE_FACTOR or min(ratios) > CHANGE_FACTOR:
            self._rates.clear()
            self._rates.extend((last_but_one, last))
        elif ratios[0] > CHANGE_FACTOR:
            # What is too fast, and is so time after time where a token bucket lets each first payload through at once.
            del self._rates[-2]
        return rate


def _are_one(rate: float | None, other: float | None) -> bool:
    return rate is not None and other is not None and _within(SAME_FACTOR, rate, other)


def _within(factor: float, rate: float, other: float) -> bool:
    return max(rate, other) <= factor * min(rate, other)


def _typical(rates: list[float]) -> float:
    """Of what is in the order in which it was measured."""
    return rates[-1] if len(rates) == 2 else sorted(rates)[int(QUANTILE * (len(rates) - 1))]

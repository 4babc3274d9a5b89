"""Response time of a request through a line of stations, each with a queue: mean and percentiles.

A station is a stage (as many servers as replicas) or one direction of a link (one server, constant service). Every
argument is a number or an array over candidate plans, so that thousands are predicted in one pass. Formulas, sources
and errors are in docs/planner.md, "Latency". Two properties carry the search for the frontier: a station's wait
depends on that station alone, and no percentile falls when a station's wait, its variance or third cumulant grows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.batching import Together, delays
from splitplane.planner.erlang import waiting_chance

Cumulants = tuple[Array, Array, Array]
"""Mean, variance and third central moment of a time, in seconds and their powers."""

PEAK_SKEWNESS = 2.585
"""Where the 95th percentile of a gamma distribution lies farthest above its mean, in standard deviations."""

NORMAL_95 = 1.6449
"""Where that of a normal distribution lies."""

DROPPED_BITS = 52 - 8
"""Binary digits of a percentile that are rounded away: eight are left."""

_TINY, _NEXT_TO_NOTHING = 1e-12, 1e-300
_ROUNDING = (1 << DROPPED_BITS) - 1

# Frequency factors of Pearson's type III distribution: percentiles in standard deviations above the mean, by skewness.
_SKEWNESS = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0])
_P50 = np.array(
    [0.0, -0.083, -0.164, -0.24, -0.307, -0.36, -0.396, -0.413, -0.379, -0.33, -0.25, -0.2, -0.167, -0.133, -0.1]
)
_P99 = np.array(
    [2.326, 2.686, 3.023, 3.33, 3.605, 3.845, 4.051, 4.368, 4.573, 4.687, 4.705, 4.527, 4.221, 3.632, 2.551]
)


@dataclass(frozen=True, slots=True)
class Station:
    """One place where requests queue: ``service`` in seconds with coefficient of variation ``cv``, ``servers`` >= 1.

    Only a ``share`` of the requests comes here. What these take may differ from ``service``, which is that of a request
    that passes the whole line: ``seen`` in the mean, with the squared coefficient of variation ``seen_scv``.
    ``together`` says how requests are computed together where they are.
    Requests of others, taken to be as these are, keep ``others`` of the servers busy.
    With ``extra`` nobody queues: who finds all servers busy (there may be none) is served elsewhere, which takes so
    many seconds longer.
    """

    service: Array
    cv: float
    servers: Array | float
    extra: float | None = None
    share: Array | float = 1.0
    seen: Array | None = None
    seen_scv: Array | float | None = None
    together: Together | None = None
    others: float = 0.0
    waits: float = 1.0
    """How often a request waits in its queue. Of several visits to one station the first counts all, as one wait."""


@dataclass(frozen=True, slots=True)
class Response:
    """Seconds by plan, infinite where a station is saturated; ``utilization`` is that of the busiest station.

    ``capacity`` is the rate per second at which the busiest station would be busy all the time, if nothing of others
    came there. ``deviation`` and ``skewness`` go with the mean. No percentile is below ``floor``, the median without
    any wait, nor above a higher one: the gamma distribution behind them reaches below that where times vary much, and
    p95 is rounded up.
    """

    mean: Array
    deviation: Array
    skewness: Array
    p95: Array
    floor: Array
    utilization: Array
    capacity: Array

    def where(self, places: Bools | Ints | slice) -> "Response":
        return Response(*(getattr(self, field.name)[places] for field in fields(self)))

    def p50(self, row: int) -> float:
        return float(self.where(slice(row, row + 1)).p50s[0])

    def p99(self, row: int) -> float:
        return float(self.where(slice(row, row + 1)).p99s[0])

    @property
    def p50s(self) -> Array:
        """The median of every plan."""
        found = self.mean + self.deviation * np.interp(self.skewness, _SKEWNESS, _P50)
        return np.asarray(np.minimum(np.maximum(found, self.floor), self.p95))

    @property
    def p99s(self) -> Array:
        found = self.mean + self.deviation * np.interp(self.skewness, _SKEWNESS, _P99)
        return np.asarray(np.maximum(found, self.p95))


def in_one_queue(visits: Sequence[Station]) -> list[Station]:
    """Visits of each request to one station, all in the queue that they make together. Waits of stations in a line add
    up in part only, as what passed one queue comes to the next in good order; those of one station do in full."""
    come: Array | float = sum(visit.share for visit in visits)
    mean: Array = np.add.reduce([visit.share * visit.service for visit in visits]) / come
    variance: Array = np.add.reduce([visit.share * (visit.service - mean) ** 2 for visit in visits]) / come
    waits, scv = (float(len(visits)), *([0.0] * (len(visits) - 1))), variance / mean**2
    return [
        replace(visit, share=come, seen=mean, seen_scv=scv, waits=each)
        for visit, each in zip(visits, waits, strict=True)
    ]


def respond(stations: Sequence[Station], *, constant: Array, rate: float | Array, arrival_scv: float) -> Response:
    """Response of requests that arrive at ``rate`` per second and pass all stations in order.

    ``constant`` is what adds to every request without a queue (propagation), in seconds; ``arrival_scv`` is the
    squared coefficient of variation of inter-arrival times.
    """
    # All stations at once, a row of the arrays each: numpy takes as long for four rows as for one.
    shapes = {station.service.shape for station in stations}
    shape = shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    service, servers = (np.empty((len(stations), *shape)) for _ in range(2))
    for row, station in enumerate(stations):
        service[row], servers[row] = station.service, station.servers
    scv = np.array([station.cv**2 for station in stations]).reshape(-1, *(1 for _ in shape))
    share: Array | float = 1.0
    seen, seen_scv = service, scv
    if any(station.seen is not None for station in stations):
        share, seen, seen_scv = _seen(stations, shape)
    lossy = [row for row, station in enumerate(stations) if station.extra is not None]
    if lossy:
        servers[lossy] = np.maximum(servers[lossy], 1.0)
    come = rate * share
    busy = come * seen / servers
    grouped = [(row, station.together) for row, station in enumerate(stations) if station.together is not None]
    for row, together in grouped:
        busy[row] = rate * together.at_least(service[row]) / servers[row]
    if lossy:
        busy[lossy] = 0.0
    own = utilization = np.maximum.reduce(busy)
    if any(station.others for station in stations):
        others = np.array([station.others for station in stations]).reshape(-1, *(1 for _ in shape))
        least = np.array(seen)
        for row, together in grouped:
            least[row] = together.at_least(service[row])
        come = come + others / np.maximum(least, _TINY)
        utilization = np.maximum.reduce(busy + others / servers)
    # A saturated station is far beyond any use; its numbers only have to be numbers.
    bearable = np.minimum(seen, servers * (1.0 - 1e-9) / come)
    waits = wait(bearable, seen_scv, servers, come, arrival_scv)
    for row, together in grouped:
        arriving = np.asarray(come)[row] if stations[row].others else rate
        longer = delays(service[row], float(scv.flat[row]), servers[row], arriving, arrival_scv, together)
        for one, other in zip(waits, longer, strict=True):
            one[row] = np.where(together.most > 1, other, one[row])
    squares = service**2
    spread = np.add.reduce(scv * squares)
    for row, together in grouped:
        squares[row] = together.of_single(squares[row])
        if row + 1 < len(stations):  # no stage follows another but over a link
            squares[row + 1] = together.of_link_behind(squares[row + 1])
    coupling = coupling_of(spread, np.add.reduce(squares))
    third_of_service = np.add.reduce(service_third(service, scv))
    # As they are, and as the 95th percentile feels them.
    felt = np.empty((5, *service.shape))
    for row, cumulant in enumerate((*waits, *waits[1:])):
        felt[row] = cumulant
    if lossy:
        felt[:, lossy] = 0.0
    damp(felt[3], felt[4])
    if any(station.waits != 1.0 for station in stations):
        felt *= np.array([station.waits for station in stations]).reshape(-1, *(1 for _ in shape))
    plain, variance, third, steady, skewed = blend(
        np.add.reduce(felt, axis=1), np.maximum.reduce(felt, axis=1), coupling
    )
    served = constant + np.add.reduce(service)
    floor = _median(served, spread, third_of_service, constant)
    plain += served
    variance += spread
    steady += spread
    third += third_of_service
    skewed += third_of_service
    mean, quick = plain, plain
    if lossy:
        extra, late = _elsewhere(stations, rate, arrival_scv)
        mean, variance, third, quick = plain + extra[0], variance + extra[1], third + extra[2], plain + late
    deviation = np.sqrt(variance)
    positive = np.maximum(deviation, _TINY)
    saturated = utilization >= 1.0
    return Response(
        mean=np.where(saturated, np.inf, mean),
        deviation=deviation,
        skewness=third / (positive * positive * positive),
        p95=np.where(saturated, np.inf, percentile_95(quick, steady, skewed)),
        floor=floor,
        utilization=utilization,
        capacity=np.where(own > 0.0, rate / np.maximum(own, _TINY), np.inf),
    )


def _median(mean: Array, variance: Array, third: Array, least: Array) -> Array:
    """The median of a gamma distribution with these cumulants; not below ``least``, and none above the mean."""
    deviation = np.sqrt(variance)
    skewness = third / np.maximum(deviation * variance, _NEXT_TO_NOTHING)
    median: Array = mean + deviation * np.interp(skewness, _SKEWNESS, _P50)
    return np.maximum(median, least)


def _seen(stations: Sequence[Station], shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Share of the requests, mean service and its spread as the queues see them, a row for each station."""
    columns = [
        (station.share, station.service, station.cv**2)
        if station.seen is None
        else (station.share, station.seen, station.cv**2 if station.seen_scv is None else station.seen_scv)
        for station in stations
    ]
    share, seen, scv = (
        np.array([np.broadcast_to(each, shape) for each in column]) for column in zip(*columns, strict=True)
    )
    return share, seen, scv


def _elsewhere(stations: Sequence[Station], rate: float | Array, arrival_scv: float) -> tuple[Cumulants, float | Array]:
    """Cumulants of what requests take longer elsewhere, and of that what the 95th percentile feels."""
    zero = np.zeros(())
    mean, variance, third, felt = zero, zero, zero, zero
    for station in stations:
        if station.extra is not None:
            busy = station.service if station.seen is None else station.seen
            share = overflow_share(station.servers, rate * station.share * busy, arrival_scv)
            variation = share * (1.0 - share)
            mean = mean + share * station.extra
            variance = variance + variation * station.extra**2
            third = third + variation * (1.0 - 2.0 * share) * station.extra**3
            felt = felt + felt_extra(share, station.extra)
    return (mean, variance, third), felt


def felt_extra(share: Array, extra: float) -> Array:
    """What the 95th percentile feels of ``extra`` seconds that a share of the requests takes longer: all of them if
    that is one in twenty. Below, what lies in proportion, which is more than there is."""
    return extra * np.minimum(1.0, 20.0 * share)


def overflow_share(servers: Array | float, offered: Array, arrival_scv: float) -> Array:
    """Share of the requests that find all servers busy where nobody queues (Erlang's B), by busy servers ``offered``.

    Exact for Poisson arrivals, whatever the spread of service. Others by Hayward's approximation: as with fewer or
    more servers and less or more load, in proportion to the peakedness ``(1 + arrival_scv) / 2`` of a renewal stream.
    With more servers it never grows.
    """
    peakedness = (1.0 + arrival_scv) / 2.0
    servers, offered = np.broadcast_arrays(servers / peakedness, offered / peakedness)
    below = np.floor(servers)
    share = np.ones(offered.shape)
    low = share
    for count in range(1, int(servers.max(initial=0.0)) + 2):
        low = np.where(below == count - 1.0, share, low)
        share = offered * share / (count + offered * share)
        # Between whole numbers of servers the logarithm is taken to be linear.
        if peakedness != 1.0:
            place = np.flatnonzero(below == count - 1.0)
            part = (servers - below).take(place)
            low.put(place, low.take(place) ** (1.0 - part) * share.take(place) ** part)
    return low


def wait(service: Array, scv: float | Array, servers: Array, rate: float | Array, arrival_scv: float) -> Cumulants:
    """Cumulants of the wait at one station whose service has the squared coefficient of variation ``scv``.

    ``service`` and ``servers`` have one shape; every load is below 1. With more servers no cumulant grows.
    """
    load = rate * service / servers
    idle = 1.0 - load
    chance = waiting_chance(servers, load)
    mean = chance * service
    mean /= servers * idle
    if arrival_scv == 1.0:
        mean *= (1.0 + scv) / 2.0
    else:
        both = arrival_scv + scv + _TINY
        mean *= both / 2.0
        if arrival_scv < 1.0:
            smooth = (-2.0 * (1.0 - arrival_scv) ** 2 / (3.0 * both)) * idle
            mean *= np.exp(smooth / np.maximum(chance, _TINY))
            ratio = (1.0 + arrival_scv + load * scv) / (1.0 + load * (scv - 1.0) + load**2 * (4.0 * arrival_scv + scv))
        else:
            mean *= np.exp(idle * ((1.0 - arrival_scv) / (arrival_scv + 4.0 * scv)))
            ratio = 4.0 * load / (arrival_scv + load**2 * (4.0 * arrival_scv + scv))
        chance *= 1.0 + (arrival_scv - 1.0) * idle * ratio
    np.maximum(chance, 1e-6, out=chance)
    np.minimum(chance, 1.0, out=chance)
    spread = idle * (4.0 / 3.0 * np.maximum(3.0 * scv, 2.0 * scv + 1.0) / (1.0 + scv) - 2.0)
    spread += 1.0
    np.maximum(spread, 0.0, out=spread)  # the squared coefficient of variation of the wait of those who wait
    waiting = mean / chance
    second = mean * waiting
    second *= spread + 1.0
    square = mean * mean
    variance = second - square
    spread *= 2.0
    spread += 1.0
    spread *= waiting
    third = second * spread
    third -= mean * (3.0 * second - 2.0 * square)
    return mean, variance, third


def delay(
    service: Array, scv: float | Array, servers: Array, rate: float | Array, arrival_scv: float,
    together: Together | None,
) -> Cumulants:  # fmt: skip
    """Cumulants of what a request takes longer than its service alone: ``wait``, or what comes of being computed
    together with others."""
    if together is None:
        return wait(service, scv, servers, rate, arrival_scv)
    # Where requests are computed together one by one would be too slow; those numbers only have to be numbers.
    alone = wait(np.minimum(service, servers * (1.0 - 1e-9) / rate), scv, servers, rate, arrival_scv)
    longer = delays(service, scv, servers, rate, arrival_scv, together)
    mean, variance, third = (np.where(together.most > 1, one, other) for one, other in zip(longer, alone, strict=True))
    return mean, variance, third


def damp(variance: Array, third: Array) -> tuple[Array, Array]:
    """Variance and third cumulant of a wait as its 95th percentile feels them; changes its arguments.

    A wait that few requests meet has a skewness beyond the peak, where the percentile falls back to the mean.
    """
    skewness = np.sqrt(variance)
    skewness *= variance
    skewness += 1e-300
    np.divide(third, skewness, out=skewness)
    skewness -= PEAK_SKEWNESS
    rare = np.flatnonzero(skewness > 0.0)
    if len(rare):
        shrunk = variance.take(rare) * np.exp(skewness.take(rare) ** 2 / -26.0)
        variance.put(rare, shrunk)
        third.put(rare, PEAK_SKEWNESS * shrunk * np.sqrt(shrunk))
    return variance, third


def service_third(service: Array, scv: float | Array) -> Array:
    """Third central moment of a gamma distributed service."""
    return 2.0 * scv**2 * (service * service * service)  # a power of three takes ten times as long


def coupling_of(variance: Array, square: Array) -> Array:
    """How far waits at several stations add up: the coefficient of variation of the whole service, at most 1.

    ``square`` leaves out stages that compute requests together, and the links behind them: what they hand on comes in
    batches.
    """
    coupling = variance + _NEXT_TO_NOTHING
    coupling /= square + _NEXT_TO_NOTHING
    np.sqrt(coupling, out=coupling)
    return np.minimum(coupling, 1.0, out=coupling)


def blend(total: Array, largest: Array, coupling: Array) -> Array:
    """One cumulant of the whole line's wait, from the sum over the stations and the largest of them."""
    result = total - largest
    result *= coupling
    result += largest
    return result


def percentile_95(mean: Array, variance: Array, third: Array) -> Array:
    """95th percentile of a gamma distribution with these cumulants, rounded up; changes none of them."""
    deviation = np.sqrt(variance)
    skewness = third / (deviation * variance + 1e-300)
    np.minimum(skewness, PEAK_SKEWNESS, out=skewness)
    factor = skewness * -0.0557
    factor += 0.2880
    factor *= skewness
    factor += NORMAL_95
    factor *= deviation
    factor += mean
    return round_up(factor)


def round_up(values: Array) -> Array:
    """The next number of eight binary digits, 0.4 % above at most: what a prediction can tell apart. Infinity stays."""
    bits = values.view(np.int64) + _ROUNDING
    bits &= ~_ROUNDING
    return bits.view(np.float64)

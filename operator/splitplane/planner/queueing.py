"""Response time of a request through a line of stations, each with a queue: mean and 95th percentile.

Every argument is a number or an array over candidate plans, so that thousands of plans are predicted in one pass.
A station is a stage (as many servers as replicas) or one direction of a link (one server). Sources:

- mean wait of a G/G/c queue: Allen and Cunneen's formula with the factor of Krämer and Langenbach-Belz for
  arrivals that are not Poisson (Bolch et al., "Queueing Networks and Markov Chains", 2nd ed., section 6.3.6);
- probability of a wait: Erlang's C times Krämer and Langenbach-Belz's ratio for one server;
- spread of the wait of those who wait, and variability of departures: Whitt, "The Queueing Network Analyzer",
  Bell System Technical Journal 62 (1983), equations 38 and 50 to 53;
- 95th percentile: stations are taken as independent, so their cumulants add; a gamma distribution with the sum's
  mean, variance and skewness (Pearson type III) is evaluated by Wilson and Hilferty's cube (PNAS 17, 1931).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Z95 = 1.6448536269514722
"""95 % quantile of the standard normal distribution."""

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Station:
    """One place where requests queue. ``service`` in seconds, ``variance`` in seconds squared, ``servers`` >= 1."""

    service: Array
    variance: Array
    servers: Array


@dataclass(frozen=True, slots=True)
class Response:
    """Seconds by plan, infinite where a station is saturated; ``utilization`` is that of the busiest station.

    ``capacity`` is the rate per second at which the busiest station would be busy all the time.
    """

    mean: Array
    p95: Array
    utilization: Array
    capacity: Array


def respond(stations: Sequence[Station], *, constant: Array, rate: float | Array, arrival_scv: float) -> Response:
    """Response of requests that arrive at ``rate`` per second and pass all stations in order.

    ``constant`` is what adds to every request without a queue (propagation), in seconds; ``arrival_scv`` is the
    squared coefficient of variation of inter-arrival times.
    """
    mean = constant.astype(np.float64)
    variance = np.zeros_like(mean)
    third = np.zeros_like(mean)
    utilization = np.zeros_like(mean)
    scv = np.full_like(mean, max(0.0, arrival_scv))
    for station in stations:
        load = rate * station.service / station.servers
        utilization = np.maximum(utilization, load)
        rho = np.minimum(load, 1.0 - 1e-9)
        service_scv = station.variance / np.maximum(station.service, _TINY) ** 2
        wait, wait_variance, wait_third = _wait(station, rho, scv, service_scv)
        mean = mean + station.service + wait
        variance = variance + station.variance + wait_variance
        third = third + 2.0 * station.variance**2 / np.maximum(station.service, _TINY) + wait_third
        scv = departure_scv(rho, scv, service_scv, station.servers)
    p95 = np.maximum(mean, pearson_p95(mean, variance, third))
    saturated = utilization >= 1.0
    return Response(
        mean=np.where(saturated, np.inf, mean),
        p95=np.where(saturated, np.inf, p95),
        utilization=utilization,
        capacity=rate / np.maximum(utilization, _TINY),
    )


def erlang_c(servers: Array, offered: Array) -> Array:
    """Probability that a Poisson arrival waits in M/M/c, by the stable recursion for Erlang's B; load below 1."""
    blocking = np.ones_like(offered)
    result = np.ones_like(offered)
    for count in range(1, int(servers.max(initial=1)) + 1):
        blocking = offered * blocking / (count + offered * blocking)
        result = np.where(servers == count, blocking, result)
    rho = offered / servers
    return result / (1.0 - rho * (1.0 - result))


def departure_scv(rho: Array, arrival_scv: Array, service_scv: Array, servers: Array) -> Array:
    """Variability of what leaves a station: arrivals' and service's, weighed by the load (Whitt, equation 38)."""
    scv = 1.0 + (1.0 - rho**2) * (arrival_scv - 1.0) + rho**2 * (service_scv - 1.0) / np.sqrt(servers)
    return np.maximum(0.0, scv)


def pearson_p95(mean: Array, variance: Array, third: Array) -> Array:
    """95th percentile of a gamma distribution, shifted so that it has these first three cumulants."""
    deviation = np.sqrt(variance)
    skew = third / np.maximum(deviation, _TINY) ** 3
    safe = np.where(skew < 1e-6, 1.0, skew)
    # Beyond a skewness of about 10 the cube's base passes zero, where the distribution has its lower end.
    base = np.maximum(0.0, 1.0 + safe * Z95 / 6.0 - safe**2 / 36.0)
    factor = np.where(skew < 1e-6, Z95, 2.0 / safe * (base**3 - 1.0))
    p95: Array = mean + deviation * factor
    return p95


def _wait(station: Station, rho: Array, scv: Array, service_scv: Array) -> tuple[Array, Array, Array]:
    """Mean, variance and third central moment of the wait."""
    erlang = erlang_c(station.servers, rho * station.servers)
    spread = np.maximum(scv + service_scv, _TINY)
    smooth = np.exp(-2.0 * (1.0 - rho) * (1.0 - scv) ** 2 / (3.0 * np.maximum(erlang, _TINY) * spread))
    bursty = np.exp(-(1.0 - rho) * np.maximum(0.0, scv - 1.0) / (scv + 4.0 * service_scv + _TINY))
    wait = erlang * station.service / (station.servers * (1.0 - rho)) * spread / 2.0
    wait = wait * np.where(scv <= 1.0, smooth, bursty)

    chance = np.clip(erlang * _wait_ratio(rho, scv, service_scv), 1e-6, 1.0)
    skewed = np.where(
        service_scv >= 1.0,
        3.0 * service_scv * (1.0 + service_scv),
        (2.0 * service_scv + 1.0) * (service_scv + 1.0),
    )
    waiting_scv = np.maximum(0.0, 2.0 * rho - 1.0 + 4.0 * (1.0 - rho) * skewed / (3.0 * (service_scv + 1.0) ** 2))
    waiting = wait / chance
    second = chance * waiting**2 * (1.0 + waiting_scv)
    cube = chance * waiting**3 * (1.0 + waiting_scv) * (1.0 + 2.0 * waiting_scv)
    return wait, second - wait**2, cube - 3.0 * wait * second + 2.0 * wait**3


def _wait_ratio(rho: Array, scv: Array, service_scv: Array) -> Array:
    """Probability of a wait in G/G/1 over that in M/G/1 (Krämer and Langenbach-Belz)."""
    smooth = (1.0 + scv + rho * service_scv) / (1.0 + rho * (service_scv - 1.0) + rho**2 * (4.0 * scv + service_scv))
    bursty = 4.0 * rho / (scv + rho**2 * (4.0 * scv + service_scv) + _TINY)
    ratio: Array = 1.0 + (scv - 1.0) * (1.0 - rho) * np.where(scv <= 1.0, smooth, bursty)
    return ratio

"""An event simulation of requests that pass stations with queues, to hold the planner's formulas against.

Many lines of stations are simulated side by side, one row of an array each. Service is first come, first served at
every station, in the order in which requests reach it: with several servers one may overtake another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOST_SERVERS = 16


@dataclass(frozen=True)
class Line:
    """A line of (mean service in seconds, coefficient of variation, servers), and requests per second."""

    stations: tuple[tuple[float, float, int], ...]
    rate: float
    arrival_scv: float = 1.0


def simulate(lines: Sequence[Line], *, requests: int, warm_up: int, seed: int = 1, batch: int = 100) -> Array:
    """Response times in seconds, sorted: one row per line, one column per request after the first ``warm_up``."""
    rng = np.random.default_rng(seed)
    batches = [lines[at : at + batch] for at in range(0, len(lines), batch)]
    return np.concatenate([_simulate(each, requests, rng)[:, warm_up:] for each in batches])


def percentile(times: Array, share: float) -> Array:
    return np.quantile(times, share, axis=1)


def _simulate(lines: Sequence[Line], requests: int, rng: np.random.Generator) -> Array:
    between = np.stack([gaps(line, requests, rng) for line in lines])
    arrivals = np.cumsum(between, axis=1)
    times = arrivals.copy()
    for place in range(max(len(line.stations) for line in lines)):
        spec = [line.stations[place] if place < len(line.stations) else (0.0, 0.0, 1) for line in lines]
        order = np.argsort(times, axis=1, kind="stable")
        reached = np.take_along_axis(times, order, axis=1)
        means, scvs, servers = (np.array(column) for column in zip(*spec, strict=True))
        left = serve(reached, means, scvs, servers, rng)
        np.put_along_axis(times, order, left, axis=1)
    return times - arrivals


def serve(reached: Array, mean: Array, cv: Array, servers: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """When requests leave a station that they reach in this order."""
    rows, requests = reached.shape
    spread = np.maximum(cv, 1e-9)[:, None] ** 2
    busy_until = np.where(np.arange(MOST_SERVERS) < servers[:, None], 0.0, np.inf)
    everyone = np.arange(rows)
    left = np.empty_like(reached)
    for start in range(0, requests, 1000):
        stop = min(requests, start + 1000)
        service = rng.standard_gamma(1.0 / spread, size=(rows, stop - start)) * (mean[:, None] * spread)
        service = np.where(cv[:, None] > 0.0, service, mean[:, None])
        for request in range(start, stop):
            server = busy_until.argmin(axis=1)
            end = np.maximum(reached[:, request], busy_until[everyone, server]) + service[:, request - start]
            busy_until[everyone, server] = end
            left[:, request] = end
    return left


def gaps(line: Line, requests: int, rng: np.random.Generator) -> Array:
    """Inter-arrival times: constant, gamma distributed (up to exponential), or hyperexponential with balanced means."""
    scv, mean = line.arrival_scv, 1.0 / line.rate
    if scv == 0.0:
        return np.full(requests, mean)
    if scv <= 1.0:
        return rng.standard_gamma(1.0 / scv, size=requests) * (mean * scv)
    share = 0.5 * (1.0 + np.sqrt((scv - 1.0) / (scv + 1.0)))
    fast = rng.random(requests) < share
    return rng.standard_exponential(requests) * mean / np.where(fast, 2.0 * share, 2.0 * (1.0 - share))

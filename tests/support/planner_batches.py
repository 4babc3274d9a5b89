"""Profiles with batches, and an event simulation of replicas that compute together what waits, as stages do.

A request goes to the replica with the fewest requests, of these to the one used longest ago, as gateways send it; a
free replica takes all that wait there, up to the largest batch, and all of a batch are done at the same time.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from splitplane.domain.profiles import DeviceProfile, Profile, Timing
from tests.support import planner_simulation as alone

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def shared(profile: Profile, fixed: float = 0.6) -> Profile:
    """The model with measured batches of 4 and 16, of which each takes ``fixed`` of a sample's time but once."""

    def batched(device: DeviceProfile) -> DeviceProfile:
        timings = [
            Timing(n, device.threads, tuple(s * (fixed + (1.0 - fixed) * n) for s in device.prefix_seconds), 0.02)
            for n in (4, 16)
        ]
        return replace(device, timings=tuple(timings))

    return replace(profile, devices={name: batched(device) for name, device in profile.devices.items()})


@dataclass(frozen=True)
class Stop:
    """Mean service in seconds, its coefficient of variation, servers; a batch of ``n``, ``most`` at most, takes
    ``fixed + (1 - fixed) n`` times as long."""

    service: float
    cv: float
    servers: int = 1
    fixed: float = 0.0
    most: int = 1


def simulate(
    lines: list[tuple[Stop, ...]],
    *,
    requests: int,
    warm_up: int,
    scv: float = 1.0,
    seed: int = 1,
    one_queue: bool = True,
) -> Array:
    """Response times in seconds: a row per line, a column per request after the first ``warm_up``; one comes a second.

    Where nothing is computed together replicas share a queue, or, too, have one each (``one_queue=False``).
    """
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum([alone.gaps(alone.Line((), 1.0, scv), requests, rng) for _ in lines], axis=1)
    times = arrivals.copy()
    for place in range(max(map(len, lines))):
        rows = np.array([row for row, line in enumerate(lines) if place < len(line)])
        stops = [lines[row][place] for row in rows]
        order = np.argsort(times[rows], axis=1, kind="stable")
        reached = np.take_along_axis(times[rows], order, axis=1)
        left = np.empty_like(reached)
        grouped = np.array([stop.most > 1 or not one_queue for stop in stops])
        for one_by_one in (True, False):
            some = np.flatnonzero(grouped != one_by_one)
            if len(some):
                serve = _serve_alone if one_by_one else _serve_together
                left[some] = serve(reached[some], [stops[each] for each in some], rng)
        back = np.empty_like(left)
        np.put_along_axis(back, order, left, axis=1)
        times[rows] = back
    return (times - arrivals)[:, warm_up:]


def _serve_alone(reached: Array, stops: list[Stop], rng: np.random.Generator) -> Array:
    mean, cv, servers = (np.array([getattr(stop, name) for stop in stops]) for name in ("service", "cv", "servers"))
    return alone.serve(reached, mean, cv, servers, rng)


def _serve_together(reached: Array, stops: list[Stop], rng: np.random.Generator) -> Array:
    """When requests leave that reach the replicas in this order."""
    rows, requests = reached.shape
    mean, cv, fixed = (np.array([getattr(stop, name) for stop in stops]) for name in ("service", "cv", "fixed"))
    most, servers = (np.array([getattr(stop, name) for stop in stops]) for name in ("most", "servers"))
    spread, everyone, replicas = np.maximum(cv, 1e-6) ** 2, np.arange(rows), int(servers.max())
    away = np.where(np.arange(replicas) < servers[:, None], 0.0, 1e9)
    free_at = np.zeros((rows, replicas))
    waiting, running, came, done = (np.zeros((rows, replicas), dtype=np.int64) for _ in range(4))
    used = np.tile(np.arange(replicas) - replicas, (rows, 1)).astype(np.float64)
    where, number = (np.empty((rows, requests), dtype=np.int64) for _ in range(2))
    batches: list[tuple[Ints, Ints, Ints, Array]] = []

    def start(row: Ints, replica: Ints, at: Array, size: Ints) -> None:
        seconds = mean[row] * (fixed[row] + (1.0 - fixed[row]) * size)
        free_at[row, replica] = at + seconds * rng.standard_gamma(1.0 / spread[row]) * spread[row]
        waiting[row, replica] -= size
        running[row, replica] = size
        done[row, replica] += size
        batches.append((row, replica, done[row, replica], free_at[row, replica]))

    def run(now: Array) -> None:
        while len((due := np.nonzero((free_at <= now[:, None]) & (waiting > 0)))[0]):
            row, replica = due
            start(row, replica, free_at[due], np.minimum(waiting[due], most[row]))

    for request in range(requests):
        now = reached[:, request]
        run(now)
        held = waiting + np.where(free_at > now[:, None], running, 0)
        replica = (held + away + 1e-9 * used).argmin(axis=1)
        where[:, request], number[:, request] = replica, came[everyone, replica]
        came[everyone, replica] += 1
        used[everyone, replica] = request
        waiting[everyone, replica] += 1
        idle = np.flatnonzero(held[everyone, replica] == 0)
        start(idle, replica[idle], now[idle], np.ones_like(idle))
    run(np.full(rows, np.inf))
    row, replica, last, end = (np.concatenate(column) for column in zip(*batches, strict=True))
    # A request is done with the first batch of its replica that holds as many as came there before it, and one more.
    key = (row * replicas + replica) * (requests + 1) + last
    order = np.argsort(key)
    asked = (everyone[:, None] * replicas + where) * (requests + 1) + number + 1
    found: Array = end[order][np.searchsorted(key[order], asked)]
    return found

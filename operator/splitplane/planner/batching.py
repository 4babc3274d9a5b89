"""How much longer a request takes at a stage that computes together what waits.

A free replica takes all that wait, ``most`` at once, and a batch of ``n`` takes ``fixed + (1 - fixed) n`` times as long
as one request. The *delay* is what a request takes beyond its service alone: its wait, and what its batch takes longer.
For one replica it is solved as a Markov chain, once, and read from a table; more replicas are an interpolation between
that and what evenly spread arrivals would make of it (docs/planner.md, "Batches").
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from splitplane.domain.batches import MISSES, PAYS
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.erlang import waiting_chance

LARGEST = 16
"""Larger batches are not counted."""

_STEP, _BUSY, _FINE = 0.0125, 73, 8
_BUSIEST = _STEP * (_BUSY - 1)
"""Beyond the highest utilisation of the tables delays grow as in heavy traffic. At every eighth a chain is solved."""
_SHARES = 21
_SOLVED = np.array([0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0])
"""Fixed shares for which a chain is solved; the tables have evenly spaced ones."""
_SERVERS = 16
_STAYING = 0.8
"""How much of a batch's fixed part a further replica does not take away from who finds all of them busy."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(3)
_NODES, _WEIGHTS = (1.0 - _NODES) / 2.0, _WEIGHTS / 2.0


@dataclass(frozen=True, slots=True)
class Together:
    """How requests are computed together at a stage, by option: ``fixed`` is the share of a request's service that a
    batch takes but once, ``most`` the largest batch; 0 and 1 where all are served one by one."""

    fixed: Array
    most: Ints

    def at_least(self, service: Array) -> Array:
        """Seconds that a replica is busy for each request at full batches."""
        return service * (self.fixed / self.most + (1.0 - self.fixed))

    def of_single(self, square: Array) -> Array:
        """The square of a service where requests are served one by one, 0 elsewhere (``queueing.coupling_of``)."""
        return np.where(self.most > 1, 0.0, square)

    def of_link_behind(self, square: Array) -> Array:
        """The same for the link behind the stage: more than two requests reach it together, so they wait there, too."""
        return np.where(self.most > 2, 0.0, square)

    def where(self, places: Bools | Ints) -> "Together":
        return Together(self.fixed[places], self.most[places])

    def column(self) -> "Together":
        return Together(self.fixed[:, None], self.most[:, None])


def paying_size(alone: Array, more: Array, *, most: int, within_seconds: float | None) -> Ints:
    """The batch that a stage comes to, a power of two: the same rule as it learns by (``runtime.stage.batching``).

    A sample takes ``alone`` seconds by itself, and each further one of its batch takes ``more``.
    """
    best, seconds = np.ones(alone.shape, dtype=np.int64), alone
    looking, missed = np.ones(alone.shape, dtype=np.bool_), np.zeros(alone.shape, dtype=np.int64)
    size = 2
    while size <= min(most, LARGEST):
        whole = alone + (size - 1) * more
        if within_seconds is not None:
            looking &= size * seconds <= within_seconds  # a size that was never tried is taken to save nothing
        pays = looking & (whole <= PAYS * size * seconds) & (whole > 0.0)
        best, seconds = np.where(pays, size, best), np.where(pays, whole / size, seconds)
        missed = np.where(pays, 0, missed + 1)
        looking &= missed < MISSES
        size *= 2
    return best


def delays(
    service: Array, scv: float | Array, servers: Array, rate: float | Array, arrival_scv: float, together: Together
) -> tuple[Array, Array, Array]:
    """Mean, variance and third cumulant of the delay, in seconds and their powers; those where ``most`` is 1 mean
    nothing. ``servers`` are replicas, of which each request goes to the one with the fewest. With more of them no
    cumulant grows.
    """
    service, servers, each, fixed, most = np.broadcast_arrays(
        service, servers, together.at_least(service) * rate, together.fixed, together.most
    )
    mean, variance, third = _looked_up(np.minimum(each / servers, 1.0 - 1e-9), servers, fixed, most)
    # Arrivals in bursts fill batches, so that they do less harm than where all are served one by one.
    bursty = min(arrival_scv, arrival_scv**0.7) + scv
    if np.max(bursty) < 1.0:
        part, even, spread = _even(rate * service / servers, fixed)
        mean = bursty * mean + (1.0 - bursty) * np.minimum(part * even, mean)
        varied = np.minimum(1.0, bursty**2 + 4.0 * scv)
        variance = varied * variance + (1.0 - varied) * np.minimum(part * spread, variance)
    else:
        mean, variance = bursty * mean, (bursty**2 + 4.0 * scv) * variance
    # A batch's own time varies too; it waits for half of one like it.
    variance = variance + scv * (np.maximum(1.0, (1.0 + mean) / 1.5) ** 2 - 1.0)
    third = bursty**3 * third
    # The more requests a batch takes, the more even is what comes for each; how long each takes varies as before.
    busy = np.minimum(each / servers, 1.0 - 1e-9)
    more = 0.5 * scv * busy**4 / (1.0 - busy) / servers * (fixed + (1.0 - fixed) * most)
    third = third + 6.0 * mean * more * (mean + more) + 2.0 * more**3
    variance = variance + more * (2.0 * mean + more)
    return (mean + more) * service, variance * service**2, third * service**3


def _looked_up(busy: Array, servers: Array, fixed: Array, most: Ints) -> Array:
    """The tables' cumulants, linear between their points."""
    found = np.zeros((3, *busy.shape))
    right, down = np.minimum(busy, _BUSIEST * (1.0 - 1e-12)) / _STEP, fixed * ((_SHARES - 1) * (1.0 - 1e-12))
    column, row = right.astype(np.int64), down.astype(np.int64)
    right, down = right - column, down - row
    place = ((np.minimum(servers, _SERVERS).astype(np.int64) - 1) * _SHARES + row) * _BUSY + column
    for size in np.unique(most):
        if size > 1:
            table = _table(int(size))
            here = most == size
            where, x, y = place[here], right[here], down[here]
            above = table[:, where] * (1.0 - x) + table[:, where + 1] * x
            below = table[:, where + _BUSY] * (1.0 - x) + table[:, where + _BUSY + 1] * x
            found[:, here] = above * (1.0 - y) + below * y
    heavy = np.maximum(1.0, (1.0 - _BUSIEST) / (1.0 - busy))
    found *= np.array((heavy, heavy**2, heavy**3))
    return found


@lru_cache
def _table(most: int) -> Array:
    """Cumulants (3 x flat over servers, fixed share and utilisation) that never fall with the utilisation, nor grow
    with the servers."""
    busy, fixed = _STEP * np.arange(_BUSY), np.linspace(0.0, 1.0, _SHARES)[:, None]
    solved = busy[::_FINE]
    one = [[delay_moments(each, share, most) if each else (0.0,) * 3 for each in solved.tolist()] for share in _SOLVED]
    # What is smooth is interpolated: heavy traffic is taken out of it.
    idle = (1.0 - busy) ** np.arange(1, 4)[:, None, None]
    scaled = np.array(one).transpose(2, 0, 1) * idle[:, :, ::_FINE]
    wide = np.array([[np.interp(busy, solved, row) for row in each] for each in scaled]) / idle
    cumulants = np.array([[np.interp(fixed[:, 0], _SOLVED, row) for row in each.T] for each in wide]).transpose(0, 2, 1)
    offered = busy / (fixed / most + 1.0 - fixed)
    found = [_several(float(servers), cumulants, offered, fixed) for servers in range(1, _SERVERS + 1)]
    never_falling = np.maximum.accumulate(np.array(found), axis=3)
    return np.minimum.accumulate(never_falling, axis=0).transpose(1, 0, 2, 3).reshape(3, -1)


def _several(servers: float, one: Array, offered: Array, fixed: Array) -> Array:
    """The cumulants for so many replicas, from those ``one`` has at the same load each. ``offered`` is the load as a
    share of what replicas bear that serve one by one."""
    mean, variance, third = one
    rest = 1.0 - 1.0 / servers
    # Up to a load of one a request waits that finds all replicas busy: for one of them, and the less the more there
    # are; of many, one is soon free.
    below = np.maximum(np.minimum(offered, 1.0), 1e-9)
    chance = waiting_chance(np.full(offered.shape, servers), below) / below * below ** (6.0 * rest**8)
    scale = 1.0 - rest * (1.0 - _STAYING * fixed * below)
    second = variance + mean**2
    raw = third + 3.0 * mean * second - 2.0 * mean**3
    longer, square, cube = chance * scale * mean, chance * scale**2 * second, chance * scale**3 * raw
    few = longer, square - longer**2
    # From one and a half on all are busy, and what comes to each is the more even the more there are.
    part, even, spread = _even(offered, fixed)
    many = [(1.0 - rest) * mean + rest * np.minimum(even, mean)]
    many.append((1.0 - rest) * variance + rest * np.minimum(spread, variance))
    skewed = np.minimum(cube - 3.0 * longer * square + 2.0 * longer**3, scale**3 * third)
    longer, varied = ((1.0 - part) * a + part * b for a, b in zip(few, many, strict=True))
    # Above a load of one nearly all requests wait: their waits are no rare ones.
    return np.array((longer, varied, np.where(offered < 1.0, skewed, np.minimum(skewed, 2.0 * varied**1.5))))


def _even(offered: Array, fixed: Array) -> tuple[Array, Array, Array]:
    """Mean and variance of the delay where arrivals are evenly spread, and how far that tells: not at all while
    requests can be served one by one, in full from one and a half of that load on.

    Each batch holds those that came during the one before; of two replicas the one that began last is the emptier.
    """
    cycle = fixed / np.maximum(1.0 - offered * (1.0 - fixed), 1e-3)
    return np.clip(2.0 * (offered - 1.0), 0.0, 1.0), np.maximum(0.0, 1.6 * cycle - 1.0), cycle**2 / 12.0


def delay_moments(busy: float, fixed: float, most: int) -> tuple[float, float, float]:
    """Mean, variance and third central moment of the delay at one replica, in units of the service of one request.

    ``busy`` is the arrival rate as a share of that which full batches bear, below 1.
    """
    seconds = fixed + (1.0 - fixed) * np.arange(1.0, most + 1.0)
    rate = busy * most / seconds[-1]
    queue = np.arange(most + 30 + int(15.0 * busy / (1.0 - busy)))
    left = _left_behind(rate, seconds, len(queue))
    # What a service starts with: the requests in it, and those that it leaves waiting.
    weights = np.zeros((most, len(queue)))
    weights[: most - 1, 0] = left[1:most]
    weights[most - 1, : len(queue) - most] = left[most:]
    weights[0, 0] += left[0]
    turns, place = np.divmod(queue, most)
    moments = np.zeros(3)
    total = left[0]  # who comes to an idle replica is served at once
    for batch, ahead in enumerate(weights):
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            before = np.convolve(ahead, _poisson(np.array([rate * seconds[batch] * node]), len(queue))[0])
            total += before[: len(queue)].sum() * weight * rate * seconds[batch]
            some = np.flatnonzero(before[: len(queue)] > 1e-10)
            chance = before[some] * (weight * rate * seconds[batch])
            until = seconds[batch] * (1.0 - node) + turns[some] * seconds[-1]
            # The request's own batch also takes those that come behind it before it starts.
            behind = _poisson(rate * until, most)
            size = np.minimum(place[some, None] + 1 + np.arange(most), most)
            share = behind.copy()
            share[:, -1] = 1.0 - behind[:, :-1].sum(axis=1)
            delay = until[:, None] + seconds[size - 1] - 1.0
            for power in range(3):
                share *= delay
                moments[power] += chance @ share.sum(axis=1)
    mean, second, third = moments / total
    return mean, second - mean**2, third - 3.0 * mean * second + 2.0 * mean**3


def _left_behind(rate: float, seconds: Array, states: int) -> Array:
    """How likely a batch leaves so many waiting."""
    most = len(seconds)
    come = _poisson(rate * seconds, states)
    step = np.empty((states, states))
    step[: most + 1] = come[[0, *range(most)]]
    for waiting in range(most + 1, states):
        rest = waiting - most
        step[waiting, :rest], step[waiting, rest:] = 0.0, come[-1, : states - rest]
    step[:, -1] += 1.0 - step.sum(axis=1)
    balance = step.T - np.eye(states)
    balance[-1] = 1.0
    return np.linalg.solve(balance, np.eye(states)[-1])


def _poisson(mean: Array, count: int) -> Array:
    """Probabilities of 0 to ``count - 1`` arrivals, a row for each mean."""
    number = np.arange(1, count)
    logs = np.cumsum(np.log(np.maximum(mean, 1e-300))[:, None] - np.log(number), axis=1)
    return np.exp(np.concatenate([np.zeros((len(mean), 1)), logs], axis=1) - mean[:, None])

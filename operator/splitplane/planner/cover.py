"""What known plans rule out: the lowest p95 seen among plans that are at most as large in cost, leak and loss."""

from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from splitplane.planner.arrays import Array, Bools, Ints, Singles
from splitplane.planner.bars import Aim, Bar

V = TypeVar("V", np.float64, np.int64)

_WORTH_SPREADING = 4000
"""So many lower percentiles in the table are worth the time that it takes to let all larger plans see them."""
_MOST_LEAKS, _MOST_LOSSES, _COSTS = 300, 60, 14
"""Bins. Leaks need most: plans of neighbouring cuts differ in little else, and costs come in few steps of prices."""


class Cover:
    """A table over (leak, loss, cost) bins. Plans enter it rounded up and questions are rounded down, so it never
    claims more than is known.

    Bins are made of ``leaks``, all values that occur, and of ``losses``, some of them; costs are binned evenly between
    ``cheapest``, below which there is none, and ``dearest``, beyond which they are not told apart. Leaks are named by
    their rank among all of them.

    With an ``aim`` it also rules out what is not in the running for the best plan (``bars``).
    """

    def __init__(
        self, leaks: Array, losses: Ints, cheapest: float, dearest: float, aim: Aim | None = None
    ) -> None:  # fmt: skip
        self._leaks = np.unique(leaks)
        bins = _spread(self._leaks, _MOST_LEAKS)
        self._leak_floor = np.searchsorted(bins, self._leaks, side="right") - 1
        self._leak_ceiling = np.searchsorted(bins, self._leaks)
        # No loss is below the first bin.
        self._losses = np.unique(np.append(_spread(np.sort(losses), _MOST_LOSSES), 0))
        steps = np.arange(int(losses.max(initial=0)) + 1)
        self._loss_floor = np.searchsorted(self._losses, steps, side="right") - 1
        self._loss_ceiling = np.searchsorted(self._losses, steps)
        self._cheapest = cheapest
        self._per_cost = _COSTS / max(dearest - cheapest, 1e-9)
        # Percentiles have eight binary digits (``queueing.round_up``): half the bytes hold them exactly.
        self._table = np.full((len(bins) + 1, len(self._losses) + 1, _COSTS + 2), np.inf, dtype=np.float32)
        self._flat = self._table.reshape(-1)
        self._news = 0
        self._bar = None if aim is None else Bar(aim, per_leak=len(self._flat) // len(self._table))

    def rank(self, leak: Array) -> Ints:
        """The ranks of leaks."""
        return np.searchsorted(self._leaks, leak)

    def floor(self, leak: Ints, loss: Ints) -> Ints:
        """Where in the table to ask about plans of this leak, by rank, and loss."""
        return self._cell(self._leak_floor.take(leak), self._loss_floor.take(loss))

    def ceiling(self, leak: Ints, loss: Ints) -> Ints:
        """Where in the table to put plans of this leak, by rank, and loss."""
        return self._cell(self._leak_ceiling.take(leak), self._loss_ceiling.take(loss))

    def add(self, ceiling: Ints, cost: Array, p95: Array) -> None:
        """Take note of plans."""
        if self._bar is not None:
            self._bar.note(ceiling, cost, p95)
        bins = np.ceil((cost - self._cheapest) * self._per_cost)
        place = np.minimum(bins, _COSTS + 1, out=bins).astype(np.int64)
        place += ceiling
        news = np.flatnonzero(self._flat.take(place) > p95)
        np.minimum.at(self._flat, place.take(news), p95.take(news).astype(np.float32))
        self._news += len(news)
        if self._news >= _WORTH_SPREADING:
            self.settle()

    def settle(self) -> None:
        """Let all plans that were added rule out all larger ones. Until then some only do so in their own bin."""
        self._news = 0
        table = self._table
        for axis in range(3):
            slices = np.moveaxis(table, axis, 0)
            for before, here in pairwise(slices):
                np.minimum(here, before, out=here)

    def rules_out(self, floor: Ints, cost: Array, p95: Array) -> Bools:
        """Whether a known plan beats or equals every plan that is at least this large in all four, or none of these is
        in the running."""
        return self.lowest(floor, cost) <= p95

    def lowest(self, floor: Ints, cost: Array) -> Singles:
        """The lowest known p95 at no more cost, leak and loss, or the highest in the running if that is lower."""
        place = ((cost - self._cheapest) * self._per_cost).astype(np.int64)
        np.minimum(place, _COSTS, out=place)
        place += floor
        known = self._flat.take(place)
        return known if self._bar is None else np.minimum(known, self._bar.at(floor, cost), out=known)

    def _cell(self, leak: Ints, loss: Ints) -> Ints:
        """The place of the first cost for this leak and loss."""
        return (leak * self._table.shape[1] + loss) * self._table.shape[2]


def _spread(values: NDArray[V], most: int) -> NDArray[V]:
    """At most ``most`` of the sorted values, evenly spread among them, the least included."""
    count = min(most, len(values))
    return np.unique(values[np.arange(count) * len(values) // max(1, count)])

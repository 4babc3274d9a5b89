"""Which of many plans no other beats or equals in cost, p95, leak and accuracy loss: exactly, and fast enough."""

import numpy as np

from splitplane.planner.arrays import Array, Bools, Halves, Ints
from splitplane.planner.queueing import DROPPED_BITS

_BLOCK, _PART = 4096, 512
_EARLIER = np.tri(_PART, k=-1, dtype=np.bool_)


def nondominated(cost: Array, p95: Array, leak: Ints, loss: Ints) -> Ints:
    """Places of the plans to keep, by rising cost. Of plans that are equal in all four the first is kept.

    Every p95 is positive and of eight binary digits (``queueing.round_up``); leaks are ranks, and no loss is negative.
    """
    if not len(cost):
        return np.zeros(0, dtype=np.int64)
    cost_rank, p95_rank = np.unique(cost, return_inverse=True)[1], _ranks(p95)
    leaks, losses = int(leak.max()) + 1, int(loss.max()) + 1
    cell = leak * losses + loss
    places = _stairs(cost_rank, p95_rank, cell)
    places = places[np.argsort(_key(cost_rank[places], p95_rank[places], cell[places]))]
    # Numbers as small as these are compared in half the time in half the bytes.
    p95s, leak_ranks, loss_ranks = (column.astype(np.int32) for column in (p95_rank, leak, loss))
    # The lowest p95 so far, which is to say at no more cost, by leak and loss at most.
    lowest = np.full((leaks, losses), np.iinfo(np.int32).max, dtype=np.int32)
    kept: list[Ints] = []
    for start in range(0, len(places), _BLOCK):
        block = places[start : start + _BLOCK]
        block = block[lowest.take(cell[block]) > p95s[block]]
        for begin in range(0, len(block), _PART):
            part = block[begin : begin + _PART]
            part = part[lowest.take(cell[part]) > p95s[part]]
            part = part[~_beaten_by_earlier(p95s[part], leak_ranks[part], loss_ranks[part])]
            kept.append(part)
            np.minimum.at(lowest.reshape(-1), cell[part], p95s[part])
            np.minimum.accumulate(lowest, axis=0, out=lowest)
            np.minimum.accumulate(lowest, axis=1, out=lowest)
    return np.concatenate(kept)


def _ranks(p95: Array) -> Ints:
    """Whole numbers in the order of the percentiles, few enough to count with."""
    digits = p95.view(np.int64) >> DROPPED_BITS
    digits -= digits.min()
    return digits


def _key(first: Ints, second: Ints, third: Ints) -> Ints:
    """One number that orders as three do, and is sorted in a fraction of the time that three columns take."""
    return (first * (int(second.max()) + 1) + second) * (int(third.max()) + 1) + third


def _stairs(cost: Ints, p95: Ints, cell: Ints) -> Ints:
    """Places without those that another of the same leak and loss beats or equals in cost and p95, all by rank."""
    key = _key(cell, cost, p95)
    order = np.argsort(key)
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    order = np.minimum.reduceat(order, starts)
    # Each cell is put below the one before it, so that one running minimum serves all.
    steps = np.concatenate([[0], np.cumsum(np.diff(cell[order]) != 0)])
    lowered = p95[order] - steps * (int(p95.max()) + 1)
    lowest = np.minimum.accumulate(lowered)
    kept: Ints = order[np.concatenate([[True], lowered[1:] < lowest[:-1]])]
    return kept


def _beaten_by_earlier(p95: Halves, leak: Halves, loss: Halves) -> Bools:
    """Which rows an earlier row beats or equals in all three."""
    beaten: Bools = np.less_equal(p95, p95[:, None])
    beaten &= leak <= leak[:, None]
    beaten &= loss <= loss[:, None]
    beaten &= _EARLIER[: len(p95), : len(p95)]
    return np.asarray(beaten.any(axis=1))

"""Which of many plans no other beats or equals in cost, p95, leak and accuracy loss: exactly, and fast enough."""

import numpy as np

from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.queueing import DROPPED_BITS

_BLOCK, _PART = 2048, 256
_EARLIER = np.tri(_PART, k=-1, dtype=np.bool_)


def nondominated(cost: Array, p95: Array, leak: Array, loss: Ints) -> Ints:
    """Places of the plans to keep, by rising cost. Of plans that are equal in all four the first is kept.

    Every p95 is positive and of eight binary digits (``queueing.round_up``), which half the bytes hold exactly; no loss
    is negative.
    """
    if not len(cost):
        return np.zeros(0, dtype=np.int64)
    leaks, leak_rank = np.unique(leak, return_inverse=True)
    losses, loss_rank = int(loss.max()) + 1, loss
    cell = leak_rank * losses + loss_rank
    cost_rank = np.unique(cost, return_inverse=True)[1]
    places = _stairs(cost_rank, _ranks(p95), cell)
    places = places[np.lexsort((cell[places], p95[places], cost_rank[places]))]
    # The lowest p95 so far, which is to say at no more cost, by leak and loss at most.
    lowest = np.full((len(leaks), losses), np.inf, dtype=np.float32)
    kept: list[Ints] = []
    for start in range(0, len(places), _BLOCK):
        block = places[start : start + _BLOCK]
        block = block[lowest.take(cell[block]) > p95[block]]
        for begin in range(0, len(block), _PART):
            part = block[begin : begin + _PART]
            part = part[lowest.take(cell[part]) > p95[part]]
            part = part[~_beaten_by_earlier(p95[part], leak_rank[part], loss_rank[part])]
            kept.append(part)
            np.minimum.at(lowest.reshape(-1), cell[part], p95[part].astype(np.float32))
            np.minimum.accumulate(lowest, axis=0, out=lowest)
            np.minimum.accumulate(lowest, axis=1, out=lowest)
    return np.concatenate(kept)


def _ranks(p95: Array) -> Ints:
    """Whole numbers in the order of the percentiles, few enough to count with."""
    digits = p95.view(np.int64) >> DROPPED_BITS
    digits -= digits.min()
    return digits


def _stairs(cost: Ints, p95: Ints, cell: Ints) -> Ints:
    """Places without those that another of the same leak and loss beats or equals in cost and p95, all by rank."""
    # One number says (cell, cost, p95): it is sorted in a fraction of the time that three columns take.
    key = (cell * (int(cost.max()) + 1) + cost) * (int(p95.max()) + 1) + p95
    order = np.argsort(key)
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    order = np.minimum.reduceat(order, starts)
    # Each cell is put below the one before it, so that one running minimum serves all.
    steps = np.concatenate([[0], np.cumsum(np.diff(cell[order]) != 0)])
    lowered = p95[order] - steps * (int(p95.max()) + 1)
    lowest = np.minimum.accumulate(lowered)
    kept: Ints = order[np.concatenate([[True], lowered[1:] < lowest[:-1]])]
    return kept


def _beaten_by_earlier(p95: Array, leak: Ints, loss: Ints) -> Bools:
    """Which rows an earlier row beats or equals in all three."""
    beaten: Bools = np.less_equal(p95, p95[:, None])
    beaten &= leak <= leak[:, None]
    beaten &= loss <= loss[:, None]
    beaten &= _EARLIER[: len(p95), : len(p95)]
    return np.asarray(beaten.any(axis=1))

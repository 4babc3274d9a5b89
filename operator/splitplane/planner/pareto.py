"""Which of many plans no other beats or equals in cost, p95, leak and accuracy loss: exactly, and fast enough."""

import numpy as np

from splitplane.planner.arrays import Array, Bools, Ints

_BLOCK, _PART = 2048, 256
_EARLIER = np.tri(_PART, k=-1, dtype=np.bool_)


def nondominated(cost: Array, p95: Array, leak: Array, loss: Ints) -> Ints:
    """Places of the plans to keep, by rising cost. Of plans that are equal in all four the first is kept."""
    leaks, leak_rank = np.unique(leak, return_inverse=True)
    losses, loss_rank = np.unique(loss, return_inverse=True)
    cell = leak_rank * len(losses) + loss_rank
    places = _stairs(cost, p95, cell)
    places = places[np.lexsort((cell[places], p95[places], cost[places]))]
    # The lowest p95 so far, which is to say at no more cost, by leak and loss at most.
    lowest = np.full((len(leaks), len(losses)), np.inf)
    kept: list[Ints] = []
    for start in range(0, len(places), _BLOCK):
        block = places[start : start + _BLOCK]
        block = block[lowest.take(cell[block]) > p95[block]]
        for begin in range(0, len(block), _PART):
            part = block[begin : begin + _PART]
            part = part[lowest.take(cell[part]) > p95[part]]
            part = part[~_beaten_by_earlier(p95[part], leak_rank[part], loss_rank[part])]
            kept.append(part)
            np.minimum.at(lowest.reshape(-1), cell[part], p95[part])
            np.minimum.accumulate(lowest, axis=0, out=lowest)
            np.minimum.accumulate(lowest, axis=1, out=lowest)
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)


def _stairs(cost: Array, p95: Array, cell: Ints) -> Ints:
    """Places without those that another of the same leak and loss beats or equals in cost and p95."""
    if not len(cost):
        return np.zeros(0, dtype=np.int64)
    order = np.lexsort((p95, cost, cell))
    steps = np.concatenate([[0], np.cumsum(np.diff(cell[order]) != 0)])
    # Each cell is put below the one before it, so that one running minimum serves all. The sums are exact: p95 has
    # eight binary digits, and what is taken off are multiples of a power of two.
    lowered = p95[order] - steps * 2.0 ** np.ceil(np.log2(p95.max()) + 1.0)
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

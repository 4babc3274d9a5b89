"""The choice among claims of one priority as a mixed integer linear programme, solved by HiGHS.

Binary ``x[o]``: offer ``o`` is taken, one for each claim. ``z[k, g]``: replicas of need ``k`` on nodes of group ``g``,
which take the same needs. Together these ask no more than the group has. Groups are single nodes, which is exact,
unless that makes the programme too large: then its optimum is a bound, and the packing afterwards tells what fits.
"""

import highspy
import numpy as np

from splitplane.planner.arbitration import Bound, Class
from splitplane.planner.arrays import Array, Ints
from splitplane.planner.packing import Packing

RELATIVE_GAP = 1e-3
_MOST_EXACT, _MOST_GROUPED = 7000, 6000
"""Variables, and those among them for places, up to which each node stands for itself, or those alike together."""


def solve(columns: Class, packing: Packing, seconds: float) -> Bound | None:
    """The offers that are worth most together. ``None`` if no solution was found within ``seconds``."""
    needs = np.flatnonzero(columns.replicas.any(axis=0))
    groups, exact = _groups(packing, needs, len(columns.worth))
    free = np.array([packing.free[group].sum(axis=0) for group in groups])
    slots = np.array([[packing.slots(int(need))[group].sum() for group in groups] for need in needs])
    pairs = np.argwhere(slots > 0)
    offers = len(columns.worth)
    owner = np.repeat(np.arange(len(columns.starts) - 1), np.diff(columns.starts))
    resources = [r for r in range(free.shape[1]) if np.isfinite(free[:, r]).all()]

    entries: list[tuple[Ints, Ints, Array]] = [(owner, np.arange(offers), np.ones(offers))]
    claims = int(owner[-1]) + 1
    row, place = np.nonzero(columns.replicas[:, needs])
    entries.append((claims + place, row, columns.replicas[row, needs[place]].astype(np.float64)))
    z = offers + np.arange(len(pairs))
    entries.append((claims + pairs[:, 0], z, -np.ones(len(pairs))))
    first = claims + len(needs)
    for number, resource in enumerate(resources):
        asked = packing.asked[needs[pairs[:, 0]], resource]
        scale = np.maximum(free[:, resource], 1e-9)  # rows in shares of what there is: bytes and cores alike
        entries.append((first + number * len(groups) + pairs[:, 1], z, asked / scale[pairs[:, 1]]))
    rows = first + len(resources) * len(groups)
    lower = np.concatenate([np.ones(claims), np.zeros(len(needs)), np.full(rows - first, -highspy.kHighsInf)])
    upper = np.concatenate([np.ones(claims), np.zeros(len(needs)), np.full(rows - first, 1.0 + 1e-9)])
    most = np.concatenate([np.ones(offers), slots[pairs[:, 0], pairs[:, 1]]])
    whole = np.concatenate([np.ones(offers, dtype=np.bool_), np.full(len(pairs), exact)])
    solver = _solver(columns.worth, entries, lower, upper, most, whole, seconds)
    info = solver.getInfo()
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    found = np.array(solver.getSolution().col_value)
    parts = np.split(found[:offers], columns.starts[1:-1])
    chosen = columns.starts[:-1] + np.array([part.argmax() for part in parts])
    replicas = np.rint(found[offers:]).astype(np.int64)
    places = tuple(
        (int(needs[need]), groups[group], int(count))
        for (need, group), count in zip(pairs.tolist(), replicas, strict=True)
        if count
    )
    stopped = solver.getModelStatus() == highspy.HighsModelStatus.kTimeLimit
    return Bound(chosen, places, float(info.mip_dual_bound), stopped)


def _groups(packing: Packing, needs: Ints, offers: int) -> tuple[list[Ints], bool]:
    """Nodes as rows: each apart, those alike together, or those that take the same needs, as few as it must be."""
    may = packing.may[needs].T
    nodes = len(may)
    if nodes * len(needs) + offers <= _MOST_EXACT:
        return [np.array([node]) for node in range(nodes)], True
    for marks in (np.hstack([may, np.round(packing.free, 6)]), may.astype(np.float64)):
        _, group = np.unique(marks, axis=0, return_inverse=True)
        found = [np.flatnonzero(group.reshape(-1) == each) for each in range(int(group.max()) + 1)]
        if len(found) * len(needs) <= _MOST_GROUPED:
            break
    return found, False


def _solver(
    worth: Array, entries: list[tuple[Ints, Ints, Array]], lower: Array, upper: Array, most: Array, whole: Array,
    seconds: float,
) -> highspy.Highs:  # fmt: skip
    """HiGHS after its run. ``entries``: rows, columns, values of the matrix. ``worth``: that of the first columns."""
    row, column, value = (np.concatenate([entry[part] for entry in entries]) for part in range(3))
    order = np.lexsort((column, row))
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(most), len(lower)
    model.col_cost_ = np.concatenate([worth, np.zeros(len(most) - len(worth))])
    model.col_lower_, model.col_upper_ = np.zeros(len(most)), most.astype(np.float64)
    model.row_lower_, model.row_upper_ = lower, upper
    model.sense_ = highspy.ObjSense.kMaximize
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.searchsorted(row[order], np.arange(len(lower) + 1)).astype(np.int32)
    model.a_matrix_.index_ = column[order].astype(np.int32)
    model.a_matrix_.value_ = value[order].astype(np.float64)
    kinds = highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger
    model.integrality_ = [kinds[int(each)] for each in whole]
    # highspy.Highs prints a banner before anybody can ask it to be quiet.
    solver: highspy.Highs = highspy._Highs()  # type: ignore[attr-defined]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("time_limit", seconds)
    solver.setOptionValue("mip_rel_gap", RELATIVE_GAP)
    solver.passModel(model)
    solver.run()
    return solver

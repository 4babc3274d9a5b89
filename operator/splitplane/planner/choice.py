"""Which of many plans is best: limits first, then the preferred objective with a band of ties, then fixed rules.

A band of ties keeps money from being spent on gains that are smaller than what the prediction can tell apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from splitplane.domain.plans import Candidate, Plan
from splitplane.domain.snapshots import Preference
from splitplane.planner.arrays import Array
from splitplane.planner.candidates import Layout
from splitplane.planner.context import Context
from splitplane.planner.evaluation import Table, broken, evaluate

T = TypeVar("T")

COST_TIE = 0.02
"""Plans within this share of the least cost count as equally cheap where cost is preferred."""

LATENCY_TIE = 0.03
"""Plans within this share of the lowest p95 count as equally fast where latency is preferred."""

UTILIZATION_TIE = 0.01

_EXACT = 1e-9


@dataclass(frozen=True, slots=True)
class Pool:
    """Plans of several layouts side by side; a plan is named by its place in the concatenated columns."""

    tables: tuple[Table, ...]
    p95: Array
    cost: Array
    utilization: Array
    over_utilization: NDArray[np.bool_]
    over_p95: NDArray[np.bool_]
    over_cost: NDArray[np.bool_]
    replicas: Array
    exit_cut: Array

    def locate(self, index: int) -> tuple[Table, int]:
        for table in self.tables:
            if index < len(table.layout):
                return table, index
            index -= len(table.layout)
        raise IndexError(index)

    def plan(self, context: Context, index: int) -> Plan:
        table, row = self.locate(index)
        return table.layout.plan(context, row)

    def candidate(self, context: Context, index: int) -> Candidate:
        table, row = self.locate(index)
        flags = (("utilization", self.over_utilization), ("p95", self.over_p95), ("cost", self.over_cost))
        return Candidate(
            self.plan(context, index), table.prediction(row), tuple(name for name, flag in flags if flag[index])
        )


def build_pool(context: Context, layouts: Sequence[Layout]) -> Pool | None:
    """Evaluate the layouts at the context's rate; ``None`` if there is no plan at all."""
    if not layouts:
        return None
    tables = tuple(evaluate(context, layout) for layout in layouts)
    masks = [broken(context, table) for table in tables]
    return Pool(
        tables=tables,
        p95=np.concatenate([table.p95 for table in tables]),
        cost=np.concatenate([np.where(np.isnan(table.cost), np.inf, table.cost) for table in tables]),
        utilization=np.concatenate([table.utilization for table in tables]),
        over_utilization=np.concatenate([mask[0] for mask in masks]),
        over_p95=np.concatenate([mask[1] for mask in masks]),
        over_cost=np.concatenate([mask[2] for mask in masks]),
        replicas=np.concatenate([np.sum(table.layout.replicas, axis=0).astype(np.float64) for table in tables]),
        exit_cut=np.concatenate(
            [exit_cut(context, layout.tiers, layout.bounds).astype(np.float64) for layout in layouts]
        ),
    )


def exit_cut(context: Context, tiers: Sequence[str], bounds: Sequence[T]) -> T:
    """The cut at which a request first leaves the trusted tiers; the model's output, ``bounds[-1]``, if it never does.

    ``bounds[k]`` is where the stage on ``tiers[k]`` starts: of one plan, or of all rows of a layout.
    """
    for tier, bound in zip(tiers, bounds, strict=False):
        if not context.tiers[tier].trusted:
            return bound
    return bounds[-1]


def exit_cut_of(context: Context, plan: Plan) -> int:
    """``exit_cut`` of one plan: the deeper, the less of the input can be told from what leaves the trusted tiers."""
    stages = plan.stages
    return exit_cut(context, [s.tier for s in stages], [*(s.first for s in stages), stages[-1].last])


def pick(context: Context, pool: Pool) -> Candidate | None:
    """The best plan that is not set aside. Where none satisfies all limits: the least bad, and always the same one.

    Limits count in the order utilisation, p95, cost. Privacy and memory are not up for choice: no plan of the pool
    breaks them.
    """
    open_ = np.ones(len(pool.p95), dtype=np.bool_)
    while open_.any():
        index = _pick(context, pool, open_)
        candidate = pool.candidate(context, index)
        if candidate.plan.digest not in context.set_aside:
            return candidate
        open_[index] = False
    return None


def pick_any(context: Context, pool: Pool) -> Candidate:
    """The best plan, set aside or not."""
    return pool.candidate(context, _pick(context, pool, np.ones(len(pool.p95), dtype=np.bool_)))


def gain(context: Context, current: Candidate, best: Candidate) -> float:
    """Relative gain of ``best`` over ``current`` in the preferred objective, or in the next one where that ties.

    While neither carries the load, the gain is that in the rate which they bear.
    """
    old, new = current.predicted, best.predicted
    if "utilization" in current.violations and "utilization" in best.violations:
        return -_relative(old.max_rate_per_second, new.max_rate_per_second)
    p95 = _relative(old.p95_seconds, new.p95_seconds)
    cost = _relative(old.cost_per_hour, new.cost_per_hour)
    match context.policy.prefer:
        case Preference.LATENCY:
            return p95 if abs(p95) > LATENCY_TIE else cost
        case Preference.COST:
            return cost if abs(cost) > COST_TIE else p95
        case Preference.PRIVACY:
            exposed = [context.profile.segments - exit_cut_of(context, c.plan) for c in (current, best)]
            if exposed[0] != exposed[1]:
                return _relative(exposed[0], exposed[1])
            return cost if abs(cost) > COST_TIE else p95


def severity(candidate: Candidate) -> int:
    """How gravely a plan breaks its limits; 0 for none, larger is worse, graver limits outweigh all lesser ones."""
    order = ("cost", "p95", "utilization", "replicas", "memory", "privacy", "spec", "node-loss")
    return sum(1 << order.index(name) for name in candidate.violations)


def _pick(context: Context, pool: Pool, open_: NDArray[np.bool_]) -> int:
    grade = 4 * pool.over_utilization + 2 * pool.over_p95 + 1 * pool.over_cost
    mask = open_ & (grade == grade[open_].min())
    worst = int(grade[mask][0])
    if worst >= 4:
        mask = _narrow(mask, pool.utilization, UTILIZATION_TIE)
        keys = [pool.cost, pool.p95]
    elif worst >= 2 or (worst == 0 and context.policy.prefer is Preference.LATENCY):
        mask = _narrow(mask, pool.p95, LATENCY_TIE)
        keys = [pool.cost, pool.p95]
    else:
        if worst == 0 and context.policy.prefer is Preference.PRIVACY:
            mask = _narrow(mask, -pool.exit_cut, 0.0)
        mask = _narrow(mask, pool.cost, COST_TIE)
        keys = [pool.p95, pool.cost]
    for key in (*keys, pool.replicas):
        mask = _narrow(mask, key, _EXACT)
    # Rows are generated in a fixed order (fewer stages, then lower cuts, then higher fidelity first).
    return int(np.flatnonzero(mask)[0])


def _narrow(mask: NDArray[np.bool_], values: Array, tolerance: float) -> NDArray[np.bool_]:
    """Keep those within ``tolerance`` (relative) of the least. NaN counts as infinite: it never wins."""
    values = np.where(np.isnan(values), np.inf, values)
    least = values[mask].min()
    return mask & (values <= least + abs(least) * tolerance) if np.isfinite(least) else mask


def _relative(old: float, new: float) -> float:
    """Share of ``old`` that is saved; 0 where nothing can be said."""
    if math.isnan(old) or math.isnan(new) or old == new:
        return 0.0
    if math.isinf(old):
        return 1.0
    if math.isinf(new):
        return -1.0
    return (old - new) / old if old > 0.0 else -1.0

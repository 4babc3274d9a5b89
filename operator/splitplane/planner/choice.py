"""Which of many plans is best: limits first, then the preferred objective with a band of ties, then fixed rules.

A band of ties keeps money from being spent on gains that are smaller than what the prediction can tell apart.
"""

import math

import numpy as np

from splitplane.domain.plans import Candidate
from splitplane.domain.snapshots import Policy, Preference
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.bars import COST_TIE, LATENCY_TIE
from splitplane.planner.context import Context
from splitplane.planner.evaluation import leak_of
from splitplane.planner.frontier import Frontier

LIMITS = (
    "cost", "p95", "utilization", "replicas", "grant", "shared", "accuracy", "memory", "leak", "privacy", "spec",
    "node-loss",
)  # fmt: skip
"""What a plan may break, the gravest last."""

_EXACT = 1e-9


def pick(policy: Policy, frontier: Frontier, among: Bools | None = None) -> int:
    """The place of the best plan of a frontier that is not empty, or of some of its plans.

    Where none satisfies the limits on p95 and cost: the least bad, a broken limit on p95 being graver. All other
    limits hold for every plan of a frontier.
    """
    slow, dear = over_limits(policy, frontier)
    grade = 2 * slow + 1 * dear
    mask = np.ones(len(frontier), dtype=np.bool_) if among is None else among
    least = int(grade[mask].min())
    mask = mask & (grade == least)
    if least >= 2 or (least == 0 and policy.prefer is Preference.LATENCY):
        mask = _narrowed(mask, frontier.p95, LATENCY_TIE)
        keys = (frontier.cost, frontier.p95)
    else:
        if least == 0 and policy.prefer is Preference.PRIVACY:
            mask = _narrowed(mask, frontier.leak, 0.0)
        mask = _narrowed(mask, frontier.cost, COST_TIE)
        keys = (frontier.p95, frontier.cost)
    for key in (*keys, frontier.loss, frontier.leak):
        mask = _narrowed(mask, key, _EXACT)
    return int(np.flatnonzero(mask)[0])


def pick_cheapest(frontier: Frontier) -> int:
    """The place of the cheapest plan, and of those the fastest."""
    return int(np.lexsort((frontier.p95, frontier.cost))[0])


def over_limits(policy: Policy, frontier: Frontier) -> tuple[Bools, Bools]:
    """Plans over the limit on p95, and over that on cost. An unknown cost breaks no limit."""
    p95 = math.inf if policy.max_p95_seconds is None else policy.max_p95_seconds * (1.0 + _EXACT)
    cost = math.inf if policy.max_cost_per_hour is None else policy.max_cost_per_hour * (1.0 + _EXACT)
    return frontier.p95 > p95, frontier.cost > cost


def gain(context: Context, current: Candidate, best: Candidate) -> float:
    """Relative gain of ``best`` over ``current`` in the preferred objective, or in the next one where that ties.

    While neither carries the load, the gain is that in the rate which they bear; while both break a limit on p95 or
    cost, it is that in what they break, as ``pick`` then goes by.
    """
    old, new = current.predicted, best.predicted
    if "utilization" in current.violations and "utilization" in best.violations:
        return -_relative(old.max_rate_per_second, new.max_rate_per_second)
    p95 = _relative(old.p95_seconds, new.p95_seconds)
    cost = _relative(old.cost_per_hour, new.cost_per_hour)
    broken = set(current.violations) & set(best.violations)
    prefer = context.policy.prefer
    if "p95" in broken:
        prefer = Preference.LATENCY
    elif "cost" in broken:
        prefer = Preference.COST
    match prefer:
        case Preference.LATENCY:
            return p95 if abs(p95) > LATENCY_TIE else cost
        case Preference.COST:
            return cost if abs(cost) > COST_TIE else p95
        case Preference.PRIVACY:
            less = _relative(leak_of(context, current.plan), leak_of(context, best.plan))
            if less:
                return less
            return cost if abs(cost) > COST_TIE else p95


def severity(candidate: Candidate) -> int:
    """How gravely a plan breaks its limits; 0 for none, larger is worse, graver limits outweigh all lesser ones."""
    return sum(1 << LIMITS.index(name) for name in candidate.violations)


def _narrowed(mask: Bools, values: Array | Ints, tolerance: float) -> Bools:
    """Keep those within ``tolerance`` (relative) of the least."""
    least = values[mask].min()
    narrowed: Bools = mask & (values <= least + abs(least) * tolerance)
    return narrowed


def _relative(old: float, new: float) -> float:
    """Share of ``old`` that is saved; 0 where nothing can be said."""
    if math.isnan(old) or math.isnan(new) or old == new:
        return 0.0
    if math.isinf(old):
        return 1.0
    if math.isinf(new):
        return -1.0
    return (old - new) / old if old > 0.0 else -1.0

"""Whether a change of plan lasts, or the next breath of noise undoes it: limits at both edges of the dead band.

The limits on cost, p95 and utilisation hang on numbers that wander by a few per cent. At the *far* edge of the band
there is more load, links are slower and the limit on p95 is closer; at the *near* edge all is the other way round. A
plan keeps a limit for sure if it does at the far edge, and breaks it for sure if it does at the near one.
"""

import math
from functools import cached_property

from splitplane.domain.plans import Candidate, Plan
from splitplane.planner.bars import COST_TIE, LATENCY_TIE
from splitplane.planner.choice import LIMITS, gain, severity
from splitplane.planner.context import Context
from splitplane.planner.evaluation import assess
from splitplane.planner.gates import DEAD_BAND, is_scale_down, relax, stress

WANDERING = ("cost", "p95", "utilization")
"""Limits that hang on such numbers, the gravest last (as in ``choice.LIMITS``)."""

_CLEARLY = 0.10
"""By how much of it a plan must have less than another, that noise of 5 % in each of its numbers does not turn that
round."""


class Edges:
    """A context at both edges of the band, and plans there; each is found once, when it is asked for."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._far: dict[Plan, Candidate] = {}
        self._near: dict[Plan, Candidate] = {}

    @cached_property
    def far_context(self) -> Context:
        return stress(self.context)

    @cached_property
    def near_context(self) -> Context:
        return relax(self.context)

    def far(self, plan: Plan) -> Candidate:
        if plan not in self._far:
            self._far[plan] = assess(self.far_context, plan)
        return self._far[plan]

    def near(self, plan: Plan) -> Candidate:
        if plan not in self._near:
            self._near[plan] = assess(self.near_context, plan)
        return self._near[plan]

    def keeps(self, plan: Plan, limit: str) -> bool:
        return limit not in self.far(plan).violations

    def breaks(self, plan: Plan, limit: str) -> bool:
        return limit in self.near(plan).violations

    def less(self, plan: Plan, other: Plan, limit: str) -> bool:
        """Whether a plan has clearly less of what the limit bounds than ``other`` at the far edge.

        The same stages with more replicas are never slower, whatever wanders.
        """
        if limit != "cost" and is_scale_down(plan, other):
            return True
        one, two = self.far(plan).predicted, self.far(other).predicted
        match limit:
            case "cost":
                return one.cost_per_hour <= two.cost_per_hour * (1.0 - _CLEARLY)
            case "p95":
                # Near the ceiling 5 % of a load are any share of a wait, or make it endless.
                return self.keeps(plan, "utilization") and one.p95_seconds <= two.p95_seconds * (1.0 - _CLEARLY)
            case _:
                return one.max_rate_per_second * (1.0 - _CLEARLY) >= two.max_rate_per_second

    def at_risk(self, old: Plan, new: Plan, limits: tuple[str, ...]) -> bool:
        """Whether ``new`` is not sure to keep a limit that ``old`` may keep, nor clearly further from it."""
        return any(
            not (self.keeps(new, limit) or self.breaks(old, limit) or self.less(new, old, limit)) for limit in limits
        )


def relieves(edges: Edges, current: Candidate, best: Candidate) -> bool:
    """Whether ``best`` mends a limit that the active plan breaks, or eases an overload that nothing ends, and so is to
    be taken at once.

    It is where it mends a limit that does not wander, or ends a wait without a bound. Otherwise the one that it mends
    must be broken now or kept then for sure, or become clearly less, and no graver one may be put at risk for it: of
    two plans that bear the load by turns, as the noise has it, either stays.
    """
    if severity(best) >= severity(current):
        overloaded = "utilization" in current.violations and "utilization" in best.violations
        return overloaded and gain(edges.context, current, best) >= DEAD_BAND
    mended = _gravest_mended(current, best)
    if mended is None:
        return False
    endless = mended == WANDERING[-1] and math.isinf(current.predicted.p95_seconds)
    if mended not in WANDERING or endless:
        return True
    old, new = current.plan, best.plan
    graver = WANDERING[WANDERING.index(mended) + 1 :]
    lasting = edges.keeps(new, mended) or edges.breaks(old, mended) or edges.less(new, old, mended)
    return lasting and not edges.at_risk(old, new, graver)


def endangers(edges: Edges, current: Candidate, target: Candidate) -> bool:
    """Whether ``target`` is not sure to keep a limit that the active plan may keep, nor clearly further from it.

    Nor may it be further, at the far edge, from a limit that both break now: what ties there only near the other edge
    is undone by the next breath.
    """
    old, new = current.plan, target.plan
    if edges.at_risk(old, new, WANDERING):
        return True
    broken = set(current.violations) & set(target.violations)
    if "utilization" in broken or not broken & {"p95", "cost"}:
        return False
    before, after = edges.far(old).predicted, edges.far(new).predicted
    if "p95" in broken:
        return after.p95_seconds > before.p95_seconds * (1.0 + LATENCY_TIE)
    return after.cost_per_hour > before.cost_per_hour * (1.0 + COST_TIE)


def _gravest_mended(current: Candidate, best: Candidate) -> str | None:
    """The gravest limit that only one of the plans breaks, if that is the active one."""
    differing = set(current.violations) ^ set(best.violations)
    gravest = max(differing, key=LIMITS.index, default=None)
    return gravest if gravest in current.violations else None

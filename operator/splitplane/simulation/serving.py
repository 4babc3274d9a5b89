"""What a plan gives while rate and links stay as they are for a while, backlog included.

Between two bins of the traces everything is constant, so a plan's response is that of the planner's own formulas at the
true rate and links (docs/planner.md, "Latency", with their errors against an event simulation). Where a station cannot
keep up, requests pile up; until the pile is worked off, each request waits for the mean pile before it.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from splitplane.domain.plans import Plan
from splitplane.planner.context import Context, crossings
from splitplane.planner.evaluation import assess, violations

_NORMAL = NormalDist()
_MEDIAN, _HIGH, _HIGHEST = 0.0, _NORMAL.inv_cdf(0.95), _NORMAL.inv_cdf(0.99)
_BUSIEST = 0.98


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one bin: the share of requests within the limit, p95 in seconds, cost per hour, requests left over, and
    whether the plan shows what it must not."""

    within: float
    p95: float
    cost: float
    backlog: float
    leaks: bool


def serve(context: Context, plan: Plan, seconds: float, backlog: float) -> Outcome:
    """What ``plan`` gives for ``seconds`` under these conditions, with ``backlog`` requests waiting before."""
    broken = violations(context, plan)
    leaks = bool({"privacy", "leak"} & set(broken))
    limit = math.inf if context.policy.max_p95_seconds is None else context.policy.max_p95_seconds
    usable = "spec" not in broken and all(stage.tier in context.sites for stage in plan.stages)
    if not usable or any(pair not in context.wires for pair in crossings(plan, context.gateway)):
        running = [stage for stage in plan.stages if stage.tier in context.sites]
        cost = sum(stage.replicas * context.weight(context.sites[stage.tier]) for stage in running)
        return Outcome(0.0, math.inf, cost, backlog + context.rate * seconds, leaks)
    predicted = assess(context, plan).predicted
    most = predicted.max_rate_per_second / context.policy.max_utilization * _BUSIEST
    left = max(0.0, backlog + (context.rate - most) * seconds)
    if backlog <= 0.0 and left <= 0.0:
        p50 = predicted.p50_seconds or predicted.mean_seconds
        p99 = predicted.p99_seconds or predicted.p95_seconds
        share = within(limit, p50, predicted.p95_seconds, p99)
        return Outcome(share, predicted.p95_seconds, predicted.cost_per_hour, 0.0, leaks)
    pile = 0.5 * (backlog + left) / most
    return Outcome(float(pile < 0.1 * limit), pile, predicted.cost_per_hour, left, leaks)


def within(limit: float, p50: float, p95: float, p99: float) -> float:
    """Share of requests within ``limit``: log-normal between the known percentiles, and along the nearest two beyond.

    Below the median, where no plan is that keeps its limit, this can be far too high.
    """
    if math.isinf(limit):
        return 1.0
    if not 0.0 < p50 < p95 < p99 < math.inf:
        return float(p95 <= limit)
    low, high = ((p50, _MEDIAN), (p95, _HIGH)) if limit < p95 else ((p95, _HIGH), (p99, _HIGHEST))
    slope = (high[1] - low[1]) / math.log(high[0] / low[0])
    return _NORMAL.cdf(low[1] + slope * math.log(limit / low[0]))

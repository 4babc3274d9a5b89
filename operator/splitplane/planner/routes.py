"""Routes that requests may take over the pods of one plan: the plan's own first, then the ways out.

Any of them can be chosen per request without touching a pod: all satisfy privacy, and each carries the highest rate
that the resident replicas bear on it.
"""

import numpy as np

from splitplane.domain.plans import Candidate, Plan, Stage
from splitplane.domain.profiles import CODECS
from splitplane.domain.snapshots import Mode, Preference
from splitplane.planner.candidates import Layout, layout_of
from splitplane.planner.context import Context, crossings
from splitplane.planner.evaluation import assess, evaluate
from splitplane.planner.residency import trusted

LIMIT = 8
"""Routes at most, so that the table stays small enough to read."""


def admissible_routes(context: Context, plan: Plan) -> tuple[Candidate, ...]:
    """Routes over what ``plan`` keeps resident, the plan's own first, the others by preference.

    Predicted at the current rate, or at the highest that a route bears if that is less. A route is left out if
    another over the same tiers is at least as good in everything. Routes over tiers without ready nodes or over links
    that nobody measures are left out, except the plan's own.
    """
    own = _predict(context, plan)
    others = [_predict(context, other) for other in _alternatives(context, plan)]
    kept = [
        route
        for route in others
        if route.predicted.max_rate_per_second > 0.0
        and not any(_dominates(context, rival, route) for rival in (own, *others) if rival is not route)
    ]
    kept.sort(key=lambda route: _rank(context, route))
    routes = [own, *kept] if _alive(context, plan) else kept
    if len(routes) > LIMIT:
        # The way out that needs the fewest tiers matters more than a further shade of the others.
        simplest = min(routes, key=lambda route: len(route.plan.stages))
        routes = routes[:LIMIT] if simplest in routes[:LIMIT] else [*routes[: LIMIT - 1], simplest]
    return tuple(routes)


def _alternatives(context: Context, plan: Plan) -> list[Plan]:
    pods = {stage.tier: stage for stage in plan.stages if stage.tier in context.sites}
    if len({stage.tier for stage in plan.stages}) < len(plan.stages):
        return []  # Two stages on one tier: which pods a range belongs to is the plan's own affair.
    end = context.profile.segments
    plans = []
    for stage in pods.values():
        reachable = stage.tier == context.gateway or _measured(context, stage.tier)
        if reachable and (stage.resident_first, stage.resident_last) == (0, end) and trusted(context, stage.tier, 0):
            plans.append(Plan((_part(stage, 0, end),)))
    home = pods.get(context.gateway)
    fixed = context.policy.mode is Mode.FIXED
    if home is not None and home.resident_first == 0 and context.policy.max_partitions > 1 and not fixed:
        for away in pods.values():
            if away is home or away.resident_last != end or not _measured(context, away.tier):
                continue
            for cut in range(max(1, away.resident_first), min(home.resident_last, end - 1) + 1):
                crossing = context.profile.cuts[cut].wire_bytes.keys() & set(context.policy.codecs)
                plans += [
                    Plan((_part(home, 0, cut), _part(away, cut, end)), (codec,))
                    for codec in CODECS
                    if codec in crossing
                ]
    return [other for other in plans if other.routing != plan.routing]


def _part(stage: Stage, first: int, last: int) -> Stage:
    return Stage(stage.tier, first, last, stage.resident_first, stage.resident_last, stage.replicas)


def _measured(context: Context, tier: str) -> bool:
    wire = context.wires.get((context.gateway, tier))
    return wire is not None and not wire.remembered


def _alive(context: Context, plan: Plan) -> bool:
    return all(stage.tier in context.sites for stage in plan.stages)


def _predict(context: Context, plan: Plan) -> Candidate:
    if not _alive(context, plan) or any(pair not in context.wires for pair in crossings(plan, context.gateway)):
        return assess(context, plan)
    layout = layout_of(plan)
    held = tuple(
        np.minimum(count, context.sites[tier].high) for tier, count in zip(layout.tiers, layout.replicas, strict=True)
    )
    layout = Layout(layout.tiers, layout.bounds, layout.codecs, held)
    bearable = evaluate(context, layout).max_rate
    table = evaluate(context, layout, rate=np.minimum(context.rate, bearable))
    return Candidate(plan, table.prediction(0))


def _dominates(context: Context, rival: Candidate, route: Candidate) -> bool:
    if {stage.tier for stage in rival.plan.stages} != {stage.tier for stage in route.plan.stages}:
        return False
    a, b = _merits(context, rival), _merits(context, route)
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def _merits(context: Context, route: Candidate) -> tuple[float, ...]:
    merits = (route.predicted.p95_seconds, -route.predicted.max_rate_per_second)
    match context.policy.prefer:
        case Preference.COST:
            return (*merits, route.predicted.cost_per_hour)
        case Preference.PRIVACY:
            return (*merits, -_exit(context, route))
        case _:
            return merits


def _exit(context: Context, route: Candidate) -> float:
    for stage in route.plan.stages:
        if not context.tiers[stage.tier].trusted:
            return float(stage.first)
    return float(context.profile.segments)


def _rank(context: Context, route: Candidate) -> tuple[float | str, ...]:
    overloaded = float(route.predicted.max_rate_per_second < context.rate)
    p95 = route.predicted.p95_seconds
    match context.policy.prefer:
        case Preference.COST:
            return (overloaded, round(route.predicted.cost_per_hour, 6), p95, str(route.plan))
        case Preference.PRIVACY:
            return (overloaded, -_exit(context, route), p95, str(route.plan))
        case _:
            return (overloaded, p95, str(route.plan))

"""Routes that requests may take over the pods of one plan: the plan's own first, then the ways out.

Any of them can be chosen per request without touching a pod: all satisfy privacy, and each carries the highest rate
that the resident replicas bear on it.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from splitplane.domain.plans import Candidate, Plan
from splitplane.domain.profiles import CODECS
from splitplane.domain.snapshots import Mode, Preference
from splitplane.planner.candidates import Layout, codec_crossings, layout_of
from splitplane.planner.choice import exit_cut_of
from splitplane.planner.context import Context, crossings
from splitplane.planner.evaluation import assess, evaluate, held_by_nodes, violations
from splitplane.planner.residency import trusted

LIMIT = 8
"""Routes at most, so that the table stays small enough to read."""


def admissible_routes(context: Context, plan: Plan) -> tuple[Candidate, ...]:
    """Routes over what ``plan`` keeps resident, the plan's own first, the others by preference.

    Predicted at the current rate, or at the highest that a route bears if that is less. A route is left out if
    another over the same tiers is at least as good in everything. Routes over tiers without ready nodes or over links
    that nobody measures are left out, except the plan's own.
    """
    own = _own(context, plan)
    others = [route for layout in _alternatives(context, plan) for route in _predict(context, plan, layout)]
    others = [route for route in others if route.plan.routing != plan.routing]
    rivals = others if own is None else [own, *others]
    kept = [
        route
        for route in others
        if route.predicted.max_rate_per_second > 0.0
        and not any(_dominates(context, rival, route) for rival in rivals if rival is not route)
    ]
    kept.sort(key=lambda route: _rank(context, route))
    routes = kept if own is None else [own, *kept]
    if len(routes) > LIMIT:
        # The way out that needs the fewest tiers matters more than a further shade of the others.
        simplest = min(routes, key=lambda route: len(route.plan.stages))
        routes = routes[:LIMIT] if simplest in routes[:LIMIT] else [*routes[: LIMIT - 1], simplest]
    return tuple(routes)


def _own(context: Context, plan: Plan) -> Candidate | None:
    """The plan's own route; ``None`` where nothing can serve it."""
    if {"node-loss", "spec"} & set(violations(context, plan)):
        return None
    if any(pair not in context.wires for pair in crossings(plan, context.gateway)):
        return assess(context, plan)
    return _predict(context, plan, layout_of(plan))[0]


def _alternatives(context: Context, plan: Plan) -> Iterator[Layout]:
    pods = {stage.tier: stage for stage in plan.stages if stage.tier in context.sites}
    if len({stage.tier for stage in plan.stages}) < len(plan.stages):
        return  # Two stages on one tier: which pods a range belongs to is the plan's own affair.
    end = context.profile.segments
    for stage in pods.values():
        reachable = stage.tier == context.gateway or _measured(context, stage.tier)
        if reachable and (stage.resident_first, stage.resident_last) == (0, end) and trusted(context, stage.tier, 0):
            yield Layout((stage.tier,), (np.array([0]), np.array([end])), (), (np.array([stage.replicas]),))
    home = pods.get(context.gateway)
    splits = context.policy.max_partitions > 1 and context.policy.mode is not Mode.FIXED
    if home is None or home.resident_first > 0 or not splits:
        return
    for away in pods.values():
        if away is home or away.resident_last != end or not _measured(context, away.tier):
            continue
        first = max(1, away.resident_first)
        if crossing := codec_crossings(context, first, min(home.resident_last, end - 1)):
            cuts, codecs = (np.array(column) for column in zip(*crossing, strict=True))
            ones = np.ones_like(cuts)
            yield Layout(
                (home.tier, away.tier),
                (0 * ones, cuts, end * ones),
                (codecs,),
                (home.replicas * ones, away.replicas * ones),
            )


def _predict(context: Context, plan: Plan, layout: Layout) -> list[Candidate]:
    """The layout's rows as routes over the pods of ``plan``."""
    layout = held_by_nodes(context, layout)
    bearable = evaluate(context, layout).max_rate
    table = evaluate(context, layout, rate=np.minimum(context.rate, bearable))
    pods = {stage.tier: stage for stage in plan.stages}
    if tuple(stage.tier for stage in plan.stages) == layout.tiers:
        stages = plan.stages
    else:
        stages = tuple(pods[tier] for tier in layout.tiers)
    routes = []
    for row in range(len(layout)):
        bounds = [int(bound[row]) for bound in layout.bounds]
        parts = tuple(
            replace(stage, first=first, last=last)
            for stage, first, last in zip(stages, bounds[:-1], bounds[1:], strict=True)
        )
        codecs = tuple(CODECS[int(codec[row])] for codec in layout.codecs)
        routes.append(Candidate(Plan(parts, codecs), table.prediction(row)))
    return routes


def _measured(context: Context, tier: str) -> bool:
    wire = context.wires.get((context.gateway, tier))
    return wire is not None and not wire.remembered


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
            return (*merits, -exit_cut_of(context, route.plan))
        case _:
            return merits


def _rank(context: Context, route: Candidate) -> tuple[float | str, ...]:
    overloaded = float(route.predicted.max_rate_per_second < context.rate)
    p95 = route.predicted.p95_seconds
    match context.policy.prefer:
        case Preference.COST:
            return (overloaded, round(route.predicted.cost_per_hour, 6), p95, str(route.plan))
        case Preference.PRIVACY:
            return (overloaded, -exit_cut_of(context, route.plan), p95, str(route.plan))
        case _:
            return (overloaded, p95, str(route.plan))

"""Routes that requests may take over the pods of one plan: the plan's own first, then the ways out.

Any of them can be chosen per request without touching a pod: all satisfy privacy, and each carries the highest rate
that the resident replicas bear on it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np

from splitplane.domain.plans import Candidate, Plan, Stage
from splitplane.domain.snapshots import Mode, Preference
from splitplane.planner.arrays import Ints
from splitplane.planner.context import Context, crossings
from splitplane.planner.evaluation import Table, assess, evaluate, held_by_nodes, leak_of, violations
from splitplane.planner.layouts import Layout, layout_of
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
    found = {} if own is None else {own.plan.routing: own}
    for stages in _sequences(context, plan):
        layout = _layout(context, plan, stages)
        if layout is not None and len(layout):
            for route in _predict(context, stages, layout):
                found.setdefault(route.plan.routing, route)
    others = [route for route in found.values() if route is not own and route.predicted.max_rate_per_second > 0.0]
    others = [route for route in others if own is None or not _dominates(context, own, route)]
    others.sort(key=lambda route: _rank(context, route))
    routes = others if own is None else [own, *others]
    if len(routes) > LIMIT:
        # The way out that needs the fewest tiers matters more than a further shade of the others.
        simplest = min(routes, key=lambda route: len(route.plan.stages))
        routes = routes[:LIMIT] if simplest in routes[:LIMIT] else [*routes[: LIMIT - 1], simplest]
    return tuple(routes)


def _own(context: Context, plan: Plan) -> Candidate | None:
    """The plan's own route; ``None`` where nothing can serve it."""
    if "spec" in violations(context, plan) or any(stage.tier not in context.sites for stage in plan.stages):
        return None
    if any(pair not in context.wires for pair in crossings(plan, context.gateway)):
        return assess(context, plan)
    return next(iter(_predict(context, plan.stages, layout_of(context, plan))))


def _sequences(context: Context, plan: Plan) -> Iterator[tuple[Stage, ...]]:
    """The plan's stages that requests may pass in turn, other than none: each of them left out or not."""
    stages = [stage for stage in plan.stages if stage.tier in context.sites]
    if len({stage.tier for stage in plan.stages}) < len(plan.stages):
        return  # Two stages on one tier: which pods a range belongs to is the plan's own affair.
    longest = 1 if context.policy.mode is Mode.FIXED else context.policy.max_partitions
    for count in range(1, min(len(stages), longest) + 1):
        for sequence in combinations(stages, count):
            tiers = (context.gateway, *(stage.tier for stage in sequence))
            wires = [context.wires.get(hop) for hop in pairwise(tiers) if hop[0] != hop[1]]
            whole = sequence[0].resident_first == 0 and sequence[-1].resident_last == context.profile.segments
            if whole and all(wire and not wire.remembered for wire in wires) and trusted(context, sequence[0].tier, 0):
                yield sequence


def _layout(context: Context, plan: Plan, stages: Sequence[Stage]) -> Layout | None:
    """The routes over these stages, in this order. Of three, one crossing at a time is another than the plan's."""
    options = context.options
    choices = [_between(context, left, right) for left, right in pairwise(stages)]
    if len(stages) == 1:
        cuts, codecs = [], []
    elif len(stages) == 2:
        cuts, codecs = [options.cut[choices[0]]], [options.codec[choices[0]]]
    else:
        own = layout_of(context, plan)
        pairs = [
            (np.concatenate([options.cut[choices[0]], np.repeat(own.bounds[1], len(choices[1]))]),
             np.concatenate([np.repeat(own.bounds[2], len(choices[0])), options.cut[choices[1]]])),
            (np.concatenate([options.codec[choices[0]], np.repeat(own.codecs[0], len(choices[1]))]),
             np.concatenate([np.repeat(own.codecs[1], len(choices[0])), options.codec[choices[1]]])),
        ]  # fmt: skip
        forward = pairs[0][0] < pairs[0][1]
        cuts, codecs = ([column[forward] for column in pair] for pair in pairs)
    rows = len(cuts[0]) if cuts else 1
    ends = np.zeros(rows, dtype=np.int64), np.full(rows, context.profile.segments)
    return Layout(
        tuple(stage.tier for stage in stages),
        (ends[0], *cuts, ends[1]),
        tuple(codecs),
        tuple(np.full(rows, stage.replicas) for stage in stages),
        frozenset(place for place, stage in enumerate(stages) if stage.pay_per_use),
    )


def _between(context: Context, left: Stage, right: Stage) -> Ints:
    """Options at which ``left`` can hand on to ``right`` with what they keep resident."""
    cuts = context.options.cut
    return np.flatnonzero(
        (cuts > left.resident_first) & (cuts <= left.resident_last)
        & (cuts >= right.resident_first) & (cuts < right.resident_last)
    )  # fmt: skip


def _predict(context: Context, stages: Sequence[Stage], layout: Layout) -> Iterator[Candidate]:
    """The layout's rows as routes over these stages, without those that another beats in everything."""
    layout = held_by_nodes(context, layout)
    bearable = evaluate(context, layout).max_rate
    table = evaluate(context, layout, rate=np.minimum(context.rate, bearable))
    for row in _unbeaten(context, table):
        bounds = [int(bound[row]) for bound in layout.bounds]
        parts = tuple(
            replace(stage, first=first, last=last)
            for stage, first, last in zip(stages, bounds[:-1], bounds[1:], strict=True)
        )
        codecs = tuple(context.table.codecs[int(codec[row])] for codec in layout.codecs)
        yield Candidate(Plan(parts, codecs), table.prediction(int(row)))


def _unbeaten(context: Context, table: Table) -> Ints:
    preferred = {Preference.COST: [table.cost], Preference.PRIVACY: [table.leak]}.get(context.policy.prefer, [])
    merits = np.stack([table.p95, -table.max_rate, *preferred])
    no_worse = (merits[:, :, None] <= merits[:, None, :]).all(axis=0)
    better = (merits[:, :, None] < merits[:, None, :]).any(axis=0)
    return np.flatnonzero(~(no_worse & better).any(axis=0))


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
            return (*merits, leak_of(context, route.plan))
        case _:
            return merits


def _rank(context: Context, route: Candidate) -> tuple[float | str, ...]:
    overloaded = float(route.predicted.max_rate_per_second < context.rate)
    p95 = route.predicted.p95_seconds
    match context.policy.prefer:
        case Preference.COST:
            return (overloaded, round(route.predicted.cost_per_hour, 6), p95, str(route.plan))
        case Preference.PRIVACY:
            return (overloaded, leak_of(context, route.plan), p95, str(route.plan))
        case _:
            return (overloaded, p95, str(route.plan))

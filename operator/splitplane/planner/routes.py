"""Routes that requests may take over the pods of one plan: the plan's own first, then what suits other bandwidths, and
the ways out.

Any of them can be chosen per request without touching a pod: all satisfy privacy, and each carries the highest rate
that the resident replicas bear on it. Which is best at which bandwidth is told (``planner.steps``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from splitplane.domain.plans import Candidate, Plan, Stage, Steps
from splitplane.domain.snapshots import Mode, Preference
from splitplane.planner.arrays import Ints
from splitplane.planner.context import Context, crossings
from splitplane.planner.evaluation import Table, assess, evaluate, held_by_nodes, leak_of, violations
from splitplane.planner.keys import weighed_by
from splitplane.planner.layouts import Layout, layout_of
from splitplane.planner.options import LOSS_STEP
from splitplane.planner.residency import trusted
from splitplane.planner.steps import capacity, predicted, weigh

LIMIT = 12
"""Routes at most, so that the table stays small enough to read."""


@dataclass(frozen=True, slots=True)
class Admissible:
    """The routes, the plan's own first, the others by preference, and which is best at which bandwidth."""

    routes: tuple[Candidate, ...]
    steps: Steps | None


def admissible(context: Context, plan: Plan) -> Admissible:
    """Routes over what ``plan`` keeps resident: those that are best at some bandwidth of its link, and ways out.

    Predicted at the current rate and bandwidths, or at the highest rate that a route bears if that is less; ``steps``
    tells what it bears at others. Routes over tiers without ready nodes or over
    links that nobody measures are left out, except the plan's own.
    """
    if not context.has(plan.variant):
        return Admissible((), None)
    context = context.of(plan.variant)
    key = ("routes", plan, weighed_by(context))
    known = context.kept.result(key)
    if isinstance(known, Admissible):
        return known
    found = _admissible(context, plan)
    context.kept.keep(key, found, plans=LIMIT)
    return found


def admissible_routes(context: Context, plan: Plan) -> tuple[Candidate, ...]:
    """The routes alone."""
    return admissible(context, plan).routes


def _admissible(context: Context, plan: Plan) -> Admissible:
    own = _own(context, plan)
    ways = {} if own is None else {own.plan.routing: own}
    layouts = [] if own is None or _unmeasured(context, plan) else [(plan.stages, layout_of(context, plan))]
    for stages in _sequences(context, plan):
        layout = _within_limits(context, _layout(context, plan, stages))
        if len(layout):
            layouts.append((stages, layout))
            out = min(_predict(context, stages, layout), key=lambda route: _rank(context, route))
            ways.setdefault(out.plan.routing, out)
    # A plan that the user has fixed serves at every bandwidth: others are ways out of it and no more.
    weighed = [] if context.policy.mode is Mode.FIXED else layouts
    found = weigh(context, plan, [(stages, held_by_nodes(context, layout)) for stages, layout in weighed], most=LIMIT)
    best = {route.plan.routing: route for route in found.routes} if found else {}
    others = [route for key, route in (ways | best).items() if own is None or key != own.plan.routing]
    others = [route for route in others if route.predicted.max_rate_per_second > 0.0]
    others.sort(key=lambda route: _rank(context, route))
    first = [] if own is None else [best.get(own.plan.routing, own)]
    kept = {route.plan.routing for route in first} | best.keys()
    # Ways out that are best nowhere give way first, those of most tiers before others.
    spare = sorted((r for r in others if r.plan.routing not in kept), key=lambda route: len(route.plan.stages))
    kept |= {route.plan.routing for route in spare[: max(0, LIMIT - len(kept))]}
    routes = (*first, *(route for route in others if route.plan.routing in kept))
    if not found:
        return Admissible(routes, _always_first(context, plan, routes) if first else None)
    places = {route.plan.routing: place for place, route in enumerate(routes)}
    best_places = tuple(places[found.routes[each].plan.routing] for each in found.best)
    capacities = tuple(capacity(context, route.plan, found.link) for route in routes)
    return Admissible(routes, Steps(*found.link, found.starts, best_places, capacities))


def _always_first(context: Context, plan: Plan, routes: Sequence[Candidate]) -> Steps | None:
    """What routes bear at each bandwidth of the plan's link, of which the first is taken at any; ``None`` where nobody
    measures that."""
    link = next(iter(crossings(plan, context.gateway)), None)
    if link is None or _unmeasured(context, plan):
        return None
    return Steps(*link, (0.0,), (0,), tuple(capacity(context, route.plan, link) for route in routes))


def _unmeasured(context: Context, plan: Plan) -> bool:
    return any(pair not in context.wires for pair in crossings(plan, context.gateway))


def _own(context: Context, plan: Plan) -> Candidate | None:
    """The plan's own route; ``None`` where nothing can serve it."""
    if "spec" in violations(context, plan) or any(stage.tier not in context.sites for stage in plan.stages):
        return None
    if _unmeasured(context, plan):
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


def _within_limits(context: Context, layout: Layout) -> Layout:
    """The rows that show no more and lose no more than the policy allows, as far as that was measured."""
    policy = context.policy
    if not len(layout) or (policy.max_leak is None and policy.max_accuracy_loss is None):
        return layout
    table = evaluate(context, layout)
    able = np.ones(len(layout), dtype=np.bool_)
    if policy.max_leak is not None:
        able &= table.leak_measured & (table.leak <= policy.max_leak)
    if policy.max_accuracy_loss is not None:
        able &= table.loss_measured & (table.loss_steps * LOSS_STEP <= policy.max_accuracy_loss * (1.0 + 1e-9))
    return layout.where(able)


def _layout(context: Context, plan: Plan, stages: Sequence[Stage]) -> Layout:
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
        plan.variant,
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
    yield from predicted(context, stages, layout, lambda table: _unbeaten(context, table))


def _unbeaten(context: Context, table: Table) -> Ints:
    preferred = {Preference.COST: [table.cost], Preference.PRIVACY: [table.leak]}.get(context.policy.prefer, [])
    merits = np.stack([table.p95, -table.max_rate, *preferred])
    no_worse = (merits[:, :, None] <= merits[:, None, :]).all(axis=0)
    better = (merits[:, :, None] < merits[:, None, :]).any(axis=0)
    return np.flatnonzero(~(no_worse & better).any(axis=0))


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

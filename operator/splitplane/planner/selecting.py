"""The best plan of all for one context, before any gate."""

import math
from collections.abc import Collection, Iterable
from dataclasses import replace

from splitplane.domain.plans import Candidate, Plan, Stage
from splitplane.domain.snapshots import Mode
from splitplane.planner.bars import CHEAPEST, Aim
from splitplane.planner.choice import pick, pick_cheapest
from splitplane.planner.context import Context, ContradictionError, crossings
from splitplane.planner.evaluation import assess, violations
from splitplane.planner.frontier import (
    Frontier,
    contenders,
    every_plan,
    frontier_of_layouts,
    frontier_of_lines,
    together,
    unbeaten,
)
from splitplane.planner.layouts import Layout, with_replicas
from splitplane.planner.likely import with_likely_residency
from splitplane.planner.overload import highest_rate_of_layouts, highest_rate_of_lines
from splitplane.planner.residency import resident_range

OVERLOAD_TIE = 0.01
"""While nothing carries the load, plans that bear within this share of the most that any bears count as equal."""


def best_plan(context: Context) -> Candidate | None:
    """The best plan that is not set aside; ``None`` if there is no plan at all.

    Where nothing carries the load: the cheapest of those that bear nearly the highest rate, and always the same one.
    """
    without: list[Plan] = []
    while True:
        found = _best(context, without)
        if found is None:
            return None
        found = replace(found, plan=with_likely_residency(context.of(found.plan.variant), found.plan, _plan_at))
        if not context.set_aside or found.plan.digest not in context.set_aside:
            return found
        without.append(found.plan)


def _plan_at(context: Context) -> Plan | None:
    best = _best(context, [])
    return None if best is None else best.plan


def current_frontier(context: Context, without: tuple[Plan, ...] = (), *, rate: float | None = None) -> Frontier:
    """The frontier of the plans that may be chosen now, of all variants."""
    rate = context.rate if rate is None else rate
    found = [_frontier_of(each, _own(each, without), rate) for each in context.variants]
    return found[0] if len(found) == 1 else unbeaten(together(found))


def all_plans(context: Context, *, most: int) -> tuple[Plan, ...] | None:
    """Every plan that the hard limits allow, whatever the load and whatever the user dictates, of all variants;
    ``None`` if they may be more than ``most`` of one."""
    found: list[Plan] = []
    for each in context.variants:
        every = every_plan(each, most=most)
        if every is None:
            return None
        found += (layout.plan(context, row) for layout in every.layouts for row in range(len(layout)))
    return tuple(found)


def _frontier_of(context: Context, without: tuple[Plan, ...], rate: float) -> Frontier:
    layouts = _layouts(context)
    if context.policy.mode is Mode.FIXED:
        return frontier_of_layouts(context, layouts, rate, without)
    found = frontier_of_lines(context, rate, without)
    if not layouts:
        return found
    return frontier_of_layouts(context, [*(table.layout for table in found.tables), *layouts], rate, without)


def _best(context: Context, without: list[Plan]) -> Candidate | None:
    frontier = _contenders(context, context.rate, Aim.of(context.policy), tuple(without))
    if len(frontier):
        return frontier.candidate(context, pick(context.policy, frontier))
    rate = highest_rate(context, without) * (1.0 - OVERLOAD_TIE)
    if not 0.0 < rate < math.inf:
        return None
    frontier = _contenders(context, rate, CHEAPEST, tuple(without))
    if not len(frontier):
        return None
    return assess(context, frontier.candidate(context, pick_cheapest(frontier)).plan)


def _contenders(context: Context, rate: float, aim: Aim, without: tuple[Plan, ...]) -> Frontier:
    """Plans of all variants, among which the best is."""
    return together([_contenders_of(each, _own(each, without), rate, aim) for each in context.variants])


def _contenders_of(context: Context, without: tuple[Plan, ...], rate: float, aim: Aim) -> Frontier:
    if context.policy.mode is Mode.FIXED or _remembered(context) is not None:
        return _frontier_of(context, without, rate)
    return contenders(context, rate, aim, without)


def highest_rate(context: Context, without: Collection[Plan] = ()) -> float:
    """The highest rate that a plan of any variant bears, but for some plans; 0 if there is none."""
    return max(_highest_rate_of(each, _own(each, without)) for each in context.variants)


def _own(context: Context, plans: Iterable[Plan]) -> tuple[Plan, ...]:
    """Those of the context's variant."""
    return tuple(plan for plan in plans if plan.variant == context.variant)


def _highest_rate_of(context: Context, without: tuple[Plan, ...]) -> float:
    among_layouts = highest_rate_of_layouts(context, _layouts(context), without)
    if context.policy.mode is Mode.FIXED:
        return among_layouts
    return max(among_layouts, highest_rate_of_lines(context, without))


def _layouts(context: Context) -> list[Layout]:
    """Routings that are in the running besides those of the search: a fixed one alone, or the active one over links
    that are not measured now."""
    if context.policy.mode is Mode.FIXED:
        fixed = _fixed(context)
        layout = None if fixed is None else with_replicas(context, fixed)
    else:
        layout = _remembered(context)
    return [] if layout is None else [layout]


def _remembered(context: Context) -> Layout | None:
    if context.running is None or routing_violations(context, context.running):
        return None
    wires = [context.wires.get(hop) for hop in crossings(context.running, context.gateway)]
    if None in wires or not any(wire.remembered for wire in wires if wire):
        return None
    return with_replicas(context, context.running)


def _fixed(context: Context) -> Plan | None:
    """The plan that the user dictates; ``None`` where it cannot or must not run."""
    plan = dictated(context)
    unlinked = any(hop not in context.wires for hop in crossings(plan, context.gateway))
    return None if unlinked or routing_violations(context, plan) else plan


def dictated(context: Context) -> Plan:
    """The plan that the user dictates, with one replica per stage. Raises ``ContradictionError`` where it is none."""
    fixed = context.policy.fixed
    if fixed is None:
        raise ContradictionError("mode Fixed needs a fixed plan: give its stages and codecs, or choose mode Auto")
    end = context.profile.segments
    if not fixed.stages or fixed.stages[0][1] != 0 or fixed.stages[-1][2] != end:
        raise ContradictionError(
            f"the fixed plan does not cover the model: its stages must run from cut 0 to cut {end}"
        )
    unknown = {tier for tier, _, _ in fixed.stages} - context.tiers.keys()
    if unknown:
        raise ContradictionError(f"the fixed plan names tiers {sorted(unknown)} that the pipeline does not have")
    if not set(fixed.codecs) <= set(context.table.codecs):
        raise ContradictionError(f"the fixed plan names codecs other than {', '.join(context.table.codecs)}")
    stages = tuple(
        Stage(tier, first, last, *resident_range(context, tier, first, last), 1) for tier, first, last in fixed.stages
    )
    return Plan(stages, fixed.codecs)


def routing_violations(context: Context, plan: Plan) -> set[str]:
    """Hard limits that a plan breaks with any number of replicas."""
    refused = any(stage.tier not in context.sites for stage in plan.stages)
    return set(violations(context, plan)) - {"replicas", *(() if refused else ("grant",))}

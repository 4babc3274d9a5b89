"""The frontier: plans that no other beats or equals in cost, p95, leak and accuracy loss."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from splitplane.domain.plans import Candidate, Plan
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.bars import Aim
from splitplane.planner.columns import joined, taken
from splitplane.planner.context import Context
from splitplane.planner.cover import Cover
from splitplane.planner.evaluation import Table, Weighed, broken, evaluate, weighed_key
from splitplane.planner.keys import limits, numbers
from splitplane.planner.layouts import Every, Layout, layout_of
from splitplane.planner.lines import TRICKLE, Line, build_lines
from splitplane.planner.options import Options
from splitplane.planner.pareto import nondominated
from splitplane.planner.search import Load, Numbers, search

_FEW = 4000
"""Plans that are weighed in less time than the best of them are searched for."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """Plans of several layouts side by side; a plan is named by its place in the concatenated columns."""

    tables: tuple[Table, ...]
    cost: Array
    p95: Array
    leak: Array
    loss: Ints

    def __len__(self) -> int:
        return len(self.cost)

    def candidate(self, context: Context, place: int) -> Candidate:
        """A plan as a candidate, with the limits that it breaks."""
        for table in self.tables:
            if place < len(table.layout):
                over = zip(("utilization", "p95", "cost"), broken(context, table), strict=True)
                violations = tuple(name for name, mask in over if mask[place])
                return Candidate(table.layout.plan(context, place), table.prediction(place), violations)
            place -= len(table.layout)
        raise IndexError(place)


def frontier_of_lines(context: Context, rate: float, without: Collection[Plan] = ()) -> Frontier:
    """The frontier at ``rate`` requests per second over all plans that the hard limits allow, but for some."""
    key = (numbers(context), rate, frozenset(plan.digest for plan in without))
    known = context.kept.result(key)
    if isinstance(known, Frontier):
        return known
    found = _frontier(context, list(build_lines(context, rate)), rate, without)
    context.kept.keep(key, found, plans=len(found))
    return found


def contenders(context: Context, rate: float, aim: Aim, without: Collection[Plan] = ()) -> Frontier:
    """What of the frontier is in the running for an aim, or where that is quicker all plans that carry the load: the
    best plan of either is the frontier's."""
    every = None if without else every_plan(context, most=_FEW)
    if every is None:
        return in_the_running(context, rate, aim, without)
    key = weighed_key(context, rate)
    known: Weighed | None = context.kept.result(key)
    if known is None:
        tables = [evaluate(context, layout, rate=rate) for layout in every.layouts]
        over = [broken(context, table)[0] for table in tables]
        able = (table.where(~mask) if mask.any() else table for table, mask in zip(tables, over, strict=True))
        known = Weighed(every, tuple(tables), tuple(table for table in able if len(table.layout)))
        context.kept.keep(key, known, plans=sum(map(len, every.layouts)))
    return _assembled(known.able)


def in_the_running(context: Context, rate: float, aim: Aim, without: Collection[Plan] = ()) -> Frontier:
    """The plans of the frontier that ``choice.pick`` may take, and some others."""
    key = ("in the running", numbers(context), rate, aim, frozenset(plan.digest for plan in without))
    known = context.kept.result(key)
    if isinstance(known, Frontier):
        return known
    found = _frontier(context, list(build_lines(context, rate)), rate, without, aim)
    context.kept.keep(key, found, plans=len(found))
    return found


def every_plan(context: Context, *, most: int) -> Every | None:
    """Every plan that the hard limits allow, whatever the load; ``None`` if they may be more than ``most``. These
    don't depend on rates, prices and how fast links are, and are kept."""
    if _most_plans(context) > most:
        return None
    usable = frozenset(pair for pair, wire in context.wires.items() if not wire.remembered)
    key = ("every plan", usable, limits(context))
    known: Every | None = context.kept.result(key)
    if known is None:
        known = Every(context.table.codecs, tuple(_all_rows(context, line) for line in build_lines(context, TRICKLE)))
        context.kept.keep(key, known, plans=sum(map(len, known.layouts)))
    return known


def _most_plans(context: Context) -> float:
    """As many plans as there may be at most; infinite where some have a stage between two others."""
    usable = [site for site in context.sites.values() if context.affordable(site)]
    parts = min(len(usable), context.policy.max_partitions)
    if parts > 2 or (parts == 2 and context.policy.allow_return and context.policy.max_partitions > 2):
        return math.inf
    ways = [site.high if site.tier.pay_per_use is None else 2 * site.high + 1 for site in usable]
    splits = sum(one * other for one, other in combinations(ways, 2)) if parts == 2 else 0
    return sum(ways) + len(context.options) * splits


def _all_rows(context: Context, line: Line) -> Layout:
    """All rows of a line of one or two tiers with all numbers of replicas."""
    ends = [context.sites[tier] for tier in line.tiers]
    ranges = [
        np.arange(site.fewest(pay_per_use=place in line.pay_per_use), site.high + 1) for place, site in enumerate(ends)
    ]
    grids = [grid.ravel() for grid in np.meshgrid(np.arange(len(line.first)), *ranges, indexing="ij")]
    first, second = line.first[grids[0]], line.second[grids[0]]
    ones = np.ones_like(first)
    layout = line.layout(context.profile.segments, first, second, (ones, ones, ones))
    return replace(layout, replicas=tuple(grids[1:]))


def contenders_of_other_splits(context: Context, plan: Plan, aim: Aim) -> Frontier:
    """What is in the running for an aim of the plans with at least two stages that are on other tiers than ``plan``, or
    cut elsewhere."""
    tiers = tuple(stage.tier for stage in plan.stages)
    lines = [line for line in build_lines(context, context.rate) if len(line.tiers) > 1]
    others = [line.other_than(plan.cuts) if line.tiers == tiers else line for line in lines]
    return _frontier(context, [line for line in others if len(line.first)], context.rate, (), aim)


def contenders_that_come_back(context: Context, aim: Aim) -> Frontier:
    """What is in the running for an aim of the plans that come back to a tier."""
    lines = [line for line in build_lines(context, context.rate) if line.both is not None]
    return _frontier(context, lines, context.rate, (), aim)


def _frontier(
    context: Context, lines: Sequence[Line], rate: float, without: Collection[Plan], aim: Aim | None = None
) -> Frontier:
    """The frontier over some lines, or what of it is in the running for an aim."""
    layouts = _search(context, lines, rate, without, aim) if lines else []
    return _assembled([evaluate(context, layout, rate=rate) for layout in layouts])


def frontier_of_layouts(
    context: Context, layouts: Iterable[Layout], rate: float, without: Collection[Plan] = ()
) -> Frontier:
    """The frontier at ``rate`` requests per second over the plans of some layouts, but for some."""
    tables = []
    for layout in layouts:
        table = evaluate(context, layout, rate=rate)
        keep = ~broken(context, table)[0]
        for plan in without:
            keep &= ~same_plan(layout, layout_of(context, plan))
        tables.append(table.where(keep))
    return unbeaten(_assembled(tables))


def together(frontiers: Sequence[Frontier]) -> Frontier:
    """The plans of several frontiers side by side, which may beat one another."""
    return frontiers[0] if len(frontiers) == 1 else _assembled([table for each in frontiers for table in each.tables])


def unbeaten(frontier: Frontier) -> Frontier:
    """The plans of a frontier that no other of it beats or equals in all four."""
    tables = frontier.tables
    kept = nondominated(frontier.cost, frontier.p95, np.unique(frontier.leak, return_inverse=True)[1], frontier.loss)
    starts = [sum(len(table.layout) for table in tables[:number]) for number in range(len(tables))]
    return _assembled([
        table.where(np.sort(kept[(kept >= start) & (kept < start + len(table.layout))]) - start)
        for table, start in zip(tables, starts, strict=True)
    ])  # fmt: skip


def _assembled(tables: Sequence[Table]) -> Frontier:
    return Frontier(
        tables=tuple(tables),
        cost=np.concatenate([[], *(table.cost for table in tables)]),
        p95=np.concatenate([[], *(table.response.p95 for table in tables)]),
        leak=np.concatenate([[], *(table.leak for table in tables)]),
        loss=np.concatenate([np.zeros(0, dtype=np.int64), *(table.loss_steps for table in tables)]),
    )


def _search(
    context: Context, lines: Sequence[Line], rate: float, without: Collection[Plan], aim: Aim | None
) -> list[Layout]:
    cover, load = _cover(lines, aim), Load(rate, context.arrival_scv, context.policy.max_utilization)
    found = []
    for number, line in enumerate(lines):
        left_out = [numbers for plan in without if (numbers := find(context, line, plan)) is not None]
        found += [(number, part) for part in search(line, load, cover, left_out)]
    everything = joined([part for _, part in found])
    origin = np.concatenate([np.full(len(part.cost), number) for number, part in found])
    # What became known later rules out some of what was found early, in less time than the exact filter takes for it.
    lowest = cover.lowest(cover.floor(everything.leak, everything.loss), everything.cost)
    places = np.flatnonzero(lowest >= everything.p95)
    everything, origin = taken(everything, places), origin[places]
    kept = nondominated(everything.cost, everything.p95, everything.leak, everything.loss)
    layouts = []
    for each, line in enumerate(lines):
        rows = taken(everything, kept[origin[kept] == each])
        replicas = rows.head, rows.middle, rows.tail
        layouts.append(line.layout(context.profile.segments, rows.first, rows.second, replicas))
    return [layout for layout in layouts if len(layout)]


def _cover(lines: Sequence[Line], aim: Aim | None) -> Cover:
    """A cover with bins for the plans of these lines."""
    leaks = np.concatenate([side.leak for line in lines for side in (line.head, line.tail)])
    losses = [np.add.outer(line.head.loss[::5], line.tail.loss[::5]).ravel() for line in lines]
    most = max(int(line.head.loss.max() + line.tail.loss.max()) for line in lines)
    cheapest = min(float(line.head.cost.min() + line.tail.cost.min()) + line.middle_cost for line in lines)
    step = max(line.head.price + line.tail.price + (line.middle.price if line.middle else 0.0) for line in lines)
    # Where the rounding of sums goes the other way, a plan must not seem cheaper than the cheapest.
    cheapest -= 1e-9 * abs(cheapest)
    return Cover(leaks, np.concatenate([*losses, [most]]), cheapest, cheapest + 2.0 * step, aim)


def find(context: Context, line: Line, plan: Plan) -> Numbers | None:
    """A plan by its numbers within a line; ``None`` if it is not of that line."""
    if plan.variant != line.variant or tuple(stage.tier for stage in plan.stages) != line.tiers:
        return None
    if frozenset(place for place, stage in enumerate(plan.stages) if stage.pay_per_use) != line.pay_per_use:
        return None
    places = [
        _place(options, cut, context.table.codecs.index(codec))
        for options, cut, codec in zip(
            (line.before, line.after)[-len(plan.cuts) :], plan.cuts, plan.codecs, strict=False
        )
    ]
    if None in places:
        return None
    counts = [stage.replicas for stage in plan.stages]
    match places, counts:
        case [], [tail]:
            return (0, 0, 1, 1, tail)
        case [int(only)], [head, tail]:
            return (only, only, head, 1, tail)
        case [int(first), int(second)], [head, middle, tail]:
            return (first, second, head, middle, tail)
    return None


def _place(options: Options, cut: int, codec: int) -> int | None:
    found = np.flatnonzero((options.cut == cut) & (options.codec == codec))
    return int(found[0]) if len(found) else None


def same_plan(layout: Layout, other: Layout) -> Bools:
    """Rows of ``layout`` that are the one plan of ``other``."""
    kinds = [(each.tiers, each.pay_per_use, each.variant) for each in (layout, other)]
    if kinds[0] != kinds[1]:
        return np.zeros(len(layout), dtype=np.bool_)
    columns = zip(
        (*layout.bounds, *layout.codecs, *layout.replicas), (*other.bounds, *other.codecs, *other.replicas), strict=True
    )
    same: Bools = np.logical_and.reduce([mine == theirs for mine, theirs in columns])
    return same

"""At which bandwidth which route over a plan's pods is best, from the planner's own predictions.

All pods of the plan run whichever way requests go, so a route costs what all of them cost, and its egress. Routes are
compared as plans are: limits first, then the preferred objective. Each of the numbers that they are compared by falls,
or stays, as the link gets faster, and so does their order as a whole. That settles a span between two bandwidths: who
is the best at its lower end stays so, up to what a prediction can tell apart, if no other is better at the *upper* end
than it is at the lower one. Spans that are not settled are divided, and so are those within which the best changes
(docs/planner.md, "Routes").
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from splitplane.domain.plans import Candidate, Capacity, Plan, Stage
from splitplane.domain.snapshots import Preference
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.bars import COST_TIE
from splitplane.planner.context import Context, Direction, crossings
from splitplane.planner.evaluation import Table, broken, evaluate, held_by_nodes
from splitplane.planner.layouts import Layout, layout_of

SLOWEST, FASTEST = 1e3, 1e10
"""Bytes per second between which routes are told apart."""

FINEST = 1.02
"""Spans are divided until their ends are this close; within one the best is right to within as much."""

EDGE = 1.003
"""How exactly it is told where one route stops to be the best and another begins."""

_STILL, _BOUNDLESS = 1e-6, 1e18
"""Bytes per second at which a link holds back whatever crosses it, and at which it never does."""

_GRID = 29
_PARTS = np.array([0.25, 0.5, 0.75])
_SAME = 1.0 / 128.0
_OVERLOADED, _SLOW, _DEAR = 4, 2, 1


@dataclass(frozen=True, slots=True)
class Weighed:
    """Routes that are best somewhere on a link; from ``starts[i]`` bytes per second on it is ``routes[best[i]]``."""

    link: Direction
    routes: tuple[Candidate, ...]
    starts: tuple[float, ...]
    best: tuple[int, ...]


def weigh(
    context: Context, plan: Plan, layouts: Sequence[tuple[Sequence[Stage], Layout]], *, most: int
) -> Weighed | None:
    """The best of all rows at every bandwidth of the plan's first crossing; ``None`` if it has none that is measured.

    ``layouts`` are rows with the plan's stages that they run on; of rows as good the first is taken. No more than
    ``most`` routes come of it: those that are best over the smallest part of the scale give way.
    """
    link = next(iter(crossings(plan, context.gateway)), None)
    if link is None or link not in context.wires or not layouts:
        return None
    rows = _Rows(context, plan, layouts, link)
    among = np.arange(len(rows))
    while True:
        points, labels = _settled(rows, among)
        best = np.unique(labels)
        if len(best) <= most:
            break
        widths = np.diff(np.log(np.append(points, FASTEST)))
        narrowest = min(best, key=lambda row: float(widths[labels == row].sum()))
        among = best[best != narrowest]
    turns = np.flatnonzero(np.diff(labels, prepend=-1))
    order = list(dict.fromkeys(labels[turns].tolist()))
    return Weighed(
        link=link,
        routes=tuple(rows.route(row) for row in order),
        starts=(0.0, *(float(points[turn]) for turn in turns[1:])),
        best=tuple(order.index(row) for row in labels[turns].tolist()),
    )


def capacity(context: Context, plan: Plan, link: Direction) -> Capacity:
    """What a route bears at any bandwidth of ``link``: a link's share of the time falls as its bandwidth grows, and
    nothing else depends on that."""
    layout = held_by_nodes(context, layout_of(context, plan)).where(np.zeros(2, dtype=np.int64))
    slow, fast = evaluate(
        context, layout, bandwidths=dict.fromkeys(_ways(context, link), np.array([_STILL, _BOUNDLESS]))
    ).max_rate.tolist()
    return Capacity(fast, _STILL / slow if 0.0 < slow < fast else 0.0)


def _ways(context: Context, link: Direction) -> tuple[Direction, ...]:
    """The directions that a bandwidth of the link is about: what is measured one way only holds for both."""
    both = context.wires[link].bandwidth == context.wires[link[::-1]].bandwidth
    return (link, link[::-1]) if both else (link,)


def predicted(
    context: Context, stages: Sequence[Stage], layout: Layout, kept: Callable[[Table], Ints] | None = None
) -> Iterator[Candidate]:
    """Rows of a layout (those that ``kept`` chooses of them) as routes over these stages: at the present rate, or what
    a row bears if that is less, with the limits that it breaks."""
    bearable = evaluate(context, layout).max_rate
    table = evaluate(context, layout, rate=np.minimum(context.rate, bearable))
    names = ("utilization", "p95", "cost")
    limits = (bearable * (1.0 + 1e-9) < context.rate, *broken(context, table)[1:])
    for row in range(len(layout)) if kept is None else kept(table).tolist():
        bounds = [int(bound[row]) for bound in layout.bounds]
        parts = tuple(
            replace(stage, first=first, last=last)
            for stage, first, last in zip(stages, bounds[:-1], bounds[1:], strict=True)
        )
        codecs = tuple(context.table.codecs[int(codec[row])] for codec in layout.codecs)
        breaks = tuple(name for name, limit in zip(names, limits, strict=True) if limit[row])
        yield Candidate(Plan(parts, codecs, layout.variant), table.prediction(row), breaks)


@dataclass(frozen=True, slots=True)
class _Merits:
    """By bandwidth and row: ``level`` comes first, ``value`` second, less being better; both fall with bandwidth."""

    level: Ints
    value: Array

    def where(self, points: Ints | slice) -> "_Merits":
        return _Merits(self.level[points], self.value[points])

    def best(self) -> Ints:
        """The best row at each bandwidth; of equals the first."""
        lowest = self.level.min(axis=1, keepdims=True)
        best: Ints = np.where(self.level == lowest, self.value, np.inf).argmin(axis=1)
        return best


class _Rows:
    """All routes side by side."""

    def __init__(
        self, context: Context, plan: Plan, layouts: Sequence[tuple[Sequence[Stage], Layout]], link: Direction
    ) -> None:
        self.context, self.plan, self.layouts = context, plan, layouts
        self.ways = _ways(context, link)
        self.places = [(n, row) for n, (_, layout) in enumerate(layouts) for row in range(len(layout))]
        tables = [evaluate(context, layout) for _, layout in layouts]
        prices = {name: context.weight(site) for name, site in context.sites.items()}
        pods = sum(stage.replicas * prices.get(stage.tier, 0.0) for stage in plan.stages)
        cost = pods + np.concatenate([
            table.cost - sum(count * prices[tier] for tier, count in zip(layout.tiers, layout.replicas, strict=True))
            for table, (_, layout) in zip(tables, layouts, strict=True)
        ])  # fmt: skip
        limit = context.policy.max_cost_per_hour
        priced = all(table.priced for table in tables)
        self.dear: Ints = (cost > (math.inf if limit is None or not priced else limit * (1.0 + 1e-9))).astype(np.int64)
        cost = np.where(cost <= cost.min() * (1.0 + COST_TIE), cost.min(), cost)
        leak = np.concatenate([table.leak for table in tables])
        match context.policy.prefer:
            case Preference.COST:
                keys = cost[:, None]
            case Preference.PRIVACY:
                keys = np.stack([leak, cost], axis=1)
            case _:
                keys = np.zeros((len(cost), 1))
        self.rank: Ints = np.unique(np.round(keys, 9), axis=0, return_inverse=True)[1].reshape(-1)

    def __len__(self) -> int:
        return len(self.places)

    def merits(self, among: Ints, bandwidths: Array) -> _Merits:
        """Of some rows, at some bandwidths."""
        levels, values = [], []
        for number, (_, layout) in enumerate(self.layouts):
            rows = np.array([self.places[row][1] for row in among if self.places[row][0] == number], dtype=np.int64)
            if not len(rows):
                continue
            width = np.tile(rows, len(bandwidths))
            bandwidth = np.repeat(bandwidths, len(rows))
            table = evaluate(self.context, layout.where(width), bandwidths=dict.fromkeys(self.ways, bandwidth))
            over, slow, _ = broken(self.context, table)
            start = self.places.index((number, 0))
            dear, rank = (np.tile(column[start + rows], len(bandwidths)) for column in (self.dear, self.rank))
            grade = np.where(over, _OVERLOADED, _SLOW * slow + _DEAR * dear)
            levels.append((grade * (len(self) + 1) + np.where(grade < _SLOW, rank, 0)).reshape(len(bandwidths), -1))
            value = np.where(over, 1.0 / np.maximum(table.max_rate, 1e-12), table.p95)
            values.append(value.reshape(len(bandwidths), -1))
        return _Merits(np.concatenate(levels, axis=1), np.concatenate(values, axis=1))

    def overloaded(self, merits: _Merits) -> Bools:
        overloaded: Bools = merits.level >= _OVERLOADED * (len(self) + 1)
        return overloaded

    def route(self, row: int) -> Candidate:
        """A row as a route, predicted at the present bandwidth and rate, or what it bears of that."""
        number, place = self.places[row]
        stages, layout = self.layouts[number]
        return next(predicted(self.context, stages, layout.where(np.array([place]))))


def _settled(rows: _Rows, among: Ints) -> tuple[Array, Ints]:
    """Bandwidths in rising order, and the best row from each to the next."""
    points = np.geomspace(SLOWEST, FASTEST, _GRID)
    merits = rows.merits(among, points)
    among, merits = _contenders(among, merits)
    while True:
        best = merits.best()
        places = np.arange(len(points))
        overloaded = rows.overloaded(merits)[places, best]
        ratio = points[1:] / points[:-1]
        turns = (best[1:] != best[:-1]) | (overloaded[1:] != overloaded[:-1])
        open_spans = np.where(turns, ratio > EDGE, (ratio > FINEST) & ~_closed(merits, best))
        spans = np.flatnonzero(open_spans)
        if not len(spans):
            return points, among[best]
        between = (points[spans, None] * ratio[spans, None] ** _PARTS).ravel()
        fresh = rows.merits(among, between)
        order = np.argsort(np.concatenate([points, between]), kind="stable")
        points = np.concatenate([points, between])[order]
        merits = _Merits(
            np.concatenate([merits.level, fresh.level])[order], np.concatenate([merits.value, fresh.value])[order]
        )


def _contenders(among: Ints, merits: _Merits) -> tuple[Ints, _Merits]:
    """The rows that may be the best somewhere: in some span not worse at its upper end than the best at its lower."""
    best = merits.best()
    kept = np.union1d(best, np.flatnonzero(_rivals(merits, best).any(axis=0)))
    return among[kept], _Merits(merits.level[:, kept], merits.value[:, kept])


def _closed(merits: _Merits, best: Ints) -> Bools:
    """By span, whether nothing but the best at its lower end may be notably better within."""
    others = np.arange(merits.level.shape[1]) != best[:-1, None]
    closed: Bools = ~(_rivals(merits, best) & others).any(axis=1)
    return closed


def _rivals(merits: _Merits, best: Ints) -> Bools:
    """By span and row, whether the row is better at the upper end than the best at the lower end, by more than the
    planner can tell apart."""
    places = np.arange(len(best) - 1)
    level, value = merits.level[places, best[:-1]][:, None], merits.value[places, best[:-1]][:, None]
    upper = merits.where(slice(1, None))
    return np.asarray((upper.level < level) | ((upper.level == level) & (upper.value < value * (1.0 - _SAME))))

"""The plans of a line that none beats, by branch and bound over families of plans (docs/planner.md, "Search").

A *row* is a line with an option for each crossing. ``family(n, S)`` holds the plans of a row that have more replicas
than ``n`` in exactly the stages ``S``. The families of one layer are weighed together.

Nothing is lost. A plan is left out only when a plan that was looked at before is at most as large in all four axes as
a bound of the family that it lies in: replicas add to the cost, no wait grows with them (``queueing.wait``), and no
percentile grows when a wait falls, so the corner ``n + 1_S`` has the least cost of the family, and ``n`` with all
replicas there are in ``S`` is at least as fast as any member. The families of the fewest replicas, and after them those
of each corner within its own ``S``, hold every plan of the row once.

Where head and tail are on one tier, which holds so many of both together: a corner with more of them goes with all its
family, as no member has fewer; one with fewer than the tier's minimum is no plan, but its family is looked at. Bounds
hold for all the more plans than there are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from splitplane.planner.arrays import Array, Bits, Ints
from splitplane.planner.columns import joined, sliced, taken
from splitplane.planner.cover import Cover
from splitplane.planner.exits import Seen
from splitplane.planner.lines import Line
from splitplane.planner.queueing import blend, coupling_of, damp, delay, percentile_95, service_third
from splitplane.planner.stations import round_cost

HEAD, MIDDLE, TAIL = 1, 2, 4
"""Stages as bits of a set."""

_FEW = 20_000
_CHUNK = 8192
_SAMPLE = 11
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Load:
    """What stations have to bear: requests per second, how variable their gaps are, and how busy a station may be."""

    rate: float
    arrival_scv: float
    ceiling: float


@dataclass(frozen=True, slots=True)
class Found:
    """Plans of one line by their options, their replicas (0 for a stage that the line lacks) and the four axes, the
    leak by its rank in the cover."""

    first: Ints
    second: Ints
    head: Ints
    middle: Ints
    tail: Ints
    cost: Array
    p95: Array
    leak: Ints
    loss: Ints


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows with all that does not depend on replicas. ``seconds`` is the middle stage's service, ``moments`` are the
    cumulants of the whole line's (3 x rows), ``least`` and ``cost`` stand for the fewest replicas, ``bound`` is the
    p95 with all of them, ``leak`` a rank and ``floor`` a place in the cover."""

    first: Ints
    second: Ints
    seconds: Array
    least: Ints
    cost: Array
    moments: Array
    coupling: Array
    leak: Ints
    loss: Ints
    floor: Ints
    bound: Array


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Plans as corners of families: their row, replicas, stages that may still grow, and the cumulants of the middle
    stage's waits (3 x plans)."""

    row: Ints
    head: Ints
    middle: Ints
    tail: Ints
    growing: Bits
    cost: Array
    p95: Array
    bound: Array
    waits: Array


Numbers = tuple[int, int, int, int, int]
"""A plan of a line: first option, second option, replicas of head, middle and tail."""


def search(line: Line, load: Load, cover: Cover, without: Sequence[Numbers] = ()) -> Iterator[Found]:
    """Every plan of the line that no other known plan beats, and some that one does; notes them in ``cover``.

    Plans of ``without`` count as if they did not exist.
    """
    yield from _Search(line, load, cover, without).run()


class _Search:
    def __init__(self, line: Line, load: Load, cover: Cover, without: Sequence[Numbers]) -> None:
        self.line, self.load, self.cover, self.without = line, load, cover, without
        middle = line.middle
        self.prices = {HEAD: line.head.price, MIDDLE: middle.price if middle else 0.0, TAIL: line.tail.price}
        self.most = {HEAD: line.head.most, MIDDLE: middle.most if middle else 1, TAIL: line.tail.most}
        self.ends = {HEAD: line.head, TAIL: line.tail}
        self.leaks = {stage: cover.rank(side.leak) for stage, side in self.ends.items()}
        self.means = {stage: side.moments[0] for stage, side in self.ends.items()}
        self.longer = {stage: side.longer for stage, side in self.ends.items()}
        self.longer_at_most = {
            stage: self.longer[stage][side.most - 1 :: side.most] for stage, side in self.ends.items()
        }
        able = sum(stage for stage, most in self.most.items() if most > 1)
        # Those without the middle stage, whose waits stay as they are, come first.
        sets = sorted((s for s in range(1, 8) if s & able == s), key=lambda s: (s & MIDDLE, s))
        self.sets = np.array(sets, dtype=np.uint8)
        self.with_middle = sum(not s & MIDDLE for s in sets)
        self.members = {stage: (self.sets & stage) > 0 for stage in self.most}
        self.at_ends = self.members[HEAD].astype(np.int64) + self.members[TAIL]
        self.step: Array = np.add.reduce([self.members[stage] * self.prices[stage] for stage in self.most])

    def run(self) -> Iterator[Found]:
        first, second = self.line.first, self.line.second
        if len(first) * math.prod(self.most.values()) <= _FEW:
            nodes = self.all(rows := self.rows(first, second, promising=True))
            self.note(rows, nodes)
            yield self.found(rows, nodes)
            return
        if len(first) > _CHUNK:
            rows = self.rows(first[::_SAMPLE], second[::_SAMPLE])
            nodes = self.fewest(rows)
            self.note(rows, nodes)
            yield self.found(rows, nodes)
        self.cover.settle()
        chunks = [
            self.promising(first[at : at + _CHUNK], second[at : at + _CHUNK]) for at in range(0, len(first), _CHUNK)
        ]
        rows = joined([rows for rows, _ in chunks])
        nodes = joined([nodes for _, nodes in chunks])
        nodes.row[:] = np.arange(len(nodes.row))
        self.note(rows, nodes)
        lowest = self.cover.lowest(rows.floor, nodes.cost)
        yield self.found(rows, taken(nodes, np.flatnonzero(lowest >= nodes.p95)))
        nodes = taken(nodes, np.flatnonzero((lowest > rows.bound) & (nodes.p95 > rows.bound)))
        most = self.middle_waits(rows, np.arange(len(lowest)), np.full(len(lowest), self.most[MIDDLE]))
        while len(nodes.row):
            nodes = self.families(rows, most, nodes)
            self.note(rows, nodes)
            lowest = self.cover.lowest(rows.floor.take(nodes.row), nodes.cost)
            yield self.found(rows, taken(nodes, np.flatnonzero(lowest >= nodes.p95)))
            nodes = taken(nodes, np.flatnonzero((lowest > nodes.bound) & (nodes.p95 > nodes.bound)))

    def rows(self, first: Ints, second: Ints, *, promising: bool = False) -> _Rows:
        """The rows of these pairs that carry the load; if ``promising``, those that nothing known rules out."""
        head, middle, tail = self.line.head, self.line.middle, self.line.tail
        cost = head.cost.take(first)
        cost += tail.cost.take(second)
        leak = np.maximum(self.leaks[HEAD].take(first), self.leaks[TAIL].take(second))
        loss = head.loss.take(first)
        loss += tail.loss.take(second)
        floor = self.cover.floor(leak, loss)
        if middle is None:
            seconds, least = np.zeros(len(first)), np.ones_like(first)
        else:
            seconds = middle.seconds(first, second)
            busy = seconds if middle.seen is None else middle.busy(first, second)
            least = np.ceil(busy * (self.load.rate / (self.load.ceiling * (1.0 + _SLACK)))).astype(np.int64)
            np.maximum(least, middle.least, out=least)
            cost += least * middle.price
        able = least <= self.most[MIDDLE]
        if self.line.both is not None:
            able &= head.least.take(first) + tail.least.take(second) <= self.line.both.high
        if promising:
            able &= ~self.cover.rules_out(floor, cost, self.quickest(first, second, seconds))
        if not able.all():
            places = np.flatnonzero(able)
            seconds, cost = seconds.take(places), cost.take(places)
            first, second, least = first.take(places), second.take(places), least.take(places)
            leak, loss, floor = leak.take(places), loss.take(places), floor.take(places)
        moments = head.moments.take(first, axis=1)
        moments += tail.moments.take(second, axis=1)
        square = head.square.take(first)
        square += tail.square.take(second)
        if middle is not None:
            squared = seconds * seconds
            moments[0] += seconds
            moments[1] += squared * middle.scv
            moments[2] += service_third(seconds, middle.scv)
            here = None if middle.seen is None else middle.seen(first, second)
            square += squared if here is None else here.coupling_square(seconds, middle.behind.take(second))
        coupling = coupling_of(moments[1], square)
        rows = _Rows(first, second, seconds, least, cost, moments, coupling, leak, loss, floor, bound=cost)
        everything = (np.full(len(first), head.most), np.full(len(first), tail.most))
        return replace(rows, bound=self.p95(rows, None, *everything, None))

    def quickest(self, first: Ints, second: Ints, seconds: Array) -> Array:
        """A p95 that none of a row's plans is below, found in a fraction of the time of their bound: the mean services,
        and what one of the ends adds to that, with all replicas and waits nowhere else."""
        found: Array = self.means[HEAD].take(first)
        found += self.means[TAIL].take(second)
        found += seconds
        found += np.maximum(self.longer_at_most[HEAD].take(first), self.longer_at_most[TAIL].take(second))
        found *= 1.0 - _SLACK
        return found

    def quick(self, mean: Array, near: Ints, far: Ints) -> Array:
        """The same of plans by their mean service and the places of head and tail in the tables."""
        found = np.maximum(self.longer[HEAD].take(near), self.longer[TAIL].take(far))
        found += mean
        found *= 1.0 - _SLACK
        return found

    def place(self, stage: int, option: Ints, number: Ints, count: Ints) -> Ints:
        """Where families have an end in its tables: of those whose set holds it, with all replicas."""
        most = self.most[stage]
        place: Ints = option * most + (np.where(self.members[stage].take(number), most, count) - 1)
        return place

    def promising(self, first: Ints, second: Ints) -> tuple[_Rows, _Nodes]:
        """Rows that nothing known rules out, with their plans of the fewest replicas."""
        rows = self.rows(first, second, promising=True)
        rows = taken(rows, np.flatnonzero(~self.cover.rules_out(rows.floor, rows.cost, rows.bound)))
        return rows, self.fewest(rows)

    def fewest(self, rows: _Rows) -> _Nodes:
        head, tail = self.line.head.least.take(rows.first), self.line.tail.least.take(rows.second)
        waits = self.middle_waits(rows, np.arange(len(rows.first)), rows.least)
        return self.existing(rows, _Nodes(
            row=np.arange(len(rows.first)), head=head, middle=rows.least, tail=tail,
            growing=np.full(len(rows.first), HEAD | MIDDLE | TAIL, dtype=np.uint8), cost=rows.cost,
            p95=self.p95(rows, None, head, tail, waits), bound=rows.bound, waits=waits,
        ))  # fmt: skip

    def all(self, rows: _Rows) -> _Nodes:
        """Every plan of the rows that nothing known rules out."""
        counts = (np.arange(len(rows.first)), *(np.arange(1, most + 1) for most in self.most.values()))
        row, head, middle, tail = (grid.ravel() for grid in np.meshgrid(*counts, indexing="ij"))
        fewest = self.line.head.least[rows.first], rows.least, self.line.tail.least[rows.second]
        extra = [count - least[row] for count, least in zip((head, middle, tail), fewest, strict=True)]
        enough = np.minimum.reduce(extra) >= 0
        if self.line.both is not None:
            enough &= head + tail <= self.line.both.high
        able = np.flatnonzero(enough)
        row, *extra = (column[able] for column in (row, *extra))
        cost = rows.cost[row]
        for stage, option, more in zip(self.prices, (rows.first[row], row, rows.second[row]), extra, strict=True):
            cost = cost + self.more(stage, option, np.ones_like(row), more)
        left = np.flatnonzero(~self.cover.rules_out(rows.floor[row], cost, rows.bound[row]))
        row, cost = row[left], cost[left]
        head, middle, tail = (column[able[left]] for column in (head, middle, tail))
        waits = self.middle_waits(rows, row, middle)
        return self.existing(rows, _Nodes(
            row=row, head=head, middle=middle, tail=tail, growing=np.zeros(len(row), dtype=np.uint8), cost=cost,
            p95=self.p95(rows, row, head, tail, waits), bound=rows.bound[row], waits=waits,
        ))  # fmt: skip

    def families(self, rows: _Rows, most: Array, nodes: _Nodes) -> _Nodes:
        """The corners of the nodes' families that are not ruled out; ``most`` are the middle stage's waits with all
        replicas, by row."""
        starts = range(0, len(nodes.row), _CHUNK)
        parts = [self.some_families(rows, most, sliced(nodes, slice(at, at + _CHUNK))) for at in starts]
        return parts[0] if len(parts) == 1 else joined(parts)

    def some_families(self, rows: _Rows, most: Array, nodes: _Nodes) -> _Nodes:
        room = nodes.growing.copy()
        for stage, count in ((HEAD, nodes.head), (MIDDLE, nodes.middle), (TAIL, nodes.tail)):
            room &= np.where(count < self.most[stage], np.uint8(7), np.uint8(7 - stage))
        cost = nodes.cost + self.growth(rows, nodes)
        able = (room & self.sets[:, None]) == self.sets[:, None]
        lowest = self.cover.lowest(rows.floor.take(nodes.row), cost)
        able &= lowest > nodes.bound
        if self.line.both is not None:
            able &= nodes.head + nodes.tail + self.at_ends[:, None] <= self.line.both.high
        number, places = np.nonzero(able)
        lowest, cost = lowest[able], cost[able]
        row = nodes.row.take(places)
        near = self.place(HEAD, rows.first.take(row), number, nodes.head.take(places))
        far = self.place(TAIL, rows.second.take(row), number, nodes.tail.take(places))
        left = np.flatnonzero(lowest > self.quick(rows.moments[0].take(row), near, far))
        number, places, lowest, cost = number.take(left), places.take(left), lowest.take(left), cost.take(left)
        row, near, far = row.take(left), near.take(left), far.take(left)
        bound = nodes.bound.take(places)
        # A family within which all the same stages may grow as before is as fast at best.
        other = np.flatnonzero(self.sets.take(number) != nodes.growing.take(places))
        those = row.take(other)
        at = int(np.searchsorted(number.take(other), self.with_middle))
        kept = nodes.waits.take(places.take(other[:at]), axis=1)
        waits = np.concatenate([kept, most.take(those[at:], axis=1)], axis=1)
        bound[other] = self.p95_at(rows, those, near.take(other), far.take(other), waits)
        left = np.flatnonzero(lowest > bound)
        number, places, row, cost = number.take(left), places.take(left), row.take(left), cost.take(left)
        head = nodes.head.take(places) + self.members[HEAD].take(number)
        middle = nodes.middle.take(places) + self.members[MIDDLE].take(number)
        tail = nodes.tail.take(places) + self.members[TAIL].take(number)
        at = int(np.searchsorted(number, self.with_middle))
        kept, grown = nodes.waits.take(places[:at], axis=1), self.middle_waits(rows, row[at:], middle[at:])
        waits = np.concatenate([kept, grown], axis=1)
        return self.existing(rows, _Nodes(
            row=row, head=head, middle=middle, tail=tail, growing=self.sets.take(number), cost=cost,
            p95=self.p95(rows, row, head, tail, waits), bound=bound.take(left), waits=waits,
        ))  # fmt: skip

    def growth(self, rows: _Rows, nodes: _Nodes) -> Array:
        """What a replica more in each stage of a set adds to the cost of each node, by set and node."""
        if self.line.head.use is None and self.line.tail.use is None:
            return self.step[:, None]
        added = np.zeros((len(self.sets), len(nodes.row)))
        for stage, option, count in (
            (HEAD, rows.first, nodes.head), (MIDDLE, rows.least, nodes.middle), (TAIL, rows.second, nodes.tail)
        ):  # fmt: skip
            added[self.members[stage]] += self.more(stage, option.take(nodes.row), count, 1)
        return added

    def more(self, stage: int, option: Ints, count: Ints, more: Ints | int) -> Array:
        """What so many ``more`` than ``count`` replicas of a stage add to the cost."""
        use = None if stage == MIDDLE else self.ends[stage].use
        if use is None:
            return np.asarray(self.prices[stage] * more, dtype=np.float64)
        place = option * self.most[stage] + (count - 1)
        # Beyond the last place there is nothing to be found; the caller leaves that out.
        return use.cost.take(place + more, mode="clip") - use.cost.take(place)

    def middle_waits(self, rows: _Rows, row: Ints, servers: Ints) -> Array:
        """Cumulants of the middle stage's waits (3 x plans), 0 where there is none."""
        middle = self.line.middle
        if middle is None:
            return np.zeros((3, len(row)))
        here = Seen(1.0, rows.seconds.take(row), middle.scv)
        if middle.seen is not None:
            here = middle.seen(rows.first.take(row), rows.second.take(row))
        rate = self.load.rate * here.share
        mean, *others = delay(
            here.service, here.scv, servers.astype(np.float64), rate, self.load.arrival_scv, here.together
        )
        return np.array((mean, *damp(*others)))

    def p95(self, rows: _Rows, row: Ints | None, head: Ints, tail: Ints, waits: Array | None) -> Array:
        """p95 of plans: rows with replicas of head and tail, and the middle stage's waits (none, if none are given)."""
        first, second = (rows.first, rows.second) if row is None else (rows.first.take(row), rows.second.take(row))
        near, far = first * self.most[HEAD] + (head - 1), second * self.most[TAIL] + (tail - 1)
        return self.p95_at(rows, row, near, far, waits)

    def p95_at(self, rows: _Rows, row: Ints | None, near: Ints, far: Ints, waits: Array | None) -> Array:
        """The same by the places of head and tail in their tables."""
        coupling = rows.coupling if row is None else rows.coupling.take(row)
        total = self.line.head.total.take(near, axis=1)
        total += self.line.tail.total.take(far, axis=1)
        largest = self.line.head.largest.take(near, axis=1)
        np.maximum(largest, self.line.tail.largest.take(far, axis=1), out=largest)
        if waits is not None:
            total += waits
            np.maximum(largest, waits, out=largest)
        sums = blend(total, largest, coupling)
        sums += rows.moments if row is None else rows.moments.take(row, axis=1)
        for side, place in ((self.line.head, near), (self.line.tail, far)):
            if side.use is not None:
                sums[0] += side.use.felt.take(place)
        return percentile_95(*sums)

    def existing(self, rows: _Rows, nodes: _Nodes) -> _Nodes:
        """The nodes with an infinite p95 for plans that are left out, or have too few replicas on a tier that requests
        come back to: nobody finds them, but their families count."""
        if self.line.both is not None:
            nodes.p95[nodes.head + nodes.tail < self.line.both.low] = np.inf
        if not self.without:
            return nodes
        options = rows.first.take(nodes.row), rows.second.take(nodes.row)
        heads, tails = self.line.replicas(*options, nodes.head, nodes.tail)
        for first, second, head, middle, tail in self.without:
            left_out = (options[0] == first) & (options[1] == second)
            left_out &= (heads == head) & (nodes.middle == middle) & (tails == tail)
            nodes.p95[left_out] = np.inf
        return nodes

    def note(self, rows: _Rows, nodes: _Nodes) -> None:
        leak, loss = rows.leak.take(nodes.row), rows.loss.take(nodes.row)
        self.cover.add(self.cover.ceiling(leak, loss), nodes.cost, nodes.p95)

    def found(self, rows: _Rows, nodes: _Nodes) -> Found:
        if self.without or self.line.both is not None:
            nodes = taken(nodes, np.flatnonzero(np.isfinite(nodes.p95)))
        row = nodes.row
        return Found(
            first=rows.first.take(row), second=rows.second.take(row),
            head=nodes.head, middle=nodes.middle, tail=nodes.tail,
            cost=round_cost(nodes.cost), p95=nodes.p95, leak=rows.leak.take(row), loss=rows.loss.take(row),
        )  # fmt: skip

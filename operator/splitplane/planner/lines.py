"""Lines of tiers that requests may pass, with all that the search needs to know of each in tables."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np

from splitplane.domain.plans import revisited
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.context import Context, Site
from splitplane.planner.exits import Seen, seen
from splitplane.planner.layouts import Layout
from splitplane.planner.options import LOSS_STEP, Options, loss_steps
from splitplane.planner.residency import holds
from splitplane.planner.sides import (
    NOTHING,
    Middle,
    Passage,
    Side,
    carries,
    ceiling,
    common,
    crossing,
    middle,
    side,
)
from splitplane.planner.stations import stage_seconds

LONGEST = 3
"""Partitions that a plan has at most."""

TRICKLE = 1e-9
"""Requests per second that every plan carries."""


@dataclass(frozen=True, slots=True)
class Line:
    """Tiers in the order of visit. Row ``r`` is the pair of options ``first[r]`` and ``second[r]``.

    Of one stage the tail is all, and the head adds nothing; of two stages both options are the same.
    """

    tiers: tuple[str, ...]
    head: Side
    middle: Middle | None
    tail: Side
    before: Options
    after: Options
    first: Ints
    second: Ints
    pay_per_use: frozenset[int] = frozenset()
    """Stages whose overflow is paid by the use: the first or the last."""
    both: Site | None = None
    """The tier of head and tail where requests come back to it: it holds the replicas of both."""
    variant: str = ""

    def other_than(self, cuts: tuple[int, ...]) -> "Line":
        """The rows that are not cut there."""
        crossed = ((), (self.after.cut[self.second],), (self.before.cut[self.first], self.after.cut[self.second]))
        same = [places == cut for places, cut in zip(crossed[len(self.tiers) - 1], cuts, strict=True)]
        others = np.flatnonzero(~np.logical_and.reduce(same))
        return replace(self, first=self.first[others], second=self.second[others])

    @property
    def middle_cost(self) -> float:
        """What the fewest replicas of the middle stage cost at least."""
        return self.middle.least * self.middle.price if self.middle else 0.0

    def layout(self, end: int, first: Ints, second: Ints, replicas: Sequence[Ints]) -> Layout:
        """Rows by their options and (head, middle, tail) replicas as a layout; ``end`` is the model's output."""
        crossings = ((), ((self.after, second),), ((self.before, first), (self.after, second)))[len(self.tiers) - 1]
        zeros = np.zeros_like(second)
        head, middle, tail = replicas
        counts = self.replicas(first, second, head, tail)
        return Layout(
            self.tiers,
            (zeros, *(options.cut[places] for options, places in crossings), zeros + end),
            tuple(options.codec[places] for options, places in crossings),
            tuple((counts[0], middle, counts[1])[stage] for stage in ((2,), (0, 2), (0, 1, 2))[len(self.tiers) - 1]),
            self.pay_per_use,
            self.variant,
        )

    def replicas(self, first: Ints, second: Ints, head: Ints, tail: Ints) -> tuple[Ints, Ints]:
        """Replicas of head and tail, from what counts them in the search."""
        return _counted(self.head, first, head), _counted(self.tail, second, tail)


def build_lines(context: Context, rate: float) -> Iterator[Line]:
    """All lines with rows that trust, memory, links, prices and the limits on leak and accuracy allow, and whose
    stations bear ``rate``; shortest first."""
    if context.policy.max_accuracy_loss is not None and _most_loss(context) < 0:
        return
    usable = [name for name in context.order if name in context.sites and context.affordable(context.sites[name])]
    for count in range(1, min(LONGEST, context.policy.max_partitions) + 1):
        for tiers in combinations(usable, count):
            if any(context.tiers[tier].shared is not None for tier in tiers[:-1]):
                continue  # shared replicas run the model to its end
            hops = [hop for hop in pairwise((context.gateway, *tiers)) if hop[0] != hop[1]]
            if all(hop in context.wires and not context.wires[hop].remembered for hop in hops):
                for pay_per_use in _ways_to_pay(context, tiers):
                    line = _build(context, rate, tiers, pay_per_use)
                    if line is not None and len(line.first):
                        yield replace(line, variant=context.variant) if context.variant else line
    if context.policy.allow_return and context.policy.max_partitions >= LONGEST:
        yield from _returning(context, rate, usable)


def _returning(context: Context, rate: float, usable: Sequence[str]) -> Iterator[Line]:
    """Lines out to a tier and back to the first; nothing is paid by the use there."""
    for tiers in combinations(usable, 2):
        back = (*tiers, tiers[0])
        hops = [hop for hop in pairwise((context.gateway, *back)) if hop[0] != hop[1]]
        if all(hop in context.wires and not context.wires[hop].remembered for hop in hops):
            able = context.sites[tiers[0]].high > 1 and not any(context.tiers[tier].shared for tier in tiers)
            line = _build(context, rate, back, frozenset()) if able else None
            if line is not None and len(line.first):
                yield replace(line, variant=context.variant) if context.variant else line


def _ways_to_pay(context: Context, tiers: Sequence[str]) -> Iterator[frozenset[int]]:
    """Sets of stages whose overflow is paid by the use. One between two others always has replicas for all."""
    ends = [place for place in {0, len(tiers) - 1} if context.tiers[tiers[place]].pay_per_use is not None]
    for count in range(len(ends) + 1):
        yield from (frozenset(places) for places in combinations(ends, count))


def _counted(side: Side, option: Ints, count: Ints) -> Ints:
    return count if side.use is None else side.use.replicas.take(option * side.most + count - 1)


def _build(context: Context, rate: float, tiers: Sequence[str], pay_per_use: frozenset[int]) -> Line | None:
    sites = [context.sites[tier] for tier in tiers]
    shared = common(context, rate, tiers)
    leaky = context.policy.max_leak is not None and shared.leak[0] > context.policy.max_leak
    if leaky or not shared.bears(rate, ceiling(context)).all():
        return None
    if len(sites) == 1:
        return _whole(context, rate, sites[0], shared, pay_per_use)
    both = None
    if revisited(tiers) is not None:
        both = sites[0]
        # Each stage leaves the other a replica; the tier's minimum is for both.
        sites[0] = sites[2] = replace(both, low=1, high=both.high - 1)
    options = context.options
    uses = 0 in pay_per_use, len(sites) - 1 in pay_per_use
    near, seen_near, out, able_near = _leaving(context, rate, sites[0], sites[1], options, pay_per_use=uses[0])
    far, seen_far, into, able_far = _arriving(context, rate, sites[-2], sites[-1], options, pay_per_use=uses[1])
    if len(sites) == 2:
        able = able_near & able_far
        near, far, seen_near, seen_far = near[able], far[able], seen_near.where(able), seen_far.where(able)
        out = out.where(able)
        there, back = out.links
        head = side(
            context, rate, sites[0], near, seen_near, out,
            square=seen_near.coupling_square(near, there), pay_per_use=uses[0],
        )  # fmt: skip
        tail = side(
            context, rate, sites[1], far, seen_far, shared,
            square=seen_far.coupling_square(far, back) + shared.square, pay_per_use=uses[1],
        )  # fmt: skip
        rows = np.arange(np.count_nonzero(able))
        able_options = options.where(able)
        return Line(tuple(tiers), head, None, tail, able_options, able_options, rows, rows, pay_per_use)
    queued = [out, into] if both is None else _by_direction(out, into)
    if both is not None:
        able_near, able_far = (
            able_near & queued[0].bears(rate, ceiling(context)),
            able_far & queued[1].bears(rate, ceiling(context)),
        )
    before, after = options.where(able_near), options.where(able_far)
    near, seen_near, out = near[able_near], seen_near.where(able_near), out.where(able_near)
    far, seen_far, into = far[able_far], seen_far.where(able_far), into.where(able_far)
    there, back = out.links
    head = side(
        context, rate, sites[0], near, seen_near, queued[0].where(able_near),
        square=seen_near.coupling_square(near, there) + back**2, pay_per_use=uses[0],
    )  # fmt: skip
    there, back = into.links
    between = middle(context, sites[1], before, after, there)
    first_link = there**2 if between.seen is None else 0.0
    tail = side(
        context, rate, sites[2], far, seen_far, queued[1].where(able_far).beside(shared),
        square=seen_far.coupling_square(far, back) + first_link + shared.square, pay_per_use=uses[1],
    )  # fmt: skip
    first, second = _pairs(context, tiers[1], before, after)
    return Line(tuple(tiers), head, between, tail, before, after, first, second, pay_per_use, both)


def _by_direction(out: Passage, into: Passage) -> list[Passage]:
    """The links out to a tier and back, each with the answers that go the same way; by all options."""
    (there, answer_back), (back, answer_there) = out.links, into.links
    return [replace(out, links=(there, answer_there), twice=True), replace(into, links=(back, answer_back), twice=True)]


def _whole(context: Context, rate: float, site: Site, shared: Passage, pay_per_use: frozenset[int]) -> Line | None:
    start, end = np.zeros(1, dtype=np.int64), np.array([context.profile.segments])
    service = stage_seconds(context, site, start, end)
    able, here = holds(context, site.name, start, end), seen(context, site, start, end)
    if pay_per_use:
        here = replace(here, together=None)
    else:
        able &= carries(context, rate, site, here)
    if not able.all():
        return None
    there, back = shared.links or (0.0, 0.0)
    square = here.coupling_square(service, back) + there**2
    tail = side(context, rate, site, service, here, shared, square=square, pay_per_use=bool(pay_per_use))
    rows = np.zeros(1, dtype=np.int64)
    return Line((site.name,), NOTHING, None, tail, context.options, context.options, rows, rows, pay_per_use)


def _leaving(
    context: Context, rate: float, source: Site, target: Site, options: Options, *, pay_per_use: bool
) -> tuple[Array, Seen, Passage, Bools]:
    """Service of the first stage up to each option, what its queue sees, its links to the next, and which options
    are possible."""
    start = np.zeros_like(options.cut)
    service = stage_seconds(context, source, start, options.cut, encoded=options.codec)
    link = crossing(context, rate, source, target, options)
    here = seen(context, source, start, options.cut, encoded=options.codec)
    able = link.bears(rate, ceiling(context))
    if pay_per_use:
        here = replace(here, together=None)  # nobody waits there
    else:
        able &= carries(context, rate, source, here)
    able &= holds(context, source.name, start, options.cut) & _admissible(context, target, options)
    return service, here, link, able


def _arriving(
    context: Context, rate: float, source: Site, target: Site, options: Options, *, pay_per_use: bool
) -> tuple[Array, Seen, Passage, Bools]:
    """Service of the last stage from each option on, what its queue sees, its links from the one before,
    and which options are possible."""
    end = np.full_like(options.cut, context.profile.segments)
    service = stage_seconds(context, target, options.cut, end, decoded=options.codec)
    link = crossing(context, rate, source, target, options)
    here = seen(context, target, options.cut, end, decoded=options.codec)
    able = link.bears(rate, ceiling(context))
    if pay_per_use:
        here = replace(here, together=None)
    else:
        able &= carries(context, rate, target, here)
    able &= holds(context, target.name, options.cut, end) & _admissible(context, target, options)
    return service, here, link, able


def _pairs(context: Context, tier: str, before: Options, after: Options) -> tuple[Ints, Ints]:
    """All pairs of options with a range between them that the middle tier may hold."""
    start = np.searchsorted(after.cut, before.cut, side="right")
    counts = len(after) - start
    first = np.repeat(np.arange(len(before)), counts)
    second = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts - start, counts)
    able = np.ones(len(first), dtype=np.bool_)
    if context.tiers[tier].memory_limit_bytes is not None or context.earliest(tier):
        able &= holds(context, tier, before.cut[first], after.cut[second])
    if context.policy.max_accuracy_loss is not None:
        able &= before.loss[first] + after.loss[second] <= _most_loss(context)
    return first[able], second[able]


def _admissible(context: Context, target: Site, options: Options) -> Bools:
    """Options within the limits on leak and accuracy loss, as far as these were measured."""
    able = np.ones(len(options), dtype=np.bool_)
    if context.policy.max_leak is not None and not target.tier.trusted:
        able &= options.leak_measured & (options.leak <= context.policy.max_leak)
    if context.policy.max_accuracy_loss is not None:
        able &= options.loss_measured & (options.loss <= _most_loss(context))
    return able


def _most_loss(context: Context) -> int:
    """Steps that crossings may lose: what the limit leaves beside what the variant loses anyway."""
    whole = math.floor((context.policy.max_accuracy_loss or 0.0) / LOSS_STEP + 1e-9)
    return whole - int(loss_steps(np.array(context.lost)))

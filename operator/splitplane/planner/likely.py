"""What a stage between two others keeps resident: what the links' recent past makes likely next.

The first stage of a plan starts at the model's input and the last one ends at its output: each can grow in one
direction only, and as far as memory goes nothing serves more plans (``residency``). A stage between others can grow
both ways, and where memory bounds it, one at the other's expense.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from splitplane.domain.plans import Plan, Stage
from splitplane.domain.snapshots import Mode
from splitplane.planner.context import Context
from splitplane.planner.residency import allowed, grown

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Future:
    """A plan that may come: how likely, and the range that it runs on the tier of each stage of the plan that serves
    (``None``: nothing)."""

    share: float
    ranges: tuple[Range | None, ...]


def likeliest(
    ranges: Sequence[Range], futures: Sequence[Future], able: Callable[[int, Range], bool]
) -> tuple[Range, ...]:
    """What each stage must keep resident, ``ranges`` included, for the likeliest set of futures to need nothing else.

    ``able`` tells whether a stage, by its place, may keep a range. Of sets as likely, that which asks for the fewest
    segments. All sets are tried: give few futures.
    """

    def worth(some: Sequence[Future]) -> tuple[float, int]:
        kept = _hulls(ranges, some)
        return round(sum(future.share for future in some), 9), -sum(last - first for first, last in kept)

    sets = (some for count in range(len(futures) + 1) for some in combinations(futures, count))
    feasible = [some for some in sets if all(able(place, kept) for place, kept in enumerate(_hulls(ranges, some)))]
    return _hulls(ranges, max(feasible, key=worth, default=()))


def with_likely_residency(context: Context, plan: Plan, best_at: Callable[[Context], Plan | None]) -> Plan:
    """``plan`` with the likeliest residency of stages that are between others, bound by memory, and not there yet.

    ``best_at`` finds the best plan where links are as they were at some time of their recent past.
    """
    free = [place for place in range(1, len(plan.stages) - 1) if _may_choose(context, plan.stages[place])]
    if not free or not context.pasts or context.policy.mode is Mode.FIXED:
        return plan
    plans = Counter(best for past in _pasts(context) if (best := best_at(past)) is not None)
    futures = [
        Future(count / plans.total(), ranges)
        for other, count in plans.items()
        if (ranges := _ranges(plan, other)) is not None
    ]

    def able(place: int, kept: Range) -> bool:
        stage = plan.stages[place]
        if place in free:
            return allowed(context, stage.tier, *kept)
        return stage.resident_first <= kept[0] and kept[1] <= stage.resident_last

    stages = list(plan.stages)
    wanted = likeliest([(stage.first, stage.last) for stage in stages], futures, able)
    for place in free:
        first, last = grown(context, stages[place].tier, *wanted[place])
        stages[place] = replace(stages[place], resident_first=first, resident_last=last)
    return replace(plan, stages=tuple(stages))


def _hulls(ranges: Sequence[Range], futures: Sequence[Future]) -> tuple[Range, ...]:
    """The least range of each stage that holds its own and those of the futures."""
    parts = [[own, *(each for future in futures if (each := future.ranges[k]))] for k, own in enumerate(ranges)]
    return tuple((min(first for first, _ in part), max(last for _, last in part)) for part in parts)


def _may_choose(context: Context, stage: Stage) -> bool:
    """Whether more could be resident than memory lets, and pods that keep it are not there yet."""
    kept = stage.resident_first, stage.resident_last
    serving = () if context.running is None else context.running.stages
    if any((each.tier, each.resident_first, each.resident_last) == (stage.tier, *kept) for each in serving):
        return False
    return kept != (context.earliest(stage.tier), context.profile.segments)


def _pasts(context: Context) -> Iterator[Context]:
    """The context over links as they were, all slow or fast together: what slows one often slows others."""
    count = max(len(past) for past in context.pasts.values())
    for number in range(count):
        wires = dict(context.wires)
        for pair, past in context.pasts.items():
            wires[pair] = replace(wires[pair], bandwidth=past[number * len(past) // count])
        yield replace(context, wires=wires, active=None, pasts={})


def _ranges(plan: Plan, other: Plan) -> tuple[Range | None, ...] | None:
    """What ``other`` runs on the tiers of the plan's stages; ``None`` where it needs pods on a further tier."""
    left = list(other.stages)
    found = []
    for stage in plan.stages:  # both visit tiers in the same order
        runs = left.pop(0) if left and left[0].tier == stage.tier else None
        found.append(None if runs is None else (runs.first, runs.last))
    return None if left else tuple(found)

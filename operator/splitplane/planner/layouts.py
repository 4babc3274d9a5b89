"""Plans as columns for one pass of numpy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from splitplane.domain.plans import Plan, Stage, revisited
from splitplane.planner.arrays import Bools, Ints
from splitplane.planner.context import Context, Site
from splitplane.planner.residency import resident_range


@dataclass(frozen=True, slots=True)
class Layout:
    """Plans over the same ordered tiers, one row each.

    ``bounds[k]`` is where stage ``k`` starts (``bounds[-1]`` is the model's output), ``codecs[k]`` indexes
    the profile's codecs (``CutTable``) for the crossing after stage ``k``, ``replicas[k]`` counts stage ``k``'s pods.
    ``pay_per_use`` holds the stages that send what finds those busy to capacity that is paid by the request.
    All rows are of one ``variant`` of the model.
    """

    tiers: tuple[str, ...]
    bounds: tuple[Ints, ...]
    codecs: tuple[Ints, ...]
    replicas: tuple[Ints, ...]
    pay_per_use: frozenset[int] = frozenset()
    variant: str = ""

    def __len__(self) -> int:
        return len(self.bounds[0])

    def where(self, mask: Bools | Ints) -> "Layout":
        """The rows of a mask, or those at given places."""
        bounds, codecs, replicas = (
            tuple(column[mask] for column in part) for part in (self.bounds, self.codecs, self.replicas)
        )
        return replace(self, bounds=bounds, codecs=codecs, replicas=replicas)

    def plan(self, context: Context, row: int) -> Plan:
        """The plan of one row, with the residency that its stages get."""
        context, twice = context.of(self.variant), revisited(self.tiers)
        stages = []
        for k, tier in enumerate(self.tiers):
            first, last = int(self.bounds[k][row]), int(self.bounds[k + 1][row])
            # What is resident tells the pods of two stages on one tier apart.
            resident = (first, last) if tier == twice else resident_range(context, tier, first, last)
            replicas = int(self.replicas[k][row])
            stages.append(Stage(tier, first, last, *resident, replicas, pay_per_use=k in self.pay_per_use))
        codecs = tuple(context.table.codecs[int(codec[row])] for codec in self.codecs)
        return Plan(tuple(stages), codecs, self.variant)


Named = tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...], tuple[int, ...], frozenset[int]]
"""A plan by tiers, cuts, codecs, replicas and the stages that are paid by the use: all that predictions depend on."""


@dataclass(frozen=True)
class Every:
    """All plans that may be chosen, and where each is; ``codecs`` names them as the layouts number them."""

    codecs: tuple[str, ...]
    layouts: tuple[Layout, ...]

    @cached_property
    def places(self) -> dict[Named, tuple[int, int]]:
        """The layout and the row of each plan."""
        found: dict[Named, tuple[int, int]] = {}
        for number, layout in enumerate(self.layouts):
            columns = (_by_row(part, len(layout)) for part in (layout.bounds[1:-1], layout.codecs, layout.replicas))
            for row, (cuts, codecs, replicas) in enumerate(zip(*columns, strict=True)):
                names = tuple(self.codecs[codec] for codec in codecs)
                found[layout.tiers, cuts, names, replicas, layout.pay_per_use] = number, row
        return found


def _by_row(columns: Sequence[Ints], rows: int) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in columns), strict=True)) if columns else [()] * rows


def one_stage(context: Context, site: Site, *, pay_per_use: bool = False) -> Layout:
    """The whole model on one tier, for every number of replicas; with capacity that is paid by the request or not."""
    replicas = np.arange(site.fewest(pay_per_use=pay_per_use), site.high + 1)
    zeros = np.zeros_like(replicas)
    return Layout(
        (site.name,), (zeros, zeros + context.profile.segments), (), (replicas,),
        frozenset({0}) if pay_per_use else frozenset(), context.variant,
    )  # fmt: skip


def layout_of(context: Context, plan: Plan) -> Layout:
    """A single plan as a layout of one row."""
    codecs = context.of(plan.variant).table.codecs
    return Layout(
        tuple(stage.tier for stage in plan.stages),
        (*(np.array([stage.first]) for stage in plan.stages), np.array([plan.stages[-1].last])),
        tuple(np.array([codecs.index(codec)]) for codec in plan.codecs),
        tuple(np.array([stage.replicas]) for stage in plan.stages),
        frozenset(place for place, stage in enumerate(plan.stages) if stage.pay_per_use),
        plan.variant,
    )


def held_together(site: Site, count: Ints) -> Bools:
    """Whether so many replicas of two stages together are what their tier may and can hold."""
    able: Bools = (count >= site.low) & (count <= site.high)
    return able


def shared_out(site: Site, head: Ints, middle: Ints, tail: Ints) -> tuple[Ints, ...]:
    """The counts with no more replicas of the first and the last stage than their tier can hold now, if that is two;
    of these stages the one with more of them loses one first."""
    for _ in range(2 * site.high):
        over = head + tail > max(2, site.high)
        fewer = over & (head > tail)
        head, tail = head - fewer, tail - (over & ~fewer)
    return head, middle, tail


def with_replicas(context: Context, plan: Plan) -> Layout | None:
    """The plan's routing with every number of replicas; ``None`` where one of its tiers cannot hold any."""
    sites = [context.of(plan.variant).sites.get(stage.tier) for stage in plan.stages]
    ranges = [
        np.arange(1 if stage.tier == plan.revisits else site.fewest(pay_per_use=stage.pay_per_use), site.high + 1)
        for site, stage in zip(sites, plan.stages, strict=True)
        if site is not None
    ]
    if len(ranges) < len(sites):
        return None
    grids = [grid.ravel() for grid in np.meshgrid(*ranges, indexing="ij")]
    if (twice := plan.revisits) is not None:
        site = context.of(plan.variant).sites[twice]
        able = held_together(site, grids[0] + grids[2])
        grids = [grid[able] for grid in grids]
    zeros = np.zeros_like(grids[0])
    single = layout_of(context, plan)
    return Layout(
        single.tiers,
        tuple(zeros + bound[0] for bound in single.bounds),
        tuple(zeros + codec[0] for codec in single.codecs),
        tuple(grids),
        single.pay_per_use,
        single.variant,
    )

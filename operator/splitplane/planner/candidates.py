"""Every plan that could serve: one and two stages, cuts, codecs and replicas, as columns for one pass of numpy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitplane.domain.plans import Plan, Stage
from splitplane.domain.profiles import CODECS
from splitplane.planner.context import Context, Site
from splitplane.planner.residency import allowed, resident_range

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """Plans over the same ordered tiers, one row each.

    ``bounds[k]`` is where stage ``k`` starts (``bounds[-1]`` is the model's output), ``codecs[k]`` indexes
    ``CODECS`` for the crossing after stage ``k``, ``replicas[k]`` counts stage ``k``'s pods.
    """

    tiers: tuple[str, ...]
    bounds: tuple[Ints, ...]
    codecs: tuple[Ints, ...]
    replicas: tuple[Ints, ...]

    def __len__(self) -> int:
        return len(self.bounds[0])

    def plan(self, context: Context, row: int) -> Plan:
        """The plan of one row, with the residency that its stages get."""
        stages = []
        for k, tier in enumerate(self.tiers):
            first, last = int(self.bounds[k][row]), int(self.bounds[k + 1][row])
            stages.append(
                Stage(tier, first, last, *resident_range(context, tier, first, last), int(self.replicas[k][row]))
            )
        return Plan(tuple(stages), tuple(CODECS[int(codec[row])] for codec in self.codecs))


def enumerate_layouts(context: Context) -> Iterator[Layout]:
    """All layouts that privacy, memory, links and prices allow, from the gateway's tier outwards.

    A first stage off the gateway's tier receives the raw input over the link, as fp32 (a plan names codecs between
    stages only), and is the only stage.
    """
    sites = [site for site in context.sites.values() if context.affordable(site)]
    end = context.profile.segments
    home = next((site for site in sites if site.name == context.gateway), None)
    for site in sites:
        reachable = site is home or _linked(context, site.name)
        if reachable and allowed(context, site.name, 0, end):
            yield one_stage(context, site)
    if home is None or context.policy.max_partitions < 2:
        return
    for site in sites:
        if site is not home and _linked(context, site.name):
            crossings = [
                (cut, codec)
                for cut, codec in codec_crossings(context, 1, end - 1)
                if allowed(context, home.name, 0, cut) and allowed(context, site.name, cut, end)
            ]
            if crossings:
                yield two_stages(context, home, site, crossings)


def codec_crossings(context: Context, first: int, last: int) -> list[tuple[int, int]]:
    """(cut, codec as an index of ``CODECS``) for cuts ``first`` to ``last`` inclusive, where policy and cut agree."""
    return [
        (cut, index)
        for cut in range(first, last + 1)
        for index, codec in enumerate(CODECS)
        if codec in context.policy.codecs and codec in context.profile.cuts[cut].wire_bytes
    ]


def one_stage(context: Context, site: Site) -> Layout:
    """The whole model on one tier, for every number of replicas."""
    replicas = np.arange(site.low, site.high + 1)
    zeros = np.zeros_like(replicas)
    return Layout((site.name,), (zeros, zeros + context.profile.segments), (), (replicas,))


def two_stages(context: Context, home: Site, away: Site, crossings: Sequence[tuple[int, int]]) -> Layout:
    """Both tiers, for every (cut, codec) of ``crossings`` and every number of replicas on either side."""
    which, near, far = (
        grid.ravel()
        for grid in np.meshgrid(
            np.arange(len(crossings)),
            np.arange(home.low, home.high + 1),
            np.arange(away.low, away.high + 1),
            indexing="ij",
        )
    )
    cuts = np.array([cut for cut, _ in crossings])[which]
    codecs = np.array([codec for _, codec in crossings])[which]
    zeros = np.zeros_like(cuts)
    return Layout((home.name, away.name), (zeros, cuts, zeros + context.profile.segments), (codecs,), (near, far))


def layout_of(plan: Plan) -> Layout:
    """A single plan as a layout of one row."""
    return Layout(
        tuple(stage.tier for stage in plan.stages),
        (*(np.array([stage.first]) for stage in plan.stages), np.array([plan.stages[-1].last])),
        tuple(np.array([CODECS.index(codec)]) for codec in plan.codecs),
        tuple(np.array([stage.replicas]) for stage in plan.stages),
    )


def with_replicas(context: Context, plan: Plan) -> Layout | None:
    """The plan's routing with every number of replicas; ``None`` where one of its tiers cannot hold any."""
    sites = [context.sites.get(stage.tier) for stage in plan.stages]
    ranges = [np.arange(site.low, site.high + 1) for site in sites if site is not None]
    if len(ranges) < len(sites):
        return None
    grids = [grid.ravel() for grid in np.meshgrid(*ranges, indexing="ij")]
    zeros = np.zeros_like(grids[0])
    single = layout_of(plan)
    return Layout(
        single.tiers,
        tuple(zeros + bound[0] for bound in single.bounds),
        tuple(zeros + codec[0] for codec in single.codecs),
        tuple(grids),
    )


def _linked(context: Context, tier: str) -> bool:
    wire = context.wires.get((context.gateway, tier))
    return wire is not None and not wire.remembered

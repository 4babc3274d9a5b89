"""Which stage or link of a plan is busiest: what the load is too much for first."""

from dataclasses import dataclass

import numpy as np

from splitplane.domain.plans import Plan
from splitplane.planner.context import Context, crossings
from splitplane.planner.evaluation import held_by_nodes, stations_of, violations
from splitplane.planner.layouts import layout_of
from splitplane.planner.queueing import respond


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A stage or link by ``name``, busy for a share of the time: above 1 where more comes than it bears."""

    name: str
    busy: float


def bottleneck(context: Context, plan: Plan) -> Bottleneck | None:
    """The busiest station of a plan at the context's rate; ``None`` where nothing is known of one of its tiers or
    links, or it cannot run."""
    if not context.has(plan.variant) or "spec" in violations(context, plan):
        return None
    context = context.of(plan.variant)
    hops = crossings(plan, context.gateway)
    if any(stage.tier not in context.sites for stage in plan.stages) or any(hop not in context.wires for hop in hops):
        return None
    found = [
        Bottleneck(name, float(alone.utilization[0]))
        for name, station in zip(
            _names(plan, context.gateway),
            stations_of(context, held_by_nodes(context, layout_of(context, plan))),
            strict=True,
        )
        for alone in (respond([station], constant=np.zeros(1), rate=context.rate, arrival_scv=context.arrival_scv),)
    ]
    return max(found, key=lambda each: each.busy)


def _names(plan: Plan, gateway: str) -> list[str]:
    """In the order in which requests pass them, and answers come back."""
    names, before = [], gateway
    for stage in plan.stages:
        names += [f"link {before} to {stage.tier}"] if stage.tier != before else []
        names.append(f"stage {stage.tier}:{stage.first}-{stage.last}")
        before = stage.tier
    return [*names, *(f"link {there} to {here}" for here, there in reversed(crossings(plan, gateway)))]


def told_overload(context: Context, plan: Plan, most: float) -> str:
    """That a plan, which bears ``most`` requests per second, is given more, in words; empty where it is not known."""
    busiest = bottleneck(context, plan)
    if busiest is None:
        return ""
    return (
        f"{busiest.name} would be busy for {busiest.busy:.0%} of the time at {context.rate:g} requests/s, more than"
        f" {context.policy.max_utilization:.0%}: it holds up to {most:.2f}/s"
    )

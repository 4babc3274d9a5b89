"""The planner and what it is compared with, each as a function from what was measured to the plan that should serve."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import Decision, Policy, Preference, Snapshot
from splitplane.planner import Kept, choose
from splitplane.planner.context import IDLE_RATE, build_context
from splitplane.planner.evaluation import assess, evaluate
from splitplane.planner.frontier import contenders
from splitplane.planner.gates import cooling_down
from splitplane.planner.layouts import with_replicas


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan that should serve, and since when fewer replicas would do, where the strategy keeps count of that."""

    plan: Plan
    low_demand_since: float | None = None
    p95_seconds: float = math.nan
    """As predicted, where it was."""


Strategy = Callable[[Snapshot, Policy, float, Kept], Choice | None]
"""From a snapshot, the user's policy, the time in seconds and what is kept of the profile to a choice."""

_GATE_GAIN, _GATE_SECONDS = 0.15, 30.0


def planner(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Choice | None:
    """Splitplane."""
    return _choice(choose(snapshot, policy, now, kept=kept))


def edge_only(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Choice | None:
    """The whole model on the gateway's tier, with the planner's replicas and gates."""
    away = tuple(tier for tier in snapshot.tiers if tier.name != policy.gateway_tier)
    return planner(_without(snapshot, {tier.name for tier in away}), policy, now, kept)


def cloud_only(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Choice | None:
    """The whole model on the last tier, with the raw input sent there, whatever privacy says."""
    open_ = replace(policy, raw_input_stays_trusted=False, max_leak=None, max_partitions=1)
    last = build_context(snapshot, open_, kept).farthest
    others = {tier.name for tier in snapshot.tiers if tier.name != last}
    return planner(_without(snapshot, others), open_, now, kept)


def neurosurgeon(snapshot: Snapshot, policy: Policy, _now: float, kept: Kept) -> Choice | None:
    """The cut of least latency for one request alone, anew each time. Replicas, of which it says nothing, as the load
    asks. Where cuts are candidates of a chain the minimum cut of DADS is the same cut."""
    fast = replace(policy, prefer=Preference.LATENCY, codecs=("fp32",), max_partitions=2)
    context = build_context(replace(snapshot, active=None), fast, kept)
    found = contenders(context, IDLE_RATE)
    if not len(found):
        return None
    layout = with_replicas(context, found.candidate(context, int(np.argmin(found.p95))).plan)
    if layout is None:
        return None
    table = evaluate(context, layout)
    able = np.flatnonzero(table.utilization <= policy.max_utilization)
    row = able[np.argmin(table.cost[able])] if len(able) else int(np.argmin(table.utilization))
    return Choice(layout.plan(context, int(row)))


def gate(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Choice | None:
    """The fastest plan, changed when that gains 15 % of latency and 30 seconds have passed; no price counts."""
    fast = replace(policy, prefer=Preference.LATENCY, max_cost_per_hour=None, cooldown_seconds=_GATE_SECONDS)
    choice = _choice(choose(replace(snapshot, active=None), fast, now, kept=kept))
    if snapshot.active is None or choice is None:
        return choice
    context = build_context(snapshot, fast, kept)
    waiting = cooling_down(fast, replace(snapshot.active, last_switch_seconds=0.0), now)
    serving = assess(context, snapshot.active.plan).predicted.p95_seconds
    stays = waiting or serving * (1.0 - _GATE_GAIN) <= choice.p95_seconds
    return Choice(snapshot.active.plan) if stays else choice


def _choice(decision: Decision) -> Choice | None:
    target = decision.target
    if target is None:
        return None
    return Choice(target.plan, decision.low_demand_since, target.predicted.p95_seconds)


STRATEGIES: Mapping[str, Strategy] = {
    "splitplane": planner,
    "edge-only": edge_only,
    "cloud-only": cloud_only,
    "neurosurgeon, dads": neurosurgeon,
    "15 %/30 s gate": gate,
}


def _without(snapshot: Snapshot, tiers: set[str]) -> Snapshot:
    """The snapshot with no node ready on these tiers."""
    return replace(
        snapshot,
        tiers=tuple(replace(tier, ready_nodes=0) if tier.name in tiers else tier for tier in snapshot.tiers),
    )

"""The planner and what it is compared with, each as a function from what was measured to the plan that should serve."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import Policy, Preference, Snapshot
from splitplane.planner import Kept, plan
from splitplane.planner.context import IDLE_RATE, build_context
from splitplane.planner.evaluation import assess, evaluate
from splitplane.planner.frontier import frontier_of_lines
from splitplane.planner.gates import cooling_down
from splitplane.planner.layouts import with_replicas

Strategy = Callable[[Snapshot, Policy, float, Kept], Plan | None]
"""From a snapshot, the user's policy, the time in seconds and what is kept of the profile to a plan."""

_GATE_GAIN, _GATE_SECONDS = 0.15, 30.0


def planner(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Plan | None:
    """Splitplane."""
    target = plan(snapshot, policy, now, kept=kept).target
    return None if target is None else target.plan


def edge_only(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Plan | None:
    """The whole model on the gateway's tier, with the planner's replicas and gates."""
    away = tuple(tier for tier in snapshot.tiers if tier.name != policy.gateway_tier)
    return planner(_without(snapshot, {tier.name for tier in away}), policy, now, kept)


def cloud_only(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Plan | None:
    """The whole model on the last tier, with the raw input sent there, whatever privacy says."""
    others = {tier.name for tier in snapshot.tiers[:-1]}
    open_ = replace(policy, raw_input_stays_trusted=False, max_leak=None, max_partitions=1)
    return planner(_without(snapshot, others), open_, now, kept)


def neurosurgeon(snapshot: Snapshot, policy: Policy, _now: float, kept: Kept) -> Plan | None:
    """The cut of least latency for one request alone, anew each time. Replicas, of which it says nothing, as the load
    asks. Where cuts are candidates of a chain the minimum cut of DADS is the same cut."""
    fast = replace(policy, prefer=Preference.LATENCY, codecs=("fp32",), max_partitions=2)
    context = build_context(replace(snapshot, active=None), fast, kept)
    found = frontier_of_lines(context, IDLE_RATE)
    if not len(found):
        return None
    layout = with_replicas(context, found.candidate(context, int(np.argmin(found.p95))).plan)
    if layout is None:
        return None
    table = evaluate(context, layout)
    able = np.flatnonzero(table.utilization <= policy.max_utilization)
    row = able[np.argmin(table.cost[able])] if len(able) else int(np.argmin(table.utilization))
    return layout.plan(context, int(row))


def gate(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Plan | None:
    """The fastest plan, changed when that gains 15 % of latency and 30 seconds have passed; no price counts."""
    fast = replace(policy, prefer=Preference.LATENCY, max_cost_per_hour=None, cooldown_seconds=_GATE_SECONDS)
    target = plan(replace(snapshot, active=None), fast, now, kept=kept).target
    if snapshot.active is None or target is None:
        return None if target is None else target.plan
    current = assess(build_context(snapshot, fast, kept), snapshot.active.plan)
    waiting = cooling_down(fast, replace(snapshot.active, last_switch_seconds=0.0), now)
    slower = current.predicted.p95_seconds * (1.0 - _GATE_GAIN) <= target.predicted.p95_seconds
    return snapshot.active.plan if waiting or slower else target.plan


@dataclass(frozen=True, slots=True)
class Static:
    """One plan, whatever happens."""

    chosen: Plan

    def __call__(self, _snapshot: Snapshot, _policy: Policy, _now: float, _kept: Kept) -> Plan | None:
        return self.chosen


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

"""The planner and what it is compared with, each as a function from what was measured to the plan that should serve."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import Decision, Left, Mode, Policy, Preference, Snapshot
from splitplane.planner import Kept, choose
from splitplane.planner.bars import FASTEST
from splitplane.planner.context import IDLE_RATE, Context, build_context
from splitplane.planner.evaluation import assess, broken, evaluate
from splitplane.planner.frontier import contenders
from splitplane.planner.gates import cooling_down
from splitplane.planner.keys import numbers
from splitplane.planner.layouts import with_replicas
from splitplane.planner.overload import highest_rate_of_lines


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan that should serve, and since when fewer replicas would do and what is not to come back, where the strategy
    keeps count of that."""

    plan: Plan
    low_demand_since: float | None = None
    left: tuple[Left, ...] = ()
    p95_seconds: float = math.nan
    """As predicted, where it was."""


Strategy = Callable[[Snapshot, Policy, float, Kept], Choice | None]
"""From a snapshot, the user's policy, the time in seconds and what is kept of the profile to a choice."""

_GATE_GAIN, _GATE_SECONDS = 0.15, 30.0
_SLACK = 1e-6


def planner(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Choice | None:
    """Splitplane."""
    return _choice(choose(snapshot, policy, now, kept=kept))


def edge_only(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Choice | None:
    """The whole model on the gateway's tier, with the planner's replicas and gates."""
    away = tuple(tier for tier in snapshot.tiers if tier.name != policy.gateway_tier)
    return planner(_without(snapshot, {tier.name for tier in away}), free(policy), now, kept)


def cloud_only(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Choice | None:
    """The whole model on the last tier, with the raw input sent there, whatever privacy says."""
    open_ = replace(free(policy), raw_input_stays_trusted=False, max_leak=None, max_partitions=1)
    last = build_context(snapshot, open_, kept).farthest
    others = {tier.name for tier in snapshot.tiers if tier.name != last}
    return planner(_without(snapshot, others), open_, now, kept)


def neurosurgeon(snapshot: Snapshot, policy: Policy, _now: float, kept: Kept) -> Choice | None:
    """The cut of least latency for one request alone (Kang et al., "Neurosurgeon", ASPLOS 2017), anew each time.
    Replicas, of which it says nothing, as the load and the limit on p95 ask."""
    context = _as_published(snapshot, policy, kept)
    cut = _fastest(context, IDLE_RATE)
    return None if cut is None else _provided(context, cut)[0]


def dads(snapshot: Snapshot, policy: Policy, _now: float, kept: Kept) -> Choice | None:
    """The cut of least latency as long as it bears the load, then the one that bears the highest rate, anew each time
    (Hu et al., "Dynamic Adaptive DNN Surgery", INFOCOM 2019, algorithm 3 of section III-D: DSL, else DSH).

    The paper has one edge device and one server, busy for T_e and T_c of each request, and a link that is for T_t; the
    load is light where the longest of them is below the time between requests. Here a tier has replicas, so it is what
    they need together. DSH minimises the longest of the three by an approximation, as that is NP-hard on a graph; on a
    chain of candidate cuts each can be tried, so it is the optimum that stands here.
    """
    context = _as_published(snapshot, policy, kept)
    cut = _fastest(context, IDLE_RATE)
    if cut is None:
        return None
    light, borne = _provided(context, cut)
    highest = 0.0 if borne else highest_rate_of_lines(context)
    if not 0.0 < highest < math.inf:
        return light
    cut = _fastest(context, highest * (1.0 - _SLACK))
    return light if cut is None else _provided(context, cut)[0]


def _as_published(snapshot: Snapshot, policy: Policy, kept: Kept) -> Context:
    """What cuts are chosen in that know of no codec, no price and no third partition."""
    fast = replace(free(policy), prefer=Preference.LATENCY, codecs=("fp32",), max_partitions=2)
    return build_context(replace(snapshot, active=None), fast, kept)


def _fastest(context: Context, rate: float) -> Plan | None:
    """The plan of least p95 among those that bear so many requests per second."""
    found = contenders(context, rate, FASTEST)
    return found.candidate(context, int(np.argmin(found.p95))).plan if len(found) else None


def _provided(context: Context, cut: Plan) -> tuple[Choice | None, bool]:
    """A cut with the cheapest replicas that bear the load, and keep the limit on p95 where any do, and whether any bear
    it; if not, those that are least busy.

    Kept, as two strategies mostly ask for the same.
    """
    key = ("provided", cut, numbers(context), context.rate, context.policy.max_p95_seconds)
    known: tuple[Choice | None, bool] | None = context.kept.result(key)
    if known is None:
        known = _replicated(context, cut)
        context.kept.keep(key, known, plans=1)
    return known


def _replicated(context: Context, cut: Plan) -> tuple[Choice | None, bool]:
    layout = with_replicas(context, cut)
    if layout is None:
        return None, False
    table = evaluate(context, layout)
    overloaded, late, _ = broken(context, table)
    failing = overloaded | late
    able = np.flatnonzero(~overloaded if failing.all() else ~failing)
    row = able[np.argmin(table.cost[able])] if len(able) else np.argmin(table.utilization)
    return Choice(layout.plan(context, int(row))), len(able) > 0


def gate(snapshot: Snapshot, policy: Policy, now: float, kept: Kept) -> Choice | None:
    """The fastest plan, changed when that gains 15 % of latency and 30 seconds have passed; no price counts."""
    fast = replace(
        free(policy), prefer=Preference.LATENCY, max_cost_per_hour=None, cooldown_seconds=_GATE_SECONDS,
        allow_return=False,
    )  # fmt: skip
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
    return Choice(target.plan, decision.low_demand_since, decision.left, target.predicted.p95_seconds)


STRATEGIES: Mapping[str, Strategy] = {
    "splitplane": planner,
    "edge-only": edge_only,
    "cloud-only": cloud_only,
    "neurosurgeon": neurosurgeon,
    "dads": dads,
    "15 %/30 s gate": gate,
}


def free(policy: Policy) -> Policy:
    """The policy without the plan that the user dictates, or has to confirm: that is the planner's alone."""
    return replace(policy, mode=Mode.AUTO, fixed=None)


def _without(snapshot: Snapshot, tiers: set[str]) -> Snapshot:
    """The snapshot with no node ready on these tiers."""
    return replace(
        snapshot,
        tiers=tuple(replace(tier, ready_nodes=0) if tier.name in tiers else tier for tier in snapshot.tiers),
    )

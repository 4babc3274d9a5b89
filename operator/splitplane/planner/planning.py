"""The decision of one tick: candidates, the best of them, the gates, and the reason."""

import math
from dataclasses import dataclass, replace

import numpy as np

from splitplane.domain.plans import Candidate, Plan, Stage
from splitplane.domain.snapshots import Action, Active, Decision, Left, Mode, Policy, Snapshot
from splitplane.planner import gates
from splitplane.planner.bands import Edges, endangers, relieves
from splitplane.planner.baselines import baselines, other_split, other_variants, there_and_back
from splitplane.planner.binding import binding_limits
from splitplane.planner.bottlenecks import bottleneck, told_overload
from splitplane.planner.causes import FORBIDDEN, reason_of_change
from splitplane.planner.choice import gain, severity
from splitplane.planner.context import Context, build_context
from splitplane.planner.evaluation import assess
from splitplane.planner.explain import conditions, describe
from splitplane.planner.keeping import Kept
from splitplane.planner.lacking import left_out as left_out_of
from splitplane.planner.lacking import why_nothing_fits
from splitplane.planner.paying import Indifference
from splitplane.planner.paying import indifference as indifference_of
from splitplane.planner.returning import by_choice, comes_back, left_since
from splitplane.planner.routes import Admissible, admissible
from splitplane.planner.selecting import best_plan, current_frontier, highest_rate


def plan(snapshot: Snapshot, policy: Policy, now: float, *, kept: Kept | None = None) -> Decision:
    """Decide what should serve one pipeline. Pure: equal arguments give equal decisions.

    ``now`` is in seconds of the snapshot's clock. ``kept`` saves work on the same profile, and changes no decision.
    Raises ``ContradictionError``, saying what to mend, where policy and snapshot contradict each other (an unknown
    gateway tier, a fixed plan that does not cover the model).
    """
    return _decide(build_context(snapshot, policy, kept), now, thorough=False)


def explain(snapshot: Snapshot, policy: Policy, now: float, *, kept: Kept | None = None) -> Decision:
    """The same decision, with all that may explain it also where nothing changes: ``binding`` and ``other-split``."""
    return _decide(build_context(snapshot, policy, kept), now, thorough=True)


def choose(snapshot: Snapshot, policy: Policy, now: float, *, kept: Kept | None = None) -> Decision:
    """The same decision without routes, alternatives and ``binding``, for whoever replays many."""
    context = build_context(snapshot, policy, kept)
    best = best_plan(context)
    return _decision(context, best, _verdict(context, best, now))


def frontier(snapshot: Snapshot, policy: Policy, *, kept: Kept | None = None) -> list[Candidate]:
    """The plans that no other beats in p95, cost, leak and accuracy loss, by rising cost; empty under overload.

    Limits on p95 and cost are told as violations, all others hold. Raises ``ContradictionError`` as ``plan`` does.
    """
    context = build_context(snapshot, policy, kept)
    found = current_frontier(context)
    return [found.candidate(context, int(place)) for place in np.lexsort((found.p95, found.cost))]


def why_none(snapshot: Snapshot, policy: Policy) -> str:
    """Why no plan is on the frontier: the highest rate that any bears, or what keeps all from serving."""
    context = build_context(snapshot, policy)
    highest = highest_rate(context)
    if not highest > 0.0:
        return f"No plan can serve: {why_nothing_fits(context)}"
    best = best_plan(context)
    busiest = None if best is None else bottleneck(context, best.plan)
    first = f"; beyond, {busiest.name} of {best.plan} is the first that is too busy" if best and busiest else ""
    return (
        f"No plan bears {context.rate:g} requests/s: the highest rate is {highest:.2f}/s, with all stages and links"
        f" busy for at most {context.policy.max_utilization:.0%} of the time{first}"
    )


def why_overloaded(snapshot: Snapshot, policy: Policy, candidate: Candidate) -> str:
    """Which stage or link of a plan the load is too much for, and which load it bears; empty where it bears it, or
    nothing is known of it."""
    if "utilization" not in candidate.violations:
        return ""
    return told_overload(build_context(snapshot, policy), candidate.plan, candidate.predicted.max_rate_per_second)


def left_out(snapshot: Snapshot, policy: Policy) -> tuple[str, ...]:
    """Which tiers no plan may use, whatever its limits, and what each lacks; empty where all are weighed."""
    return left_out_of(build_context(snapshot, policy))


def indifference(snapshot: Snapshot, policy: Policy, plan: Plan) -> tuple[Indifference, ...]:
    """From which rates on replicas of the plan's stages cost less than pay-per-use, where tiers offer that."""
    return indifference_of(build_context(snapshot, policy).of(plan.variant), plan)


def _decide(context: Context, now: float, *, thorough: bool) -> Decision:
    best = best_plan(context)
    verdict = _verdict(context, best, now)
    decision = _decision(context, best, verdict)
    told = verdict.target or best
    chosen = context.of(told.plan.variant) if told and context.has(told.plan.variant) else context
    alternatives = baselines(chosen)
    binding: tuple[str, ...] = ()
    if best is not None and (thorough or verdict.action is not Action.HOLD):
        for name, kind in (("other-split", other_split), ("there-and-back", there_and_back)):
            found = kind(chosen, told or best)
            alternatives |= {name: found} if found else {}
        alternatives |= other_variants(context, told or best)
        binding = binding_limits(context, best)
    ways = admissible(context, verdict.target.plan) if verdict.target else Admissible((), None)
    return replace(
        decision,
        message=f"{verdict.message}; limited by {', '.join(binding)}" if binding else verdict.message,
        routes=ways.routes,
        steps=ways.steps,
        alternatives=alternatives,
        binding=binding,
    )


def _decision(context: Context, best: Candidate | None, verdict: "_Verdict") -> Decision:
    return Decision(
        action=verdict.action,
        reason=verdict.reason,
        message=verdict.message,
        target=verdict.target,
        best=best,
        current=verdict.current,
        gate=verdict.gate,
        gain=verdict.gain,
        feasible=best is not None and not best.violations,
        low_demand_since=verdict.low_since,
        inputs=context.inputs,
        left=verdict.left,
    )


@dataclass(frozen=True, slots=True)
class _Verdict:
    action: Action
    reason: str
    message: str
    target: Candidate | None
    current: Candidate | None = None
    gate: str = ""
    gain: float = 0.0
    low_since: float | None = None
    left: tuple[Left, ...] = ()


def _verdict(context: Context, best: Candidate | None, now: float) -> _Verdict:
    return _start(context, best) if context.active is None else _revise(context, context.active, best, now)


def _start(context: Context, best: Candidate | None) -> _Verdict:
    if best is None:
        return _Verdict(Action.HOLD, "Infeasible", f"no plan can serve: {why_nothing_fits(context)}", None)
    message = f"start {describe(best)} for {conditions(context)}"
    return _Verdict(Action.START, "InitialPlan", message, best)


def _revise(context: Context, active: Active, best: Candidate | None, now: float) -> _Verdict:
    policy = context.policy
    current = _current(context, active)
    forbidden = bool(FORBIDDEN & set(current.violations))
    invalid = forbidden or "node-loss" in current.violations
    low_since: float | None = None

    def hold(reason: str, why: str, gate: str = "", by: float = 0.0) -> _Verdict:
        message = f"keep {describe(current)}: {why}"
        return _Verdict(Action.HOLD, reason, message, current, current, gate, by, low_since)

    if context.missing and not invalid:
        return hold("MetricsMissing", "; ".join(context.missing), "metrics")
    if best is None:
        return hold("Infeasible", f"no other plan can serve: {why_nothing_fits(context)}")
    if best.plan == active.plan:
        return hold("Infeasible" if best.violations else "UpToDate", f"best for {conditions(context)}")

    edges = Edges(context)
    roomy = _with_headroom(context, edges, active, best)
    relief = next((found for found in (best, roomy) if found and relieves(edges, current, found)), None)
    forced = relief is not None
    if roomy is not None and not forced and _worsens(edges, current, roomy):
        roomy = None
    low = roomy is not None and gates.shrinks(active.plan, roomy.plan)
    if low:
        low_since = now if active.low_demand_since is None else active.low_demand_since
    target = relief or roomy or current
    if gates.shrinks(active.plan, target.plan) and (not low or gates.demand_still_young(policy, low_since, now)):
        target = _keeping_replicas(context, current, target, forced=forced)
    by = gain(context, current, target)
    if target.plan == active.plan:
        if gates.shrinks(active.plan, best.plan):
            breaks = severity(edges.far(best.plan)) > severity(best)
            why = _why_not_smaller(policy, best, low_since, now, breaks=breaks)
            return hold("HeldByScaleDown", why, "scale-down", by)
        return hold("HeldByHeadroom", f"{describe(best)} would break a limit at slightly more load", "headroom", by)
    if policy.mode is Mode.ADVISORY and not forbidden:
        return hold("Advisory", f"mode Advisory; recommended is {describe(best)}", "advisory", by)
    ends_wait = math.isinf(current.predicted.p95_seconds) and math.isfinite(target.predicted.p95_seconds)
    if by_choice(current) and not ends_wait and comes_back(context, active, target.plan):
        return hold("HeldByReturn", f"{describe(target)} was left before, and nothing has changed since", "return", by)
    smaller = gates.is_scale_down(active.plan, target.plan)
    if not forced:
        overloaded = "utilization" in current.violations and "utilization" in target.violations
        least = gates.least_gain(policy, overloaded=overloaded)
        if not smaller and by < least:
            why = f"{describe(target)} gains {by:.0%}, less than {least:.0%}"
            return hold("HeldByGain", why, "gain", by)
        if gates.cooling_down(policy, active, now):
            why = f"cooling down after the last switch; then {describe(target)}"
            return hold("HeldByCooldown", why, "cooldown", by)
        pods = gates.moves_pods(active.plan, target.plan) and not smaller
        if pods and gates.too_short_lived(policy, active, by, now):
            why = f"{describe(target)} gains {by:.0%}, which does not pay for moving pods"
            return hold("HeldByBreakEven", why, "break-even", by)
    if gates.shrinks(active.plan, target.plan):
        low_since = None  # The next step down needs a window of its own.
    reason = reason_of_change(context, active, current, target)
    message = f"{describe(current)} -> {describe(target)} for {conditions(context)}"
    left = left_since(context, active, current)
    return _Verdict(Action.SWITCH, reason, message, target, current, "", by, low_since, left)


def _current(context: Context, active: Active) -> Candidate:
    current = assess(context, active.plan)
    fixed = context.policy.fixed if context.policy.mode is Mode.FIXED else None
    if fixed is not None and "spec" not in current.violations:
        routing = tuple((stage.tier, stage.first, stage.last) for stage in active.plan.stages)
        if (routing, active.plan.codecs) != (fixed.stages, fixed.codecs):
            return replace(current, violations=("spec", *current.violations))
    return current


def _worsens(edges: Edges, current: Candidate, target: Candidate) -> bool:
    """Whether ``target`` breaks a graver limit now than the active plan, or may soon."""
    return severity(target) > severity(current) or endangers(edges, current, target)


def _with_headroom(context: Context, edges: Edges, active: Active, best: Candidate) -> Candidate | None:
    """The best plan that also satisfies the limits within the dead band, as it does now.

    It passes the N/(N-1) check: what replicas remain bear the current rate and the dead band on top. A change that
    is not forced goes there, so that noise around a limit does not drive plans to and fro.
    """
    if not gates.shrinks(active.plan, best.plan) and severity(edges.far(best.plan)) <= severity(best):
        return best
    roomy = best_plan(edges.far_context)
    return None if roomy is None else assess(context, roomy.plan)


def _keeping_replicas(context: Context, current: Candidate, target: Candidate, *, forced: bool) -> Candidate:
    """``target`` with no fewer replicas on any tier than are there now, where limits allow that."""

    def kept_on(stage: Stage) -> int:
        now = min(current.plan.replicas(stage.tier), context.tiers[stage.tier].max_replicas)
        if stage.tier == target.plan.revisits:  # the first of two stages there gets what the other has not
            now -= target.plan.replicas(stage.tier) - stage.replicas if stage.first == 0 else now
        return max(stage.replicas, now)

    plan = replace(target.plan, stages=tuple(replace(stage, replicas=kept_on(stage)) for stage in target.plan.stages))
    kept = assess(context, plan)
    if severity(kept) <= severity(target) and plan.digest not in context.set_aside:
        return kept
    return target if forced else current


def _why_not_smaller(policy: Policy, best: Candidate, low_since: float | None, now: float, *, breaks: bool) -> str:
    if low_since is None:
        why = "would break a limit" if breaks else "would no longer be preferred"
        return f"{describe(best)} {why} at {gates.DEAD_BAND:.0%} more load"
    window = policy.scale_down_window_seconds
    return f"demand low for {now - low_since:.0f} s of {window:.0f} s; then {describe(best)}"

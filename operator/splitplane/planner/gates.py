"""Reasons not to change the plan yet. Each gate is a pure function of its own that answers whether it holds."""

from dataclasses import replace

from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import Active, Policy
from splitplane.planner.context import Context

DEAD_BAND = 0.15
"""How much more load, and how much slower a link, a plan must bear to be moved to without need."""

SLOWER_STAGES = 0.065
"""How much slower its stages may become: what is learnt of a tier's speed wanders, too.

A stage is busy in proportion to load times speed: with 5 % noise of both, up to ``(1.05 / 0.95) ** 2``, 22.2 %, more at
one moment than at another. Both bands together are 22.5 %, so noise alone crosses no limit both ways.
"""

LATENCY_BAND = 0.07
"""How far below the p95 limit such a plan's p95 must lie even then."""

DEFAULT_SWITCH_SECONDS = 30.0
"""Assumed duration of a switch that moves pods, before one has been measured."""

LONGEST_HORIZON_SECONDS = 3600.0


def deployments(plan: Plan) -> frozenset[tuple[str, int, int, int]]:
    """What pods a plan keeps: (tier, resident range, replicas). Plans that agree in it differ in routing only."""
    return frozenset((s.tier, s.resident_first, s.resident_last, s.replicas) for s in plan.stages)


def moves_pods(old: Plan, new: Plan) -> bool:
    """Whether pods come or go. Those of one variant of a model can't serve another."""
    return (old.variant, deployments(old)) != (new.variant, deployments(new))


def shrinks(old: Plan, new: Plan) -> bool:
    """Whether a tier that both plans use would lose replicas."""
    tiers = {stage.tier for stage in old.stages} & {stage.tier for stage in new.stages}
    return any(new.replicas(tier) < old.replicas(tier) for tier in tiers)


def is_scale_down(old: Plan, new: Plan) -> bool:
    """Whether the plans differ only in that some stages have fewer replicas."""
    return (old.variant, old.routing) == (new.variant, new.routing) and all(
        a.replicas >= b.replicas for a, b in zip(old.stages, new.stages, strict=True)
    )


def stress(context: Context) -> Context:
    """The context at the far edge of the dead band, wide enough that noise of 5 % does not cross it both ways."""
    return _moved(context, 1.0 + DEAD_BAND, 1.0 + SLOWER_STAGES, 1.0 + LATENCY_BAND)


def relax(context: Context) -> Context:
    """The context at the near edge: less load, faster links and stages, a wider limit on p95, each by as much."""
    return _moved(context, 1.0 / (1.0 + DEAD_BAND), 1.0 / (1.0 + SLOWER_STAGES), 1.0 / (1.0 + LATENCY_BAND))


def _moved(context: Context, load: float, slower: float, latency: float) -> Context:
    limit = context.policy.max_p95_seconds
    policy = replace(context.policy, max_p95_seconds=None if limit is None else limit / latency)
    wires = {pair: replace(wire, bandwidth=wire.bandwidth / load) for pair, wire in context.wires.items()}

    def moved(each: Context) -> Context:
        sites = {
            name: replace(site, correction=site.correction * slower, overhead_seconds=site.overhead_seconds * slower)
            for name, site in each.sites.items()
        }
        return replace(each, rate=context.rate * load, wires=wires, sites=sites, policy=policy)

    return context.changed(moved)


def least_gain(policy: Policy, *, overloaded: bool) -> float:
    """What a change must gain that nothing forces. Where neither plan bears the load the gain is in the rate that they
    bear, and of two stages that wander by 5 % each bears as much more by turns: no less than the dead band counts."""
    return max(policy.min_gain, DEAD_BAND) if overloaded else policy.min_gain


def cooling_down(policy: Policy, active: Active, now: float) -> bool:
    """Within the cool-down after the last switch, which is at least three times as long as that switch took."""
    return now - active.since < max(policy.cooldown_seconds, 3.0 * active.last_switch_seconds)


def too_short_lived(policy: Policy, active: Active, gain: float, now: float) -> bool:
    """Whether a switch that moves pods would not pay for itself.

    While it lasts, both plans' pods run: it costs its duration once more. It gains the relative gain for as long as
    the new plan lives, for which the age of the present one is the best guess, within the scale-down window and an
    hour.
    """
    duration = active.last_switch_seconds or DEFAULT_SWITCH_SECONDS
    horizon = min(LONGEST_HORIZON_SECONDS, max(policy.scale_down_window_seconds, now - active.since))
    return gain * horizon < duration


def demand_still_young(policy: Policy, low_since: float | None, now: float) -> bool:
    """Whether demand has not yet been low for the whole scale-down window without interruption."""
    return low_since is None or now - low_since < policy.scale_down_window_seconds

"""Why a plan changes, in one word fit for a condition's reason.

The cause is the change without which there would have been no reason to move: each number that differs notably from
what the active plan was chosen on, and the policy, is put back alone, and the one whose return leaves the active plan
in the best standing is named.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from splitplane.domain.plans import Candidate
from splitplane.domain.snapshots import Active, Inputs, Mode
from splitplane.planner.choice import gain, severity
from splitplane.planner.context import Context, Site
from splitplane.planner.evaluation import assess
from splitplane.planner.gates import is_scale_down

FORBIDDEN = frozenset({"spec", "replicas", "shared", "accuracy", "memory", "leak", "privacy"})
"""Violations of a plan that the user's resource does not allow, or no longer, or that nothing is there for any more: it
goes, whatever that costs."""

NOTABLE = 0.10
"""A number counts as changed once it differs by this share from what the active plan's decision rested on."""


def reason_of_change(context: Context, active: Active, current: Candidate, target: Candidate) -> str:
    """The cause of a switch from ``current`` to ``target``."""
    if "node-loss" in current.violations:
        return "NodeLost"
    if "shared" in current.violations:
        return "SharedReplicasChanged"
    if FORBIDDEN & set(current.violations):
        return "SpecChanged"
    if "grant" in current.violations:
        return "GaveWay"
    sites = context.sites
    if current.violations and any(stage.replicas > sites[stage.tier].high for stage in current.plan.stages):
        return "NodeLost"
    if is_scale_down(current.plan, target.plan) and not current.violations:
        return "DemandFell"
    inputs = active.inputs
    if inputs is not None:
        if any(stage.tier in sites and stage.tier not in inputs.tiers for stage in target.plan.stages):
            return "CapacityReturned"
        without = {
            cause: _standing(before, active, target)
            for cause, before in _put_back(context, inputs)
            if before != context
        }
        if without:
            return min(without, key=lambda cause: without[cause])
    mends = severity(target) < severity(current) or "utilization" in current.violations
    return "LimitViolated" if mends else "BetterPlan"


def _put_back(context: Context, inputs: Inputs) -> Iterator[tuple[str, Context]]:
    """The context with one number as it was when the active plan was chosen, by the name of that number's change."""
    if _differs(inputs.rate_per_second, context.rate):
        cause = "DemandGrew" if context.rate > inputs.rate_per_second else "DemandFell"
        yield cause, context.changed(lambda each: replace(each, rate=inputs.rate_per_second))
    wires = dict(context.wires)
    for source, end, bandwidth, delay in inputs.links:
        wire = wires.get((source, end))
        if wire is not None and (_differs(bandwidth, wire.bandwidth) or _differs(delay, wire.delay)):
            wires[source, end] = replace(wire, bandwidth=bandwidth, delay=delay)
    yield "LinkChanged", context.changed(lambda each: replace(each, wires=wires))
    yield "PriceChanged", context.changed(lambda each: replace(each, sites=_priced_as(each, inputs)))
    before = inputs.policy
    if before is not None:
        money = replace(before, max_cost_per_hour=context.policy.max_cost_per_hour)
        cause = "BudgetChanged" if context.budgeted and money == context.policy else "SpecChanged"
        yield cause, context.changed(lambda each: replace(each, policy=before))


def _priced_as(context: Context, inputs: Inputs) -> dict[str, Site]:
    """The tiers at the prices of those inputs, where these differ notably."""
    sites = dict(context.sites)
    for name, price in inputs.prices:
        if name in sites and not math.isnan(sites[name].price) and _differs(price, sites[name].price):
            sites[name] = replace(sites[name], price=price)
    return sites


def _standing(before: Context, active: Active, target: Candidate) -> tuple[int, float]:
    """How badly the active plan would stand: by the limits it breaks, then by what the target would still gain."""
    current, other = assess(before, active.plan), assess(before, target.plan)
    if before.policy.mode is Mode.FIXED:
        return severity(current), 0.0  # a split that is dictated stays, whatever another would gain
    if FORBIDDEN & set(other.violations):
        return severity(current), -math.inf  # there would have been nothing to go to
    by = gain(before, current, other)
    return severity(current), by if math.isfinite(by) else math.inf


def _differs(old: float, new: float) -> bool:
    """A delay of zero counts as a tenth of a millisecond."""
    return abs(math.log(max(new, 1e-4) / max(old, 1e-4))) >= math.log1p(NOTABLE)

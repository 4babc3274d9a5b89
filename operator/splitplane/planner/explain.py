"""Why a plan changed or stayed, in one word fit for a condition's reason and one line with the numbers."""

import math

from splitplane.domain.plans import Candidate, Plan
from splitplane.domain.snapshots import Active
from splitplane.planner.context import Context
from splitplane.planner.gates import is_scale_down

NOTABLE = 0.10
"""A number counts as changed once it differs by this share from what the active plan's decision rested on."""


def reason_of_change(context: Context, active: Active, current: Candidate, target: Plan) -> str:
    """The likeliest cause of a switch: what broke, else what changed most since the active plan was chosen."""
    if "node-loss" in current.violations:
        return "NodeLost"
    if {"spec", "privacy", "memory"} & set(current.violations):
        return "SpecChanged"
    sites = context.sites
    if current.violations and any(stage.replicas > sites[stage.tier].high for stage in current.plan.stages):
        return "NodeLost"
    if is_scale_down(current.plan, target):
        return "DemandFell"
    return _largest_change(context, active, target) or ("LimitViolated" if current.violations else "BetterPlan")


def describe(candidate: Candidate) -> str:
    """A plan with its replicas and predictions, short enough for a line of a table."""
    predicted = candidate.predicted
    replicas = "+".join(str(stage.replicas) for stage in candidate.plan.stages)
    cost = "cost unknown" if math.isnan(predicted.cost_per_hour) else f"{predicted.cost_per_hour:.2f}/h"
    broken = f", breaks {', '.join(candidate.violations)}" if candidate.violations else ""
    return f"{candidate.plan} x{replicas} (p95 {milliseconds(predicted.p95_seconds)}, {cost}{broken})"


def milliseconds(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown"
    return "unbounded" if math.isinf(seconds) else f"{1000.0 * seconds:.0f} ms"


def conditions(context: Context) -> str:
    """The numbers that a decision rests on, in a few words."""
    parts = [f"{context.rate:.3g} requests/s"]
    for (source, target), wire in sorted(context.wires.items()):
        if source == context.gateway:
            parts.append(f"{source} to {target} {wire.bandwidth * 8e-6:.3g} Mbit/s")
    return ", ".join(parts)


def why_nothing_fits(context: Context) -> str:
    """What keeps every tier from serving, for a user who has to mend it."""
    clauses = []
    for name, tier in context.tiers.items():
        if name in context.sites:
            continue
        if tier.device_class not in context.profile.devices:
            clauses.append(f"tier {name}: device class {tier.device_class} has no profile yet")
        elif tier.ready_nodes < 1:
            clauses.append(f"tier {name}: no ready node matches its selector")
        else:
            clauses.append(f"tier {name}: its nodes have no room for a replica")
    for name, site in context.sites.items():
        if not context.affordable(site):
            clauses.append(f"tier {name}: its price is unknown")
        elif name != context.gateway and (context.gateway, name) not in context.wires:
            clauses.append(f"tier {name}: the link to it is unmeasured")
        else:
            clauses.append(f"tier {name}: no range fits privacy and memory")
    if context.set_aside:
        clauses.append(f"{len(context.set_aside)} plans are set aside after failing")
    return "; ".join(clauses)


def _largest_change(context: Context, active: Active, target: Plan) -> str:
    inputs = active.inputs
    if inputs is None:
        return ""
    if any(stage.tier in context.sites and stage.tier not in inputs.tiers for stage in target.stages):
        return "CapacityReturned"
    changes = [(_ratio(inputs.rate_per_second, context.rate), "Demand")]
    for source, end, bandwidth, delay in inputs.links:
        wire = context.wires.get((source, end))
        if wire is not None:
            changes += [(_ratio(bandwidth, wire.bandwidth), "Link"), (_ratio(delay, wire.delay), "Link")]
    prices = dict(inputs.prices)
    for name, site in context.sites.items():
        if name in prices and not math.isnan(site.price):
            changes.append((_ratio(prices[name], site.price), "Price"))
    size, what = max(changes, key=lambda change: abs(change[0]))
    if abs(size) < math.log1p(NOTABLE):
        return ""
    return {"Link": "LinkChanged", "Price": "PriceChanged"}.get(what) or ("DemandGrew" if size > 0 else "DemandFell")


def _ratio(old: float, new: float) -> float:
    """Logarithm of new over old; a delay of zero counts as a tenth of a millisecond."""
    return math.log(max(new, 1e-4) / max(old, 1e-4))

"""Plans and the numbers that they rest on, in one line for people."""

import math

from splitplane.domain.plans import Candidate
from splitplane.planner.context import Context


def describe(candidate: Candidate) -> str:
    """A plan with its replicas and predictions, short enough for a line of a table."""
    predicted = candidate.predicted
    replicas = "+".join(stage.capacity for stage in candidate.plan.stages)
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
        elif tier.granted == 0 and tier.slots > 0:
            clauses.append(f"tier {name}: other pipelines got all that its nodes have")
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

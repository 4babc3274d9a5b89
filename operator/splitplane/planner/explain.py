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

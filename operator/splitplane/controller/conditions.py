"""Conditions of a pipeline: what is true of it, since when, and what to do about it. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from splitplane.controller.arbitrating import Grant
from splitplane.controller.control import Control
from splitplane.controller.switching import Observed
from splitplane.domain.estimates import Estimate
from splitplane.domain.measurements import Error, Measurement, Missing, Stale, explain
from splitplane.domain.snapshots import Decision
from splitplane.domain.times import timestamp

LIMITS = "LimitsMeasured"

GOOD = {
    "Ready": "True", "Progressing": "False", "Degraded": "False", "MetricsAvailable": "True", "PlanFeasible": "True",
    "CapacityGranted": "True", "ModelMeasured": "True", LIMITS: "True", "Reconciling": "False", "Stalled": "False",
}  # fmt: skip
"""The status of each condition, in the order in which they are shown, while all is well and nothing under way."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition without its times."""

    type: str
    status: str
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one reconciliation found out, as far as conditions and status tell of it.

    ``problems`` are (reason, message) pairs that need somebody to act; the first is the most important.
    ``waiting`` is what the pipeline waits for by itself.
    """

    observed: Observed
    control: Control
    decision: Decision | None = None
    gateway_ready: bool = False
    metrics_failure: str = ""
    arrival_rate: Measurement = field(default_factory=lambda: Missing("not read yet"))
    p95: Measurement = field(default_factory=lambda: Missing("not read yet"))
    problems: tuple[tuple[str, str], ...] = ()
    waiting: tuple[tuple[str, str], ...] = ()
    suspended: bool = False
    grant: Grant | None = None
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    limits: Verdict | None = None


def verdicts(facts: Facts) -> list[Verdict]:
    """All conditions, in the order in which they are shown."""
    ready = _ready(facts)
    progress = _progress(facts)
    problem = facts.problems[0] if facts.problems else None
    if problem is None and facts.decision is not None and facts.decision.target is None:
        problem = facts.decision.reason, facts.decision.message
    stalled = problem if not progress and ready.status != "True" else None
    return [
        ready,
        Verdict("Progressing", "True", *progress) if progress else Verdict("Progressing", "False", "Settled"),
        _degraded(facts),
        _metrics(facts),
        _feasible(facts),
        granted(facts.grant),
        _measured(facts),
        facts.limits or Verdict(LIMITS, "True", "NoneSet"),
        Verdict("Reconciling", "True", *progress) if progress else Verdict("Reconciling", "False", "Settled"),
        Verdict("Stalled", "True", *stalled) if stalled else Verdict("Stalled", "False", "NotStalled"),
    ]


def merge(
    before: Sequence[Mapping[str, Any]], now: Iterable[Verdict], *, at: float, generation: int
) -> list[dict[str, Any]]:
    """Conditions for the status; ``lastTransitionTime`` moves only when a status changes, as Kubernetes has it."""
    known = {condition["type"]: condition for condition in before}
    merged = []
    for verdict in now:
        old = known.get(verdict.type, {})
        same = old.get("status") == verdict.status
        merged.append(
            {
                "type": verdict.type,
                "status": verdict.status,
                "reason": verdict.reason,
                "message": verdict.message[:4096],
                "lastTransitionTime": old["lastTransitionTime"] if same else timestamp(at),
                "observedGeneration": generation,
            }
        )
    return merged


def _ready(facts: Facts) -> Verdict:
    control, observed = facts.control, facts.observed
    active = control.active
    if active is None:
        decided = facts.decision.message if facts.decision is not None else "no plan has been made yet"
        pending = (("Preparing", f"preparing {control.pending.serving.plan}"),) if control.pending else ()
        reason, message = (*pending, *facts.problems, *facts.waiting, ("NoPlan", decided))[0]
        return Verdict("Ready", "False", reason, message)
    if not facts.gateway_ready:
        return Verdict("Ready", "False", "GatewayNotReady", "the gateway's pod is not ready; look at its events")
    if observed.acknowledged < 0:
        return Verdict("Ready", "False", "GatewaySilent", "the gateway has not acknowledged any routes yet")
    alive = [route for route in active.routes if all(observed.ready.get(step.stage, 0) > 0 for step in route.steps)]
    if alive:
        first = alive[0]
        note = "" if first == active.routes[0] else f"; {active.routes[0].name} is not available"
        reason = "Suspended" if facts.suspended else "Serving"
        return Verdict("Ready", "True", reason, f"serving {first.name}{note}")
    dead = sorted(stage.name for stage in active.stages if not observed.ready.get(stage.name))
    why = "; ".join(f"{name}: {observed.troubles.get(name, 'no endpoint is ready')}" for name in dead)
    return Verdict("Ready", "False", "StagesNotReady", f"no route is complete: {why}")


def _progress(facts: Facts) -> tuple[str, str] | None:
    control = facts.control
    if control.pending is not None:
        serving = control.pending.serving
        waits = [
            f"{stage.name} {facts.observed.ready.get(stage.name, 0)}/{stage.replicas}"
            + (f" ({trouble})" if (trouble := facts.observed.troubles.get(stage.name)) else "")
            for stage in serving.stages
        ]
        return "Preparing", f"preparing {serving.plan}: ready {', '.join(waits)}"
    if control.switching_since is not None:
        return "Routing", f"waiting for the gateway to acknowledge generation {facts.observed.generation}"
    if control.draining:
        names = sorted(stage.name for drain in control.draining for stage in drain.stages)
        return "Draining", f"waiting for the last requests on {', '.join(names)}"
    return _told(facts.waiting) if facts.waiting else None


def _told(waiting: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """What is waited for, all of it: several device classes may be measured at once, or one behind another."""
    return waiting[0][0], "; ".join(dict.fromkeys(message for _, message in waiting))


def _degraded(facts: Facts) -> Verdict:
    if facts.problems:
        return Verdict("Degraded", "True", *facts.problems[0])
    active, observed = facts.control.active, facts.observed
    if active is not None and facts.control.pending is None:
        short = [
            f"{stage.name} has {observed.ready.get(stage.name, 0)} of {stage.replicas} ready"
            + (f" ({trouble})" if (trouble := observed.troubles.get(stage.name)) else "")
            for stage in active.stages
            if observed.ready.get(stage.name, 0) < stage.replicas
        ]
        if short:
            return Verdict("Degraded", "True", "ReplicasMissing", "; ".join(short))
    return Verdict("Degraded", "False", "AsPlanned")


def _metrics(facts: Facts) -> Verdict:
    if facts.metrics_failure:
        message = f"{facts.metrics_failure}. The plan is held; check prometheus.url of the chart and that it runs."
        return Verdict("MetricsAvailable", "False", "PrometheusUnreachable", message)
    for name, measurement in (("arrival rate", facts.arrival_rate), ("p95", facts.p95)):
        match measurement:
            case Error():
                message = f"{name}: {explain(measurement)}. The plan is held; find the pod that exports this."
                return Verdict("MetricsAvailable", "False", "NotANumber", message)
            case Stale():
                message = (
                    f"{name}: {explain(measurement)}. The plan is held; see whether Prometheus scrapes the gateway."
                )
                return Verdict("MetricsAvailable", "False", "MetricsStale", message)
            case Missing() if facts.control.active is None:
                return Verdict("MetricsAvailable", "Unknown", "NotServing", "measured once the pipeline serves")
            case Missing() if name == "arrival rate":
                message = (
                    f"{name}: {explain(measurement)}. The plan is held; see whether Prometheus scrapes the gateway."
                )
                return Verdict("MetricsAvailable", "False", "MetricsMissing", message)
            case _:
                pass
    return Verdict("MetricsAvailable", "True", "Measured")


def granted(grant: Grant | None) -> Verdict:
    """Whether a pipeline may have all that it asks for of nodes that it shares with others."""
    if grant is None:
        return Verdict("CapacityGranted", "True", "NothingShort")
    if not grant.why:
        return Verdict("CapacityGranted", "True", "AsAsked")
    return Verdict("CapacityGranted", "False", "GaveWay", f"{grant.why}. Add nodes, or raise spec.priority.")


def _measured(facts: Facts) -> Verdict:
    measuring = [waited for waited in facts.waiting if waited[0].startswith("Profil")]
    if facts.control.active is None and measuring:
        return Verdict("ModelMeasured", "Unknown", *_told(measuring))
    if not facts.estimates:
        return Verdict("ModelMeasured", "True", "Measured")
    which = "; ".join(f"device class {name} by {each.basis}" for name, each in sorted(facts.estimates.items()))
    message = (
        f"times are estimated, and may be several times off, of {which}. They are learnt from what stages take"
        " meanwhile, and replaced once measuring succeeds."
    )
    return Verdict("ModelMeasured", "False", "Estimated", message)


def _feasible(facts: Facts) -> Verdict:
    decision = facts.decision
    if decision is None:
        return Verdict("PlanFeasible", "Unknown", "NotPlanned", "no decision has been made yet")
    if decision.feasible:
        return Verdict("PlanFeasible", "True", "LimitsKept")
    best = decision.best or decision.target
    broken = f" (broken: {', '.join(best.violations)})" if best is not None and best.violations else ""
    advice = "Relax the limit in spec.objectives, or add nodes or replicas to spec.tiers."
    return Verdict("PlanFeasible", "False", "Infeasible", f"{decision.message}{broken}. {advice}")

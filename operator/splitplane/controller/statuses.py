"""The status block of a pipeline: what serves, what it was predicted to give and gives, what was decided. Pure."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from splitplane.api.fields import decimal_or_none
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.policies import from_plan, from_prediction, from_shares, percent
from splitplane.api.statuses import DECISIONS
from splitplane.controller.conditions import Facts, merge, verdicts
from splitplane.controller.control import Control, Serving
from splitplane.controller.route_tables import rate_text
from splitplane.controller.switching import Observed
from splitplane.domain.measurements import Value, known
from splitplane.domain.plans import Candidate, Prediction, Stage, span_text
from splitplane.domain.snapshots import Action, Decision, Mode
from splitplane.domain.times import timestamp

Json = dict[str, Any]


def build(
    pipeline: InferencePipeline, before: Mapping[str, Any], facts: Facts,
    *, profile_name: str, profile_known: bool, cut_names: list[str], decisions: list[Json], now: float,
) -> Json:  # fmt: skip
    """The whole status. Absent values are ``None``, so that a merge patch removes what is no longer true."""
    control, observed = facts.control, facts.observed
    plan = _plan(facts, cut_names) if control.active else None
    return {
        "observedGeneration": pipeline.metadata.generation,
        "conditions": merge(
            before.get("conditions") or (), verdicts(facts), at=now, generation=pipeline.metadata.generation
        ),
        "profile": profile_name if profile_known else None,
        "plan": plan,
        "routes": routes_of(control) or None,
        "replicas": _replicas(control, observed),
        "slo": _slo(pipeline, plan),
        "lastSwitchMilliseconds": round(control.last_switch_seconds * 1000) or None,
        "lowDemandSince": None if control.low_demand_since is None else timestamp(control.low_demand_since),
        "pendingSwitch": _pending(control, observed, cut_names),
        "drains": [
            {
                "generation": drain.generation,
                "deployments": [stage.name for stage in drain.stages],
                "since": timestamp(drain.since),
                "deadline": timestamp(drain.deadline),
            }
            for drain in control.draining
        ]
        or None,
        "setAside": [
            {
                "digest": aside.digest,
                "summary": aside.summary,
                "reason": aside.reason,
                "failures": aside.failures,
                "until": timestamp(aside.until),
            }
            for aside in control.set_aside
            if aside.until > now
        ]
        or None,
        "recommendation": _recommendation(pipeline, facts.decision, before, now),
        "decisions": decisions or None,
    }


def with_decision(decisions: list[Json], entry: Json) -> list[Json]:
    """``decisions`` with ``entry`` at the front.

    Between two changes each reason to hold has one entry, which counts how often it came up after another: a hold for
    the same reason as the one before is not news, and what comes and goes near a limit is one story. Beyond
    ``DECISIONS`` the oldest holds go before any change does.
    """
    if entry["action"] == "Hold":
        run = list(itertools.takewhile(lambda held: held["action"] == "Hold", decisions))
        same = next((held for held in run if held["reason"] == entry["reason"]), None)
        if same is not None and same is run[0]:
            return decisions
        if same is not None:
            decisions = [held for held in decisions if held is not same]
            count = same.get("count", 1) + 1
            entry = {**entry, "time": same["time"], "lastTime": entry["time"], "count": count}
    kept = [entry, *decisions]
    while len(kept) > DECISIONS:
        oldest = next((index for index in range(len(kept) - 1, 0, -1) if kept[index]["action"] == "Hold"), -1)
        del kept[oldest]
    return kept


def decision_entry(decision: Decision, control: Control, now: float) -> Json:
    """A decision as the status lists it."""
    entry: Json = {
        "time": timestamp(now),
        "action": str(decision.action),
        "reason": decision.reason,
        "message": decision.message[:4096],
    }
    if control.active is not None:
        entry["planBefore"] = str(control.active.plan)
    if decision.target is not None:
        entry["planAfter"] = str(decision.target.plan)
        if p95 := from_prediction(decision.target.predicted).get("predictedP95Milliseconds"):
            entry["predictedP95Milliseconds"] = p95
    if (gain := percent(decision.gain)) is not None:
        entry["gainPercent"] = gain
    if decision.action is Action.HOLD and decision.gate:
        entry["gate"] = decision.gate
    return entry


def routes_of(control: Control) -> list[Json]:
    return [
        {
            "name": route.name,
            "bestBetween": [span_text(low, high) for low, high in route.best],
            "maxRatePerSecond": rate_text(route),
            "linkBytesPerRequest": math.ceil(route.link_bytes),
        }
        for route in (control.active.routes if control.active else ())
    ]


def _plan(facts: Facts, cut_names: list[str]) -> Json:
    control, observed = facts.control, facts.observed
    active = control.active
    assert active is not None
    predicted = _current_prediction(facts.decision, active)
    plan = _written(active, observed, cut_names, generation=observed.generation)
    plan.update(from_prediction(predicted) | from_shares(predicted))
    plan["since"] = timestamp(control.since)
    rate = known(facts.arrival_rate)
    plan["requestsPerSecond"] = None if rate is None else decimal_or_none(rounded(rate), digits=3)
    # 1000 requests at this cost per hour; without requests there is no such number.
    per_thousand = predicted.cost_per_hour / (rate * 3600) * 1000 if rate else math.nan
    plan["costPerThousandRequests"] = decimal_or_none(rounded(per_thousand), digits=8)
    plan["observedP95Milliseconds"] = round(facts.p95.value * 1000) if isinstance(facts.p95, Value) else None
    return plan


def rounded(value: float) -> float:
    """Two digits that matter: the third moves with every scrape and would only cause writes."""
    return float(f"{value:.2g}")


def _current_prediction(decision: Decision | None, active: Serving) -> Prediction:
    """What the plan that serves should give under present conditions."""
    candidates: tuple[Candidate | None, ...] = () if decision is None else (decision.target, decision.current)
    for candidate in candidates:
        if candidate is not None and candidate.plan == active.plan:
            return candidate.predicted
    return active.predicted


def _written(serving: Serving, observed: Observed, cut_names: list[str], *, generation: int) -> Json:
    def deployment(stage: Stage) -> str:
        for held in serving.stages:
            key = held.key
            if (key.tier, key.resident_first, key.resident_last) == (
                stage.tier,
                stage.resident_first,
                stage.resident_last,
            ):
                return held.name
        return ""

    plan = from_plan(serving.plan, generation=generation, cut_names=cut_names, deployment=deployment).dump()
    for stage in plan["stages"]:
        stage["readyReplicas"] = observed.ready.get(stage.get("deployment", ""), 0)
    return plan


def _replicas(control: Control, observed: Observed) -> str | None:
    if control.active is None:
        return None
    return ", ".join(
        f"{stage.key.tier} {min(observed.ready.get(stage.name, 0), stage.replicas)}/{stage.replicas}"
        for stage in control.active.stages
    )[:128]


def _slo(pipeline: InferencePipeline, plan: Json | None) -> str | None:
    limit = pipeline.spec.objectives.latency_p95_milliseconds
    if limit is None:
        return None
    seen = (plan or {}).get("observedP95Milliseconds")
    if seen is None:
        return f"p95 < {limit} ms"
    return f"p95 < {limit} ms: {'met' if seen <= limit else 'missed'}"


def _pending(control: Control, observed: Observed, cut_names: list[str]) -> Json | None:
    pending = control.pending
    if pending is None:
        return None
    plan = _written(pending.serving, observed, cut_names, generation=observed.generation + 1)
    plan.update(from_prediction(pending.serving.predicted) | from_shares(pending.serving.predicted))
    return {
        "generation": observed.generation + 1,
        "plan": plan,
        "phase": "Preparing",
        "reason": pending.reason,
        "startedAt": timestamp(pending.started),
        "deadline": timestamp(pending.deadline),
    }


def _recommendation(
    pipeline: InferencePipeline, decision: Decision | None, before: Mapping[str, Any], now: float
) -> Json | None:
    if Mode(pipeline.spec.partitioning.mode) is not Mode.ADVISORY or decision is None or decision.best is None:
        return None
    if decision.current is None or decision.best.plan == decision.current.plan:
        return None
    old = before.get("recommendation") or {}
    summary = str(decision.best.plan)
    since = old.get("since") if old.get("summary") == summary else None
    numbers = from_prediction(decision.best.predicted)
    del numbers["maxRatePerSecond"]
    return {
        "summary": summary,
        "reason": decision.reason,
        "since": since or timestamp(now),
        "gainPercent": percent(decision.gain),
        **numbers,
    }

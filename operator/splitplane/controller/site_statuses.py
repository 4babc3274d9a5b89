"""What a pipeline with ``spec.sites`` says of its sites: a row for each, and conditions over all of them. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitplane.api.fields import decimal_or_none
from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.arbitrating import Grant
from splitplane.controller.conditions import GOOD, Verdict, granted, merge
from splitplane.controller.objects import Object, condition_of
from splitplane.controller.pools import Held
from splitplane.controller.statuses import rounded
from splitplane.domain.measurements import known
from splitplane.domain.snapshots import Link

Json = dict[str, Any]
Problem = tuple[str, str]

_MOST_NAMED = 5
_MOST_NAMED_IN_PLAN = 2
_LONGEST_SUMMARY = 256
_ROUNDED = 0.00005
"""How far a site's cost in the status may lie from what was planned."""


@dataclass(frozen=True, slots=True)
class Site:
    """A site by name, its pipeline's name and, once that exists, the pipeline, with the links that it measures."""

    name: str
    pipeline: str
    body: Object | None = None
    links: Sequence[Link] = ()

    def condition(self, kind: str) -> Verdict:
        """A condition of its pipeline, unknown where that is about an older spec."""
        body = self.body or {"metadata": {}}
        found = condition_of(body, kind)
        if not found or found.get("observedGeneration", 0) < body["metadata"].get("generation", 0):
            return Verdict(kind, "Unknown", "NotReconciled", "its pipeline has not been looked at yet")
        return Verdict(kind, found["status"], found["reason"], found.get("message", ""))


def build(
    pipeline: InferencePipeline, before: Mapping[str, Any], sites: Sequence[Site], problems: Sequence[Problem],
    held: Held | None, grant: Grant | None = None, *, now: float,
) -> Json:  # fmt: skip
    """The whole status. ``problems`` are (reason, message) pairs about the sites as such; the first counts most.
    ``held`` is what the sites share, ``grant`` what they may have of it."""
    generation = pipeline.metadata.generation
    rows = [row(site) for site in sites]
    plan = total(rows, held)
    found = verdicts(sites, problems)
    found = [_within_budget(each, pipeline, plan, len(rows)) for each in found]
    if grant is not None and grant.why:
        found = [granted(grant) if each.type == "CapacityGranted" else each for each in found]
    return {
        "observedGeneration": generation,
        "conditions": merge(before.get("conditions") or (), found, at=now, generation=generation),
        "plan": plan,
        "sites": rows or None,
        "replicas": f"sites {sum(each['ready'] == 'True' for each in rows)}/{len(rows)}{_shared_replicas(held)}",
        "slo": _slo(pipeline, rows),
    }  # fmt: skip


def row(site: Site) -> Json:
    """One site; what is not known is left out."""
    ready = site.condition("Ready")
    status = (site.body or {}).get("status") or {}
    plan = status.get("plan") or {}
    found = {
        "name": site.name,
        "pipeline": site.pipeline,
        "ready": ready.status,
        "reason": ready.reason,
        "plan": plan.get("summary"),
        "replicas": status.get("replicas"),
        "observedP95Milliseconds": plan.get("observedP95Milliseconds"),
        "requestsPerSecond": plan.get("requestsPerSecond"),
        "costPerHour": plan.get("costPerHour"),
        "links": [_link(link) for link in site.links] or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def total(rows: Sequence[Json], held: Held | None = None) -> Json | None:
    """What the sites' rows come to together: who serves which plan, the worst p95, the sums of rates and costs. What
    sites share (``held``) is the only stage, and costs what it costs.

    A sum is ``None`` while a site that serves has no number for it; all is while no site serves.
    """
    served = [each for each in rows if "plan" in each]
    if not served:
        return None
    seen = [each["observedP95Milliseconds"] for each in served if "observedP95Milliseconds" in each]
    cost, rate = _sum(served, "costPerHour"), _sum(served, "requestsPerSecond")
    if held is not None and cost is not None:
        cost = None if held.price is None else cost + held.price * held.stage.replicas
    return {
        "summary": _summary(served),
        "stages": [_stage(held)] if held is not None else None,
        "observedP95Milliseconds": max(seen, default=None),
        "costPerHour": None if cost is None else decimal_or_none(cost),
        "requestsPerSecond": None if rate is None else decimal_or_none(rate, digits=3),
        "costPerThousandRequests": decimal_or_none(rounded(cost / rate / 3.6), digits=8) if cost and rate else None,
    }


def _stage(held: Held) -> Json:
    key = held.stage.key
    return {
        "tier": key.tier, "firstCut": key.resident_first, "lastCut": key.resident_last,
        "residentFirst": key.resident_first, "residentLast": key.resident_last,
        "replicas": held.stage.replicas, "readyReplicas": held.ready, "deployment": held.stage.name,
    }  # fmt: skip


def _shared_replicas(held: Held | None) -> str:
    return "" if held is None else f", {held.stage.key.tier} {held.ready}/{held.stage.replicas}"


def _sum(rows: Sequence[Json], name: str) -> float | None:
    return sum(float(each[name]) for each in rows) if all(name in each for each in rows) else None


def _summary(rows: Sequence[Json]) -> str:
    """Each plan with the sites that it serves, by name or number; those that serve the most come first."""
    sites: dict[str, list[str]] = {}
    for each in rows:
        sites.setdefault(each["plan"], []).append(each["name"])
    order = sorted(sites.items(), key=lambda item: (-len(item[1]), item[0]))
    parts = [
        f"{plan} at {', '.join(names) if len(names) <= _MOST_NAMED_IN_PLAN else f'{len(names)} sites'}"
        for plan, names in order
    ]
    text = "; ".join(parts)
    return text if len(text) <= _LONGEST_SUMMARY else f"{text[: _LONGEST_SUMMARY - 4]} ..."


def verdicts(sites: Sequence[Site], problems: Sequence[Problem]) -> list[Verdict]:
    """A condition is good where it is good at every site; else it tells of those where it is not."""
    found = [_over(kind, good, sites) for kind, good in GOOD.items()]
    if problems:
        found = [Verdict(each.type, "True", *problems[0]) if each.type == "Degraded" else each for each in found]
    if not sites:
        why = problems[0] if problems else ("NoSites", "no node names a site")
        bad = {"Ready": Verdict("Ready", "False", *why), "Stalled": Verdict("Stalled", "True", *why)}
        found = [bad.get(each.type, each) for each in found]
    return found


def _within_budget(verdict: Verdict, pipeline: InferencePipeline, plan: Json | None, sites: int) -> Verdict:
    """Whether all sites, with what they share, keep the limit on cost, which is one for all."""
    limit, cost = pipeline.spec.objectives.max_cost_per_hour, (plan or {}).get("costPerHour")
    if verdict.type != "PlanFeasible" or limit is None or cost is None:
        return verdict
    if float(cost) <= float(limit) + _ROUNDED * sites:
        return verdict
    text = f"all sites together cost {cost} an hour, more than maxCostPerHour {limit}"
    advice = "Relax the limit in spec.objectives, or allow fewer replicas in spec.tiers."
    more = f" {verdict.message}" if verdict.status == "False" else ""
    return Verdict(verdict.type, "False", "CostLimit", f"{text}. {advice}{more}")


def _over(kind: str, good: str, sites: Sequence[Site]) -> Verdict:
    if not sites:
        neutral = kind in ("Progressing", "Degraded", "Reconciling", "Stalled")
        return Verdict(kind, good if neutral else "Unknown", "NoSites")
    states = [(site.name, site.condition(kind)) for site in sites]
    bad = [(name, state) for name, state in states if state.status != good]
    told = [state for _, state in bad or states]
    reasons = Counter(state.reason for state in told)
    reason = told[0].reason if len(reasons) == 1 else "DifferBySite"
    if not bad:
        return Verdict(kind, good, reason, f"at all {len(sites)} sites" if len(sites) > 1 else "")
    # What is known to be bad somewhere is bad, whatever is not known elsewhere.
    status = next((state.status for state in told if state.status != "Unknown"), "Unknown")
    texts = [f"{name}: {state.message or state.reason}" for name, state in bad[:_MOST_NAMED]]
    more = f"; and {len(bad) - _MOST_NAMED} more" if bad[_MOST_NAMED:] else ""
    return Verdict(kind, status, reason, f"at {len(bad)} of {len(sites)} sites: {'; '.join(texts)}{more}")


def _link(link: Link) -> Json:
    bandwidth, delay = known(link.bandwidth_bytes_per_second), known(link.delay_seconds)
    found = {
        "target": link.target,
        "bandwidthBytesPerSecond": None if bandwidth is None else round(rounded(bandwidth)),
        "delayMicroseconds": None if delay is None else round(rounded(delay * 1e6)),
    }
    return {key: value for key, value in found.items() if value is not None}


def _slo(pipeline: InferencePipeline, rows: Sequence[Json]) -> str | None:
    limit = pipeline.spec.objectives.latency_p95_milliseconds
    if limit is None:
        return None
    seen = [each["observedP95Milliseconds"] for each in rows if "observedP95Milliseconds" in each]
    if not seen:
        return f"p95 < {limit} ms"
    return f"p95 < {limit} ms: met at {sum(p95 <= limit for p95 in seen)} of {len(seen)} sites"

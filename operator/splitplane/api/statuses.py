"""``InferencePipeline.status``: what is served and decided, and what the operator must find again after a crash."""

from typing import Annotated, Literal

from splitplane.api.fields import (
    LARGEST,
    Codec,
    Condition,
    Count,
    DecimalString,
    Model,
    Name,
    TierName,
    Timestamp,
    at_most,
    between,
    keyed,
    ordered,
)

Summary = Annotated[str, at_most(256)]
Reason = Annotated[str, at_most(128)]
Message = Annotated[str, at_most(4096)]
_Milliseconds = Annotated[int, between(0, LARGEST)]
_CutIndex = Annotated[int, between(0, 1024)]
_Replicas = Annotated[int, between(0, 1000)]
MOST_PERCENT = 10**9
_Percent = Annotated[int, between(-MOST_PERCENT, MOST_PERCENT)]
_Digest = Annotated[str, at_most(64)]

MOST_SITES = 100
"""How many sites of one pipeline are operated."""
DECISIONS = 10
"""How many decisions the status remembers."""


class StageStatus(Model):
    """A partition at its place in the plan."""

    tier: TierName
    first_cut: _CutIndex
    last_cut: _CutIndex
    cut_name: Summary = ""
    """Name of the cut at which this stage takes over."""
    resident_first: _CutIndex
    resident_last: _CutIndex
    replicas: _Replicas
    ready_replicas: _Replicas = 0
    deployment: Name | None = None


class PlanStatus(Model):
    """A plan, with what it was predicted to give and what it gives."""

    summary: Summary
    """Tiers, cuts and codecs: ``edge:0-3|cloud:3-7 int8``. Of many sites, each plan with the sites that it serves."""
    generation: Count = 0
    stages: Annotated[tuple[StageStatus, ...], ordered(most=8)] = ()
    codecs: Annotated[tuple[Codec, ...], ordered(most=7)] = ()
    predicted_p95_milliseconds: _Milliseconds | None = None
    observed_p95_milliseconds: _Milliseconds | None = None
    cost_per_hour: DecimalString | None = None
    cost_per_thousand_requests: DecimalString | None = None
    requests_per_second: DecimalString | None = None
    max_rate_per_second: DecimalString | None = None
    """Highest rate at which no stage or link is busier than ``maxUtilizationPercent``."""
    leakage: DecimalString | None = None
    """What an attack reconstructs of the input from what leaves the trusted tiers, 0 to 1: a lower bound, by the attack
    that the ModelProfile names. Absent where it was not measured."""
    accuracy_loss: DecimalString | None = None
    """What the codecs cost in accuracy, 0 to 1. Absent where it was not measured."""
    since: Timestamp | None = None


class RouteStatus(Model):
    """A way that the gateway may send requests without asking."""

    name: Summary
    best_between: Annotated[tuple[Annotated[str, at_most(64)], ...], ordered(most=8)] = ()
    """Bandwidths of the link at which it is the best, for people: ``0.08 to 1.76 Mbit/s``. None: it is a way out."""
    max_rate_per_second: DecimalString
    """Highest rate that its resident replicas bear."""
    link_bytes_per_request: Count = 0
    """Bytes of the link to be counted for a request: it bears no more than the bandwidth divided by them either."""


class PendingSwitch(Model):
    """A switch under way: enough to go on with it, or to roll it back, after the operator was restarted."""

    generation: Count
    plan: PlanStatus
    phase: Literal["Preparing", "Routing"]
    """``Preparing``: its pods start, the old plan serves. ``Routing``: the gateway was told, its answer is due."""
    reason: Reason = ""
    started_at: Timestamp
    deadline: Timestamp


class Drain(Model):
    """Stages that no new request uses, deleted once their last request has ended."""

    generation: Count
    """Plan generation whose requests they may still serve."""
    deployments: Annotated[tuple[Name, ...], ordered(most=8)]
    since: Timestamp
    deadline: Timestamp


class SetAside(Model):
    """A plan that could not be carried out lately, not proposed again before ``until``."""

    digest: _Digest
    summary: Summary = ""
    reason: Reason
    failures: Annotated[int, between(1, 10**6)] = 1
    until: Timestamp


class DecisionStatus(Model):
    """One decision of the planner: what it did, why, and what that was worth."""

    time: Timestamp
    """When it was first taken since the last change of plan."""
    last_time: Timestamp | None = None
    """When it was last taken again after another."""
    count: Count = 1
    """How often it was taken since the last change of plan, times in a row counted once."""
    action: Literal["Start", "Switch", "Hold", "RollBack"]
    reason: Reason
    message: Message = ""
    plan_before: Summary | None = None
    plan_after: Summary | None = None
    predicted_p95_milliseconds: _Milliseconds | None = None
    """What ``planAfter`` was expected to give when this was decided."""
    gain_percent: _Percent | None = None
    gate: Reason | None = None
    """The gate that held a better plan back."""


class Recommendation(Model):
    """The plan that ``Advisory`` mode would take."""

    summary: Summary
    reason: Reason
    gain_percent: _Percent | None = None
    predicted_p95_milliseconds: _Milliseconds | None = None
    cost_per_hour: DecimalString | None = None
    since: Timestamp | None = None


class SiteLink(Model):
    """A link from a site's gateway, as it measures it; a number that is not known is left out."""

    target: TierName
    bandwidth_bytes_per_second: Count | None = None
    """0: it is down."""
    delay_microseconds: Count | None = None


class SiteStatus(Model):
    """A site in one row; the pipeline that is named tells everything."""

    name: Annotated[str, at_most(63)]
    """The value of the label."""
    pipeline: Name
    """The InferencePipeline that is this site's."""
    ready: Literal["True", "False", "Unknown"]
    reason: Reason = ""
    plan: Summary | None = None
    replicas: Annotated[str, at_most(128)] | None = None
    observed_p95_milliseconds: _Milliseconds | None = None
    requests_per_second: DecimalString | None = None
    cost_per_hour: DecimalString | None = None
    links: Annotated[tuple[SiteLink, ...], keyed("target", most=7)] = ()


class PipelineStatus(Model):
    """Written by the operator alone."""

    observed_generation: Annotated[int, between(-1, LARGEST)] = -1
    conditions: Annotated[tuple[Condition, ...], keyed("type", most=16)] = ()
    profile: Annotated[str, at_most(253)] | None = None
    """Name of the ``ModelProfile`` that plans are made from."""
    plan: PlanStatus | None = None
    """Where ``spec.sites`` is given, what those of the sites come to: the worst p95, sums of rates and costs."""
    sites: Annotated[tuple[SiteStatus, ...], keyed("name", most=MOST_SITES)] = ()
    """Of a pipeline with ``spec.sites``: where it is served, by name."""
    routes: Annotated[tuple[RouteStatus, ...], ordered(most=16)] = ()
    """What the gateway chooses from by itself, the plan's own route first: the same as in the RouteTable."""
    replicas: Annotated[str, at_most(128)] | None = None
    """Ready over wanted replicas by stage: ``edge 2/2, cloud 1/1``."""
    slo: Annotated[str, at_most(128)] | None = None
    """How the observed latency stands to its limit."""
    last_switch_milliseconds: _Milliseconds | None = None
    """How long the latest switch took, from the decision to the gateway's acknowledgement."""
    low_demand_since: Timestamp | None = None
    """Since when fewer replicas would have sufficed, without interruption."""
    pending_switch: PendingSwitch | None = None
    drains: Annotated[tuple[Drain, ...], ordered(most=16)] = ()
    set_aside: Annotated[tuple[SetAside, ...], keyed("digest", most=16)] = ()
    recommendation: Recommendation | None = None
    decisions: Annotated[tuple[DecisionStatus, ...], ordered(most=DECISIONS)] = ()
    """The last ten decisions, newest first; of holds, those for another reason than before."""

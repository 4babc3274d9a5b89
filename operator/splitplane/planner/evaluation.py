"""What plans would give: latency, cost, leak, accuracy, and the limits that they break, for a whole layout at once."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from splitplane.domain.plans import Candidate, Plan, Prediction, Stage, revisited
from splitplane.domain.snapshots import Mode
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.context import Context, Direction, Site, Wire, crossings
from splitplane.planner.exits import seen, share_at
from splitplane.planner.keys import numbers
from splitplane.planner.layouts import Every, Layout, layout_of, shared_out
from splitplane.planner.options import LOSS_STEP, loss_steps
from splitplane.planner.queueing import Response, Station, in_one_queue, overflow_share, respond
from splitplane.planner.residency import fits, trusted
from splitplane.planner.stations import egress_cost, round_cost, stage_seconds, together, use_cost

_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Table:
    """Predictions by row of a layout, in seconds, money per hour, requests per second and shares.

    ``cost`` counts a replica of unknown price as dearer than all others; ``priced`` tells whether there is none.
    ``loss_steps`` is the accuracy loss as plans are compared by it: each crossing's rounded up.
    """

    layout: Layout
    response: Response
    cost: Array
    priced: bool
    max_rate: Array
    leak: Array
    leak_measured: Bools
    loss: Array
    loss_measured: Bools
    loss_steps: Ints

    @property
    def p95(self) -> Array:
        return self.response.p95

    @property
    def utilization(self) -> Array:
        return self.response.utilization

    def where(self, places: Bools | Ints) -> "Table":
        """The rows of a mask, or those at given places."""
        return Table(
            layout=self.layout.where(places), response=self.response.where(places), priced=self.priced,
            cost=self.cost[places], max_rate=self.max_rate[places],
            leak=self.leak[places], leak_measured=self.leak_measured[places],
            loss=self.loss[places], loss_measured=self.loss_measured[places], loss_steps=self.loss_steps[places],
        )  # fmt: skip

    def prediction(self, row: int) -> Prediction:
        # One NaN object, so that equal predictions compare equal.
        return Prediction(
            p95_seconds=float(self.response.p95[row]),
            mean_seconds=float(self.response.mean[row]),
            cost_per_hour=float(self.cost[row]) if self.priced else math.nan,
            max_rate_per_second=float(self.max_rate[row]),
            p50_seconds=self.response.p50(row),
            p99_seconds=self.response.p99(row),
            leak=float(self.leak[row]) if self.leak_measured[row] else None,
            accuracy_loss=float(self.loss[row]) if self.loss_measured[row] else None,
        )


@dataclass(frozen=True)
class Weighed:
    """Predictions of all plans that may be chosen, those that are too much for their stations included."""

    every: Every
    tables: tuple[Table, ...]
    able: tuple[Table, ...]
    """Without those, and without tables of no plan."""

    def find(self, context: Context, plan: Plan) -> tuple[Table, int] | None:
        """Where a plan is, with no more replicas than the tiers can hold now."""
        replicas = tuple(min(stage.replicas, context.sites[stage.tier].high) for stage in plan.stages)
        paid = frozenset(place for place, stage in enumerate(plan.stages) if stage.pay_per_use)
        tiers = tuple(stage.tier for stage in plan.stages)
        place = self.every.places.get((tiers, plan.cuts, plan.codecs, replicas, paid))
        return None if place is None else (self.tables[place[0]], place[1])


def weighed_key(context: Context, rate: float) -> Hashable:
    """What the predictions of all plans of a context at a rate are kept by (``Weighed``)."""
    return ("weighed", numbers(context), rate)


def evaluate(
    context: Context, layout: Layout, *,
    rate: float | Array | None = None, bandwidths: Mapping[Direction, Array] | None = None,
) -> Table:  # fmt: skip
    """Predict every row at ``rate`` requests per second (the context's if ``None``).

    ``bandwidths`` are bytes per second by row, where they differ from the context's.
    All tiers of the layout must be usable, and the links between them known (``KeyError`` otherwise).
    """
    context = context.of(layout.variant)
    rate = context.rate if rate is None else rate
    bandwidths = bandwidths or {}
    table = context.table
    sites = [context.sites[tier] for tier in layout.tiers]
    hops = _hops(context, layout)
    stages = [_stage(context, site, layout, k) for k, site in enumerate(sites)]
    stations = _stations(context, hops, stages, bandwidths)
    cost = np.zeros(len(layout))
    constant = np.zeros(len(layout))
    leak, loss = np.zeros(len(layout)), np.full(len(layout), context.lost)
    steps = loss_steps(loss)
    leak_measured, loss_measured = np.ones(len(layout), np.bool_), np.ones(len(layout), np.bool_)
    for k, (site, hop) in enumerate(zip(sites, hops, strict=True)):
        if hop is not None:
            constant += hop.wire.delay
            cost += egress_cost(context, hop.source, hop.sent, rate * hop.share)
        if hop is not None and not site.tier.trusted:
            place = hop.codec, layout.bounds[k]
            leak = np.maximum(leak, table.leak[place])
            leak_measured &= table.leak_measured[place]
        if k > 0:
            place = layout.codecs[k - 1], layout.bounds[k]
            loss = loss + table.loss[place]
            steps = steps + loss_steps(table.loss[place])
            loss_measured &= table.loss_measured[place]
        cost += layout.replicas[k] * context.weight(site)
        if k in layout.pay_per_use and site.tier.pay_per_use is not None:
            stage = stages[k]
            here, service = rate * stage.share, stage.service if stage.seen is None else stage.seen
            share = overflow_share(stage.servers, here * service, context.arrival_scv)
            cost += share * use_cost(site.tier.pay_per_use, service, here)
    for hop in reversed(hops):
        if hop is not None:
            answer = np.full(len(layout), context.answer_bytes)
            constant += context.wires[hop.target, hop.source].delay
            cost += egress_cost(context, hop.target, answer, rate * hop.share)
    response = respond(stations, constant=constant, rate=rate, arrival_scv=context.arrival_scv)
    max_rate = response.capacity * context.policy.max_utilization
    for station in stations:
        if station.others:
            left = np.maximum(0.0, context.policy.max_utilization * station.servers - station.others)
            taken = station.share * (station.service if station.seen is None else station.seen)
            if station.together is not None:
                taken = station.together.at_least(station.service)
            max_rate = np.minimum(max_rate, left / taken)
    return Table(
        layout=layout,
        response=response,
        cost=round_cost(cost),
        priced=not any(math.isnan(site.price) for site in sites),
        max_rate=max_rate,
        leak=leak,
        leak_measured=leak_measured,
        loss=loss,
        loss_measured=loss_measured,
        loss_steps=steps,
    )


def stations_of(context: Context, layout: Layout) -> list[Station]:
    """All that requests pass in turn, and answers on their way back. Raises ``KeyError`` as ``evaluate`` does."""
    context = context.of(layout.variant)
    stages = [_stage(context, context.sites[tier], layout, k) for k, tier in enumerate(layout.tiers)]
    return _stations(context, _hops(context, layout), stages, {})


def assess(context: Context, plan: Plan) -> Candidate:
    """One plan as a candidate, with all limits that it breaks.

    Besides the limits of the policy: ``node-loss`` (a tier has no ready node left), ``spec`` (the resource does not
    allow such a plan any more), ``replicas`` (nor that many or so few pods), ``grant`` (other pipelines got what it
    would take), ``shared`` (it counts on shared replicas that are not there). Of its pods those count that the tiers
    can hold now. A plan over a link of which nothing is known is predicted as NaN.
    """
    hard = violations(context, plan)
    context = context.of(plan.variant) if "spec" not in hard else context
    if "spec" in hard or any(stage.tier not in context.sites for stage in plan.stages):
        return Candidate(plan, Prediction(math.inf, math.inf, math.nan, 0.0), hard)
    if any(pair not in context.wires for pair in crossings(plan, context.gateway)):
        return Candidate(plan, Prediction(math.nan, math.nan, math.nan, 0.0), hard)
    weighed: Weighed | None = context.kept.result(weighed_key(context, context.rate))
    found = None if weighed is None else weighed.find(context, plan)
    table, row = found or (evaluate(context, held_by_nodes(context, layout_of(context, plan))), 0)
    over = zip(("utilization", "p95", "cost"), broken(context, table), strict=True)
    return Candidate(plan, table.prediction(row), (*hard, *(name for name, mask in over if mask[row])))


def held_by_nodes(context: Context, layout: Layout) -> Layout:
    """The layout with no more replicas than the tiers can hold now."""
    context, held = context.of(layout.variant), zip(layout.tiers, layout.replicas, strict=True)
    counts = tuple(np.minimum(count, context.sites[tier].high) for tier, count in held)
    twice = revisited(layout.tiers)
    if twice is not None:
        counts = shared_out(context.sites[twice], *counts)
    return replace(layout, replicas=counts)


def violations(context: Context, plan: Plan) -> tuple[str, ...]:
    """Hard limits that a plan breaks, whatever the numbers."""
    if not context.has(plan.variant):
        return ("spec",)
    context = context.of(plan.variant)
    end = context.profile.segments
    policy = context.policy
    tiers = {stage.tier for stage in plan.stages}
    codecs = set(policy.fixed.codecs) if policy.mode is Mode.FIXED and policy.fixed else set(policy.codecs)
    broken = []
    twice = plan.revisits
    lost = any(tier in context.tiers and tier not in context.sites and not _refused(context, tier) for tier in tiers)
    if lost or (twice is not None and twice in context.sites and context.tiers[twice].slots < 2):
        broken.append("node-loss")
    if (
        not tiers <= context.tiers.keys()
        or plan.stages[0].first != 0
        or plan.stages[-1].last != end
        or len(plan.stages) > policy.max_partitions
        or (twice is not None and not policy.allow_return and policy.mode is not Mode.FIXED)
        or not set(plan.codecs) <= codecs
        or any(stage.pay_per_use and context.tiers[stage.tier].pay_per_use is None for stage in plan.stages)
    ):
        return (*broken, "spec")
    if not all(_replicas_allowed(context, plan, stage) for stage in plan.stages):
        broken.append("replicas")
    if any(_ungranted(context, plan, tier) for tier in tiers):
        broken.append("grant")
    if any(_unshared(context, stage) for stage in plan.stages):
        broken.append("shared")
    if not all(trusted(context, stage.tier, stage.resident_first) for stage in plan.stages):
        broken.append("privacy")
    if not all(fits(context, stage.tier, stage.resident_first, stage.resident_last) for stage in plan.stages):
        broken.append("memory")
    if policy.max_leak is not None and _leaks(context, plan, policy.max_leak):
        broken.append("leak")
    if policy.max_accuracy_loss is not None and _loses(context, plan, policy.max_accuracy_loss):
        broken.append("accuracy")
    return tuple(broken)


def leak_of(context: Context, plan: Plan) -> float:
    """What the plan shows to untrusted tiers; where that is not measured, the share of the model that runs there.

    All, where it is of a variant that there is no more.
    """
    if not context.has(plan.variant):
        return 1.0
    context = context.of(plan.variant)
    return max((float(context.table.leak[place]) for place in _shown(context, plan)), default=0.0)


def _shown(context: Context, plan: Plan) -> list[tuple[int, int]]:
    """(codec, cut) in the table of each crossing into an untrusted tier, the raw input's included."""
    codecs = ("fp32", *plan.codecs)
    sources = (context.gateway, *(stage.tier for stage in plan.stages))
    return [
        (context.table.codecs.index(codec), stage.first)
        for source, codec, stage in zip(sources, codecs, plan.stages, strict=False)
        if source != stage.tier and not context.tiers[stage.tier].trusted
    ]


def _leaks(context: Context, plan: Plan, limit: float) -> bool:
    """Whether more than ``limit`` is shown, or it was not measured how much."""
    table = context.table
    return any(not table.leak_measured[place] or table.leak[place] > limit for place in _shown(context, plan))


def _loses(context: Context, plan: Plan, limit: float) -> bool:
    """Whether more accuracy than ``limit`` is lost, or it was not measured how much."""
    table = context.table
    places = [(table.codecs.index(codec), cut) for codec, cut in zip(plan.codecs, plan.cuts, strict=True)]
    steps = [context.lost, *(table.loss[place] for place in places)]
    lost = int(loss_steps(np.array(steps)).sum()) * LOSS_STEP
    return lost > limit * (1.0 + _SLACK) or not all(table.loss_measured[place] for place in places)


def _refused(context: Context, tier: str) -> bool:
    """Whether a tier can only not be used as other pipelines got all of it, or as nothing there is shared."""
    held = context.tiers[tier]
    return (held.granted == 0 or (held.shared is not None and held.slots == 0)) and held.ready_nodes > 0


def _ungranted(context: Context, plan: Plan, tier: str) -> bool:
    granted = context.tiers[tier].granted
    return granted is not None and plan.replicas(tier) > granted


def _unshared(context: Context, stage: Stage) -> bool:
    """Whether a stage is on a tier of shared replicas that keep another range than it counts on."""
    shared = context.tiers[stage.tier].shared
    return shared is not None and (stage.resident_first, stage.resident_last) != (shared.first, shared.last)


def _replicas_allowed(context: Context, plan: Plan, stage: Stage) -> bool:
    """Whether a tier has at least its minimum of replicas, or what its nodes can hold if that is less, and at most its
    maximum. Those of a tier that requests come back to count together."""
    site = context.sites.get(stage.tier)
    fewest = 1 if site is None else site.fewest(pay_per_use=stage.pay_per_use)
    count = plan.replicas(stage.tier) if stage.tier == plan.revisits else stage.replicas
    return fewest <= count <= context.tiers[stage.tier].max_replicas


def broken(context: Context, table: Table) -> tuple[Bools, Bools, Bools]:
    """Rows over the utilisation ceiling, the p95 limit, the cost limit. An unknown cost breaks no limit."""
    policy = context.policy
    ceiling = policy.max_utilization * (1.0 + _SLACK)
    p95 = math.inf if policy.max_p95_seconds is None else policy.max_p95_seconds * (1.0 + _SLACK)
    cost = math.inf
    if policy.max_cost_per_hour is not None and table.priced:
        cost = policy.max_cost_per_hour * (1.0 + _SLACK)
    return ~(table.utilization <= ceiling), ~(table.p95 <= p95), table.cost > cost


@dataclass(frozen=True, slots=True)
class _Hop:
    source: str
    target: str
    wire: Wire
    codec: Ints | int
    sent: Array
    share: Array | float


def _stations(
    context: Context, hops: Sequence["_Hop | None"], stages: Sequence[Station], bandwidths: Mapping[Direction, Array]
) -> list[Station]:
    """All that a request passes in turn: to each stage over its link, if there is one, and back over these."""
    found: list[Station] = []
    crossed: dict[Direction, list[int]] = {}
    for hop, stage in zip(hops, stages, strict=True):
        if hop is not None:
            crossed.setdefault((hop.source, hop.target), []).append(len(found))
            found.append(_link(bandwidths.get((hop.source, hop.target), hop.wire.bandwidth), hop.sent, hop.share))
        found.append(stage)
    for hop in reversed(hops):
        if hop is not None:
            back = context.wires[hop.target, hop.source]
            answer = np.full(len(hop.sent), context.answer_bytes)
            crossed.setdefault((hop.target, hop.source), []).append(len(found))
            found.append(_link(bandwidths.get((hop.target, hop.source), back.bandwidth), answer, hop.share))
    for places in crossed.values():
        if len(places) > 1:
            for place, station in zip(places, in_one_queue([found[place] for place in places]), strict=True):
                found[place] = station
    return found


def _hops(context: Context, layout: Layout) -> list[_Hop | None]:
    """What crosses to each stage in turn; ``None`` where the sender is on the same tier."""
    hops: list[_Hop | None] = []
    senders = (context.gateway, *layout.tiers)
    for k, target in enumerate(layout.tiers):
        source = senders[k]
        if source == target:
            hops.append(None)
        else:
            codec: Ints | int = layout.codecs[k - 1] if k else context.table.codecs.index("fp32")
            sent, share = context.table.sent[codec, layout.bounds[k]], share_at(context, layout.bounds[k])
            hops.append(_Hop(source, target, context.wires[source, target], codec, sent, share))
    return hops


def _stage(context: Context, site: Site, layout: Layout, k: int) -> Station:
    """Compute of the active range, decoding what arrives, encoding what leaves, and the fixed overhead."""
    asked: dict[str, Ints | None] = {
        "decoded": layout.codecs[k - 1] if k > 0 else None,
        "encoded": layout.codecs[k] if k + 1 < len(layout.tiers) else None,
    }
    service = stage_seconds(context, site, layout.bounds[k], layout.bounds[k + 1], **asked)
    terms = site.tier.pay_per_use if k in layout.pay_per_use else None
    extra = None if terms is None else terms.extra_seconds
    servers = layout.replicas[k].astype(np.float64)
    if context.reach is None:
        ends = layout.bounds[k], layout.bounds[k + 1]
        among = None if terms is not None else together(context, site, *ends, service, asked["decoded"])
        return Station(service, site.device.time_cv, servers, extra, together=among, others=site.busy)
    here = seen(context, site, layout.bounds[k], layout.bounds[k + 1], **asked)
    return Station(
        service, site.device.time_cv, servers, extra, here.share, here.service, here.scv, others=site.busy
    )  # fmt: skip


def _link(bandwidth: float | Array, sent: Array, share: Array | float) -> Station:
    seconds = sent / bandwidth
    return Station(seconds, 0.0, 1.0, share=share, seen=None if isinstance(share, float) else seconds)

"""What plans would give: latency, cost, utilisation, and the limits that they break, for a whole layout at once."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from splitplane.domain.plans import Candidate, Plan, Prediction, Stage
from splitplane.domain.profiles import CODECS, Cut
from splitplane.domain.snapshots import Mode
from splitplane.planner.arrays import Array
from splitplane.planner.candidates import Ints, Layout, layout_of
from splitplane.planner.context import Context, Site, Wire, crossings
from splitplane.planner.queueing import Response, Station, respond
from splitplane.planner.residency import fits, trusted

GIB = float(1 << 30)

_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Table:
    """Predictions by row of a layout, in seconds, money per hour and requests per second."""

    layout: Layout
    response: Response
    cost: Array
    max_rate: Array

    @property
    def p95(self) -> Array:
        return self.response.p95

    @property
    def utilization(self) -> Array:
        return self.response.utilization

    def prediction(self, row: int) -> Prediction:
        cost = float(self.cost[row])
        return Prediction(
            p95_seconds=float(self.response.p95[row]),
            mean_seconds=float(self.response.mean[row]),
            p50_seconds=self.response.p50(row),
            p99_seconds=self.response.p99(row),
            # One NaN object, so that equal predictions compare equal.
            cost_per_hour=math.nan if math.isnan(cost) else cost,
            max_rate_per_second=float(self.max_rate[row]),
        )


def evaluate(context: Context, layout: Layout, *, rate: float | Array | None = None) -> Table:
    """Predict every row at ``rate`` requests per second (the context's if ``None``).

    All tiers of the layout must be usable, and the links between them known (``KeyError`` otherwise).
    """
    rate = context.rate if rate is None else rate
    cuts = context.profile.cuts
    sites = [context.sites[tier] for tier in layout.tiers]
    hops = _hops(context, layout, cuts)
    stations: list[Station] = []
    cost = np.zeros(len(layout))
    constant = np.zeros(len(layout))
    arriving = hops[0]
    for k, site in enumerate(sites):
        if arriving is not None:
            stations.append(_link(arriving.wire, arriving.sent))
            constant += arriving.wire.delay
            cost += _egress(context, arriving.source, arriving.sent, rate)
        stations.append(_stage(site, layout, k, cuts))
        cost += layout.replicas[k] * site.price
        arriving = hops[k + 1] if k + 1 < len(hops) else None
    answer = float(wire_bytes(cuts[-1], "fp32"))
    for hop in reversed(hops):
        if hop is not None:
            back = context.wires[hop.target, hop.source]
            stations.append(_link(back, np.full(len(layout), answer)))
            constant += back.delay
            cost += _egress(context, hop.target, np.full(len(layout), answer), rate)
    response = respond(stations, constant=constant, rate=rate, arrival_scv=context.arrival_scv)
    return Table(
        layout=layout,
        response=response,
        cost=cost,
        max_rate=response.capacity * context.policy.max_utilization,
    )


def assess(context: Context, plan: Plan) -> Candidate:
    """One plan as a candidate, with all limits that it breaks.

    Besides the limits of the policy: ``node-loss`` (a tier has no ready node left), ``spec`` (the resource does not
    allow such a plan any more), ``replicas`` (nor that many or so few pods). Of its pods those count that the tiers
    can hold now. A plan over a link of which nothing is known is predicted as NaN.
    """
    hard = violations(context, plan)
    if "node-loss" in hard or "spec" in hard:
        return Candidate(plan, Prediction(math.inf, math.inf, math.nan, 0.0), hard)
    if any(pair not in context.wires for pair in crossings(plan, context.gateway)):
        return Candidate(plan, Prediction(math.nan, math.nan, math.nan, 0.0), hard)
    table = evaluate(context, held_by_nodes(context, layout_of(plan)))
    over = zip(("utilization", "p95", "cost"), broken(context, table), strict=True)
    return Candidate(plan, table.prediction(0), (*hard, *(name for name, mask in over if mask[0])))


def held_by_nodes(context: Context, layout: Layout) -> Layout:
    """The layout with no more replicas than the tiers can hold now."""
    held = zip(layout.tiers, layout.replicas, strict=True)
    return replace(layout, replicas=tuple(np.minimum(count, context.sites[tier].high) for tier, count in held))


def violations(context: Context, plan: Plan) -> tuple[str, ...]:
    """Hard limits that a plan breaks, whatever the numbers."""
    end = context.profile.segments
    policy = context.policy
    tiers = {stage.tier for stage in plan.stages}
    codecs = set(policy.fixed.codecs) if policy.mode is Mode.FIXED and policy.fixed else set(policy.codecs)
    broken = []
    if any(tier in context.tiers and tier not in context.sites for tier in tiers):
        broken.append("node-loss")
    if (
        not tiers <= context.tiers.keys()
        or plan.stages[0].first != 0
        or plan.stages[-1].last != end
        or len(plan.stages) > policy.max_partitions
        or not set(plan.codecs) <= codecs
    ):
        return (*broken, "spec")
    if any(not _fewest(context, stage) <= stage.replicas <= _most(context, stage) for stage in plan.stages):
        broken.append("replicas")
    if not all(trusted(context, stage.tier, stage.resident_first) for stage in plan.stages):
        broken.append("privacy")
    if not all(fits(context, stage.tier, stage.resident_first, stage.resident_last) for stage in plan.stages):
        broken.append("memory")
    return tuple(broken)


def _fewest(context: Context, stage: Stage) -> int:
    """The tier's minimum, or what its nodes can hold if that is less."""
    site = context.sites.get(stage.tier)
    return 1 if site is None else site.low


def _most(context: Context, stage: Stage) -> int:
    return context.tiers[stage.tier].max_replicas


def broken(context: Context, table: Table) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows over the utilisation ceiling, the p95 limit, the cost limit. An unknown cost breaks no limit."""
    policy = context.policy
    ceiling = policy.max_utilization * (1.0 + _SLACK)
    p95 = math.inf if policy.max_p95_seconds is None else policy.max_p95_seconds * (1.0 + _SLACK)
    cost = math.inf if policy.max_cost_per_hour is None else policy.max_cost_per_hour * (1.0 + _SLACK)
    return ~(table.utilization <= ceiling), ~(table.p95 <= p95), table.cost > cost


def wire_bytes(cut: Cut, codec: str) -> int:
    """Bytes of one sample at a cut; a cut of integer tensors crosses as it is, whatever the codec."""
    return cut.wire_bytes[codec] if codec in cut.wire_bytes else max(cut.wire_bytes.values())


@dataclass(frozen=True, slots=True)
class _Hop:
    source: str
    target: str
    wire: Wire
    sent: Array


def _hops(context: Context, layout: Layout, cuts: tuple[Cut, ...]) -> list[_Hop | None]:
    """What crosses to each stage in turn; ``None`` where the sender is on the same tier."""
    bytes_by_codec = np.array([[float(wire_bytes(cut, codec)) for cut in cuts] for codec in CODECS])
    hops: list[_Hop | None] = []
    senders = (context.gateway, *layout.tiers)
    for k, target in enumerate(layout.tiers):
        source = senders[k]
        codec: Ints | int = layout.codecs[k - 1] if k else CODECS.index("fp32")
        sent = bytes_by_codec[codec, layout.bounds[k]]
        hops.append(None if source == target else _Hop(source, target, context.wires[source, target], sent))
    return hops


def _stage(site: Site, layout: Layout, k: int, cuts: tuple[Cut, ...]) -> Station:
    """Compute of the active range, decoding what arrives, encoding what leaves, and the fixed overhead."""
    prefix = np.array(site.device.prefix_seconds)
    compute = np.maximum(0.0, prefix[layout.bounds[k + 1]] - prefix[layout.bounds[k]]) * site.correction
    full = np.array([float(wire_bytes(cut, "fp32")) for cut in cuts])
    times = [site.device.codec_times.get(codec) for codec in CODECS]
    service = compute + site.device.overhead_seconds
    if k > 0:
        decode = np.array([time.decode_seconds_per_byte if time else 0.0 for time in times])
        service = service + decode[layout.codecs[k - 1]] * full[layout.bounds[k]]
    if k + 1 < len(layout.tiers):
        encode = np.array([time.encode_seconds_per_byte if time else 0.0 for time in times])
        service = service + encode[layout.codecs[k]] * full[layout.bounds[k + 1]]
    return Station(service, site.device.time_cv, layout.replicas[k].astype(np.float64))


def _link(wire: Wire, sent: Array) -> Station:
    return Station(sent / wire.bandwidth, 0.0, np.ones_like(sent))


def _egress(context: Context, tier: str, sent: Array, rate: float | Array) -> Array:
    return sent * (rate * 3600.0 / GIB * context.tiers[tier].egress_price_per_gib)

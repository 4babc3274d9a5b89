"""What the stages of a line, and the links beside them, add to a plan: tables by option and number of replicas."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitplane.domain.snapshots import PayPerUse
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.context import Context, Direction, Site
from splitplane.planner.options import Options
from splitplane.planner.queueing import Cumulants, damp, felt_extra, overflow_share, service_third, wait
from splitplane.planner.stations import codec_seconds, egress_cost, use_cost

_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Side:
    """What the first or the last stage of a line adds to a plan, with the links that go with it.

    ``total`` and ``largest`` are cumulants of waits, flat over (option, replicas from 1 to ``most``). All else is by
    option; ``cost`` is that of the ``least`` replicas that carry the load, ``capacity`` the highest rate that ``most``
    replicas and the links bear at the utilisation ceiling.
    """

    total: Cumulants
    largest: Cumulants
    service: Array
    variance: Array
    third: Array
    square: Array
    cost: Array
    price: float
    least: Ints
    most: int
    capacity: Array
    leak: Array
    loss: Ints
    use: "Use | None" = None
    """Where what finds all replicas busy is paid by the use. Counts of replicas are places in its tables then."""


@dataclass(frozen=True, slots=True)
class Use:
    """A stage with pay-per-use, flat over (option, place): replicas, what they and the rest cost with the links, and
    what the 95th percentile feels of the rest. Places hold the numbers of replicas that no larger one is as cheap as,
    in rising order; where there are fewer than others have, the last is repeated."""

    replicas: Ints
    cost: Array
    felt: Array


@dataclass(frozen=True, slots=True)
class Middle:
    """The stage between two others: it computes from ``start`` (by first option) to ``stop`` (by second option), and
    ``before`` and ``after`` are what the options add to that, in seconds."""

    start: Array
    stop: Array
    before: Array
    after: Array
    scv: float
    price: float
    least: int
    most: int

    def seconds(self, first: Ints, second: Ints) -> Array:
        """Mean service by pair of options."""
        seconds = self.stop.take(second)
        seconds -= self.start.take(first)
        np.maximum(seconds, 0.0, out=seconds)
        seconds += self.before.take(first)
        seconds += self.after.take(second)
        return seconds


@dataclass(frozen=True, slots=True)
class Passage:
    """Links that go with a side: their service in seconds by option, propagation, egress, leak and accuracy loss."""

    links: tuple[Array, ...]
    delay: float
    spend: Array
    leak: Array
    loss: Ints

    def bears(self, rate: float, ceiling: float) -> Bools:
        """By option, whether no link is busier than the ceiling."""
        able = np.ones(self.spend.shape, dtype=np.bool_)
        for link in self.links:
            able &= rate * link <= ceiling
        return able

    def where(self, mask: Bools) -> "Passage":
        links = tuple(link[mask] for link in self.links)
        return Passage(links, self.delay, self.spend[mask], self.leak[mask], self.loss[mask])

    def beside(self, common: "Passage") -> "Passage":
        return Passage(
            (*self.links, *common.links),
            self.delay + common.delay,
            self.spend + common.spend,
            np.maximum(self.leak, common.leak),
            self.loss,
        )


def crossing(context: Context, rate: float, source: Site, target: Site, options: Options) -> Passage:
    """What crosses between two stages, by option."""
    wire = context.wires[source.name, target.name]
    return Passage(
        links=(options.sent / wire.bandwidth,),
        delay=wire.delay,
        spend=egress_cost(context, source.name, options.sent, rate),
        leak=np.zeros(len(options)) if target.tier.trusted else options.leak,
        loss=options.loss,
    )


def common(context: Context, rate: float, tiers: Sequence[str], hops: Sequence[Direction]) -> Passage:
    """What every request of the line crosses alike: the answer's links, and the raw input's if it leaves its tier."""
    crossings = [((target, source), context.answer_bytes) for source, target in reversed(hops)]
    leak = np.zeros(1)
    if tiers[0] != context.gateway:
        crossings.append((hops[0], float(context.table.sent[context.table.codecs.index("fp32"), 0])))
        leak += not context.tiers[tiers[0]].trusted
    sent = [np.array([size]) for _, size in crossings]
    wires = [context.wires[direction] for direction, _ in crossings]
    egress = [
        egress_cost(context, direction[0], size, rate) for (direction, _), size in zip(crossings, sent, strict=True)
    ]
    return Passage(
        links=tuple(size / wire.bandwidth for size, wire in zip(sent, wires, strict=True)),
        delay=sum(wire.delay for wire in wires),
        spend=np.add.reduce(egress) if egress else np.zeros(1),
        leak=leak,
        loss=np.zeros(1, dtype=np.int64),
    )


def side(
    context: Context, rate: float, site: Site, service: Array, passage: Passage, *, pay_per_use: bool = False
) -> Side:
    """A stage of the given mean service, by option, and the links beside it."""
    if pay_per_use and site.tier.pay_per_use is not None:
        return _side_with_use(context, rate, site, site.tier.pay_per_use, service, passage)
    scv, price = site.device.time_cv**2, context.weight(site)
    least = np.maximum(site.low, replicas(context, rate, service))
    servers = np.maximum(np.arange(1.0, site.high + 1.0), least[:, None].astype(np.float64))
    each = np.repeat(service[:, None], site.high, axis=1)
    mean, *others = wait(each, scv, servers, rate, context.arrival_scv)
    # More servers never make a wait longer; this takes away what rounding might say.
    stage = [np.minimum.accumulate(cumulant, axis=1) for cumulant in (mean, *damp(*others))]
    total, largest = [cumulant.copy() for cumulant in stage], stage
    for link in passage.links:
        for k, cumulant in enumerate(_link_wait(context, rate, link)):
            total[k] += cumulant[:, None]
            np.maximum(largest[k], cumulant[:, None], out=largest[k])
    return Side(
        total=(total[0].ravel(), total[1].ravel(), total[2].ravel()),
        largest=(largest[0].ravel(), largest[1].ravel(), largest[2].ravel()),
        service=service + sum(passage.links) + passage.delay,
        variance=scv * service**2,
        third=service_third(service, scv),
        square=service**2 + sum(link**2 for link in passage.links),
        cost=least * price + passage.spend,
        price=price,
        least=least,
        most=site.high,
        capacity=ceiling(context)
        / np.maximum.reduce([service / site.high, *(link + 0.0 * service for link in passage.links)]),
        leak=np.broadcast_to(passage.leak, service.shape),
        loss=np.broadcast_to(passage.loss, service.shape),
    )


def _side_with_use(
    context: Context, rate: float, site: Site, terms: PayPerUse, service: Array, passage: Passage
) -> Side:
    """The same where nobody queues at the stage: cost falls, then rises with replicas, what is felt never rises."""
    scv, price = site.device.time_cv**2, context.weight(site)
    counts = np.arange(site.fewest(pay_per_use=True), site.high + 1)
    share = overflow_share(counts[None, :].astype(np.float64), rate * service[:, None], context.arrival_scv)
    cost = counts * price + share * use_cost(terms, service, rate)[:, None] + passage.spend[:, None]
    # A number of replicas is of use only while no larger one is as cheap.
    later = np.minimum.accumulate(cost[:, ::-1], axis=1)[:, ::-1]
    useful = np.concatenate([cost[:, :-1] < later[:, 1:], np.ones((len(service), 1), dtype=np.bool_)], axis=1)
    places = np.argsort(~useful, axis=1, kind="stable")
    places = np.take_along_axis(places, np.minimum(np.arange(len(counts)), useful.sum(axis=1)[:, None] - 1), axis=1)
    felt = np.minimum.accumulate(np.take_along_axis(felt_extra(share, terms.extra_seconds), places, axis=1), axis=1)
    cost = np.take_along_axis(cost, places, axis=1)
    most = int(useful.sum(axis=1).max(initial=1))
    unlimited = np.full_like(service, np.inf)
    links = [_link_wait(context, rate, link + 0.0 * service) for link in passage.links] or [(0.0 * service,) * 3]
    total, largest = (
        [np.repeat(merge([link[k] for link in links]), most) for k in range(3)]
        for merge in (np.add.reduce, np.maximum.reduce)
    )
    return Side(
        total=(total[0], total[1], total[2]),
        largest=(largest[0], largest[1], largest[2]),
        service=service + sum(passage.links) + passage.delay,
        variance=scv * service**2,
        third=service_third(service, scv),
        square=service**2 + sum(link**2 for link in passage.links),
        cost=cost[:, 0],
        price=price,
        least=np.ones(len(service), dtype=np.int64),
        most=most,
        capacity=np.minimum.reduce(
            [ceiling(context) / (link + 0.0 * service) for link in passage.links] or [unlimited]
        ),
        leak=np.broadcast_to(passage.leak, service.shape),
        loss=np.broadcast_to(passage.loss, service.shape),
        use=Use(counts[places[:, :most]].ravel(), cost[:, :most].ravel(), felt[:, :most].ravel()),
    )


def _link_wait(context: Context, rate: float, seconds: Array) -> Cumulants:
    mean, *others = wait(seconds, 0.0, np.ones_like(seconds), rate, context.arrival_scv)
    return (mean, *damp(*others))


def middle(context: Context, site: Site, before: Options, after: Options) -> Middle:
    """The stage between the options of two crossings."""
    prefix = np.array(site.device.prefix_seconds) * site.correction
    encode, decode = codec_seconds(context, site)
    return Middle(
        start=prefix[before.cut],
        stop=prefix[after.cut],
        before=decode[before.codec, before.cut] + site.device.overhead_seconds,
        after=encode[after.codec, after.cut],
        scv=site.device.time_cv**2,
        price=context.weight(site),
        least=site.low,
        most=site.high,
    )


def replicas(context: Context, rate: float, service: Array) -> Ints:
    """Replicas that keep a stage at the utilisation ceiling."""
    return np.maximum(1, np.ceil(rate * service / ceiling(context))).astype(np.int64)


def carries(context: Context, rate: float, site: Site, service: Array) -> Bools:
    """By option, whether the tier can hold replicas enough."""
    able: Bools = replicas(context, rate, service) <= site.high
    return able


def ceiling(context: Context) -> float:
    """The utilisation ceiling with room for rounding."""
    return context.policy.max_utilization * (1.0 + _SLACK)


_ZERO = np.zeros(1)
NOTHING = Side(
    total=(_ZERO, _ZERO, _ZERO), largest=(_ZERO, _ZERO, _ZERO),
    service=_ZERO, variance=_ZERO, third=_ZERO, square=_ZERO,
    cost=_ZERO, price=0.0, least=np.ones(1, dtype=np.int64), most=1,
    capacity=np.full(1, np.inf), leak=_ZERO, loss=np.zeros(1, dtype=np.int64),
)  # fmt: skip

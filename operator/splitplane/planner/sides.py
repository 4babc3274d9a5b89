"""What the stages of a line, and the links beside them, add to a plan: tables by option and number of replicas."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from splitplane.domain.snapshots import PayPerUse
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.context import Context, Direction, Site
from splitplane.planner.exits import Seen, seen, share_at
from splitplane.planner.options import Options
from splitplane.planner.queueing import NORMAL_95, damp, delay, felt_extra, overflow_share, service_third, wait
from splitplane.planner.stations import batches, codec_seconds, egress_cost, use_cost

_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Side:
    """What the first or the last stage of a line adds to a plan, with the links that go with it.

    ``total`` and ``largest`` are cumulants of waits, 3 x flat over (option, replicas from 1 to ``most``). All else is
    by option; ``moments`` are the cumulants of services and delays (3 x options), ``square`` is the sum of the squares
    of the services (``queueing.coupling_of``), ``cost`` is that of the ``least`` replicas that carry the load,
    ``capacity`` the highest rate that ``most`` replicas and the links bear at the utilisation ceiling, ``busy`` the
    seconds that each request keeps a replica busy at least.
    """

    total: Array
    largest: Array
    moments: Array
    square: Array
    cost: Array
    price: float
    least: Ints
    most: int
    capacity: Array
    busy: Array
    leak: Array
    loss: Ints
    use: "Use | None" = None
    """Where what finds all replicas busy is paid by the use. Counts of replicas are places in its tables then."""

    @property
    def longer(self) -> Array:
        """By option and replicas, how far the 95th percentile of this alone lies above its mean service at least: that
        of a normal distribution, as nothing here is skewed to the left."""
        longer: Array = self.largest[0] + NORMAL_95 * np.sqrt(np.repeat(self.moments[1], self.most) + self.largest[1])
        return longer


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
    behind: Array
    """Service of the link behind it, by second option; it is in the tail's ``square`` where ``seen`` is ``None``."""
    seen: Callable[[Ints, Ints], Seen] | None
    """What its queue sees by pair of options, where requests leave on the way or are computed together; else what they
    take."""
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

    def at(self, first: Ints, second: Ints) -> Seen:
        """What its queue sees, by pair of options."""
        return Seen(1.0, self.seconds(first, second), self.scv) if self.seen is None else self.seen(first, second)

    def busy(self, first: Ints, second: Ints) -> Array:
        """Seconds that a replica is busy at least for each request of the pipeline, by pair of options."""
        here = self.at(first, second)
        return here.share * here.least


@dataclass(frozen=True, slots=True)
class Passage:
    """Links that go with a side: their service in seconds by option, the share of all requests that crosses each,
    propagation, egress, leak and accuracy loss."""

    links: tuple[Array, ...]
    shares: tuple[Array | float, ...]
    delay: float
    spend: Array
    leak: Array
    loss: Ints
    twice: bool = False
    """Whether the first two links are the same direction of one wire, and all requests cross both."""

    @property
    def queues(self) -> Iterator[tuple[Array | float, Array, Array | float]]:
        """What queues at each link: how many come there for each request of the pipeline, their mean service, and its
        squared coefficient of variation."""
        if self.twice:
            one, other = self.links[:2]
            for _ in range(2):
                yield 2.0, 0.5 * (one + other), ((one - other) / (one + other)) ** 2
        for link, share in list(zip(self.links, self.shares, strict=True))[2 * self.twice :]:
            yield share, link, 0.0

    @property
    def square(self) -> Array:
        """Sum of the squares of the links' services."""
        squares: Array = np.add.reduce([np.zeros(1), *(link**2 for link in self.links)])
        return squares

    def bears(self, rate: float, ceiling: float) -> Bools:
        """By option, whether no link is busier than the ceiling."""
        able = np.ones(self.spend.shape, dtype=np.bool_)
        for share, link, _ in self.queues:
            able &= rate * share * link <= ceiling
        return able

    def where(self, mask: Bools) -> "Passage":
        links = tuple(link[mask] for link in self.links)
        shares = tuple(share[mask] if isinstance(share, np.ndarray) else share for share in self.shares)
        return Passage(links, shares, self.delay, self.spend[mask], self.leak[mask], self.loss[mask], self.twice)

    def beside(self, common: "Passage") -> "Passage":
        return Passage(
            (*self.links, *common.links),
            (*self.shares, *common.shares),
            self.delay + common.delay,
            self.spend + common.spend,
            np.maximum(self.leak, common.leak),
            self.loss,
            self.twice,
        )


def crossing(context: Context, rate: float, source: Site, target: Site, options: Options) -> Passage:
    """What crosses between two stages, by option, and the answers to it on their way back."""
    there, back = context.wires[source.name, target.name], context.wires[target.name, source.name]
    share, answer = share_at(context, options.cut), np.full(len(options), context.answer_bytes)
    spend = egress_cost(context, source.name, options.sent, rate * share)
    return Passage(
        links=(options.sent / there.bandwidth, answer / back.bandwidth),
        shares=(share, share),
        delay=there.delay + back.delay,
        spend=spend + egress_cost(context, target.name, answer, rate * share),
        leak=np.zeros(len(options)) if target.tier.trusted else options.leak,
        loss=options.loss,
    )


def common(context: Context, rate: float, tiers: Sequence[str]) -> Passage:
    """What every request of the line crosses alike: the raw input's link and its answer's if it leaves its tier."""
    crossings: list[tuple[Direction, float]] = []
    leak = np.zeros(1)
    if tiers[0] != context.gateway:
        raw = float(context.table.sent[context.table.codecs.index("fp32"), 0])
        crossings = [((context.gateway, tiers[0]), raw), ((tiers[0], context.gateway), context.answer_bytes)]
        leak += not context.tiers[tiers[0]].trusted
    sent = [np.array([size]) for _, size in crossings]
    wires = [context.wires[direction] for direction, _ in crossings]
    egress = [
        egress_cost(context, direction[0], size, rate) for (direction, _), size in zip(crossings, sent, strict=True)
    ]
    return Passage(
        links=tuple(size / wire.bandwidth for size, wire in zip(sent, wires, strict=True)),
        shares=(1.0,) * len(sent),
        delay=sum(wire.delay for wire in wires),
        spend=np.add.reduce(egress) if egress else np.zeros(1),
        leak=leak,
        loss=np.zeros(1, dtype=np.int64),
    )


def side(
    context: Context, rate: float, site: Site, service: Array, here: Seen, passage: Passage,
    *, square: Array, pay_per_use: bool = False,
) -> Side:  # fmt: skip
    """A stage of the given mean service of a request that passes the whole line, by option, what its queue sees, and
    the links beside it; ``square`` as of ``Side``."""
    if pay_per_use and site.tier.pay_per_use is not None:
        return _side_with_use(context, rate, site, site.tier.pay_per_use, service, here, passage, square)
    scv, price, busy = site.device.time_cv**2, context.weight(site), here.share * here.least
    least = np.maximum(site.low, replicas(context, rate, site, here))
    servers = np.maximum(np.arange(1.0, site.high + 1.0), least[:, None].astype(np.float64))
    each = np.repeat(here.service[:, None], site.high, axis=1)
    come = rate * _column(here.share)
    if site.busy:
        come = come + site.busy / here.least[:, None]
    mean, *others = delay(
        each, _column(here.scv), servers, come, context.arrival_scv,
        None if here.together is None else here.together.column(),
    )  # fmt: skip
    # More servers never make a wait longer; this takes away what rounding might say.
    total = np.minimum.accumulate(np.array((mean, *damp(*others))), axis=2)
    largest = total.copy()
    for waits in _link_waits(context, rate, passage, service):
        total += waits[:, :, None]
        np.maximum(largest, waits[:, :, None], out=largest)
    return Side(
        total=total.reshape(3, -1),
        largest=largest.reshape(3, -1),
        moments=np.array((service + sum(passage.links) + passage.delay, scv * service**2, service_third(service, scv))),
        square=square,
        cost=least * price + passage.spend,
        price=price,
        least=least,
        most=site.high,
        capacity=np.minimum(
            max(0.0, site.high * ceiling(context) - site.busy) / busy,
            _borne(context, passage, service),
        ),
        busy=busy,
        leak=np.broadcast_to(passage.leak, service.shape),
        loss=np.broadcast_to(passage.loss, service.shape),
    )


def _side_with_use(
    context: Context, rate: float, site: Site, terms: PayPerUse, service: Array, here: Seen, passage: Passage,
    square: Array,
) -> Side:  # fmt: skip
    """The same where nobody queues at the stage: cost falls, then rises with replicas, what is felt never rises."""
    scv, price = site.device.time_cv**2, context.weight(site)
    counts = np.arange(site.fewest(pay_per_use=True), site.high + 1)
    come = rate * here.share
    share = overflow_share(counts[None, :].astype(np.float64), (come * here.service)[:, None], context.arrival_scv)
    cost = counts * price + share * use_cost(terms, here.service, come)[:, None] + passage.spend[:, None]
    # A number of replicas is of use only while no larger one is as cheap.
    later = np.minimum.accumulate(cost[:, ::-1], axis=1)[:, ::-1]
    useful = np.concatenate([cost[:, :-1] < later[:, 1:], np.ones((len(service), 1), dtype=np.bool_)], axis=1)
    places = np.argsort(~useful, axis=1, kind="stable")
    places = np.take_along_axis(places, np.minimum(np.arange(len(counts)), useful.sum(axis=1)[:, None] - 1), axis=1)
    felt = np.minimum.accumulate(np.take_along_axis(felt_extra(share, terms.extra_seconds), places, axis=1), axis=1)
    cost = np.take_along_axis(cost, places, axis=1)
    most = int(useful.sum(axis=1).max(initial=1))
    waits = _link_waits(context, rate, passage, service)
    if not len(waits):
        waits = np.zeros((1, 3, len(service)))
    return Side(
        total=np.repeat(waits.sum(axis=0), most, axis=1),
        largest=np.repeat(waits.max(axis=0), most, axis=1),
        moments=np.array((service + sum(passage.links) + passage.delay, scv * service**2, service_third(service, scv))),
        square=square,
        cost=cost[:, 0],
        price=price,
        least=np.ones(len(service), dtype=np.int64),
        most=most,
        capacity=_borne(context, passage, service),
        busy=here.share * here.service,
        leak=np.broadcast_to(passage.leak, service.shape),
        loss=np.broadcast_to(passage.loss, service.shape),
        use=Use(counts[places[:, :most]].ravel(), cost[:, :most].ravel(), felt[:, :most].ravel()),
    )


def _column(values: Array | float) -> Array | float:
    return values[:, None] if isinstance(values, np.ndarray) else values


def _borne(context: Context, passage: Passage, service: Array) -> Array:
    """By option, the highest rate that the links bear at the utilisation ceiling; ``service`` tells their number."""
    borne = np.full_like(service, np.inf)
    for share, link, _ in passage.queues:
        np.minimum(borne, ceiling(context) / (share * link), out=borne)
    return borne


def _link_waits(context: Context, rate: float, passage: Passage, service: Array) -> Array:
    """Cumulants of the waits at each link (links x 3 x options), as the 95th percentile feels them; ``service`` tells
    the number of options."""
    count = len(passage.links)
    if not count:
        return np.empty((0, 3, len(service)))
    # All links at once: numpy takes as long for four rows as for one.
    seconds, come = np.empty((count, len(service))), np.empty((count, len(service)))
    scv: Array | float = np.zeros_like(seconds) if passage.twice else 0.0
    for row, (share, link, spread) in enumerate(passage.queues):
        seconds[row], come[row] = link, rate * share
        if isinstance(scv, np.ndarray):
            scv[row] = spread
    waits = np.empty((count, 3, len(service)))
    mean, *others = wait(seconds, scv, np.ones_like(seconds), come, context.arrival_scv)
    for row, cumulant in enumerate((mean, *damp(*others))):
        waits[:, row] = cumulant
    if passage.twice:  # as ``queueing.in_one_queue``
        waits[:2] *= np.array([2.0, 0.0])[:, None, None]
    return waits


def middle(context: Context, site: Site, before: Options, after: Options, behind: Array) -> Middle:
    """The stage between the options of two crossings, and by the second of these the service of the link behind it."""
    prefix = np.array(site.device.prefix_seconds) * site.correction
    encode, decode = codec_seconds(context, site)

    def between(first: Ints, second: Ints) -> Seen:
        return seen(
            context, site, before.cut[first], after.cut[second],
            decoded=before.codec[first], encoded=after.codec[second],
        )  # fmt: skip

    return Middle(
        start=prefix[before.cut],
        stop=prefix[after.cut],
        before=decode[before.codec, before.cut] + site.overhead_seconds,
        after=encode[after.codec, after.cut],
        behind=behind,
        seen=None if context.reach is None and not batches(context, site) else between,
        scv=site.device.time_cv**2,
        price=context.weight(site),
        least=site.low,
        most=site.high,
    )


def replicas(context: Context, rate: float, site: Site, here: Seen) -> Ints:
    """Replicas that keep a stage at the utilisation ceiling, with what others send there."""
    busy = rate * here.share * here.least + site.busy
    return np.maximum(1, np.ceil(busy / ceiling(context))).astype(np.int64)


def carries(context: Context, rate: float, site: Site, here: Seen) -> Bools:
    """By option, whether the tier can hold replicas enough."""
    able: Bools = replicas(context, rate, site, here) <= site.high
    return able


def ceiling(context: Context) -> float:
    """The utilisation ceiling with room for rounding."""
    return context.policy.max_utilization * (1.0 + _SLACK)


_ZERO, _ZEROS = np.zeros(1), np.zeros((3, 1))
NOTHING = Side(
    total=_ZEROS, largest=_ZEROS, moments=_ZEROS, square=_ZERO,
    cost=_ZERO, price=0.0, least=np.ones(1, dtype=np.int64), most=1,
    capacity=np.full(1, np.inf), busy=_ZERO, leak=_ZERO, loss=np.zeros(1, dtype=np.int64),
)  # fmt: skip

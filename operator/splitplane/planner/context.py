"""What a snapshot and a policy come to: which tiers and links can be used, and with which numbers.

Absent measurements are settled here, once, so that the rest of the planner works with plain numbers and a number
that is missing can never pass for a zero.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from splitplane.domain.measurements import MOST_SCV, Idle, Measurement, Value, explain
from splitplane.domain.plans import Plan
from splitplane.domain.profiles import DeviceProfile, Profile
from splitplane.domain.snapshots import Active, Inputs, Mode, Policy, Preference, Snapshot, Tier, Variant
from splitplane.planner.arrays import Array
from splitplane.planner.keeping import Kept
from splitplane.planner.options import CutTable, Options

IDLE_RATE = 0.01
"""Requests per second that an idle pipeline is planned for: one every 100 s, so that it still serves quickly."""

DEFAULT_RATE = 1.0
"""Requests per second that a pipeline is planned for before its rate has ever been measured."""

LEAST_OVERHEAD = 0.1
"""Share of the profile's overhead that no correction takes away: a stage that took no time would bear any rate."""

_MOST_CV = math.sqrt(MOST_SCV)

Direction = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Site:
    """A tier that can hold replicas now: ``low`` to ``high`` of them, at ``price`` each per hour (NaN: unknown).

    ``correction`` multiplies the profile's prefix times; ``overhead_seconds`` is the profile's, corrected.
    """

    tier: Tier
    device: DeviceProfile
    correction: float
    overhead_seconds: float
    price: float
    low: int
    high: int

    @property
    def name(self) -> str:
        return self.tier.name

    @property
    def busy(self) -> float:
        """Replicas that requests of others keep busy."""
        return 0.0 if self.tier.shared is None else self.tier.shared.busy

    @property
    def seconds(self) -> float:
        """What the whole model takes for a request alone."""
        return self.device.prefix_seconds[-1] * self.correction + self.overhead_seconds

    def fewest(self, *, pay_per_use: bool) -> int:
        """Replicas of a stage here at least: none need wait for requests that others can be paid to serve."""
        return min(self.high, self.tier.min_replicas) if pay_per_use else self.low


@dataclass(frozen=True, slots=True)
class Wire:
    """One direction between two tiers: bytes per second and one-way delay in seconds.

    ``remembered`` numbers are those of the active plan's decision, since none are measured now.
    """

    bandwidth: float
    delay: float
    remembered: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """The planner's view of one tick. ``missing`` says which numbers are absent that changing a plan would need."""

    profile: Profile
    policy: Policy
    gateway: str
    tiers: Mapping[str, Tier]
    sites: Mapping[str, Site]
    wires: Mapping[Direction, Wire]
    rate: float
    arrival_scv: float
    active: Active | None
    missing: tuple[str, ...]
    set_aside: frozenset[str]
    kept: Kept = field(compare=False)
    passing: tuple[float, ...] = ()
    """``Snapshot.reach``."""
    samples: int = 1
    """Most samples that a stage may compute together: by the policy, and by the memory of every tier."""
    budgeted: bool = False
    """Whether the policy's limit on cost is only this site's part (``Snapshot.budget``)."""
    pasts: Mapping[Direction, tuple[float, ...]] = field(default_factory=dict)
    """``Link.recent`` of the directions that have it, and of their reverses where those have none."""
    variant: str = ""
    """Of which variant ``profile``, ``sites`` and ``kept`` are: empty for the reference."""
    lost: float = 0.0
    """What its answers lose in accuracy, wherever it runs."""
    others: Mapping[str, "Context"] = field(default_factory=dict)
    """Beside the reference: the same tick for each variant, by name."""

    @property
    def variants(self) -> tuple["Context", ...]:
        """This one and, beside the reference, those of the variants: what may be chosen."""
        return (self, *self.others.values())

    def has(self, variant: str) -> bool:
        return variant == self.variant or variant in self.others

    def of(self, variant: str) -> "Context":
        """The same tick for one variant, without the others. Raises ``KeyError`` if there is none of that name."""
        if variant != self.variant:
            return self.others[variant]
        return replace(self, others={}) if self.others else self

    def changed(self, change: Callable[["Context"], "Context"]) -> "Context":
        """The tick after a change that befalls all variants."""
        return replace(change(self), others={name: change(other) for name, other in self.others.items()})

    @property
    def running(self) -> Plan | None:
        """The plan that serves, if it is one of this variant."""
        return self.active.plan if self.active and self.active.plan.variant == self.variant else None

    @property
    def table(self) -> CutTable:
        return self.kept.table

    @property
    def options(self) -> Options:
        return self.kept.options(self.policy.codecs)

    @property
    def reach(self) -> Array | None:
        """Share of the requests that are still on their way at each cut; ``None`` where all pass the whole model."""
        return np.array(self.passing) if self.passing else None

    @property
    def answer_bytes(self) -> float:
        """Bytes of an answer, which crosses links as fp32."""
        return float(self.table.sent[self.table.codecs.index("fp32"), -1])

    @property
    def order(self) -> tuple[str, ...]:
        """Tiers in the order in which a request may visit them: from the gateway's outwards."""
        return (self.gateway, *(name for name in self.tiers if name != self.gateway))

    @property
    def farthest(self) -> str | None:
        """The last tier that can hold replicas, in the order of visit; ``None`` if only the gateway's can."""
        return next((name for name in reversed(self.order) if name in self.sites and name != self.gateway), None)

    def earliest(self, tier: str) -> int:
        """The first cut that may reach this tier: past all that still shows an input, where that must stay trusted."""
        private = self.policy.raw_input_stays_trusted and not self.tiers[tier].trusted
        return self.table.past_inputs if private else 0

    def weight(self, site: Site) -> float:
        """The price of a replica-hour; for an unknown one a stand-in that only orders plans, dearer than the known."""
        if not math.isnan(site.price):
            return site.price
        known = [other.price for other in self.sites.values() if not math.isnan(other.price)]
        return 10.0 * max(known, default=0.0) or 1.0

    def affordable(self, site: Site) -> bool:
        """Whether new plans may use the tier as far as its price is concerned: known, or asked for by nobody."""
        return not (needs_price(self.policy) and math.isnan(site.price))

    @property
    def rules(self) -> Hashable:
        """What predictions and limits depend on and does not wander, besides the profile and the policy."""
        return (
            (self.gateway, self.variant, self.lost, self.passing),
            tuple(
                (
                    (tier.name, tier.device_class, tier.trusted, tier.memory_limit_bytes, tier.egress_price_per_gib),
                    (tier.pay_per_use, tier.min_replicas),
                    None if tier.shared is None else (tier.shared.first, tier.shared.last, tier.shared.batched),
                )
                for tier in self.tiers.values()
            ),
        )

    @property
    def inputs(self) -> Inputs:
        """The numbers that a decision of this tick rests on, and a name for all the rest.

        A limit on cost counts as a number where it is a part that wanders, of one that sites share. How many replicas
        fit, and on how many nodes, is left out: that moves with the pipeline's own pods (a cluster's autoscaler adds
        nodes for them), and says which plans there are, not which is better.
        """
        room = tuple((tier.max_replicas, tier.granted) for tier in self.tiers.values())
        models = tuple((each.rules, each.kept.digest) for each in self.variants)
        money = None if self.budgeted else self.policy.max_cost_per_hour
        return Inputs(
            rate_per_second=self.rate,
            links=tuple((*pair, wire.bandwidth, wire.delay) for pair, wire in sorted(self.wires.items())),
            prices=tuple((name, site.price) for name, site in self.sites.items() if not math.isnan(site.price)),
            tiers=tuple(self.sites),
            policy=self.policy,
            arrival_scv=self.arrival_scv,
            seconds=tuple((name, site.seconds) for name, site in self.sites.items()),
            busy=tuple((name, site.busy) for name, site in self.sites.items() if site.tier.shared is not None),
            rules=self.kept.named((replace(self.policy, max_cost_per_hour=money), room, models)),
        )


class ContradictionError(ValueError):
    """Policy and snapshot do not fit together; the message says what to mend in the spec."""


def build_context(snapshot: Snapshot, policy: Policy, kept: Kept | None = None) -> Context:
    """Settle what is known. Raises ``ContradictionError`` where policy and snapshot do not fit together."""
    if kept is None or not kept.fits(snapshot.profile):
        kept = Kept(snapshot.profile)
    context = _build(snapshot, policy, kept)
    if policy.mode is Mode.FIXED:  # the cuts that the user dictates are those of the reference
        return context
    _check_names(snapshot.variants)
    return replace(context, others={each.name: _variant(snapshot, policy, kept, each) for each in snapshot.variants})


def _variant(snapshot: Snapshot, policy: Policy, kept: Kept, variant: Variant) -> Context:
    own = replace(snapshot, profile=variant.profile, reach=())
    context = _build(own, policy, kept.of(variant.name, variant.profile))
    return replace(context, variant=variant.name, lost=variant.accuracy_loss)


def _check_names(variants: Sequence[Variant]) -> None:
    names = {variant.name for variant in variants}
    if "" in names or len(names) < len(variants):
        raise ContradictionError("variants of a model need names, each its own")
    for variant in variants:
        if not 0.0 <= variant.accuracy_loss <= 1.0:
            raise ContradictionError(f"variant {variant.name} loses {variant.accuracy_loss} in accuracy, not 0 to 1")


def _build(snapshot: Snapshot, policy: Policy, kept: Kept) -> Context:
    tiers = {tier.name: tier for tier in snapshot.tiers}
    gateway = policy.gateway_tier or next(iter(tiers), "")
    if gateway not in tiers:
        raise ContradictionError(
            f"the gateway's tier {gateway!r} is not among the pipeline's tiers: name one of {sorted(tiers)}"
        )
    if not 0.0 < policy.max_utilization < 1.0:
        raise ContradictionError(f"the utilisation ceiling must lie between 0 and 1, not be {policy.max_utilization}")
    reach = snapshot.reach
    if reach and policy.allow_return:
        raise ContradictionError("plans that come back to a tier are not weighed for models with early exits")
    if reach and (len(reach) != len(snapshot.profile.cuts) or reach[0] != 1.0 or not _falls(reach)):
        raise ContradictionError(
            f"reach must hold a share for each of {len(snapshot.profile.cuts)} cuts: 1, then never rising, above 0"
        )
    if snapshot.budget is not None:
        whole = policy.max_cost_per_hour
        policy = replace(policy, max_cost_per_hour=snapshot.budget if whole is None else min(whole, snapshot.budget))
    recalled = snapshot.active.inputs if snapshot.active else None
    sites = {tier.name: site for tier in snapshot.tiers if (site := _site(snapshot, tier, recalled)) is not None}
    wires = _wires(snapshot, recalled)
    rate = _rate(snapshot.arrival_rate)
    return Context(
        profile=snapshot.profile,
        policy=policy,
        gateway=gateway,
        tiers=tiers,
        sites=sites,
        wires=wires,
        rate=rate if rate is not None else recalled.rate_per_second if recalled else DEFAULT_RATE,
        # The operator's is bounded; anybody else's may be any number.
        arrival_scv=min(MOST_SCV, max(0.0, snapshot.arrival_scv)) if math.isfinite(snapshot.arrival_scv) else 1.0,
        active=snapshot.active,
        missing=_missing(snapshot, policy, gateway, sites, wires) if snapshot.active else (),
        set_aside=snapshot.set_aside,
        kept=kept,
        passing=() if all(share == 1.0 for share in reach) else reach,
        samples=_samples(snapshot.profile, policy, sites.values()),
        budgeted=snapshot.budget is not None,
        pasts=_pasts(snapshot, wires),
    )


def _samples(profile: Profile, policy: Policy, sites: Iterable[Site]) -> int:
    """A plan's pods may keep the whole model resident, so that is what batches must leave room for on each tier."""
    room = [
        profile.most_samples(site.tier.device_class, 0, profile.segments, site.tier.memory_limit_bytes)
        for site in sites
        if site.tier.memory_limit_bytes is not None
    ]
    return min(policy.max_batch, *room) if room else policy.max_batch


def _falls(reach: Sequence[float]) -> bool:
    return all(before >= after > 0.0 for before, after in pairwise(reach))


def crossings(plan: Plan, gateway: str) -> tuple[Direction, ...]:
    """Directions between different tiers that a request takes, in order; answers come back along the reverse."""
    tiers = [gateway, *(stage.tier for stage in plan.stages)]
    return tuple((a, b) for a, b in pairwise(tiers) if a != b)


def needs_price(policy: Policy) -> bool:
    return policy.max_cost_per_hour is not None or policy.prefer is Preference.COST


def _missing(
    snapshot: Snapshot, policy: Policy, gateway: str, sites: Mapping[str, Site], wires: Mapping[Direction, Wire]
) -> tuple[str, ...]:
    missing = []
    if _rate(snapshot.arrival_rate) is None:
        missing.append(f"arrival rate {explain(snapshot.arrival_rate)}")
    if needs_price(policy):
        missing += [
            f"price of tier {site.name} {explain(site.tier.price_per_hour)}"
            for site in sites.values()
            if _positive(site.tier.price_per_hour) is None
        ]
    if snapshot.active is not None:
        for source, target in crossings(snapshot.active.plan, gateway):
            if (source, target) not in wires and {source, target} <= sites.keys():
                missing.append(f"bandwidth from tier {source} to tier {target} missing")
    return tuple(missing)


def _site(snapshot: Snapshot, tier: Tier, recalled: Inputs | None) -> Site | None:
    device = snapshot.profile.devices.get(tier.device_class)
    high = tier.most_replicas
    if device is None or tier.ready_nodes < 1 or high < 1:
        return None
    if not device.time_cv <= _MOST_CV:  # a profile may hold any number
        device = replace(device, time_cv=_MOST_CV)
    price = _positive(tier.price_per_hour)
    if price is None:
        price = dict(recalled.prices if recalled else ()).get(tier.name, math.nan)
    correction = snapshot.speed_corrections.get(tier.name, 1.0)
    if not (math.isfinite(correction) and correction > 0.0):
        correction = 1.0
    offset = snapshot.offset_corrections.get(tier.name, 0.0)
    overhead = max(
        LEAST_OVERHEAD * device.overhead_seconds, device.overhead_seconds + (offset if math.isfinite(offset) else 0.0)
    )
    return Site(tier, device, correction, overhead, price, low=min(high, max(1, tier.min_replicas)), high=high)


def _wires(snapshot: Snapshot, recalled: Inputs | None) -> dict[Direction, Wire]:
    """Numbers by direction. A direction that nobody measures is taken to be like its reverse."""
    measured: dict[Direction, Wire] = {}
    for link in snapshot.links:
        bandwidth, delay = _positive(link.bandwidth_bytes_per_second), _positive(link.delay_seconds)
        if bandwidth == 0.0:
            # A link that passes nothing stays a link, only one that no plan can use; it has no delay to measure.
            measured[link.source, link.target] = Wire(1.0, delay or 0.0)
        elif bandwidth is not None and delay is not None:
            measured[link.source, link.target] = Wire(max(1.0, bandwidth), delay)
    memory = {(s, t): Wire(b, d, remembered=True) for s, t, b, d in (recalled.links if recalled else ())}
    wires: dict[Direction, Wire] = {}
    for source in (tier.name for tier in snapshot.tiers):
        for target in (tier.name for tier in snapshot.tiers if tier.name != source):
            forward, reverse = (source, target), (target, source)
            for known in (measured.get(forward), measured.get(reverse), memory.get(forward), memory.get(reverse)):
                if known is not None:
                    wires[forward] = known
                    break
    return wires


def _pasts(snapshot: Snapshot, wires: Mapping[Direction, Wire]) -> dict[Direction, tuple[float, ...]]:
    seen = {(link.source, link.target): tuple(max(1.0, each) for each in link.recent) for link in snapshot.links}
    return {pair: past for pair in wires if (past := seen.get(pair) or seen.get(pair[::-1]))}


def _rate(measurement: Measurement) -> float | None:
    if isinstance(measurement, Idle):
        return IDLE_RATE
    value = _positive(measurement)
    return None if value is None else max(IDLE_RATE, value)


def _positive(measurement: Measurement) -> float | None:
    """A measured, finite number that is not negative; anything else is unknown."""
    if isinstance(measurement, Value) and math.isfinite(measurement.value) and measurement.value >= 0.0:
        return measurement.value
    return None

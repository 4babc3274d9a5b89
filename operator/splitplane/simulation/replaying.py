"""One pipeline through traces of load and link, under several strategies side by side."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from splitplane.domain.measurements import Value, known
from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import RECENT_SECONDS, RECENT_SHARES, Active, Policy, Snapshot
from splitplane.planner import Kept, choose
from splitplane.planner.arrays import Array
from splitplane.planner.context import IDLE_RATE, Context, Direction, build_context
from splitplane.planner.evaluation import violations
from splitplane.planner.gates import moves_pods
from splitplane.planner.selecting import all_plans
from splitplane.simulation.serving import BUSIEST, Course, course, piled_up
from splitplane.simulation.strategies import STRATEGIES, Strategy, cloud_only, free
from splitplane.simulation.traces import Trace

SWITCH_SECONDS = 15.0
"""How long a switch takes that moves pods: both plans' pods run, the old plan serves."""

_LEAP = 1.2
"""How much the load must have grown since the last decision to be planned for at once."""

AS_MANY = 0.0005
"""Shares of requests within the limit that differ by less count as equal."""

_MOST_PLANS, _MOST_OUTCOMES = 5000, 5000 * 1440
"""So many plans are weighed at most by whoever knows the traces, and so many of a plan at a step (a day by minutes)."""

_MOST_COURSES = 500
"""What so many plans would give in every bin is kept."""

_LOADS, _LINKS = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0), (0.01, 0.05, 0.25, 0.5)
"""Quantiles of the traces for which a plan may be made that never changes, where there are more."""

_MOST_BINS = 2


@dataclass(frozen=True)
class Scenario:
    """A pipeline, requests per second, and bytes per second on the links of the gateway's tier.

    ``bandwidths`` are those of the first link in the snapshot that leaves that tier; the others are in proportion, as
    the snapshot states them (``scales``).

    A strategy is asked every ``every`` bins, and at once when more arrives than its plan is meant to bear, as the
    operator does; it sees the bin before, never the one that comes.
    """

    snapshot: Snapshot
    policy: Policy
    arrivals: Trace
    bandwidths: Trace
    every: int = 2

    @property
    def bins(self) -> int:
        return min(len(self.arrivals), len(self.bandwidths))

    @cached_property
    def scales(self) -> dict[Direction, float]:
        """How many times the trace's bandwidth each link of the gateway's tier has."""
        gateway = self.policy.gateway_tier
        stated = {
            (link.source, link.target): known(link.bandwidth_bytes_per_second)
            for link in self.snapshot.links
            if gateway in (link.source, link.target)
        }
        first = next((rate for (source, _), rate in stated.items() if source == gateway), None)
        return {ends: rate / first if rate and first else 1.0 for ends, rate in stated.items()}

    @cached_property
    def allowed(self) -> Policy:
        """What the pipeline allows, the plan that the user dictates among all others."""
        policy = self.policy
        codecs = dict.fromkeys((*policy.codecs, *(policy.fixed.codecs if policy.fixed else ())))
        return replace(free(policy), codecs=tuple(codecs))

    @cached_property
    def weighing(self) -> Policy:
        """By which what is held is judged: some strategies know nothing of codecs and of how many partitions there may
        be."""
        policy = self.allowed
        codecs = dict.fromkeys((*policy.codecs, "fp32"))
        return replace(policy, codecs=tuple(codecs), max_partitions=max(2, policy.max_partitions))

    def seen(self, place: int) -> Snapshot:
        """The conditions of one bin as a snapshot."""
        recent: Array = np.empty(0)
        if self.policy.max_partitions > 2:  # only a stage between two others asks for it (``planner.likely``)
            first = max(0, place + 1 - round(RECENT_SECONDS / self.bandwidths.bin_seconds))
            recent = np.quantile(self.bandwidths.values[first : place + 1], RECENT_SHARES)
        seen = self.under(float(self.arrivals.values[place]), float(self.bandwidths.values[place]), recent)
        return replace(seen, time=place * self.arrivals.bin_seconds)

    def under(self, rate: float, bandwidth: float, recent: Array | tuple[()] = ()) -> Snapshot:
        """A snapshot with this load (per second), and bandwidth of the first link now and lately (bytes per second)."""
        scales = self.scales
        links = tuple(
            replace(
                link,
                bandwidth_bytes_per_second=Value(scale * bandwidth),
                recent=tuple(scale * float(each) for each in recent),
            )
            if (scale := scales.get((link.source, link.target)))
            else link
            for link in self.snapshot.links
        )
        return replace(self.snapshot, arrival_rate=Value(rate), links=links)


def compressed(scenario: Scenario) -> Scenario | None:
    """The scenario with a raw input that crosses in as few bytes as any codec makes of it, at no cost in time or
    accuracy; ``None`` where none makes it smaller."""
    profile = scenario.snapshot.profile
    first = profile.cuts[0]
    least = min(first.wire_bytes.values())
    if least >= first.wire_bytes["fp32"]:
        return None
    cuts = (replace(first, wire_bytes=dict.fromkeys(first.wire_bytes, least)), *profile.cuts[1:])
    return replace(scenario, snapshot=replace(scenario.snapshot, profile=replace(profile, cuts=cuts)))


class Ground:
    """A scenario with what is found out of it once for all strategies: what each plan would give in every bin."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.kept = Kept(scenario.snapshot.profile)
        self.width = scenario.arrivals.bin_seconds
        self.hours = scenario.bins * self.width / 3600.0
        self.rates: Array = np.maximum(IDLE_RATE, scenario.arrivals.values[: scenario.bins])
        bandwidths: Array = np.maximum(1.0, scenario.bandwidths.values[: scenario.bins])
        self.context = build_context(scenario.seen(0), scenario.weighing, self.kept)
        # A direction that nobody states is as the other one.
        scales = {(target, source): scale for (source, target), scale in scenario.scales.items()} | scenario.scales
        self.links = {ends: scales[ends] * bandwidths for ends in self.context.wires if ends in scales}
        self.every = min(_MOST_BINS, scenario.every)
        """Bins from one choice to the next of who knows the traces: no more than a minute, as strategies may also
        move when the load leaps."""
        self._courses: dict[Plan, Course] = {}

    @cached_property
    def allowed(self) -> Context:
        """The context of plans that the pipeline allows."""
        return build_context(self.scenario.seen(0), self.scenario.allowed, self.kept)

    @cached_property
    def possible(self) -> "Outcomes | None":
        """Every plan that may be held, whatever the load; ``None`` where these are too many."""
        most = min(_MOST_PLANS, _MOST_OUTCOMES * self.every // self.scenario.bins)
        every = all_plans(self.allowed, most=most)
        return None if every is None else Outcomes.of(self, every)

    def outcomes(self, held: Iterable[Plan], moments: Iterable[Snapshot]) -> "Outcomes":
        """What ``held`` and all plans give, or where these are too many, those that the planner would choose at these
        moments."""
        known = self.possible
        if known is None:
            targets = (choose(each, free(self.scenario.policy), 0.0, kept=self.kept).target for each in moments)
            plans = dict.fromkeys(target.plan for target in targets if target is not None)
            known = Outcomes.of(self, [plan for plan in plans if not self.course(plan).leaks])
        return known.beside(self, held)

    def course(self, plan: Plan) -> Course:
        if plan not in self._courses:
            if len(self._courses) >= _MOST_COURSES:
                self._courses.clear()
            self._courses[plan] = course(self.context, plan, self.rates, self.links)
        return self._courses[plan]

    def overloads(self, plan: Plan, place: int) -> bool:
        """Whether more arrives in a bin than the plan bears at the utilisation ceiling."""
        most = self.course(plan).most[place] / BUSIEST * self.scenario.policy.max_utilization
        return bool(self.rates[place] > most)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What plans give: by step (``Ground.every`` bins) and plan the money and the requests that are late while none
    waits from before; by plan the cost per hour, and the share of requests ``within`` the limit, piles aside."""

    plans: tuple[Plan, ...]
    cost: Array
    late: Array
    per_hour: Array
    within: Array

    @classmethod
    def of(cls, ground: Ground, plans: Sequence[Plan]) -> "Outcomes":
        starts = np.arange(0, ground.scenario.bins, ground.every)
        requests = ground.rates * ground.width
        cost, late = (np.zeros((len(starts), len(plans))) for _ in range(2))
        per_hour, within = (np.zeros(len(plans)) for _ in range(2))
        for column, plan in enumerate(plans):
            theirs = course(ground.context, plan, ground.rates, ground.links)
            borne = np.where(ground.rates <= theirs.most, theirs.within, 0.0)
            cost[:, column] = np.add.reduceat(theirs.cost, starts) * ground.width / 3600.0
            late[:, column] = np.add.reduceat(requests * (1.0 - borne), starts)
            per_hour[column], within[column] = theirs.cost.mean(), np.average(theirs.within, weights=ground.rates)
        return cls(tuple(plans), cost, late, per_hour, within)

    def beside(self, ground: Ground, held: Iterable[Plan]) -> "Outcomes":
        """With plans that were held, if the pipeline allows them and they show nothing that they must not."""
        known, forbidden = frozenset(self.plans), {"spec", "privacy", "leak"}
        more = [
            plan
            for plan in dict.fromkeys(held)
            if plan not in known and forbidden.isdisjoint(violations(ground.allowed, plan))
        ]
        if not more:
            return self
        other = Outcomes.of(ground, more)
        return Outcomes(
            self.plans + other.plans,
            *(
                np.concatenate([getattr(self, name), getattr(other, name)], axis=-1)
                for name in ("cost", "late", "per_hour", "within")
            ),
        )


@dataclass(frozen=True, slots=True)
class Metrics:
    """Of a whole replay: share of requests within the limit, p95 in seconds (of the bins' p95 weighted by requests),
    cost per hour, switches, those that move pods, and bins in which a plan showed what it must not.

    ``shares``, ``costs`` (per hour) and the plans ``held`` are by bin of the ``ground``; ``plans`` counts bins.
    """

    within: float
    p95: float
    cost_per_hour: float
    switches: int
    moves: int
    leaks: int
    plans: Counter[Plan]
    shares: Array
    costs: Array
    held: Sequence[Plan | None]
    ground: Ground


def replay(ground: Ground, strategies: Mapping[str, Strategy]) -> dict[str, Metrics]:
    """Run strategies through the traces, side by side, so that they share what the planner keeps."""
    scenario, width = ground.scenario, ground.width
    active: dict[str, Active | None] = dict.fromkeys(strategies)
    held: dict[str, list[Plan | None]] = {name: [] for name in strategies}
    asked = dict.fromkeys(strategies, 0.0)
    for place in range(scenario.bins):
        now, before = place * width, None
        for name, strategy in strategies.items():
            old = active[name]
            leapt = place > 0 and ground.rates[place - 1] > _LEAP * asked[name]
            if place % scenario.every and not (old and leapt and ground.overloads(old.plan, place - 1)):
                held[name].append(old.plan if old else None)
                continue
            asked[name] = float(ground.rates[max(0, place - 1)])
            before = before or scenario.seen(max(0, place - 1))
            choice = strategy(replace(before, active=old, time=now), scenario.policy, now, ground.kept)
            if choice is not None and (old is None or choice.plan != old.plan):
                moved = old is not None and moves_pods(old.plan, choice.plan)
                seconds = SWITCH_SECONDS if moved else 0.0
                active[name] = Active(choice.plan, 1, now, seconds, choice.low_demand_since, left=choice.left)
            elif choice is not None and old is not None:
                active[name] = replace(old, low_demand_since=choice.low_demand_since)
            serving = active[name]
            held[name].append(serving.plan if serving else None)
    return {name: _metrics(ground, plans) for name, plans in held.items()}


def constant(ground: Ground, plan: Plan) -> Metrics:
    """What a plan gives that never changes."""
    return _metrics(ground, [plan] * ground.scenario.bins)


def compare(ground: Ground) -> dict[str, Metrics]:
    """Every strategy, and the best plan that never changes, in hindsight."""
    found = replay(ground, STRATEGIES)
    squeezed = compressed(ground.scenario)
    if squeezed is not None:
        found |= replay(Ground(squeezed), {"cloud-only, compressed": cloud_only})
    fixed = best_static(ground, [plan for metrics in found.values() for plan in metrics.plans], found["splitplane"])
    return found if fixed is None else {**found, "best static in hindsight": fixed}


def best_static(ground: Ground, held: Iterable[Plan], served: Metrics) -> Metrics | None:
    """What someone would take who knew the traces, and had to stay with one plan that shows nothing it must not.

    That is the cheapest that serves as many requests in time as ``served`` does, or where none does, as any does (to
    within ``AS_MANY``): among ``held`` and all plans, or where these are too many (``Ground.possible``) those that the
    planner would choose for loads up to the highest and links down to nearly the slowest of the traces.
    ``None`` where each of them shows something.
    """
    scenario = ground.scenario
    links = np.quantile(scenario.bandwidths.values[: scenario.bins], _LINKS)
    outcomes = ground.outcomes(
        held, (scenario.under(rate, link) for rate in np.quantile(ground.rates, _LOADS) for link in links)
    )
    order = np.lexsort((-outcomes.within, outcomes.per_hour)).tolist()

    def cheapest(enough: float) -> Metrics | None:
        # No pile makes a plan serve more, nor cost less.
        able = (outcomes.plans[place] for place in order if outcomes.within[place] >= enough)
        return next((found for plan in able if (found := constant(ground, plan)).within >= enough), None)

    found = cheapest(served.within - AS_MANY)
    if found is not None:
        return found
    most = -math.inf
    for place in np.argsort(-outcomes.within, kind="stable").tolist():
        if outcomes.within[place] <= most:
            break
        most = max(most, constant(ground, outcomes.plans[place]).within)
    return cheapest(most - AS_MANY)


def switched(held: Sequence[Plan | None]) -> Iterator[tuple[int, bool]]:
    """The bins that begin with another plan than the one before, and whether that moves pods.

    If so, the old plan serves for the first ``SWITCH_SECONDS``, and both are paid.
    """
    for place, (old, new) in enumerate(pairwise(held), start=1):
        if old is not None and new is not None and old is not new and old != new:
            yield place, moves_pods(old, new)


def _metrics(ground: Ground, held: Sequence[Plan | None]) -> Metrics:
    """What a sequence of plans gives, one by bin."""
    bins, rates = len(held), ground.rates
    within, p95, most, cost = (np.zeros(bins) for _ in range(4))
    p95 += np.inf
    leaks = 0
    plans = Counter(plan for plan in held if plan is not None)
    for plan in plans:
        theirs, at = ground.course(plan), np.flatnonzero([each == plan for each in held])
        within[at], p95[at], most[at], cost[at] = theirs.within[at], theirs.p95[at], theirs.most[at], theirs.cost[at]
        leaks += theirs.leaks * len(at)
    switches = moves = 0
    share = SWITCH_SECONDS / ground.width
    for place, moved in switched(held):
        switches += 1
        old = held[place - 1]
        if moved and old is not None:
            moves += 1
            before = ground.course(old)
            cost[place] += share * before.cost[place]
            within[place] += share * (before.within[place] - within[place])
            most[place] += share * (before.most[place] - most[place])
    left = piled_up(rates, most, ground.width)
    waiting = np.concatenate([[0.0], left[:-1]])
    late = np.flatnonzero((left > 0.0) | (waiting > 0.0))
    if len(late):
        limit = ground.scenario.policy.max_p95_seconds
        pile = 0.5 * (waiting[late] + left[late]) / np.maximum(most[late], 1e-9)
        if limit is not None:
            within[late] = np.where(pile < 0.1 * limit, within[late], 0.0)
        p95[late] += pile
    order = np.argsort(p95)
    share_of = np.cumsum(rates[order]) / rates.sum()
    return Metrics(
        within=float(np.average(within, weights=rates)), p95=float(p95[order][np.searchsorted(share_of, 0.95)]),
        cost_per_hour=float(cost.mean()), switches=switches, moves=moves, leaks=leaks, plans=plans,
        shares=within, costs=cost, held=held, ground=ground,
    )  # fmt: skip

"""One pipeline through traces of load and link, under one strategy."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from splitplane.domain.measurements import Value
from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import Active, Policy, Snapshot
from splitplane.planner import Kept
from splitplane.planner.context import build_context
from splitplane.planner.gates import moves_pods
from splitplane.simulation.serving import serve
from splitplane.simulation.strategies import STRATEGIES, Static, Strategy
from splitplane.simulation.traces import Trace

SWITCH_SECONDS = 15.0
"""How long a switch takes that moves pods: both plans' pods run, the old plan serves."""

_STATICS = 6


@dataclass(frozen=True, slots=True)
class Scenario:
    """A pipeline, requests per second, and bytes per second on the links that leave the gateway's tier.

    A strategy is asked every ``every`` bins; it sees the bin before, never the one that comes.
    """

    snapshot: Snapshot
    policy: Policy
    arrivals: Trace
    bandwidths: Trace
    every: int = 2

    @property
    def bins(self) -> int:
        return min(len(self.arrivals), len(self.bandwidths))

    def seen(self, place: int) -> Snapshot:
        """The conditions of one bin as a snapshot."""
        bandwidth, gateway = Value(float(self.bandwidths.values[place])), self.policy.gateway_tier
        links = tuple(
            replace(link, bandwidth_bytes_per_second=bandwidth) if gateway in (link.source, link.target) else link
            for link in self.snapshot.links
        )
        rate = Value(float(self.arrivals.values[place]))
        return replace(self.snapshot, arrival_rate=rate, links=links, time=place * self.arrivals.bin_seconds)


@dataclass(frozen=True, slots=True)
class Metrics:
    """Of a whole replay: share of requests within the limit, p95 in seconds (of the bins' p95 weighted by requests),
    cost per hour, switches, those that move pods, and bins in which a plan showed what it must not."""

    within: float
    p95: float
    cost_per_hour: float
    switches: int
    moves: int
    leaks: int
    plans: Counter[Plan]


def replay(scenario: Scenario, strategy: Strategy) -> Metrics:
    """Run one strategy through the traces."""
    width, kept = scenario.arrivals.bin_seconds, Kept(scenario.snapshot.profile)
    active: Active | None = None
    backlog, money, switches, moves, leaks = 0.0, 0.0, 0, 0, 0
    rates, shares, percentiles = [], [], []
    plans: Counter[Plan] = Counter()
    for place in range(scenario.bins):
        context = build_context(scenario.seen(place), scenario.policy, kept)
        if place % scenario.every == 0:
            now = place * width
            seen = replace(scenario.seen(max(0, place - 1)), active=active, time=now)
            target = strategy(seen, scenario.policy, now, kept)
            if target is not None and (active is None or target != active.plan):
                moved = active is not None and moves_pods(active.plan, target)
                if moved and active is not None:
                    money += serve(context, active.plan, width, 0.0).cost * SWITCH_SECONDS / 3600.0
                switches, moves = switches + (active is not None), moves + moved
                active = Active(target, 1, now, SWITCH_SECONDS if moved else 0.0)
        rates.append(context.rate)
        if active is None:
            shares.append(0.0)
            percentiles.append(np.inf)
            continue
        plans[active.plan] += 1
        outcome = serve(context, active.plan, width, backlog)
        backlog = outcome.backlog
        money += outcome.cost * width / 3600.0
        leaks += outcome.leaks
        shares.append(outcome.within)
        percentiles.append(outcome.p95)
    order = np.argsort(percentiles)
    share = np.cumsum(np.array(rates)[order]) / sum(rates)
    p95 = float(np.array(percentiles)[order][np.searchsorted(share, 0.95)])
    hours = scenario.bins * width / 3600.0
    return Metrics(float(np.average(shares, weights=rates)), p95, money / hours, switches, moves, leaks, plans)


def compare(scenario: Scenario) -> Iterator[tuple[str, Metrics]]:
    """Every strategy in turn, and of the plans that these held longest the best that never changes, in hindsight."""
    used: Counter[Plan] = Counter()
    for name, strategy in STRATEGIES.items():
        metrics = replay(scenario, strategy)
        used += metrics.plans
        yield name, metrics
    statics = [replay(scenario, Static(plan)) for plan, _ in used.most_common(_STATICS)]
    able = [metrics for metrics in statics if not metrics.leaks]
    if able:
        yield "best static in hindsight", max(able, key=lambda each: (round(each.within, 3), -each.cost_per_hour))

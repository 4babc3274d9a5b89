"""Pipelines at many sites, and what the best plan for all of them is, by trying every one: slow and obvious.

The plan of a site is one of ``planner_reference``'s rows; in one that uses the shared tier, the last stage's wait is
that of the pool, at its ceiling, for the longest request that it may be asked for.
"""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from splitplane.domain.measurements import Value, known
from splitplane.domain.snapshots import Policy, Preference, Snapshot
from tests.support.planner_cases import POLICY, SNAPSHOT, links, with_tiers
from tests.support.planner_reference import _wait, enumerate_rows

CHEAP = replace(POLICY, prefer=Preference.COST, max_cost_per_hour=None)


def preferring(prefer: Preference) -> Policy:
    return replace(CHEAP, prefer=prefer)


def many_sites(count: int, *, seed: int, replicas: int = 200) -> dict[str, Snapshot]:
    """The pitch tracker at sites whose links and loads spread over an order of magnitude."""
    rng = random.Random(seed)
    return {
        f"site-{number:03}": with_tiers(
            replace(
                SNAPSHOT,
                links=links(10 ** rng.uniform(0.3, 2.0), delay=rng.uniform(0.001, 0.02)),
                arrival_rate=Value(rng.uniform(0.3, 6.0)),
                arrival_scv=1.0,
            ),
            edge={"min_replicas": 1},
            cloud={"max_replicas": replicas, "slots": replicas},
        )
        for number in range(count)
    }


@dataclass(frozen=True)
class Choice:
    """A way to serve a site. ``pooled`` seconds on the shared tier for each request, from ``cut`` on; 0 if none."""

    cost: float
    rate: float
    cut: int
    pooled: float
    stations: tuple[tuple[float, float, int], ...]
    fixed: float
    pool_cv: float
    scv: float

    def p95(self, pool: tuple[float, float, float] | None) -> float:
        waits = [_wait(*station, self.rate, self.scv) for station in self.stations]
        services = [(seconds, cv) for seconds, cv, _ in self.stations]
        if self.pooled:
            assert pool is not None
            waits.append(pool)
            services.append((self.pooled, self.pool_cv))
        spreads = [(seconds * cv) ** 2 for seconds, cv in services]
        coupling = min(1.0, math.sqrt(sum(spreads) / sum(seconds**2 for seconds, _ in services)))
        mean, variance, third = (max(part) + coupling * (sum(part) - max(part)) for part in zip(*waits, strict=True))
        mean += self.fixed + sum(seconds for seconds, _ in services)
        variance += sum(spreads)
        third += sum(2 * cv**4 * seconds**3 for seconds, cv in services)
        deviation = math.sqrt(variance)
        skew = min(2.585, third / (deviation**3 + 1e-300))
        fraction, exponent = math.frexp(mean + deviation * (1.6449 + skew * (0.2880 - 0.0557 * skew)))
        return math.ceil(fraction * 2**9) * 2.0 ** (exponent - 9)


def cheapest(snapshots: Mapping[str, Snapshot], policy: Policy, shared: str) -> float | None:
    """The least cost per hour at which every site keeps its limit on p95; ``None`` if there is no such plan.

    Each site takes part in one pool, or does without the shared tier.
    """
    sites = [list(choices(snapshot, policy, shared)) for snapshot in snapshots.values()]
    tier = next(tier for tier in next(iter(snapshots.values())).tiers if tier.name == shared)
    most = min(tier.max_replicas, tier.slots)
    price, ceiling = known(tier.price_per_hour) or 0.0, policy.max_utilization
    limit = math.inf if policy.max_p95_seconds is None else policy.max_p95_seconds * (1 + 1e-9)
    pool_scv = max(1.0, *(snapshot.arrival_scv for snapshot in snapshots.values()))
    cuts = sorted({choice.cut for site in sites for choice in site if choice.pooled})
    best = math.inf
    pools = product(cuts, range(max(1, tier.min_replicas), most + 1), (0.25, 0.5, 0.75, 1.0))
    for first, count, part in [(math.inf, 0, 1.0), *pools]:
        inside = [[each for each in site if not each.pooled or each.cut >= first] for site in sites]
        waits, load = None, part * ceiling * count
        if count:
            pooled = [each for site in inside for each in site if each.pooled]
            longest = max(each.pooled for each in pooled)
            waits = _wait(longest, pooled[0].pool_cv, count, load / longest, pool_scv)
        able = [[each for each in site if each.p95(waits) <= limit] for site in inside]
        for combination in product(*able):
            if sum(each.rate * each.pooled for each in combination) <= load + 1e-9:
                best = min(best, sum(each.cost for each in combination) + count * price)
    return None if math.isinf(best) else best


def choices(snapshot: Snapshot, policy: Policy, shared: str) -> Iterator[Choice]:
    """Every row of a site, without the replicas on the shared tier, that its own nodes and link bear."""
    profile, rate = snapshot.profile, known(snapshot.arrival_rate) or 0.0
    tiers = {tier.name: tier for tier in snapshot.tiers}
    link = snapshot.links[0]
    bandwidth, delay = known(link.bandwidth_bytes_per_second) or 1.0, known(link.delay_seconds) or 0.0
    seen = set()
    for row in enumerate_rows(snapshot, policy):
        key = (tuple(stage if stage[0] != shared else stage[:3] for stage in row.stages), row.codecs)
        if key in seen:
            continue
        seen.add(key)
        cost, stations, fixed, cut, pooled, pool_cv = 0.0, [], 0.0, 0, 0.0, 0.0
        for k, (name, first, last, count) in enumerate(row.stages):
            device, full = profile.devices[tiers[name].device_class], profile.cuts
            service = device.range_seconds(first, last) * snapshot.speed_corrections.get(name, 1.0)
            service += max(
                0.1 * device.overhead_seconds, device.overhead_seconds + snapshot.offset_corrections.get(name, 0.0)
            )
            if k > 0:
                times = device.codec_times[row.codecs[k - 1]]
                service += times.decode_seconds_per_byte * full[first].wire_bytes["fp32"]
            if k + 1 < len(row.stages):
                times = device.codec_times[row.codecs[k]]
                service += times.encode_seconds_per_byte * full[last].wire_bytes["fp32"]
            if name == shared:
                sent = full[first].wire_bytes[row.codecs[k - 1] if k else "fp32"]
                answer = full[-1].wire_bytes["fp32"]
                stations += [(sent / bandwidth, 0.0, 1), (answer / bandwidth, 0.0, 1)]
                fixed += 2 * delay
                hourly = rate * 3600 / 2**30
                cost += sent * hourly * tiers[policy.gateway_tier].egress_price_per_gib
                cost += answer * hourly * tiers[shared].egress_price_per_gib
                cut, pooled, pool_cv = first, service, device.time_cv
            else:
                stations.append((service, device.time_cv, count))
                cost += count * (known(tiers[name].price_per_hour) or 0.0)
        if all(rate * seconds / count <= policy.max_utilization * (1 + 1e-9) for seconds, _, count in stations):
            yield Choice(cost, rate, cut, pooled, tuple(stations), fixed, pool_cv, snapshot.arrival_scv)

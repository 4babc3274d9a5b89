"""The planner's search once more in plain Python: every plan in turn, one number at a time, nothing vectorised.

Slow and obvious on purpose. Tests hold the planner against it; the benchmark takes it as the baseline.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from splitplane.domain.measurements import known
from splitplane.domain.profiles import CODECS
from splitplane.domain.snapshots import Policy, Preference, Snapshot, Tier

STEPS = 1024


@dataclass(frozen=True)
class Row:
    stages: tuple[tuple[str, int, int, int], ...]  # tier, first, last, replicas
    codecs: tuple[str, ...]
    p95: float
    cost: float
    utilization: float
    exit_cut: int

    @property
    def replicas(self) -> int:
        return sum(stage[3] for stage in self.stages)


def search(snapshot: Snapshot, policy: Policy) -> Row | None:
    """The best plan of all, by full enumeration (all metrics known, no active plan)."""
    rows = list(enumerate_rows(snapshot, policy))
    return choose(rows, policy) if rows else None


def enumerate_rows(snapshot: Snapshot, policy: Policy) -> Iterator[Row]:
    profile, end = snapshot.profile, snapshot.profile.segments
    home = next(tier for tier in snapshot.tiers if tier.name == policy.gateway_tier)
    linked = {(link.source, link.target) for link in snapshot.links}
    for tier in snapshot.tiers:
        reachable = tier is home or (home.name, tier.name) in linked or (tier.name, home.name) in linked
        if reachable and _may_hold(snapshot, policy, tier, 0, end):
            for count in _counts(tier):
                yield _row(snapshot, policy, ((tier.name, 0, end, count),), ())
    if policy.max_partitions < 2:
        return
    for tier in snapshot.tiers:
        if tier is home or not ((home.name, tier.name) in linked or (tier.name, home.name) in linked):
            continue
        for at in range(1, end):
            if not (_may_hold(snapshot, policy, home, 0, at) and _may_hold(snapshot, policy, tier, at, end)):
                continue
            for codec in CODECS:
                if codec in policy.codecs and codec in profile.cuts[at].wire_bytes:
                    for near in _counts(home):
                        for far in _counts(tier):
                            stages = ((home.name, 0, at, near), (tier.name, at, end, far))
                            yield _row(snapshot, policy, stages, (codec,))


def choose(rows: list[Row], policy: Policy) -> Row:
    def grade(row: Row) -> tuple[bool, bool, bool]:
        return (
            not row.utilization <= policy.max_utilization * (1 + 1e-9),
            policy.max_p95_seconds is not None and not row.p95 <= policy.max_p95_seconds * (1 + 1e-9),
            policy.max_cost_per_hour is not None and row.cost > policy.max_cost_per_hour * (1 + 1e-9),
        )

    least = min(grade(row) for row in rows)
    rows = [row for row in rows if grade(row) == least]
    if least[0]:
        rows = _near(rows, [row.utilization for row in rows], 0.01)
        order = ("cost", "p95")
    elif least[1] or (policy.prefer is Preference.LATENCY and not any(least)):
        rows = _near(rows, [row.p95 for row in rows], 0.03)
        order = ("cost", "p95")
    else:
        if policy.prefer is Preference.PRIVACY and not any(least):
            rows = _near(rows, [-float(row.exit_cut) for row in rows], 0.0)
        rows = _near(rows, [row.cost for row in rows], 0.02)
        order = ("p95", "cost")
    for name in (*order, "replicas"):
        rows = _near(rows, [float(getattr(row, name)) for row in rows], 1e-9)
    return rows[0]


def _near(rows: list[Row], values: list[float], tolerance: float) -> list[Row]:
    least = min(values)
    if math.isinf(least):
        return rows
    return [row for row, value in zip(rows, values, strict=True) if value <= least + abs(least) * tolerance]


def _counts(tier: Tier) -> range:
    high = min(tier.max_replicas, tier.slots) if tier.ready_nodes else 0
    return range(min(high, max(1, tier.min_replicas)), high + 1) if high else range(0)


def _may_hold(snapshot: Snapshot, policy: Policy, tier: Tier, first: int, last: int) -> bool:
    if policy.raw_input_stays_trusted and not tier.trusted and first == 0:
        return False
    need = snapshot.profile.resident_bytes(tier.device_class, first, last)
    return tier.memory_limit_bytes is None or need <= tier.memory_limit_bytes


def _row(
    snapshot: Snapshot, policy: Policy, stages: tuple[tuple[str, int, int, int], ...], codecs: tuple[str, ...]
) -> Row:
    profile = snapshot.profile
    tiers = {tier.name: tier for tier in snapshot.tiers}
    rate = max(0.01, known(snapshot.arrival_rate) or 0.0)
    cost, fixed = 0.0, 0.0
    stations: list[tuple[float, float, int]] = []
    path: list[tuple[str, str]] = []
    answer = profile.cuts[-1].wire_bytes["fp32"]
    at = policy.gateway_tier
    for k, (name, first, last, count) in enumerate(stages):
        tier, profiled = tiers[name], profile.devices[tiers[name].device_class]
        if at != name:
            size = profile.cuts[first].wire_bytes[codecs[k - 1] if k else "fp32"]
            bandwidth, delay = _link(snapshot, at, name)
            stations.append((size / bandwidth, 0.0, 1))
            fixed += delay
            cost += size * rate * 3600 / 2**30 * tiers[at].egress_price_per_gib
            path.append((name, at))
        compute = profiled.range_seconds(first, last) * snapshot.speed_corrections.get(name, 1.0)
        service = compute + profiled.overhead_seconds
        if k > 0:
            service += (
                profiled.codec_times[codecs[k - 1]].decode_seconds_per_byte * profile.cuts[first].wire_bytes["fp32"]
            )
        if k + 1 < len(stages):
            service += profiled.codec_times[codecs[k]].encode_seconds_per_byte * profile.cuts[last].wire_bytes["fp32"]
        stations.append((service, profiled.time_cv, count))
        cost += count * (known(tier.price_per_hour) or 0.0)
        at = name
    for source, target in reversed(path):
        bandwidth, delay = _link(snapshot, source, target)
        stations.append((answer / bandwidth, 0.0, 1))
        fixed += delay
        cost += answer * rate * 3600 / 2**30 * tiers[source].egress_price_per_gib
    p95, utilization = respond(stations, fixed, rate, snapshot.arrival_scv)
    leaves = next((first for name, first, _, _ in stages if not tiers[name].trusted), profile.segments)
    return Row(stages, codecs, p95, cost, utilization, leaves)


def _link(snapshot: Snapshot, source: str, target: str) -> tuple[float, float]:
    found = {(link.source, link.target): link for link in snapshot.links}
    link = found.get((source, target)) or found[target, source]
    return known(link.bandwidth_bytes_per_second) or 1.0, known(link.delay_seconds) or 0.0


def respond(stations: list[tuple[float, float, int]], fixed: float, rate: float, scv: float) -> tuple[float, float]:
    """95th percentile and highest utilisation of a line of (service, coefficient of variation, servers) stations."""
    busiest = max(rate * service / servers for service, _, servers in stations)
    if busiest >= 1:
        return math.inf, busiest
    waits = [_wait(*station, rate, scv) for station in stations]
    spreads = [(cv * service) ** 2 for service, cv, _ in stations]
    coupling = min(1.0, math.sqrt(sum(spreads) / sum(service**2 for service, _, _ in stations)))
    mean, variance, third = (
        max(cumulant) + coupling * (sum(cumulant) - max(cumulant)) for cumulant in zip(*waits, strict=True)
    )
    mean += fixed + sum(service for service, _, _ in stations)
    variance += sum(spreads)
    third += sum(2 * cv**4 * service**3 for service, cv, _ in stations)
    deviation = math.sqrt(variance)
    skew = min(2.585, third / (deviation**3 + 1e-300))
    p95 = mean + deviation * (1.6449 + skew * (0.2880 - 0.0557 * skew))
    fraction, exponent = math.frexp(p95)
    return math.ceil(fraction * 2**9) * 2.0 ** (exponent - 9), busiest


def _wait(service: float, cv: float, servers: int, rate: float, scv: float) -> tuple[float, float, float]:
    """Mean, variance and third cumulant of one station's wait, as its 95th percentile feels them."""
    load, cs = rate * service / servers, cv**2
    erlang = _erlang_c(servers, load)
    both = scv + cs + 1e-12
    wait = erlang * service / (servers * (1 - load)) * both / 2
    ratio = 0.0
    if scv < 1:
        wait *= math.exp(-2 * (1 - load) * (1 - scv) ** 2 / (3 * max(erlang, 1e-12) * both))
        ratio = (1 + scv + load * cs) / (1 + load * (cs - 1) + load**2 * (4 * scv + cs))
    elif scv > 1:
        wait *= math.exp(-(1 - load) * (scv - 1) / (scv + 4 * cs))
        ratio = 4 * load / (scv + load**2 * (4 * scv + cs))
    else:
        wait = erlang * service / (servers * (1 - load)) * (1 + cs) / 2
    chance = min(1.0, max(1e-6, erlang * (1 + (scv - 1) * (1 - load) * ratio)))
    d3 = 3 * cs * (1 + cs) if cs >= 1 else (2 * cs + 1) * (cs + 1)
    cd = max(0.0, 2 * load - 1 + 4 * (1 - load) * d3 / (3 * (cs + 1) ** 2))
    second = chance * (wait / chance) ** 2 * (1 + cd)
    cube = chance * (wait / chance) ** 3 * (1 + cd) * (1 + 2 * cd)
    variance = second - wait**2
    third = cube - 3 * wait * second + 2 * wait**3
    excess = third / (variance**1.5 + 1e-300) - 2.585
    if excess > 0:
        variance *= math.exp(-(excess**2) / 26)
        third = 2.585 * variance**1.5
    return wait, variance, third


def _erlang_c(servers: int, load: float) -> float:
    """Erlang's C, by linear interpolation between loads in steps of 1/1024."""
    place = int(load * STEPS)
    left, right = (_exact_erlang_c(servers, step / STEPS) for step in (place, place + 1))
    return left + (right - left) * (load * STEPS - place)


def _exact_erlang_c(servers: int, load: float) -> float:
    blocking = 1.0
    for count in range(1, servers + 1):
        offered = load * servers
        blocking = offered * blocking / (count + offered * blocking)
    return blocking / (1 - load * (1 - blocking))

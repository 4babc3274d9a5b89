"""The planner's answers once more in plain Python: every plan in turn, one number at a time, nothing vectorised.

Slow and obvious on purpose. Tests hold the planner against it; the benchmark takes it as a baseline.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product

from splitplane.domain.measurements import known
from splitplane.domain.snapshots import Policy, Preference, Snapshot, Tier

STEPS = 1024


Station = tuple[float, float, int, float, float, float]
"""Service of a request that passes the whole line and its coefficient of variation, servers, the share of requests that
comes here, and their service and its coefficient of variation."""


@dataclass(frozen=True)
class Row:
    stages: tuple[tuple[str, int, int, int], ...]  # tier, first, last, replicas
    codecs: tuple[str, ...]
    p95: float
    cost: float
    utilization: float
    leak: float
    loss: int
    uses: tuple[int, ...] = ()  # stages with pay-per-use

    @property
    def traits(self) -> tuple[float, ...]:
        return (round(self.cost, 12), self.p95, self.leak, self.loss)


def search(snapshot: Snapshot, policy: Policy) -> Row | None:
    """The best plan within the utilisation ceiling, by full enumeration (all metrics known, no active plan)."""
    rows = frontier(snapshot, policy)
    return choose(rows, policy) if rows else None


def frontier(snapshot: Snapshot, policy: Policy) -> list[Row]:
    """The plans within the utilisation ceiling that no other beats or equals in cost, p95, leak and loss."""
    ceiling = policy.max_utilization * (1 + 1e-9)
    return pareto([row for row in enumerate_rows(snapshot, policy) if row.utilization <= ceiling])


def pareto(rows: list[Row]) -> list[Row]:
    """Rows that no other beats or equals in cost, p95, leak and loss."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: row.traits):
        if not any(all(a <= b for a, b in zip(other.traits, row.traits, strict=True)) for other in kept):
            kept.append(row)
    return kept


def enumerate_rows(snapshot: Snapshot, policy: Policy) -> Iterator[Row]:
    """Every plan over tiers in the order of the resource, the gateway's first, that trust, memory and links allow."""
    end = snapshot.profile.segments
    home = next(tier for tier in snapshot.tiers if tier.name == policy.gateway_tier)
    order = [home, *(tier for tier in snapshot.tiers if tier is not home)]
    linked = {frozenset((link.source, link.target)) for link in snapshot.links}
    usable = [tier for tier in order if tier.ready_nodes and tier.slots]
    for count in range(1, policy.max_partitions + 1):
        lines = list(combinations(usable, count))
        if count == 3 and policy.allow_return:
            lines += [(first, other, first) for first, other in combinations(usable, 2)]
        for tiers in lines:
            hops = [{a, b} for a, b in pairwise((home.name, *(tier.name for tier in tiers))) if a != b]
            if not all(frozenset(hop) in linked for hop in hops):
                continue
            for cuts in combinations(range(1, end), count - 1):
                bounds = (0, *cuts, end)
                held = zip(tiers, bounds, bounds[1:], strict=False)
                if not all(_may_hold(snapshot, policy, tier, first, last) for tier, first, last in held):
                    continue
                offered = [[c for c in policy.codecs if c in snapshot.profile.cuts[cut].wire_bytes] for cut in cuts]
                for codecs, uses in product(product(*offered), _uses(tiers)):
                    for counts in _counts(tiers, uses):
                        stages = tuple(
                            (tier.name, first, last, replicas)
                            for tier, first, last, replicas in zip(tiers, bounds, bounds[1:], counts, strict=False)
                        )
                        row = _row(snapshot, policy, stages, codecs, uses)
                        if row is not None:
                            yield row


def choose(rows: list[Row], policy: Policy) -> Row:
    def grade(row: Row) -> tuple[bool, bool]:
        return (
            policy.max_p95_seconds is not None and not row.p95 <= policy.max_p95_seconds * (1 + 1e-9),
            policy.max_cost_per_hour is not None and row.cost > policy.max_cost_per_hour * (1 + 1e-9),
        )

    least = min(grade(row) for row in rows)
    rows = [row for row in rows if grade(row) == least]
    if least[0] or (policy.prefer is Preference.LATENCY and not any(least)):
        rows = _near(rows, "p95", 0.03)
        order = ("cost", "p95")
    else:
        if policy.prefer is Preference.PRIVACY and not any(least):
            rows = _near(rows, "leak", 0.0)
        rows = _near(rows, "cost", 0.02)
        order = ("p95", "cost")
    for name in (*order, "loss", "leak"):
        rows = _near(rows, name, 1e-9)
    return rows[0]


def _near(rows: list[Row], name: str, tolerance: float) -> list[Row]:
    least = min(getattr(row, name) for row in rows)
    return [row for row in rows if getattr(row, name) <= least + abs(least) * tolerance]


def _uses(tiers: tuple[Tier, ...]) -> list[tuple[int, ...]]:
    """Sets of stages with pay-per-use: none, the first, the last, or both, where tiers offer it."""
    if len({tier.name for tier in tiers}) < len(tiers):
        return [()]
    ends = sorted({0, len(tiers) - 1})
    able = [k for k in ends if tiers[k].pay_per_use is not None]
    return [chosen for count in range(len(able) + 1) for chosen in combinations(able, count)]


def _counts(tiers: tuple[Tier, ...], uses: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Replicas of the stages: each tier has no fewer than its minimum, and no more than it may and can hold."""
    high = {tier.name: min(tier.max_replicas, tier.slots) for tier in tiers}
    for counts in product(*(range(0 if k in uses else 1, high[tier.name] + 1) for k, tier in enumerate(tiers))):
        held = {tier.name: 0 for tier in tiers}
        for tier, count in zip(tiers, counts, strict=True):
            held[tier.name] += count
        if all(min(tier.min_replicas, high[tier.name]) <= held[tier.name] <= high[tier.name] for tier in tiers):
            yield counts


def _may_hold(snapshot: Snapshot, policy: Policy, tier: Tier, first: int, last: int) -> bool:
    if policy.raw_input_stays_trusted and not tier.trusted and first == 0:
        return False
    need = snapshot.profile.resident_bytes(tier.device_class, first, last)
    return tier.memory_limit_bytes is None or need <= tier.memory_limit_bytes


def _row(
    snapshot: Snapshot, policy: Policy, stages: tuple[tuple[str, int, int, int], ...], codecs: tuple[str, ...],
    uses: tuple[int, ...],
) -> Row | None:  # fmt: skip
    profile = snapshot.profile
    tiers = {tier.name: tier for tier in snapshot.tiers}
    rate = max(0.01, known(snapshot.arrival_rate) or 0.0)
    cost, fixed, leak, loss = 0.0, 0.0, 0.0, 0
    stations: list[Station] = []
    alone: list[tuple[float, float]] = []
    path: list[tuple[str, str, float]] = []
    crossed: dict[tuple[str, str], list[int]] = {}
    answer = profile.cuts[-1].wire_bytes["fp32"]
    at = policy.gateway_tier
    for k, (name, first, last, count) in enumerate(stages):
        tier, profiled = tiers[name], profile.devices[tiers[name].device_class]
        codec = codecs[k - 1] if k else "fp32"
        come = _reach(snapshot, first)
        if at != name:
            size = profile.cuts[first].wire_bytes[codec]
            bandwidth, delay = _link(snapshot, at, name)
            crossed.setdefault((at, name), []).append(len(stations))
            stations.append((size / bandwidth, 0.0, 1, come, size / bandwidth, 0.0))
            fixed += delay
            cost += size * come * rate * 3600 / 2**30 * tiers[at].egress_price_per_gib
            path.append((name, at, come))
        if at != name and not tier.trusted:
            measured = profile.cuts[first].leakage.get(codec)
            shown = 1.0 if first == 0 else 1.0 - first / profile.segments if measured is None else measured
            leak = max(leak, shown)
            if policy.max_leak is not None and (shown > policy.max_leak or (first > 0 and measured is None)):
                return None
        slower = snapshot.speed_corrections.get(name, 1.0)
        overhead = max(
            0.1 * profiled.overhead_seconds, profiled.overhead_seconds + snapshot.offset_corrections.get(name, 0.0)
        )
        service, decode, encode = profiled.range_seconds(first, last) * slower + overhead, 0.0, 0.0
        full = profile.cuts
        if k > 0:
            decode = profiled.codec_times[codec].decode_seconds_per_byte * full[first].wire_bytes["fp32"]
            loss += _loss(snapshot, codec, first)
            if policy.max_accuracy_loss is not None and not _loss_known(snapshot, codec, first):
                return None
        if k + 1 < len(stages):
            encode = profiled.codec_times[codecs[k]].encode_seconds_per_byte * full[last].wire_bytes["fp32"]
        service += decode + encode
        # Who leaves at an inner cut has run up to it, and hands nothing on.
        stay = [_reach(snapshot, cut) / come for cut in range(first, last + 1)]
        ends = [(first + k + 1, stay[k] - stay[k + 1]) for k in range(last - first - 1)]
        ends.append((last, stay[-2]))
        times = [(profiled.range_seconds(first, cut) * slower, share) for cut, share in ends]
        on = stay[-1] if last < profile.segments else 0.0
        mean = sum(seconds * share for seconds, share in times)
        spread = sum(seconds**2 * share for seconds, share in times) - mean**2
        seen = mean + overhead + decode + encode * on
        seen_cv = math.sqrt(profiled.time_cv**2 + max(0.0, spread) / seen**2)
        cost += count * (known(tier.price_per_hour) or 0.0)
        if k in uses and (terms := tier.pay_per_use) is not None:
            lost = _overflow(count, rate * come * seen, snapshot.arrival_scv)
            per_request = terms.price_per_request + terms.price_per_second * (seen + terms.extra_seconds)
            cost += 3600 * rate * come * lost * per_request
            fixed += terms.extra_seconds * min(1.0, 20 * lost)
            alone.append((service, profiled.time_cv))
        else:
            stations.append((service, profiled.time_cv, count, come, seen, seen_cv))
        at = name
    for source, target, come in reversed(path):
        bandwidth, delay = _link(snapshot, source, target)
        crossed.setdefault((source, target), []).append(len(stations))
        stations.append((answer / bandwidth, 0.0, 1, come, answer / bandwidth, 0.0))
        fixed += delay
        cost += answer * come * rate * 3600 / 2**30 * tiers[source].egress_price_per_gib
    twice = [places for places in crossed.values() if len(places) == 2]
    for one, other in twice:
        # Two crossings in the same direction: every request queues among both kinds.
        a, b = stations[one][0], stations[other][0]
        for place in (one, other):
            stations[place] = (stations[place][0], 0.0, 1, 2.0, (a + b) / 2, abs(a - b) / (a + b))
    if policy.max_accuracy_loss is not None and loss * 0.001 > policy.max_accuracy_loss * (1 + 1e-9):
        return None
    p95, utilization = respond(stations, alone, fixed, rate, snapshot.arrival_scv, twice)
    return Row(stages, codecs, p95, cost, utilization, leak, loss, uses)


def _reach(snapshot: Snapshot, cut: int) -> float:
    return snapshot.reach[cut] if snapshot.reach else 1.0


def _overflow(servers: int, offered: float, scv: float) -> float:
    """Erlang's B by Hayward's approximation, between whole numbers of servers linear in the logarithm."""
    z = (1 + scv) / 2
    below = math.floor(servers / z)
    low = high = 1.0
    for count in range(1, below + 2):
        low, high = high, offered / z * high / (count + offered / z * high)
    part = servers / z - below
    return float(low ** (1 - part) * high**part)


def _loss(snapshot: Snapshot, codec: str, cut: int) -> int:
    """Accuracy loss in steps of 0.001, rounded up; where it is not measured, the codec's rounding step."""
    value = snapshot.profile.cuts[cut].accuracy_loss.get(codec)
    if value is None:
        value = {"fp32": 0.0, "fp16": 2.0**-11, "int8": 2.0**-8}[codec]
    return max(0, math.ceil(value / 0.001 - 1e-9))


def _loss_known(snapshot: Snapshot, codec: str, cut: int) -> bool:
    return codec == "fp32" or codec in snapshot.profile.cuts[cut].accuracy_loss


def _link(snapshot: Snapshot, source: str, target: str) -> tuple[float, float]:
    found = {(link.source, link.target): link for link in snapshot.links}
    link = found.get((source, target)) or found[target, source]
    return known(link.bandwidth_bytes_per_second) or 1.0, known(link.delay_seconds) or 0.0


def respond(
    stations: list[Station], alone: list[tuple[float, float]], fixed: float, rate: float, scv: float,
    twice: Sequence[Sequence[int]] = (),
) -> tuple[float, float]:  # fmt: skip
    """95th percentile and highest utilisation of a line of stations, and of (service, coefficient of variation) where
    nobody queues. Places in the line of stations that are the same one are told by ``twice``."""
    busiest = max((rate * share * seen / servers for _, _, servers, share, seen, _ in stations), default=0.0)
    if busiest >= 1:
        return math.inf, busiest
    waits = [_wait(seen, cv, servers, rate * share, scv) for _, _, servers, share, seen, cv in stations]
    for one, other in twice:
        mean, variance, third = waits[one]
        waits[one], waits[other] = (2 * mean, 2 * variance, 2 * third), (0.0, 0.0, 0.0)
    waits = waits or [(0.0, 0.0, 0.0)]
    services = [*((service, cv) for service, cv, *_ in stations), *alone]
    spreads = [(cv * service) ** 2 for service, cv in services]
    coupling = min(1.0, math.sqrt(sum(spreads) / sum(service**2 for service, _ in services)))
    mean, variance, third = (
        max(cumulant) + coupling * (sum(cumulant) - max(cumulant)) for cumulant in zip(*waits, strict=True)
    )
    mean += fixed + sum(service for service, _ in services)
    variance += sum(spreads)
    third += sum(2 * cv**4 * service**3 for service, cv in services)
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

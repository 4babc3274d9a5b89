"""The search against full enumerations in plain Python, and against the minimum cut where that is exact."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitplane.domain.measurements import Value
from splitplane.domain.plans import Plan, Stage
from splitplane.domain.profiles import CodecTimes, DeviceProfile, Profile
from splitplane.domain.snapshots import Link, PayPerUse, Policy, Preference, Snapshot, Tier
from splitplane.planner import cover as covering
from splitplane.planner import plan
from splitplane.planner import search as searching
from splitplane.planner.bars import CHEAPEST, FASTEST, Aim
from splitplane.planner.choice import pick
from splitplane.planner.context import ContradictionError, build_context
from splitplane.planner.cover import Cover
from splitplane.planner.evaluation import assess, weighed_key
from splitplane.planner.frontier import contenders, frontier_of_lines, in_the_running
from splitplane.planner.pareto import nondominated
from tests.support.planner_cases import MEBIBYTE, POLICY, SNAPSHOT, cut
from tests.support.planner_random import random_case
from tests.support.planner_reference import choose, enumerate_rows, frontier, pareto, search


def assert_exact(snapshot: Snapshot, policy: Policy, name: str = "") -> int:
    """The planner's frontier holds the same costs, latencies, leaks and losses as the enumerated one. How many?"""
    context = build_context(snapshot, policy)
    found = frontier_of_lines(context, context.rate)
    mine = sorted(zip(found.cost, found.p95, found.leak, found.loss, strict=True))
    theirs = sorted(row.traits for row in frontier(snapshot, policy))
    assert len(mine) == len(theirs), name
    if theirs:
        np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-9, atol=1e-12, err_msg=name)
    return len(theirs)


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By branch and bound alone, however few plans there are."""
    monkeypatch.setattr(searching, "_FEW", 0)


@pytest.mark.parametrize("batch", range(10))
@pytest.mark.usefixtures("bounded")
def test_the_frontier_of_a_thousand_random_pipelines_is_that_of_a_full_enumeration(batch: int):
    sizes = [assert_exact(*random_case(seed), f"seed {seed}") for seed in range(100 * batch, 100 * (batch + 1))]
    assert np.mean(np.array(sizes) > 1) > 0.4, "too few of the cases have a choice"


def coming_back(seed: int) -> tuple[Snapshot, Policy]:
    """A random pipeline whose plans may come back to a tier. Edges are good at the first and the last segment, other
    tiers at those between."""
    snapshot, policy = random_case(seed)
    rng, profile = random.Random(seed), snapshot.profile

    def specialised(device: DeviceProfile) -> DeviceProfile:
        ends = {0, profile.segments - 1}
        better = [(place in ends) == (device.device_class == "edge") for place in range(profile.segments)]
        times = np.diff(device.prefix_seconds) * np.where(better, 0.2, 1.5)
        return replace(device, prefix_seconds=(0.0, *np.cumsum(times).tolist()))

    devices = {name: specialised(device) for name, device in profile.devices.items()}
    tiers = tuple(replace(tier, ready_nodes=1, min_replicas=rng.randint(0, 3)) for tier in snapshot.tiers)
    faster = tuple(replace(link, bandwidth_bytes_per_second=Value(10 ** rng.uniform(6, 8))) for link in snapshot.links)
    snapshot = replace(snapshot, tiers=tiers, links=faster, profile=replace(profile, devices=devices))
    return snapshot, replace(policy, max_partitions=3, allow_return=True)


@pytest.mark.parametrize(("batch", "few"), [(0, 0), (1, 0), (2, searching._FEW)])
def test_the_frontier_of_plans_that_may_come_back_is_that_of_a_full_enumeration(
    batch: int, few: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(searching, "_FEW", few)
    sizes, back = [], 0
    for seed in range(40_000 + 50 * batch, 40_000 + 50 * (batch + 1)):
        case = coming_back(seed)
        sizes.append(assert_exact(*case, f"seed {seed}"))
        context = build_context(*case)
        found = frontier_of_lines(context, context.rate)
        back += any(len(table.layout.tiers) > len(set(table.layout.tiers)) for table in found.tables)
    assert np.mean(np.array(sizes) > 1) > 0.4
    assert back > 10, f"too few of the cases come back: {back}"


def with_use(seed: int) -> tuple[Snapshot, Policy]:
    """A random pipeline, some of whose tiers offer capacity that is paid by the use."""
    snapshot, policy = random_case(seed)
    rng = random.Random(seed)
    hourly = {tier.name: known_price(tier) for tier in snapshot.tiers}

    def offer(tier: Tier) -> PayPerUse | None:
        if rng.random() < 0.3:
            return None
        # A replica that is busy all the time costs from a tenth to twice of what the same use does.
        second = hourly[tier.name] / 3600.0 * rng.uniform(0.5, 10.0)
        by_time = rng.random() < 0.5
        return PayPerUse(0.0 if by_time else 0.1 * second, second if by_time else 0.0, rng.choice((0.0, 0.05, 0.3)))

    return replace(snapshot, tiers=tuple(replace(tier, pay_per_use=offer(tier)) for tier in snapshot.tiers)), policy


def known_price(tier: Tier) -> float:
    return max(0.02, tier.price_per_hour.value) if isinstance(tier.price_per_hour, Value) else 0.1


@pytest.mark.parametrize("batch", range(4))
@pytest.mark.usefixtures("bounded")
def test_the_frontier_with_pay_per_use_is_that_of_a_full_enumeration(batch: int):
    sizes, paid = [], 0
    for seed in range(20_000 + 50 * batch, 20_000 + 50 * (batch + 1)):
        case = with_use(seed)
        sizes.append(assert_exact(*case, f"seed {seed}"))
        context = build_context(*case)
        found = frontier_of_lines(context, context.rate)
        paid += any(table.layout.pay_per_use for table in found.tables)
    assert np.mean(np.array(sizes) > 1) > 0.4
    assert paid > 10, "too few of the cases use what they offer"


@pytest.mark.parametrize("batch", range(4))
@pytest.mark.usefixtures("bounded")
def test_the_frontier_of_models_with_early_exits_is_that_of_a_full_enumeration(batch: int):
    sizes = []
    for seed in range(30_000 + 50 * batch, 30_000 + 50 * (batch + 1)):
        snapshot, policy = with_use(seed) if seed % 2 else random_case(seed)
        rng = random.Random(seed)
        reach = [1.0]
        while len(reach) < len(snapshot.profile.cuts):
            reach.append(reach[-1] * rng.choice((1.0, rng.uniform(0.3, 1.0))))
        sizes.append(assert_exact(replace(snapshot, reach=tuple(reach)), policy, f"seed {seed}"))
    assert np.mean(np.array(sizes) > 1) > 0.4


def test_where_half_of_the_requests_leave_at_the_cut_the_link_bears_twice_as_many():
    split = Plan((Stage("edge", 0, 1, 0, 6, 8), Stage("cloud", 1, 6, 1, 6, 4)), ("fp32",))
    poisson = replace(SNAPSHOT, arrival_scv=1.0)
    cases = poisson, replace(poisson, reach=(1.0,) + (0.5,) * 6)
    everyone, some = (assess(build_context(case, POLICY), split).predicted for case in cases)
    assert some.max_rate_per_second == pytest.approx(2.0 * everyone.max_rate_per_second)
    assert some.p95_seconds < everyone.p95_seconds
    egress = everyone.cost_per_hour - 8 * 0.05 - 4 * 0.30
    assert some.cost_per_hour == pytest.approx(everyone.cost_per_hour - egress / 2.0)


@pytest.mark.parametrize("reach", [(1.0, 0.5), (0.9,) * 7, (1.0, 0.5, 0.6, 0.5, 0.5, 0.5, 0.5), (1.0,) * 6 + (0.0,)])
def test_shares_that_can_be_none_of_requests_on_their_way_are_refused(reach: tuple[float, ...]):
    with pytest.raises(ContradictionError, match="reach must hold a share for each of 7 cuts"):
        plan(replace(SNAPSHOT, reach=reach), POLICY, 0.0)


def test_the_best_of_all_plans_with_pay_per_use_is_the_best_of_the_frontier():
    for seed in range(21_000, 21_080):
        snapshot, policy = with_use(seed)
        context = build_context(snapshot, policy)
        whole, found = contenders(context, context.rate, Aim.of(policy)), frontier_of_lines(context, context.rate)
        assert bool(len(whole)) == bool(len(found)), seed
        if len(found):
            picked, best = (each.candidate(context, pick(policy, each)) for each in (whole, found))
            assert picked.predicted.cost_per_hour == pytest.approx(best.predicted.cost_per_hour, rel=1e-9), seed
            assert picked.predicted.p95_seconds == best.predicted.p95_seconds, seed


def test_the_best_of_all_plans_that_carry_the_load_is_the_best_of_the_frontier():
    """Where few plans exist the planner picks among all of them, and never filters."""
    compared = 0
    for seed in range(200):
        snapshot, policy = random_case(seed)
        context = build_context(snapshot, policy)
        whole, found = contenders(context, context.rate, Aim.of(policy)), frontier_of_lines(context, context.rate)
        assert bool(len(whole)) == bool(len(found)), seed
        if len(found):
            picked, best = (each.candidate(context, pick(policy, each)) for each in (whole, found))
            assert picked == best, seed
            compared += len(whole) > len(found)
    assert compared > 50


@pytest.mark.parametrize("case", [random_case, with_use])
def test_a_plan_that_was_weighed_among_all_is_predicted_as_it_is_alone(case: Callable[[int], tuple[Snapshot, Policy]]):
    """Also where its stations can't carry the load, and where tiers can't hold all its replicas now."""
    read = 0
    for seed in range(60):
        snapshot, policy = case(seed)
        among, alone = build_context(snapshot, policy), build_context(snapshot, policy)
        contenders(among, among.rate, Aim.of(policy))
        weighed = among.kept.result(weighed_key(among, among.rate))
        for table in weighed.tables if weighed else ():
            for row in range(0, len(table.layout), 3):
                fewer = table.layout.plan(alone, row)
                more = replace(fewer, stages=tuple(replace(each, replicas=99) for each in fewer.stages))
                for each in (fewer, more):
                    assert assess(among, each) == assess(alone, each), seed
                    read += 1
    assert read > 500


@pytest.mark.parametrize(("few", "chunk", "sample"), [(0, 7, 3), (0, 2, 1), (100_000, 100_000, 1)])
def test_in_which_portions_the_search_looks_at_plans_changes_nothing(
    few: int, chunk: int, sample: int, monkeypatch: pytest.MonkeyPatch
):
    for name, value in (("_FEW", few), ("_CHUNK", chunk), ("_SAMPLE", sample)):
        monkeypatch.setattr(searching, name, value)
    monkeypatch.setattr(covering, "_WORTH_SPREADING", chunk)
    for seed in range(5000, 5150):
        assert_exact(*random_case(seed), f"seed {seed}")


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("seed", range(3))
def test_the_frontier_over_three_partitions_with_six_replicas_each_is_exact(seed: int):
    rng = random.Random(seed)
    snapshot, policy = random_case(seed)
    devices = {
        name: DeviceProfile(name, tuple(0.02 * k * speed for k in range(8)), 0.1, 1e-3, {}, MEBIBYTE)
        for name, speed in (("edge", 1.0), ("fog", 0.5), ("cloud", 0.2))
    }
    sizes = [400_000, *(rng.randint(4_000, 200_000) for _ in range(6)), 4_000]
    profile = replace(
        snapshot.profile, cuts=tuple(cut(index, 4 * (size // 4)) for index, size in enumerate(sizes)),
        weight_bytes=(MEBIBYTE,) * 7, devices={name: with_codecs(device) for name, device in devices.items()},
    )  # fmt: skip
    tiers = tuple(
        Tier(name, name, name == "edge", 0, 6, Value(price), 0.09, None, 6, 1)
        for name, price in (("edge", 0.05), ("fog", 0.1), ("cloud", 0.3))
    )
    links = tuple(
        Link(*ends, Value(4e6), Value(0.005)) for ends in (("edge", "fog"), ("fog", "cloud"), ("edge", "cloud"))
    )
    snapshot = replace(snapshot, profile=profile, tiers=tiers, links=links, arrival_rate=Value(12.0), arrival_scv=1.0)
    policy = Policy(codecs=("fp32", "int8"), max_partitions=3, gateway_tier="edge")
    assert assert_exact(snapshot, policy) > 20


def with_codecs(device: DeviceProfile) -> DeviceProfile:
    return replace(device, codec_times={name: CodecTimes(5e-10, 4e-10) for name in ("fp32", "fp16", "int8")})


@pytest.mark.parametrize("batch", range(4))
def test_the_choice_is_that_of_a_full_enumeration(batch: int):
    for seed in range(100 * batch, 100 * (batch + 1)):
        case = random_case(seed)
        best, decision = search(*case), plan(*case, 0.0)
        if best is None:
            continue
        assert decision.target.predicted.p95_seconds == best.p95, f"seed {seed}"
        assert decision.target.predicted.cost_per_hour == pytest.approx(best.cost, rel=1e-9)
        assert decision.target.predicted.max_rate_per_second == pytest.approx(
            known_rate(case[0]) * 0.7 / best.utilization, rel=1e-9
        )


def test_with_a_plan_set_aside_the_choice_is_the_best_of_all_others():
    compared = 0
    for seed in range(150):
        snapshot, policy = random_case(seed)
        first = plan(snapshot, policy, 0.0).target
        if first is None or "utilization" in first.violations:
            continue
        stages = tuple((stage.tier, stage.first, stage.last, stage.replicas) for stage in first.plan.stages)
        others = [
            row for row in enumerate_rows(snapshot, policy) if (row.stages, row.codecs) != (stages, first.plan.codecs)
        ]
        rest = pareto([row for row in others if row.utilization <= 0.7 * (1 + 1e-9)])
        if rest:
            compared += 1
            second = plan(replace(snapshot, set_aside=frozenset({first.plan.digest})), policy, 0.0).target
            best = choose(rest, policy)
            assert second.predicted.p95_seconds == best.p95, f"seed {seed}"
            assert second.predicted.cost_per_hour == pytest.approx(best.cost, rel=1e-9)
    assert compared > 80


def known_rate(snapshot: Snapshot) -> float:
    assert isinstance(snapshot.arrival_rate, Value)
    return snapshot.arrival_rate.value


@pytest.mark.parametrize("prefer", Preference)
@pytest.mark.parametrize("rate", [0.5, 3.5, 10.5])
def test_the_choice_is_exact_for_the_pitch_tracker(prefer: Preference, rate: float):
    snapshot, policy = replace(SNAPSHOT, arrival_rate=Value(rate), arrival_scv=1.0), replace(POLICY, prefer=prefer)
    best, target = search(snapshot, policy), plan(snapshot, policy, 0.0).target
    assert (target.predicted.p95_seconds, round(target.predicted.cost_per_hour, 9)) == (best.p95, round(best.cost, 9))
    assert target.plan.codecs == best.codecs


def test_where_nothing_carries_the_load_a_plan_that_bears_the_most_is_taken():
    overloads = 0
    for seed in range(300):
        snapshot, policy = random_case(seed)
        snapshot = replace(snapshot, arrival_rate=Value(50.0 * known_rate(snapshot)))
        rows = list(enumerate_rows(snapshot, policy))
        if not rows or search(snapshot, policy) is not None:
            continue
        overloads += 1
        least = min(row.utilization for row in rows)
        target = plan(snapshot, policy, 0.0).target
        assert "utilization" in target.violations
        borne = target.predicted.max_rate_per_second
        assert borne >= known_rate(snapshot) * 0.7 / least * 0.99 * (1 - 1e-9), f"seed {seed}"
    assert overloads > 50


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("batch", range(4))
def test_what_is_left_out_of_the_running_is_never_the_best_plan(batch: int):
    """Whatever is preferred, with limits that all, some or no plans keep."""
    compared, smaller = 0, 0
    for seed in range(40_000 + 60 * batch, 40_000 + 60 * (batch + 1)):
        snapshot, policy = with_use(seed) if seed % 3 == 0 else random_case(seed)
        context = build_context(snapshot, policy)
        found = frontier_of_lines(context, context.rate)
        if not len(found):
            continue
        rng = random.Random(seed)
        p95s, costs = (
            [None, *(factor * float(rng.choice(column)) for factor in (0.1, 1.0, 1.001))]
            for column in (found.p95, found.cost)
        )
        for prefer, p95, cost in product(Preference, p95s, costs):
            wanted = replace(policy, prefer=prefer, max_p95_seconds=p95, max_cost_per_hour=cost)
            running = in_the_running(context, context.rate, Aim.of(wanted))
            best, picked = (each.candidate(context, pick(wanted, each)) for each in (found, running))
            assert picked == best, (seed, prefer, p95, cost)
            compared, smaller = compared + 1, smaller + (len(running) < len(found))
        for aim, column in ((CHEAPEST, "cost"), (FASTEST, "p95")):
            running = in_the_running(context, context.rate, aim)
            assert getattr(running, column).min() == getattr(found, column).min(), seed
    assert smaller > compared // 4


rows = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 8), st.integers(0, 3), st.integers(0, 3)), min_size=0, max_size=60
)


@settings(max_examples=300)
@given(rows)
def test_the_filter_keeps_exactly_the_plans_that_nothing_beats(plans: list[tuple[int, int, int, int]]):
    cost, p95, leak, loss = (np.array(column, dtype=np.float64) for column in np.array(plans).reshape(-1, 4).T)
    kept = nondominated(cost, p95 / 8.0, leak.astype(np.int64), loss.astype(np.int64))
    beaten = {
        plan for plan in plans if any(o != plan and all(a <= b for a, b in zip(o, plan, strict=True)) for o in plans)
    }
    assert sorted({plans[place] for place in kept}) == sorted(set(plans) - beaten)
    assert len(kept) == len(set(plans) - beaten), "of equal plans one is kept"


@pytest.mark.parametrize("seed", range(60))
def test_two_way_splits_equal_the_minimum_cut_of_dads(seed: int):
    """Requests far apart, constant service: latency is a sum, and the best split is a minimum cut."""
    rng = random.Random(seed)
    segments = rng.randint(2, 9)
    edge, cloud = ([rng.uniform(1e-3, 0.05) for _ in range(segments)] for _ in range(2))
    cloud = [seconds * rng.choice((0.1, 0.5, 1.0)) for seconds in cloud]
    # Each segment reads what the one before makes, and some read what earlier ones made, too.
    sources = {s: {s - 1, *(q for q in range(s - 1) if rng.random() < 0.2)} for s in range(1, segments)}
    sizes = [4 * rng.randint(1, 100_000) for _ in range(segments + 1)]  # of the input, then of each segment's output
    bandwidth, delay, coding = 10 ** rng.uniform(6, 8), rng.uniform(0.0, 0.02), CodecTimes(1e-9, 5e-10)

    last_use = {
        source: max([s for s, read in sources.items() if source in read], default=source) for source in range(segments)
    }
    live = [sum(sizes[q + 1] for q in range(at) if last_use[q] >= at) for at in range(1, segments)]
    profile = Profile(
        fingerprint="dag",
        cuts=tuple(cut(index, size) for index, size in enumerate((sizes[0], *live, sizes[-1]))),
        weight_bytes=(1,) * segments,
        activation_bytes=0,
        devices={
            name: DeviceProfile(
                name, tuple(sum(times[:k]) for k in range(segments + 1)), 0.0, 1e-3, {"fp32": coding}, 0
            )
            for name, times in (("edge", edge), ("cloud", cloud))
        },
    )
    tiers = tuple(Tier(name, name, True, 0, 1, Value(0.0), 0.0, None, 1, 1) for name in ("edge", "cloud"))
    snapshot = Snapshot(
        "dag", 0.0, profile, tiers, (Link("edge", "cloud", Value(bandwidth), Value(delay)),), Value(0.05), 0.0
    )
    policy = Policy(gateway_tier="edge", prefer=Preference.LATENCY)

    graph = nx.DiGraph()
    for segment in range(segments):
        # On the edge the cut goes through the arc to the cloud, and the other way round.
        graph.add_edge(segment, "cloud", capacity=edge[segment] + (1e-3 if segment == 0 else 0.0))
        answer = 1e-3 + sizes[-1] / bandwidth + 2.0 * delay if segment == segments - 1 else 0.0
        graph.add_edge("edge", segment, capacity=cloud[segment] + answer)
    graph.add_edge("edge", "input", capacity=sizes[0] / bandwidth)
    graph.add_edge("input", 0)
    per_byte = 1.0 / bandwidth + coding.encode_seconds_per_byte + coding.decode_seconds_per_byte
    for source in range(segments - 1):
        readers = [s for s, read in sources.items() if source in read]
        graph.add_edge(source, ("sent", source), capacity=sizes[source + 1] * per_byte)
        for reader in readers:
            graph.add_edge(("sent", source), reader)
            graph.add_edge(reader, source)  # infinite: nothing that the cloud made comes back to the edge
    seconds, _ = nx.minimum_cut(graph, "edge", "cloud")

    context = build_context(snapshot, policy)
    result = frontier_of_lines(context, context.rate)
    means = [float(mean) for table in result.tables for mean in table.response.mean]
    assert min(means) == pytest.approx(seconds, rel=1e-6)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.floats(1.0, 5.0), st.integers(1, 9), st.integers(0, 5), st.integers(0, 9)), min_size=1),
    st.lists(st.tuples(st.floats(1.0, 9.0), st.integers(1, 9), st.integers(0, 5), st.integers(0, 9)), min_size=1),
)
def test_a_cover_never_claims_more_than_is_known(known: list[tuple[float, ...]], asked: list[tuple[float, ...]]):
    leaks = np.array([plan[2] / 5.0 for plan in (*known, *asked)])
    losses = np.array([plan[3] for plan in (*known, *asked)])
    cover = Cover(leaks, losses, 1.0, 4.0)
    cost, p95, leak, loss = (np.array(column, dtype=np.float64) for column in zip(*known, strict=True))
    cover.add(cover.ceiling(cover.rank(leak / 5.0), loss.astype(np.int64)), cost, p95)
    for plan_cost, plan_p95, plan_leak, plan_loss in asked:
        floor = cover.floor(cover.rank(np.array([plan_leak / 5.0])), np.array([plan_loss]))
        if cover.rules_out(floor, np.array([plan_cost]), np.array([float(plan_p95)]))[0]:
            plan = (plan_cost, plan_p95, plan_leak, plan_loss)
            assert any(all(a <= b for a, b in zip(other, plan, strict=True)) for other in known)

"""Replicas that sites share: how many of them there are, and how a site plans on them."""

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from splitplane.domain.measurements import Value, known
from splitplane.domain.snapshots import Action, FixedPlan, Mode, Policy, Preference, Shared, Snapshot
from splitplane.planner import explain, frontier, plan, plan_sites
from splitplane.planner.bars import COST_TIE
from splitplane.planner.context import build_context
from splitplane.planner.evaluation import assess, evaluate
from splitplane.planner.frontier import frontier_of_layouts, frontier_of_lines
from splitplane.planner.gates import DEAD_BAND
from splitplane.planner.layouts import layout_of
from splitplane.planner.pooling import Pooling, load_on, seen_by, share, size_pool
from splitplane.planner.pools import Pool
from splitplane.planner.site_answers import SitesPlan
from splitplane.planner.stations import stage_seconds, together
from tests.support.planner_batches import shared as with_batches
from tests.support.planner_cases import MEBIBYTE, SNAPSHOT, edge_only, follow, links, serving, split, with_tiers
from tests.support.planner_sites import CHEAP, many_sites

WINDOW = CHEAP.scale_down_window_seconds
EAGER = replace(CHEAP, prefer=Preference.LATENCY)


def site(*, rate: float = 3.5, megabits: float = 50, most: int = 40) -> Snapshot:
    snapshot = replace(SNAPSHOT, links=links(megabits), arrival_rate=Value(rate), arrival_scv=1.0)
    return with_tiers(snapshot, cloud={"max_replicas": most, "slots": most})


def sized(
    sites: Mapping[str, Snapshot], *, policy: Policy = EAGER, now: float = 0.0, before: Pooling | None = None
) -> Pooling:
    return size_pool(sites, policy, now, shared="cloud", before=before or Pooling())


def on(pool: Pool, snapshot: Snapshot, *, busy: float = 0.0) -> Snapshot:
    return seen_by(snapshot, "cloud", Pooling(pool), Shared(pool.first, pool.last, busy, pool.batched))


def measured_in_batches(sites: Mapping[str, Snapshot]) -> dict[str, Snapshot]:
    profile = with_batches(SNAPSHOT.profile)
    return {name: replace(each, profile=profile) for name, each in sites.items()}


TOGETHER = replace(CHEAP, max_batch=8, max_p95_seconds=1.6)
"""A batch may take 400 ms."""
POOL = Pool(1, 6, 2)


def test_a_site_plans_on_all_shared_replicas_at_no_price_and_on_no_more():
    decision = plan(on(POOL, site()), EAGER, 0.0)

    (stage,) = [stage for stage in decision.target.plan.stages if stage.tier == "cloud"]
    assert (stage.resident_first, stage.resident_last, stage.replicas) == (1, 6, 2)
    two: dict[str, object] = {"min_replicas": 2, "max_replicas": 2, "price_per_hour": Value(0.0)}
    own = with_tiers(site(), cloud=two)
    alone = plan(own, EAGER, 0.0).target
    assert decision.target.predicted == alone.predicted
    own_cost = 0.05 * decision.target.plan.replicas("edge")
    assert decision.target.predicted.cost_per_hour == pytest.approx(own_cost, abs=0.01)


def test_what_others_send_makes_requests_wait_and_leaves_room_for_fewer():
    candidate = plan(on(POOL, site()), EAGER, 0.0).target
    context = build_context(on(POOL, site()), EAGER)
    service = load_on(context, candidate.plan, "cloud") / context.rate
    before = candidate.predicted
    p95 = before.p95_seconds
    for busy in (0.3, 0.6, 0.9, 1.2):
        predicted = assess(build_context(on(POOL, site(), busy=busy), EAGER), candidate.plan).predicted
        assert predicted.p95_seconds >= p95
        p95 = predicted.p95_seconds
        room = (EAGER.max_utilization * POOL.replicas - busy) / service
        assert predicted.max_rate_per_second == pytest.approx(min(room, before.max_rate_per_second))
    assert p95 > 1.05 * before.p95_seconds
    full = assess(build_context(on(POOL, site(), busy=1.4), EAGER), candidate.plan)
    assert "utilization" in full.violations
    assert evaluate(build_context(on(POOL, site(), busy=1.4), EAGER), layout_of(context, candidate.plan)).utilization[
        0
    ] == pytest.approx((load_on(context, candidate.plan, "cloud") + 1.4) / POOL.replicas)


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_the_search_finds_among_plans_on_shared_replicas_what_weighing_all_of_them_finds(seed: int, batches: bool):
    rng, policy = random.Random(seed), EAGER
    pool = Pool(rng.randint(1, 4), 6, rng.randint(1, 4))
    busy = rng.uniform(0.0, 0.9 * EAGER.max_utilization * pool.replicas)
    own = site(rate=rng.uniform(0.5, 8.0), megabits=10 ** rng.uniform(-1, 2.5))
    if batches:
        pool = replace(pool, batched=(rng.randint(pool.first, 5), rng.choice(EAGER.codecs)))
        own, policy = measured_in_batches({"": own})[""], replace(EAGER, max_batch=8, max_p95_seconds=1.6)
    snapshot = on(pool, own, busy=busy)
    context = build_context(snapshot, policy)

    plans = [
        replace(split(cut, codec, edge, pool.replicas), stages=tuple(
            replace(stage, resident_first=pool.first, resident_last=pool.last) if stage.tier == "cloud" else stage
            for stage in split(cut, codec, edge, pool.replicas).stages
        ))
        for cut, codec, edge in itertools.product(range(pool.first, 6), EAGER.codecs, range(2, 9))
    ]  # fmt: skip
    layouts = [layout_of(context, each) for each in plans]
    lines = frontier_of_lines(replace(context, tiers={**context.tiers}), context.rate)
    split_only = [table for table in lines.tables if table.layout.tiers == ("edge", "cloud")]
    every = frontier_of_layouts(
        context, [*layouts, *(t.layout for t in lines.tables if t.layout.tiers != ("edge", "cloud"))], context.rate
    )
    found = sorted(zip(lines.p95.tolist(), lines.cost.tolist(), lines.leak.tolist(), lines.loss.tolist(), strict=True))
    best = sorted(zip(every.p95.tolist(), every.cost.tolist(), every.leak.tolist(), every.loss.tolist(), strict=True))
    assert found == best
    for table in split_only:
        assert (table.layout.bounds[1] >= pool.first).all()
        assert np.all(table.layout.replicas[1] == pool.replicas)
    for candidate in frontier(snapshot, policy):
        assert not set(assess(context, candidate.plan).violations) & {"shared", "utilization", "replicas"}


def test_while_nothing_is_shared_a_site_serves_by_itself_and_says_why_if_it_cannot():
    alone = seen_by(site(), "cloud", Pooling(), Shared())
    decision = plan(alone, EAGER, 0.0)
    assert [stage.tier for stage in decision.target.plan.stages] == ["edge"]

    lost = replace(alone, active=serving(split(2)))
    decision = explain(lost, EAGER, 0.0)
    assert (decision.action, decision.reason) == (Action.SWITCH, "SharedReplicasChanged")
    assert "shared" in decision.current.violations


def test_a_site_moves_to_the_replicas_that_keep_another_range_whatever_gates_say():
    snapshot = follow(on(POOL, site()), plan(on(POOL, site()), EAGER, 0.0), 0.0)
    cooling = replace(EAGER, cooldown_seconds=1000.0)
    assert plan(snapshot, cooling, 1.0).action is Action.HOLD

    moved = on(Pool(2, 6, 2), replace(snapshot, tiers=site().tiers))
    decision = plan(moved, cooling, 1.0)
    assert (decision.action, decision.reason) == (Action.SWITCH, "SharedReplicasChanged")
    assert decision.target.plan.stages[-1].resident_first == 2


def test_more_or_fewer_shared_replicas_are_no_change_of_a_sites_plan():
    snapshot = follow(on(POOL, site()), plan(on(POOL, site()), EAGER, 0.0), 0.0)
    grown = on(Pool(1, 6, 3), replace(snapshot, tiers=site().tiers))
    decision = plan(grown, EAGER, 1000.0)
    assert (decision.action, decision.reason) == (Action.HOLD, "UpToDate")
    assert decision.target.plan.replicas("cloud") == 3


def test_the_pool_bears_what_all_sites_are_planned_to_send_with_fewer_replicas_than_each_has_alone():
    sites = {f"site-{number}": site(rate=1.0 + 0.2 * number) for number in range(8)}
    found = sized(sites)
    assert found.loads.keys() == sites.keys()
    assert sum(found.loads.values()) <= EAGER.max_utilization * found.pool.replicas + 1e-9
    separate = [sized({name: each}).pool for name, each in sites.items()]
    assert found.pool.replicas < sum(pool.replicas for pool in separate if pool)
    cheap = many_sites(12, seed=1)
    shared = sized(cheap, policy=CHEAP)
    assert 2 < len(shared.loads) < len(cheap)  # alone, none of them would pay for a replica there
    assert not any(sized({name: each}, policy=CHEAP).pool for name, each in cheap.items())


def test_a_site_more_or_more_load_is_more_replicas_at_once():
    sites = {name: site(rate=6.0) for name in "ab"}
    before = sized(sites)
    more = sized({**sites, "c": site(rate=6.0), "d": site(rate=6.0)}, before=before, now=1.0)
    assert more.pool.replicas > before.pool.replicas
    assert (more.pool.first, more.pool.last) == (before.pool.first, before.pool.last)
    louder = sized({name: site(rate=20.0) for name in sites}, before=before, now=1.0)
    assert louder.pool.replicas > before.pool.replicas


def test_fewer_replicas_come_after_the_window_without_interruption_and_end_in_none():
    sites = {name: site(rate=6.0) for name in "abcd"}
    full = sized(sites)
    few = {name: site(rate=1.0) for name in "a"}
    state = sized(few, before=full, now=10.0)
    assert (state.pool, state.low_since) == (full.pool, 10.0)
    state = sized(sites, before=state, now=10.0 + WINDOW - 1.0)
    assert (state.pool, state.low_since) == (full.pool, None)
    state = sized(few, before=state, now=10.0 + WINDOW)
    assert state.pool == full.pool
    state = sized(few, before=state, now=10.0 + 2 * WINDOW)
    assert state.pool.replicas < full.pool.replicas

    slow = {"a": site(rate=1.0, megabits=0.05)}  # nobody sends anything over such a link
    state = sized(slow, before=state, now=1000.0)
    assert state.pool is not None
    assert not state.loads
    assert sized(slow, before=state, now=1000.0 + WINDOW).pool is None


@pytest.mark.parametrize("prefer", [Preference.COST, Preference.LATENCY])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batches", [False, True])
def test_noise_of_the_loads_never_changes_the_pool_to_and_fro(seed: int, prefer: Preference, batches: bool):
    rng, policy = random.Random(seed), replace(TOGETHER if batches else CHEAP, prefer=prefer)
    sites = measured_in_batches(many_sites(3, seed=seed)) if batches else many_sites(6, seed=seed)
    state, pools = sized(sites, policy=policy), []
    for minute in range(12 if batches else 30):
        noisy = {
            name: replace(
                each, active=serving(edge_only(2)),
                arrival_rate=Value((known(each.arrival_rate) or 0.0) * rng.uniform(0.95, 1.05)),
            ) for name, each in sites.items()
        }  # fmt: skip
        state = sized(noisy, policy=policy, before=state, now=60.0 * minute)
        pools.append(state.pool)
    turns = [pool for pool, _ in itertools.groupby(pools)]
    assert len(turns) == len(set(turns)) <= 3


def test_what_is_resident_stays_as_long_as_it_serves_every_site():
    # Runtime 300, activations 8, weights 4 + 32 + 8 + 8 + 16 + 20 MiB: cuts 3 to 6 fit, 1 to 6 do not.
    tight = {name: with_tiers(site(megabits=5), cloud={"memory_limit_bytes": 355 * MEBIBYTE}) for name in "ab"}
    found = sized(tight)
    assert found.pool.first == 3
    wide = sized({name: site(megabits=5) for name in "ab"})
    assert wide.pool.first == 1
    assert sized(tight, before=wide, now=1.0).pool.first == 3  # it has no such memory
    kept = sized({name: site(megabits=5) for name in "ab"}, before=Pooling(Pool(2, 6, 4)), now=1.0)
    assert kept.pool.first == 2


def test_a_full_tier_keeps_what_is_resident_as_nothing_could_take_over_from_it():
    late = Pooling(Pool(5, 6, 1))
    assert sized({"a": site(most=8)}, before=late).pool.first == 1
    assert sized({"a": site(most=1)}, before=late).pool == late.pool


def test_a_lost_tier_leaves_the_pool_as_it_was():
    before = sized({"a": site()})
    lost = with_tiers(site(), cloud={"ready_nodes": 0})
    assert sized({"a": lost}, before=before).pool == before.pool


def test_a_split_that_is_fixed_is_what_the_pool_is_made_for():
    fixed = FixedPlan((("edge", 0, 4), ("cloud", 4, 6)), ("int8",))
    policy = replace(EAGER, mode=Mode.FIXED, fixed=fixed)
    sites = {name: with_tiers(site(rate=8.0), cloud={"memory_limit_bytes": 350 * MEBIBYTE}) for name in "abc"}
    found = sized(sites, policy=policy)
    assert found.pool.first == 4
    assert found.loads.keys() == sites.keys()
    for name, snapshot in sites.items():
        here = share(found, name, {}, ceiling=policy.max_utilization)
        decision = plan(seen_by(snapshot, "cloud", found, here), policy, 0.0)
        assert [stage.first for stage in decision.target.plan.stages] == [0, 4]


def test_mode_advisory_keeps_the_pool_that_its_plans_were_started_on():
    policy = replace(EAGER, mode=Mode.ADVISORY)
    before = sized({"a": site(rate=2.0)}, policy=policy)
    louder = replace(site(rate=20.0), active=serving(split(1)))
    assert sized({"a": louder}, policy=policy, before=before, now=1.0).pool == before.pool
    fresh = {"a": louder, "b": site(rate=20.0)}
    assert sized(fresh, policy=policy, before=before, now=1.0).pool.replicas > before.pool.replicas


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prefer", [Preference.COST, Preference.LATENCY])
@pytest.mark.parametrize("batches", [False, True])
def test_sites_that_plan_on_the_pool_settle_where_all_keep_their_limits(seed: int, prefer: Preference, batches: bool):
    policy, sites = replace(TOGETHER if batches else CHEAP, prefer=prefer), many_sites(10, seed=seed)
    sites = measured_in_batches(sites) if batches else sites
    state = sized(sites, policy=policy)
    actual: dict[str, float] = {}
    plans = {}
    for name, snapshot in sites.items():
        here = share(state, name, actual, ceiling=policy.max_utilization)
        decision = plan(seen_by(snapshot, "cloud", state, here), policy, 0.0)
        plans[name] = decision.target
        context = build_context(snapshot, policy)
        batched = state.pool.batched if state.pool else None
        actual[name] = load_on(context, decision.target.plan, "cloud", batched=batched)
    alone = {name for name, each in sites.items() if plan(each, policy, 0.0).target.violations}
    assert {name for name, each in plans.items() if each.violations} <= alone
    held = state.pool.replicas if state.pool else 0
    assert sum(actual.values()) <= policy.max_utilization * held * (1 + 1e-6)
    assert {name for name in state.loads if not actual[name]} <= alone


def test_a_site_counts_what_others_send_or_are_planned_to_but_has_what_it_is_planned_to_send():
    state = Pooling(Pool(1, 6, 10), {"a": 2.0, "b": 1.0})
    actual = {"a": 0.0, "b": 2.0, "c": 0.5, "d": 0.25}
    assert share(state, "a", actual, ceiling=0.8).busy == pytest.approx(3.0)  # 2.75, rounded up by halves
    assert share(state, "b", actual, ceiling=0.8).busy == pytest.approx(3.0)
    assert share(state, "c", actual, ceiling=0.8).busy == pytest.approx(4.5)
    assert share(state, "a", {**actual, "d": 9.0}, ceiling=0.8).busy == pytest.approx(6.0)  # its own 2 are left to it
    assert share(state, "c", {**actual, "d": 9.0}, ceiling=0.8).busy == pytest.approx(8.0)  # and nothing to this one
    assert share(replace(state, loads={"a": 4.9, "b": 3.1}), "a", {}, ceiling=0.8).busy == pytest.approx(3.1)
    assert share(Pooling(), "a", actual, ceiling=0.8) == Shared()


def test_a_little_more_or_less_of_others_is_no_news():
    state = Pooling(Pool(1, 6, 4), {"a": 1.0, "b": 0.51})
    other = replace(state, loads={"a": 1.0, "b": 0.58})
    assert share(state, "a", {}, ceiling=0.8) == share(other, "a", {}, ceiling=0.8)
    assert DEAD_BAND > 0.05


def test_a_tier_too_small_for_all_that_sites_must_send_is_shared_in_full():
    lame: dict[str, object] = {"min_replicas": 0, "max_replicas": 0}  # nothing runs at the sites
    policy = replace(CHEAP, raw_input_stays_trusted=False)
    sites = {name: with_tiers(site(rate=rate, most=2), edge=lame) for name, rate in {"a": 10.0, "b": 20.0}.items()}
    found = sized(sites, policy=policy)
    assert found.pool is not None
    assert (found.pool.first, found.pool.replicas) == (0, 2)
    assert sum(found.loads.values()) == pytest.approx(2 * policy.max_utilization)
    assert found.loads["b"] == pytest.approx(2.0 * found.loads["a"])
    for name, snapshot in sites.items():
        here = share(found, name, {}, ceiling=policy.max_utilization)
        target = plan(seen_by(snapshot, "cloud", found, here), policy, 0.0).target
        assert target.plan.replicas("cloud") == 2
        assert "utilization" in target.violations


def cloud_replicas(found: SitesPlan) -> int:
    own = [each.plan.replicas("cloud") for name, each in found.plans.items() if name not in found.sharing]
    return sum(own) + (found.pool.replicas if found.pool else 0)


def test_a_pool_for_requests_that_come_alike_needs_no_more_replicas_than_without_batches_and_bears_what_all_send():
    fewer = 0
    for seed in range(30):
        rng = random.Random(seed)
        cut, codec = rng.choice((1, 1, 2)), rng.choice(EAGER.codecs)
        fixed = FixedPlan((("edge", 0, cut), ("cloud", cut, 6)), (codec,))
        policy = replace(TOGETHER, mode=Mode.FIXED, fixed=fixed, max_p95_seconds=rng.uniform(1.2, 3.0))
        rates = [10 ** rng.uniform(0.5, 1.6) for _ in range(rng.randint(1, 6))]
        sites = measured_in_batches({
            f"site-{n}": with_tiers(site(rate=rate, megabits=2000), edge={"max_replicas": 40, "slots": 40})
            for n, rate in enumerate(rates)
        })  # fmt: skip
        found = plan_sites(sites, policy, shared="cloud")
        without = plan_sites(sites, replace(policy, max_batch=1), shared="cloud")
        assert not any(each.violations for each in found.plans.values())
        assert cloud_replicas(found) <= cloud_replicas(without)
        assert found.cost_per_hour <= without.cost_per_hour + 1e-9
        fewer += cloud_replicas(found) < cloud_replicas(without)
        if found.pool is not None and found.pool.batched is not None:
            assert found.pool.batched == (cut, codec)
            context = build_context(sites["site-0"], policy)
            ends = np.array([cut]), np.array([6])
            decoded = np.array([context.table.codecs.index(codec)])
            service = stage_seconds(context, context.sites["cloud"], *ends, decoded=decoded)
            each = together(context, context.sites["cloud"], *ends, service).at_least(service)[0]
            mine = sum(rate for n, rate in enumerate(rates) if f"site-{n}" in found.sharing)
            assert mine * each == pytest.approx(found.load)
            assert found.load <= policy.max_utilization * found.pool.replicas * (1 + 1e-9)
    assert fewer > 10


@pytest.mark.parametrize("seed", range(20))
def test_one_site_alone_is_planned_as_any_pipeline_with_batches(seed: int):
    (snapshot,) = measured_in_batches(many_sites(1, seed=seed)).values()
    rng = random.Random(seed)
    snapshot = replace(snapshot, arrival_rate=Value(10 ** rng.uniform(0.0, 1.5)))
    best = plan(snapshot, TOGETHER, 0.0).target
    found = plan_sites({"a": snapshot}, TOGETHER, shared="cloud")
    assert best.violations == found.plans["a"].violations == ()
    assert best.predicted.cost_per_hour / (1.0 + COST_TIE) - 1e-9 <= found.cost_per_hour
    assert found.cost_per_hour <= best.predicted.cost_per_hour + 1e-9
    if not found.sharing:
        alone = assess(build_context(snapshot, TOGETHER), found.plans["a"].plan).predicted
        assert found.plans["a"].predicted.p95_seconds == pytest.approx(alone.p95_seconds)
        assert found.plans["a"].predicted.max_rate_per_second == pytest.approx(alone.max_rate_per_second)


def test_requests_that_come_otherwise_are_not_computed_together_with_those_of_a_pool_for_batches():
    (own,) = measured_in_batches({"": site(rate=10.0, megabits=2000)}).values()
    context = build_context(on(Pool(1, 6, 2, (1, "int8")), own, busy=0.4), TOGETHER)
    alike, other = (split(1, codec, 8, 2) for codec in ("int8", "fp16"))
    bears = [assess(context, each).predicted.max_rate_per_second for each in (alike, other)]
    assert bears[0] > 1.3 * bears[1]
    loads = [load_on(context, each, "cloud", batched=(1, "int8")) for each in (alike, other)]
    assert loads[1] > 1.3 * loads[0]
    assert load_on(context, alike, "cloud") == pytest.approx(loads[1], rel=0.05)


def test_sites_that_come_to_another_pool_for_batches_move_there_whatever_gates_say():
    sites = measured_in_batches({name: site(rate=12.0, megabits=200) for name in "abcd"})
    state = sized(sites, policy=TOGETHER)
    assert state.pool is not None
    assert state.pool.batched is not None
    ways = set()
    for name, snapshot in sites.items():
        here = share(state, name, {}, ceiling=TOGETHER.max_utilization)
        assert here.batched == state.pool.batched
        target = plan(seen_by(snapshot, "cloud", state, here), TOGETHER, 0.0).target
        ways.add((target.plan.stages[-1].first, *target.plan.codecs))
    assert len(ways) == 1

"""A pipeline at many sites: a plan for each, and replicas behind them that all share."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from splitplane.domain.measurements import Value, known
from splitplane.domain.snapshots import PayPerUse, Policy, Preference, Snapshot, Tier
from splitplane.planner import ContradictionError, plan, plan_sites
from splitplane.planner.context import build_context
from splitplane.planner.knapsack import Menu, Relaxed, pack
from splitplane.planner.residency import allowed
from splitplane.planner.selecting import best_plan
from tests.support.planner_cases import MEBIBYTE, SNAPSHOT, links, with_tiers
from tests.support.planner_random import random_case
from tests.support.planner_sites import CHEAP, cheapest, many_sites


def random_sites(seed: int, count: int) -> tuple[dict[str, Snapshot], Policy]:
    """A random model on two tiers at sites with links and loads of their own."""
    rng = random.Random(seed)
    while True:
        snapshot, policy = random_case(rng.randrange(10**6))
        tiers = {tier.name: replace(tier, ready_nodes=1, max_replicas=3, slots=3) for tier in snapshot.tiers}
        if "edge" in tiers and "cloud" in tiers:
            break
    snapshot = replace(snapshot, tiers=(tiers["edge"], tiers["cloud"]))
    policy = replace(policy, prefer=Preference.COST, max_cost_per_hour=None, max_partitions=2)
    sites = {
        f"site-{number}": replace(
            snapshot,
            links=links(10 ** rng.uniform(0.0, 2.5), delay=rng.uniform(0.0, 0.02)),
            arrival_rate=Value(10 ** rng.uniform(-0.5, 1.0)),
        )
        for number in range(count)
    }
    return sites, policy


@pytest.mark.parametrize("tier", ["edge", "cloud"])
def test_pay_per_use_is_refused_as_a_pool_does_not_count_it(tier: str):
    paid = {"pay_per_use": PayPerUse(0.0, 0.00002, 0.01), "min_replicas": 0}
    sites = {name: with_tiers(each, **{tier: paid}) for name, each in many_sites(2, seed=3).items()}
    with pytest.raises(ContradictionError, match=f"no pay-per-use: {tier}"):
        plan_sites(sites, CHEAP, shared="cloud")


def test_early_exits_are_refused_as_a_pool_does_not_count_them():
    sites = many_sites(2, seed=3)
    sites["site-001"] = replace(sites["site-001"], reach=(1.0, 0.5, *(0.2,) * 5))
    with pytest.raises(ContradictionError, match="early exits"):
        plan_sites(sites, CHEAP, shared="cloud")
    sites["site-001"] = replace(sites["site-001"], reach=(1.0,) * 7)  # nobody leaves early
    assert plan_sites(sites, CHEAP, shared="cloud") == plan_sites(many_sites(2, seed=3), CHEAP, shared="cloud")


@pytest.mark.parametrize("seed", range(60))
def test_the_answer_costs_what_the_best_of_all_combinations_costs(seed: int):
    sites, policy = random_sites(seed, 2 + seed % 2)
    best = cheapest(sites, policy, "cloud")
    found = plan_sites(sites, policy, shared="cloud")
    unbroken = len(found.plans) == len(sites) and not any(each.violations for each in found.plans.values())
    if best is None:
        # Only replicas of a site's own, which wait less than a full pool, can do better.
        assert not unbroken or found.sharing != set(sites)
        return
    assert unbroken
    assert found.gap == 0.0
    own = sum(each.plan.replicas("cloud") for name, each in found.plans.items() if name not in found.sharing)
    assert found.cost_per_hour <= best + 1e-9
    if not own:
        assert found.cost_per_hour == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("prefer", Preference)
@pytest.mark.parametrize("seed", range(6))
def test_every_site_keeps_its_limits_and_the_pool_bears_what_all_send(seed: int, prefer: Preference):
    sites, policy = many_sites(12, seed=seed), replace(CHEAP, prefer=prefer)
    found = plan_sites(sites, policy, shared="cloud")
    assert found.plans.keys() == sites.keys()
    if prefer is Preference.PRIVACY:
        assert all(candidate.predicted.leak == 0.0 for candidate in found.plans.values())
        sites = {name: with_tiers(each, edge={"max_replicas": 1, "slots": 1}) for name, each in sites.items()}
        found = plan_sites(sites, policy, shared="cloud")
    if prefer is not Preference.LATENCY:  # a few sites are faster with replicas of their own
        assert len(found.sharing) > 2
    if found.pool is not None:
        assert found.load <= policy.max_utilization * found.pool.replicas + 1e-9
    for name, candidate in found.plans.items():
        if candidate.violations:
            # Then nothing else would keep them either.
            assert plan(sites[name], policy, 0.0).target.violations == candidate.violations
            continue
        assert candidate.predicted.p95_seconds <= (policy.max_p95_seconds or 0.0) * (1 + 1e-9)
        assert candidate.predicted.max_rate_per_second >= (known(sites[name].arrival_rate) or 0.0) * (1 - 1e-9)
        for stage in candidate.plan.stages:
            context = build_context(sites[name], policy)
            assert allowed(context, stage.tier, stage.resident_first, stage.resident_last)
            if name in found.sharing and stage.tier == "cloud":
                pool = found.pool.first, found.pool.last, found.pool.replicas
                assert (stage.resident_first, stage.resident_last, stage.replicas) == pool
    money = sum(candidate.predicted.cost_per_hour for candidate in found.plans.values())
    assert found.cost_per_hour == pytest.approx(money)


@pytest.mark.parametrize("seed", range(25))
def test_sharing_never_costs_more_than_planning_every_site_for_itself(seed: int):
    sites = many_sites(10, seed=seed)
    alone = [best_plan(build_context(snapshot, CHEAP)) for snapshot in sites.values()]
    found = plan_sites(sites, CHEAP, shared="cloud")
    separate = sum([candidate.predicted.cost_per_hour for candidate in alone if candidate is not None])
    assert found.cost_per_hour <= separate + 1e-9


@pytest.mark.parametrize("seed", range(40))
def test_the_knapsack_is_filled_as_the_best_of_all_choices_fills_it(seed: int):
    rng = np.random.default_rng(seed)
    sites = np.sort(np.concatenate([np.arange(4), rng.integers(0, 4, 12)]))
    first = np.diff(sites, prepend=-1) != 0  # each site can do without load and replicas, for more money
    menu = Menu(
        site=sites,
        cost=np.round(rng.uniform(0.1, 1.0, len(sites)), 2) + first,
        penalty=np.where(first & (rng.random(len(sites)) < 0.3), 1.0, 0.0),
        load=np.where(first, 0.0, rng.uniform(0.0, 1.0, len(sites))),
        taken=np.where(first, 0, rng.integers(0, 2, len(sites)) * rng.integers(0, 3, len(sites))),
        label=np.arange(len(sites)),
    )
    load, taken = float(rng.uniform(0.2, 2.0)), float(rng.integers(0, 4))
    found = pack(menu.thinned(), load=load, taken=taken)
    best = min(
        float(menu.value[list(choice)].sum())
        for choice in itertools.product(*(np.flatnonzero(sites == site) for site in range(4)))
        if menu.load[list(choice)].sum() <= load and menu.taken[list(choice)].sum() <= taken
    )
    chosen = list(found.labels)
    assert menu.load[chosen].sum() <= load + 1e-9
    assert menu.taken[chosen].sum() <= taken
    assert found.value == pytest.approx(best) == pytest.approx(menu.value[chosen].sum())
    assert found.gap == 0.0
    assert Relaxed(menu).bound(load) <= best + 1e-9


def test_sites_that_need_little_each_share_one_replica():
    sites = {name: replace(SNAPSHOT, links=links(50), arrival_rate=Value(1.0)) for name in "abc"}
    policy = replace(CHEAP, max_p95_seconds=0.4)
    found = plan_sites(sites, policy, shared="cloud")
    assert found.sharing == set("abc")
    assert found.pool.replicas == 1
    separate = sum(plan_sites({name: each}, policy, shared="cloud").cost_per_hour for name, each in sites.items())
    assert found.cost_per_hour < separate - 0.5


def test_each_site_gets_the_plan_that_suits_its_own_link():
    sites = {"near": replace(SNAPSHOT, links=links(200)), "far": replace(SNAPSHOT, links=links(0.2))}
    found = plan_sites(sites, replace(CHEAP, prefer=Preference.LATENCY), shared="cloud")
    assert [stage.tier for stage in found.plans["near"].plan.stages] == ["edge", "cloud"]
    assert [stage.tier for stage in found.plans["far"].plan.stages] == ["edge"]


def test_a_site_whose_limit_nothing_keeps_takes_nothing_from_the_others():
    lame = with_tiers(replace(SNAPSHOT, links=links(0.01), arrival_rate=Value(50.0)), edge={"max_replicas": 1})
    sites = {"good": SNAPSHOT, "lame": lame}
    found = plan_sites(sites, CHEAP, shared="cloud")
    assert found.plans["lame"].violations
    assert found.plans["good"] == plan_sites({"good": SNAPSHOT}, CHEAP, shared="cloud").plans["good"]


def test_sites_behind_a_lost_shared_tier_serve_by_themselves():
    sites = {name: with_tiers(each, cloud={"ready_nodes": 0}) for name, each in many_sites(3, seed=1).items()}
    found = plan_sites(sites, CHEAP, shared="cloud")
    assert found.pool is None
    assert all(candidate.plan.stages[0].tier == "edge" for candidate in found.plans.values())


def test_a_pool_holds_no_more_than_its_memory():
    # Runtime 300, activations 8, weights 4 + 32 + 8 + 8 + 16 + 20 MiB.
    room: dict[str, dict[str, object]] = {
        tier: {"memory_limit_bytes": limit * MEBIBYTE} for tier, limit in (("edge", 350), ("cloud", 370))
    }
    sites = {name: with_tiers(each, **room) for name, each in many_sites(8, seed=3).items()}
    found = plan_sites(sites, replace(CHEAP, max_p95_seconds=2.0), shared="cloud")
    assert found.sharing == sites.keys()
    assert (found.pool.first, found.pool.last) == (2, 6)
    assert {each.plan.stages[0].resident_last for each in found.plans.values()} == {2}


def in_currency(snapshot: Snapshot, rate: float) -> Snapshot:
    def priced(tier: Tier) -> Tier:
        price = Value((known(tier.price_per_hour) or 0.0) * rate)
        return replace(tier, price_per_hour=price, egress_price_per_gib=tier.egress_price_per_gib * rate)

    return replace(snapshot, tiers=tuple(priced(tier) for tier in snapshot.tiers))


@pytest.mark.parametrize("rate", [1e-3, 25_000.0, 42_000.0, 1e7])
@pytest.mark.parametrize(("count", "limit"), [(1, 0.25), (6, 0.35)])
def test_no_currency_is_so_small_that_money_outweighs_a_limit(count: int, limit: float, rate: float):
    policy = replace(CHEAP, max_p95_seconds=limit)
    busy = {
        name: replace(site, arrival_rate=Value(6.0), links=links(30))
        for name, site in many_sites(count, seed=3).items()
    }
    found = plan_sites(busy, policy, shared="cloud")
    other = plan_sites({name: in_currency(site, rate) for name, site in busy.items()}, policy, shared="cloud")
    assert {name: each.plan for name, each in found.plans.items()} == {
        name: each.plan for name, each in other.plans.items()
    }
    assert all(each.violations == () for each in other.plans.values())
    assert other.cost_per_hour == pytest.approx(found.cost_per_hour * rate, rel=1e-5)


def test_a_limit_on_cost_is_one_for_all_sites_together():
    sites = many_sites(6, seed=2)
    assert not any(each.violations for each in plan_sites(sites, CHEAP, shared="cloud").plans.values())
    dear = plan_sites(sites, replace(CHEAP, max_cost_per_hour=0.5), shared="cloud")
    assert all(each.violations == ("cost",) for each in dear.plans.values())


def test_one_answer_for_equal_arguments_in_any_order():
    sites = many_sites(9, seed=5)
    again = dict(reversed(sites.items()))
    assert plan_sites(sites, CHEAP, shared="cloud") == plan_sites(again, CHEAP, shared="cloud")


def test_what_cannot_be_planned_together_is_refused():
    other = replace(SNAPSHOT, profile=replace(SNAPSHOT.profile, fingerprint="another"))
    with pytest.raises(ValueError, match="one model"):
        plan_sites({"a": SNAPSHOT, "b": other}, CHEAP, shared="cloud")
    with pytest.raises(ContradictionError, match="sites share another"):
        plan_sites({"a": SNAPSHOT}, CHEAP, shared="edge")
    assert plan_sites({}, CHEAP, shared="cloud").plans == {}

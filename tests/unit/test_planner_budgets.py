"""A limit on cost that is one for all sites of a pipeline, and the part of it that each may spend."""

import random
from dataclasses import replace

import pytest

from splitplane.domain.measurements import Value, known
from splitplane.domain.snapshots import Action, Preference, Snapshot
from splitplane.planner import dump_call, load_call, plan, plan_sites
from splitplane.planner.budgets import Division, Spending, divide, spending
from splitplane.planner.pooling import Pooling, seen_by, share, size_pool
from splitplane.planner.pools import Pool
from tests.support.planner_cases import POLICY, SNAPSHOT, follow, links, with_tiers
from tests.support.planner_sites import CHEAP, many_sites

FAST = replace(CHEAP, prefer=Preference.LATENCY)
WINDOW = 300.0


def divided(needs: dict[str, float], limit: float, before: Division | None = None, *, now: float = 0.0) -> Division:
    return divide({site: Spending(each, each) for site, each in needs.items()}, limit, before, now=now,
                  window_seconds=WINDOW)  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_parts_come_to_the_limit_and_nobody_has_less_than_it_needs_while_there_is_enough(seed: int):
    rng = random.Random(seed)
    needs = {f"s{n}": Spending(least, least * rng.uniform(1.0, 1.5)) for n in range(6) if (least := rng.random()) > 0}
    least = sum(each.least for each in needs.values())
    division = None
    for limit in (least, 1.2 * least, 3.0 * least):
        division = divide(needs, limit, division, now=0.0, window_seconds=WINDOW)
        assert sum(division.parts.values()) == pytest.approx(limit)
        assert all(division.parts[site] >= need.least * (1 - 1e-9) for site, need in needs.items())
    scarce = divide(needs, 0.5 * least, division, now=0.0, window_seconds=WINDOW)
    assert sum(scarce.parts.values()) == pytest.approx(0.5 * least)


def test_a_site_that_needs_more_than_it_has_gets_it_at_once_and_others_only_after_the_window():
    before = divided({"a": 1.0, "b": 1.0}, 4.0)
    assert before.parts == {"a": 2.0, "b": 2.0}
    grown = divided({"a": 2.5, "b": 1.0}, 4.0, before)
    assert grown.parts["a"] > 2.5
    less = divided({"a": 0.5, "b": 1.0}, 4.0, before, now=10.0)
    assert (less.parts, less.other_since) == (before.parts, 10.0)
    again = divided({"a": 1.0, "b": 1.0}, 4.0, less, now=20.0)
    assert again.other_since is None
    less = divided({"a": 0.5, "b": 1.0}, 4.0, less, now=10.0 + WINDOW)
    assert less.parts["b"] == pytest.approx(4.0 / 1.5)
    assert divided({"a": 1.0}, 4.0, before).parts == {"a": 4.0}
    assert divided({"a": 1.0, "b": 1.0}, 6.0, before).parts == {"a": 3.0, "b": 3.0}


def test_nothing_known_of_what_sites_need_is_divided_evenly():
    assert divided({"a": 0.0, "b": 0.0}, 4.0).parts == {"a": 2.0, "b": 2.0}
    unpriced = with_tiers(SNAPSHOT, edge={"price_per_hour": Value(float("nan"))})
    assert spending(unpriced, POLICY) == Spending(0.0, 0.0)


def test_noise_of_the_loads_never_moves_a_part():
    rng, sites, division = random.Random(1), many_sites(5, seed=3), None
    needs = {name: spending(each, FAST) for name, each in sites.items()}
    limit = 1.3 * sum(each.roomy for each in needs.values())
    divisions = []
    for minute in range(30):
        for name, each in sites.items():
            rate = (known(each.arrival_rate) or 0.0) * rng.uniform(0.95, 1.05)
            needs[name] = spending(replace(each, arrival_rate=Value(rate)), FAST)
        division = divide(needs, limit, division, now=60.0 * minute, window_seconds=WINDOW)
        divisions.append(tuple(division.parts.values()))
    assert len({tuple(round(part, 9) for part in parts) for parts in divisions}) <= 2


def test_a_site_keeps_its_part_as_if_that_were_the_limit_and_a_smaller_part_moves_it():
    fast = replace(SNAPSHOT, links=links(50), arrival_rate=Value(3.0))
    rich = plan(fast, FAST, 0.0)
    spent = rich.target.predicted.cost_per_hour
    assert plan(replace(fast, budget=spent), FAST, 0.0).target == rich.target
    part = 0.5 * (spent + spending(fast, FAST).least)
    less = replace(fast, budget=part)
    assert plan(less, FAST, 0.0).target == plan(fast, replace(FAST, max_cost_per_hour=part), 0.0).target
    assert plan(less, FAST, 0.0).target.predicted.cost_per_hour <= part < spent

    patient, roomy = replace(FAST, cooldown_seconds=1000.0), replace(fast, budget=2.0 * spent)
    serving = follow(roomy, plan(roomy, patient, 0.0), 0.0)
    moved = plan(replace(serving, budget=part), patient, 1.0)
    assert (moved.action, moved.reason) == (Action.SWITCH, "BudgetChanged")
    call = load_call(dump_call(less, FAST, 1.0))
    assert call[0].budget == part


def spend(sites: dict[str, Snapshot], limit: float, *, parted: bool) -> tuple[float, bool]:
    """What sites on one pool come to, each planned by itself, with a part of the limit or all of it; whether some are
    over."""
    policy = replace(FAST, max_cost_per_hour=limit)
    state = size_pool(sites, policy, 0.0, shared="cloud", before=Pooling())
    pool = state.pool.replicas * 0.3 if state.pool else 0.0
    seen = {
        name: seen_by(each, "cloud", state, share(state, name, {}, ceiling=policy.max_utilization))
        for name, each in sites.items()
    }
    if parted:
        needs = {name: spending(each, policy) for name, each in seen.items()}
        parts = divide(needs, max(0.0, limit - pool), None, now=0.0, window_seconds=WINDOW).parts
        seen = {name: replace(each, budget=parts[name]) for name, each in seen.items()}
    plans = [plan(each, policy, 0.0).target for each in seen.values()]
    costs: list[float] = [each.predicted.cost_per_hour for each in plans]
    return sum(costs) + pool, any("cost" in each.violations for each in plans)


def test_all_sites_together_keep_the_limit_where_they_can():
    beyond = 0
    for seed in range(6):
        sites = many_sites(6, seed=seed)
        least = plan_sites(sites, CHEAP, shared="cloud").cost_per_hour
        limit = 1.15 * least
        assert not any(
            each.violations
            for each in plan_sites(sites, replace(FAST, max_cost_per_hour=limit), shared="cloud").plans.values()
        )
        spent, over = spend(sites, limit, parted=True)
        assert (spent <= limit * (1 + 1e-9), over) == (True, False), seed
        beyond += spend(sites, limit, parted=False)[0] > limit * (1 + 1e-9)
        spent, over = spend(sites, 0.8 * least, parted=True)
        assert over, seed
    assert beyond >= 3, "parts are of use no longer"


def test_a_pool_that_costs_more_than_the_limit_leaves_shrinks_at_once():
    sites = many_sites(6, seed=1)
    kept = size_pool(sites, FAST, 0.0, shared="cloud", before=Pooling(Pool(0, 6, 30)))
    assert kept.pool is not None
    assert kept.pool.replicas == 30
    limit = plan_sites(sites, FAST, shared="cloud").cost_per_hour + 0.7  # two replicas more
    policy = replace(FAST, max_cost_per_hour=limit)
    found = size_pool(sites, policy, 0.0, shared="cloud", before=Pooling(Pool(0, 6, 30)))
    planned = size_pool(sites, policy, 0.0, shared="cloud", before=Pooling())
    assert found.pool is not None
    assert planned.pool is not None
    assert found.pool.replicas == planned.pool.replicas + 2

"""Under constant load no plan alternates, whatever the noise: random cases with limits on both p95 and cost."""

import random
from dataclasses import replace

import pytest

from splitplane.domain.measurements import Value, known
from splitplane.domain.snapshots import Action, Decision, Policy, Preference, Snapshot
from splitplane.planner import choose
from splitplane.planner.choice import severity
from splitplane.planner.keeping import Kept
from tests.support.planner_cases import POLICY, SNAPSHOT, edge_only, follow, links, serving, shape, split, with_noise
from tests.support.planner_random import random_case

CASES = 10


def both(prefer: Preference, p95: float, cost: float) -> Policy:
    return replace(POLICY, prefer=prefer, max_p95_seconds=p95, max_cost_per_hour=cost)


def at(rate: float, megabits: float, scv: float) -> Snapshot:
    return replace(SNAPSHOT, arrival_rate=Value(rate), links=links(megabits), arrival_scv=scv)


def some_case(rng: random.Random) -> tuple[Snapshot, Policy]:
    policy = both(rng.choice(list(Preference)), rng.uniform(0.2, 0.7), rng.uniform(0.1, 1.0))
    megabits = rng.choice([3.0, 8.0, 20.0, 50.0]) * rng.uniform(0.7, 1.4)
    return at(rng.uniform(0.5, 14.0), megabits, rng.choice([0.0, 1.0, 2.0])), policy


def changes(
    calm: Snapshot, policy: Policy, *, ticks: int, every: float, noise: random.Random | None = None
) -> list[Decision]:
    """The decisions that change the plan, each carried out at once."""
    snapshot, kept, made = calm, Kept(calm.profile), []
    for tick in range(ticks):
        seen = snapshot if noise is None else with_noise(noise, snapshot, calm)
        decision = choose(seen, policy, every * tick, kept=kept)
        if decision.action is not Action.HOLD:
            made.append(decision)
        snapshot = follow(snapshot, decision, every * tick)
    return made


def assert_settled(made: list[Decision]) -> None:
    visited = [shape(decision.target.plan) for decision in made]
    assert len(visited) == len(set(visited)), visited
    for decision in made:
        if decision.current is not None:
            assert decision.target is not None
            assert severity(decision.target) <= severity(decision.current), decision.message


CONFLICTS = {
    "a plan over the cost limit, another over that on p95": (
        replace(at(9.47, 21.1, 1.0), active=serving(split(1, edge=2, cloud=3))),
        both(Preference.COST, 0.363, 0.561),
    ),
    "the same where privacy is preferred": (
        replace(at(7.7, 7.7, 1.0), active=serving(split(1, edge=8, cloud=1))),
        both(Preference.PRIVACY, 0.414, 0.528),
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_constant_load_ends_in_one_plan_where_limits_conflict(case: str):
    snapshot, policy = CONFLICTS[case]
    made = changes(snapshot, policy, ticks=40, every=30.0)
    assert_settled(made)
    assert len(made) <= 1


@pytest.mark.parametrize("seed", range(CASES))
def test_constant_load_ends_in_one_plan_from_whatever_serves(seed: int):
    rng = random.Random(seed)
    snapshot, policy = some_case(rng)
    routing = edge_only(rng.randint(1, 8))
    if rng.random() < 0.6:
        routing = split(rng.randint(1, 3), edge=rng.randint(1, 8), cloud=rng.randint(1, 4))
    made = changes(replace(snapshot, active=serving(routing)), policy, ticks=25, every=100.0)
    assert_settled(made)


NOISY = {
    "one replica more or less between both limits": (at(7.92, 36.0, 0.0), both(Preference.PRIVACY, 0.599, 0.259)),
    "the same of the other tier": (at(8.92, 16.6, 0.0), both(Preference.PRIVACY, 0.39, 0.442)),
    "the edge alone at its ceiling": (at(12.93, 23.1, 1.0), both(Preference.PRIVACY, 0.598, 0.81)),
    "a limit on cost that nothing keeps": (at(8.73, 24.8, 1.0), both(Preference.LATENCY, 0.524, 0.296)),
    "a dear plan, or one at the edge of p95": (at(1.85, 8.9, 1.0), both(Preference.COST, 0.417, 0.296)),
    "no plan keeps any limit": (at(12.87, 2.35, 0.0), both(Preference.PRIVACY, 0.387, 0.376)),
}


@pytest.mark.parametrize("case", NOISY)
def test_noise_alternates_no_plans_where_limits_conflict(case: str):
    snapshot, policy = NOISY[case]
    assert_settled(changes(snapshot, policy, ticks=60, every=60.0, noise=random.Random(case)))


@pytest.mark.parametrize("seed", range(CASES))
def test_noise_alternates_no_plans_in_random_cases(seed: int):
    rng = random.Random(1000 + seed)
    snapshot, policy = some_case(rng)
    assert_settled(changes(snapshot, policy, ticks=40, every=60.0, noise=rng))


@pytest.mark.parametrize("prefer", Preference)
@pytest.mark.parametrize("seed", [83, 124, 137, 358])
def test_noise_alternates_no_plans_of_random_pipelines(seed: int, prefer: Preference):
    """With 124 edge and cloud bound two plans at nearly the same load: as stages wander each bears it by turns."""
    snapshot, policy = random_case(seed)
    for number in range(2):
        noise = random.Random(1000 * (number + 1) + seed)
        assert_settled(changes(snapshot, replace(policy, prefer=prefer), ticks=60, every=60.0, noise=noise))


@pytest.mark.parametrize(("seed", "rate", "p95", "ceiling", "prefer"), [
    (504398, 13.97, 0.455, 0.8, Preference.LATENCY), (506170, 9.36, 0.101, 0.9, Preference.LATENCY),
    (506966, 26.1, 0.465, 0.9, Preference.LATENCY), (513159, 5.86, 0.589, 0.8, Preference.LATENCY),
])  # fmt: skip
def test_noise_brings_no_plan_back_where_one_tier_becomes_slower_as_another_gets_faster(
    seed: int, rate: float, p95: float, ceiling: float, prefer: Preference
):
    """The dead band moves all numbers one way, so each of these alternated between two plans by it alone."""
    snapshot, policy = random_case(seed)
    snapshot = replace(snapshot, arrival_rate=Value(rate))
    policy = replace(policy, prefer=prefer, max_p95_seconds=p95, max_utilization=ceiling)
    made = changes(snapshot, policy, ticks=60, every=60.0, noise=random.Random(seed))
    visited = [shape(decision.target.plan) for decision in made if decision.target]
    assert len(visited) == len(set(visited)), visited


@pytest.mark.parametrize("load", [0.97, 1.0, 1.04])
def test_noise_at_its_worst_alternates_no_plans_that_just_bear_the_load(load: float):
    """Each number is 5 % too high or too low, and nothing between."""

    class Extremes(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return self.choice((a, b))

    snapshot, policy = random_case(124)
    snapshot = replace(snapshot, arrival_rate=Value(load * (known(snapshot.arrival_rate) or 0.0)))
    for seed in range(2):
        assert_settled(changes(snapshot, policy, ticks=60, every=60.0, noise=Extremes(seed)))


def test_noise_alternates_no_plans_whose_waits_have_no_end_by_turns() -> None:
    """Both are busy all the time, and keep a wide limit on p95 whenever the noise lets them."""
    snapshot, policy = random_case(32)
    snapshot = replace(snapshot, arrival_rate=Value(11.886))
    policy = replace(policy, prefer=Preference.COST, max_p95_seconds=100.0)
    assert_settled(changes(snapshot, policy, ticks=40, every=60.0, noise=random.Random(0)))


def test_a_load_that_is_not_borne_is_mended_at_once_where_another_plan_bears_it_for_sure_or_waits_have_no_end():
    for rate, ceiling in ((3.7, 0.7), (5.1, 0.97)):
        busy = replace(at(rate, 50.0, 1.0), active=serving(edge_only(2), since=0.0))
        decision = choose(busy, replace(both(Preference.LATENCY, 9.0, 9.0), max_utilization=ceiling), 1.0)
        assert decision.current is not None
        assert "utilization" in decision.current.violations
        assert decision.action is Action.SWITCH
        assert decision.target is not None
        assert decision.target.violations == ()


@pytest.mark.parametrize("seed", range(2))
def test_noise_alternates_no_plans_that_all_break_the_limit_on_p95_on_three_tiers(seed: int):
    snapshot, policy = random_case(8)
    snapshot = replace(snapshot, arrival_rate=Value(9.17))
    policy = replace(policy, prefer=Preference.COST, max_p95_seconds=0.05, max_cost_per_hour=None)
    assert len(snapshot.tiers) == 3
    assert_settled(changes(snapshot, policy, ticks=120, every=60.0, noise=random.Random(seed)))


def test_a_limit_that_is_broken_for_sure_is_mended_at_once_though_it_costs_more():
    slow = replace(at(3.5, 50.0, 0.0), active=serving(edge_only(3), since=0.0))
    decision = choose(slow, both(Preference.COST, 0.35, 0.2), 1.0)
    assert (decision.action, decision.current.violations) == (Action.SWITCH, ("p95",))
    assert decision.target.violations == ("cost",)


def test_a_limit_on_cost_that_is_broken_for_sure_is_mended_where_nothing_keeps_p95():
    dear = replace(at(3.5, 50.0, 0.0), active=serving(split(1, edge=2, cloud=2), since=0.0))
    decision = choose(dear, both(Preference.COST, 0.05, 0.5), 1.0)
    assert decision.action is Action.SWITCH
    assert (decision.current.violations, decision.target.violations) == (("p95", "cost"), ("p95",))

"""The simulator: traces have the statistics that they promise, and a replay serves as an event simulation does."""

from dataclasses import replace

import numpy as np
import pytest

from splitplane.domain.measurements import Value, known
from splitplane.domain.plans import Plan, Stage
from splitplane.domain.snapshots import FixedPlan, Mode, Preference, Snapshot
from splitplane.planner import Kept
from splitplane.planner.context import build_context
from splitplane.planner.evaluation import assess
from splitplane.planner.gates import deployments
from splitplane.simulation.clairvoyant import Schedules, cheapest_cost
from splitplane.simulation.replaying import AS_MANY, Ground, Scenario, best_static, compare, constant, replay
from splitplane.simulation.serving import course, piled_up
from splitplane.simulation.strategies import STRATEGIES, Choice, Strategy, dads, neurosurgeon, planner
from splitplane.simulation.traces import Trace, arrivals, bandwidths
from tests.support.planner_cases import (
    CREPE_FP32_BYTES,
    CREPE_PREFIX_MILLISECONDS,
    POLICY,
    SNAPSHOT,
    edge_only,
    links,
    split,
)
from tests.support.planner_simulation import Line, simulate

CHEAP = replace(POLICY, prefer=Preference.COST)
POISSON = replace(SNAPSHOT, arrival_scv=1.0)
DAY = 2880


def over(*bandwidths: float) -> dict[tuple[str, str], np.ndarray]:
    """Bytes per second of the link in both directions, by bin."""
    return {pair: np.array(bandwidths) for pair in (("edge", "cloud"), ("cloud", "edge"))}


@pytest.mark.parametrize("kind", ["steady", "diurnal", "bursty"])
def test_generated_arrivals_have_the_mean_that_is_asked_for(kind: str):
    trace = arrivals(kind, 3.5, seed=3, bins=DAY)
    assert trace.values.mean() == pytest.approx(3.5)
    assert (arrivals(kind, 3.5, seed=3, bins=DAY).values == trace.values).all()
    spread = {"steady": (0.0, 0.0), "diurnal": (0.5, 0.7), "bursty": (0.6, 1.4)}[kind]
    assert spread[0] <= trace.values.std() / 3.5 <= spread[1]


@pytest.mark.parametrize("kind", ["steady", "wandering", "outages"])
def test_generated_links_have_the_median_that_is_asked_for(kind: str):
    trace = bandwidths(kind, 2e6, seed=3, bins=20 * DAY)
    assert np.median(trace.values) == pytest.approx(2e6)
    out = np.mean(trace.values < 0.1 * 2e6)
    assert 0.02 < out < 0.05 if kind == "outages" else out < 0.001
    if kind == "wandering":
        assert np.log(trace.values).std() == pytest.approx(0.5, rel=0.1)


def test_a_family_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match="steady, diurnal, bursty"):
        arrivals("monthly", 1.0, seed=1, bins=10)
    with pytest.raises(ValueError, match="steady, wandering, outages"):
        bandwidths("broken", 1.0, seed=1, bins=10)


@pytest.mark.parametrize(("limit", "tolerance"), [(0.4, 0.12), (0.45, 0.05), (0.5, 0.05), (0.6, 0.05)])
@pytest.mark.parametrize("replicas", [2, 3])
def test_the_share_of_requests_within_the_limit_is_that_of_an_event_simulation(
    limit: float, tolerance: float, replicas: int
):
    plan = Plan((Stage("edge", 0, 2, 0, 6, replicas), Stage("cloud", 2, 6, 1, 6, 1)), ("int8",))
    context = build_context(POISSON, replace(CHEAP, max_p95_seconds=limit))
    sent, answer = 32768 / 4 / 6.25e6, 1440 / 6.25e6
    stages = (8 * 0.0417 + 0.002 + 32768 * 6e-10, 0.02, replicas), (1.5 * 0.0085 + 0.002 + 32768 * 4e-10, 0.02, 1)
    line = Line((stages[0], (sent, 0.0, 1), stages[1], (answer, 0.0, 1)), rate=3.5)
    times = simulate([line], requests=40_000, warm_up=2_000)[0] + 2 * 0.002
    found = course(context, plan, np.array([3.5]), over(6.25e6)).within[0]
    assert found == pytest.approx(np.mean(times <= limit), abs=tolerance)


def test_what_a_plan_gives_in_all_bins_at_once_is_what_the_planner_predicts_for_each():
    scenario = Scenario(
        POISSON, CHEAP, arrivals("diurnal", 3.5, seed=1, bins=40), bandwidths("outages", 2e6, seed=2, bins=40)
    )
    for plan in (edge_only(3), split(2)):
        found = Ground(scenario).course(plan)
        for place in range(40):
            predicted = assess(build_context(scenario.seen(place), CHEAP), plan).predicted
            assert found.p95[place] == pytest.approx(predicted.p95_seconds)
            assert found.cost[place] == pytest.approx(predicted.cost_per_hour)


def test_requests_pile_up_while_a_plan_is_too_small_and_are_worked_off_after():
    rates = np.repeat([4.0, 14.0, 4.0], (20, 10, 60))
    scenario = Scenario(POISSON, CHEAP, Trace(rates), Trace(np.full(90, 6e6)))
    ground = Ground(scenario)
    most = ground.course(edge_only(3)).most
    left = piled_up(rates, most, 30.0)
    assert left[19] == 0.0
    assert left[20] == pytest.approx(min(256.0, 30.0 * (14.0 - most[20])))
    assert left[29] == 256.0  # the gateway takes in no more
    assert left[30] == pytest.approx(max(0.0, 256.0 + 30.0 * (4.0 - most[30])))
    small, large = (constant(ground, edge_only(count)) for count in (3, 8))
    assert small.within < 0.7 < 0.9 < large.within


def test_a_plan_that_misses_the_limit_does_not_keep_it_because_more_arrives_than_it_bears():
    strict = replace(CHEAP, max_p95_seconds=0.2)  # one frame takes 0.4 s
    most = Ground(Scenario(POISSON, strict, Trace(np.ones(1)), Trace(np.ones(1)))).course(edge_only(3)).most[0]
    for rate in (0.999 * most, 1.001 * most, 1.5 * most):
        ground = Ground(Scenario(POISSON, strict, Trace(np.full(20, rate)), Trace(np.full(20, 6e6))))
        found = constant(ground, edge_only(3))
        assert found.within < 0.02
        assert found.p95 > 0.3


def test_links_keep_the_proportions_that_the_user_stated():
    (link,) = links(50)
    fast = replace(link, bandwidth_bytes_per_second=Value(8e6))
    slow = replace(link, source="cloud", target="edge", bandwidth_bytes_per_second=Value(2e6))
    scenario = Scenario(replace(POISSON, links=(fast, slow)), CHEAP, Trace(np.ones(2)), Trace(np.array([4e6, 1e6])))
    assert [[known(link.bandwidth_bytes_per_second) for link in scenario.seen(place).links] for place in (0, 1)] == [
        [4e6, 1e6], [1e6, 0.25e6],
    ]  # fmt: skip
    assert Ground(scenario).links["cloud", "edge"].tolist() == [1e6, 0.25e6]


def test_a_switch_that_moves_pods_is_paid_twice_while_the_old_plan_still_serves():
    rates = Trace(np.full(8, 3.5))
    ground = Ground(Scenario(POISSON, CHEAP, rates, Trace(np.full(8, 6e6))))

    def later(snapshot, _policy, now, _kept):
        return Choice(edge_only(3) if now < 120.0 else edge_only(6))

    found = replay(ground, {"later": later})["later"]
    small, large = (ground.course(edge_only(count)) for count in (3, 6))
    assert (found.switches, found.moves) == (1, 1)
    assert found.costs[4] == pytest.approx(large.cost[4] + 0.5 * small.cost[4])
    assert found.shares[4] == pytest.approx(0.5 * (large.within[4] + small.within[4]))
    assert found.costs[5] == large.cost[5]


def test_replicas_go_once_demand_has_been_low_for_the_whole_window():
    rates = Trace(np.repeat([3.5, 14.0, 3.5], (20, 20, 40)))
    ground = Ground(Scenario(POISSON, replace(CHEAP, max_cost_per_hour=None), rates, Trace(np.full(80, 6e6))))
    costs = replay(ground, {"splitplane": planner})["splitplane"].costs
    assert costs[30] > costs[10]
    assert costs[45] > 1.5 * costs[79]


def test_under_a_constant_load_nothing_ever_changes():
    scenario = Scenario(
        POISSON, CHEAP, arrivals("steady", 3.5, seed=1, bins=120), bandwidths("steady", 6e6, seed=1, bins=120)
    )
    assert replay(Ground(scenario), {"splitplane": planner})["splitplane"].switches == 0


def test_the_comparison_names_what_shows_the_input_and_the_planner_never_does():
    scenario = Scenario(
        POISSON, CHEAP, arrivals("bursty", 3.5, seed=4, bins=240), bandwidths("outages", 2.5e6, seed=5, bins=240)
    )
    found = compare(Ground(scenario))
    assert next(iter(found)) == "splitplane"
    assert "best static in hindsight" in found
    assert found["splitplane"].leaks == 0
    assert found["cloud-only"].leaks == found["cloud-only, compressed"].leaks == 240
    assert found["splitplane"].within > found["dads"].within >= found["neurosurgeon"].within


def at(rate: float, megabits: float) -> Snapshot:
    return replace(POISSON, arrival_rate=Value(rate), links=links(megabits))


def published(strategy: Strategy, snapshot: Snapshot) -> Plan:
    choice = strategy(snapshot, CHEAP, 0.0, Kept(snapshot.profile))
    assert choice is not None
    return choice.plan


def stage_seconds(cut: int, megabits: float) -> tuple[float, float, float]:
    """T_e, T_t and T_c of the paper for the pitch tracker with an fp32 crossing; tiers with all their replicas."""
    codec = CREPE_FP32_BYTES[cut] if 0 < cut < 6 else 0
    edge = 8 * CREPE_PREFIX_MILLISECONDS[cut] / 1e3 + 0.002 + codec * 1e-10
    cloud = 1.5 * (CREPE_PREFIX_MILLISECONDS[6] - CREPE_PREFIX_MILLISECONDS[cut]) / 1e3 + 0.002 + codec * 1e-10
    return edge / 8, codec / (megabits * 125_000.0), cloud / 4 if cut < 6 else 0.0


@pytest.mark.parametrize("megabits", [2.0, 10.0, 50.0, 200.0])
def test_dads_is_neurosurgeon_until_that_cut_does_not_bear_the_load_and_then_the_cut_that_bears_most(megabits: float):
    fastest = published(neurosurgeon, at(0.1, megabits))
    assert published(dads, at(0.1, megabits)).routing == fastest.routing
    longest = {cut: max(stage_seconds(cut, megabits)) for cut in range(1, 7)}  # the input is private: no cut 0
    borne = CHEAP.max_utilization / longest[fastest.cuts[0] if fastest.cuts else 6]
    assert published(dads, at(0.97 * borne, megabits)).routing == fastest.routing
    heavy = published(dads, at(1.03 * borne, megabits))
    chosen = heavy.cuts[0] if heavy.cuts else 6
    assert longest[chosen] == pytest.approx(min(longest.values()), rel=1e-3)
    if megabits == 50.0:
        assert heavy.routing != fastest.routing
        assert assess(build_context(at(1.03 * borne, megabits), CHEAP), heavy).violations == ()


@pytest.mark.parametrize("strategy", [neurosurgeon, dads])
@pytest.mark.parametrize(("rate", "megabits"), [(2.0, 2.0), (3.5, 10.0), (6.0, 10.0)])
def test_published_cuts_are_given_the_fewest_replicas_that_keep_the_limit_on_p95(
    strategy: Strategy, rate: float, megabits: float
):
    context = build_context(at(rate, megabits), CHEAP)
    plan = published(strategy, at(rate, megabits))
    assert assess(context, plan).violations == ()
    edge, *away = plan.stages
    fewer = assess(context, replace(plan, stages=(replace(edge, replicas=edge.replicas - 1), *away)))
    assert fewer.violations == ("p95",)


def test_published_cuts_that_no_replicas_serve_in_time_are_sized_for_the_load():
    slow = replace(CHEAP, max_p95_seconds=0.01)
    choice = neurosurgeon(at(3.5, 10.0), slow, 0.0, Kept(POISSON.profile))
    assert choice is not None
    assert assess(build_context(at(3.5, 10.0), slow), choice.plan).violations == ("p95",)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_plan_that_the_user_dictates_binds_the_planner_alone(name: str):
    fixed = replace(CHEAP, mode=Mode.FIXED, fixed=FixedPlan((("edge", 0, 3), ("cloud", 3, 6)), ("fp16",)))
    snapshot = at(3.5, 20.0)
    dictated, free = (STRATEGIES[name](snapshot, policy, 0.0, Kept(snapshot.profile)) for policy in (fixed, CHEAP))
    assert dictated is not None
    assert (dictated == free) is (name != "splitplane")


def test_what_others_choose_beside_a_plan_that_the_user_dictates_serves():
    fixed = replace(CHEAP, mode=Mode.FIXED, fixed=FixedPlan((("edge", 0, 6),), ()))
    load, link = (Trace(np.full(20, value)) for value in (3.5, 2.5e6))
    ground = Ground(Scenario(POISSON, fixed, load, link))
    found = compare(ground)
    assert {len(plan.stages) for plan in found["splitplane"].plans} == {1}
    free = Ground(replace(ground.scenario, policy=CHEAP))
    others = compare(free)
    for name in ("neurosurgeon", "edge-only", "cloud-only"):
        assert found[name].within == others[name].within > 0.0
    assert ground.possible is not None
    assert free.possible is not None
    assert ground.possible.plans == free.possible.plans


def test_who_knows_the_traces_chooses_among_all_plans_and_pays_for_switches():
    """Against a programme over all pairs of plans, which holds each for a minute."""
    load, link = arrivals("bursty", 8.0, seed=1, bins=120), bandwidths("wandering", 2.5e6, seed=2, bins=120)
    ground = Ground(Scenario(POISSON, replace(CHEAP, max_p95_seconds=0.3), load, link))
    found = ground.possible
    assert found is not None
    assert {edge_only(3).routing, split(2).routing} <= {plan.routing for plan in found.plans}
    pods = [deployments(plan) for plan in found.plans]
    moves = np.array([[old != new for new in pods] for old in pods]) * 0.25
    price = 0.001
    value = found.cost[0] + price * found.late[0]
    for cost, late in zip(found.cost[1:], found.late[1:], strict=True):
        value = (value[:, None] + moves * cost).min(axis=0) + cost + price * late
    spent, late = Schedules(ground, found).cheapest(price)
    assert spent + price * late == pytest.approx(value.min())


def test_the_best_plan_that_never_changes_is_the_cheapest_that_serves_as_many_of_all_that_there_are():
    steady = Trace(np.repeat([2.0, 4.0], 20)), Trace(np.full(40, 2.5e6))
    ground = Ground(Scenario(POISSON, replace(CHEAP, max_cost_per_hour=None), *steady))
    ours = replay(ground, {"splitplane": planner})["splitplane"]
    found = best_static(ground, ours.plans, ours)
    assert found is not None
    assert found.within >= ours.within - AS_MANY
    everything = [edge_only(count) for count in range(2, 9)] + [
        split(cut, codec, edge=edge, cloud=cloud)
        for cut in range(1, 6) for codec in ("fp32", "fp16", "int8") for edge in range(2, 9) for cloud in range(1, 5)
    ]  # fmt: skip
    able = [each for plan in everything if (each := constant(ground, plan)).within >= ours.within - AS_MANY]
    assert found.cost_per_hour == pytest.approx(min(each.cost_per_hour for each in able))


def test_where_no_plan_that_never_changes_serves_as_many_the_cheapest_of_those_that_serve_most_is_taken():
    rates = np.repeat([3.5, 60.0], (30, 10))  # more than any plan bears
    ground = Ground(Scenario(POISSON, CHEAP, Trace(rates), Trace(np.full(40, 2.5e6))))
    all_of_them = replace(constant(ground, edge_only(3)), within=1.0)
    found = best_static(ground, [edge_only(3), edge_only(4), edge_only(8)], all_of_them)
    assert found is not None
    assert found.within >= max(constant(ground, edge_only(count)).within for count in (3, 4, 8)) - AS_MANY
    assert found.within < 0.9
    assert found.cost_per_hour <= constant(ground, edge_only(4)).cost_per_hour


def test_who_knows_the_traces_pays_no_more_than_the_planner_or_a_plan_that_never_changes():
    scenario = Scenario(
        POISSON, CHEAP, arrivals("diurnal", 3.5, seed=6, bins=480), bandwidths("wandering", 2.5e6, seed=7, bins=480)
    )
    ground = Ground(scenario)
    alone = replay(ground, {"splitplane": planner})["splitplane"]
    for metrics in (alone, constant(ground, edge_only(3)), constant(ground, split(2))):
        best = cheapest_cost(ground, list(metrics.plans), metrics.within)
        assert best <= metrics.cost_per_hour * (1.0 + 1e-9)


def test_under_a_constant_load_nobody_can_do_better_than_one_plan():
    steady = arrivals("steady", 3.5, seed=1, bins=60), bandwidths("steady", 6e6, seed=1, bins=60)
    scenario = Scenario(POISSON, CHEAP, *steady)
    ground = Ground(scenario)
    alone = replay(ground, {"splitplane": planner})["splitplane"]
    assert cheapest_cost(ground, [], alone.within) == pytest.approx(alone.cost_per_hour, rel=1e-3)


def test_what_is_turned_away_costs_nothing():
    theirs = course(build_context(POISSON, CHEAP), split(2), np.array([60.0, 1e6]), over(6e6, 6e6))
    assert theirs.cost[1] == pytest.approx(theirs.cost[0])


def test_a_plan_over_a_link_that_is_gone_serves_nobody():
    context = build_context(replace(POISSON, links=()), CHEAP)
    assert course(context, split(2), np.array([3.5]), over(6e6)).within[0] == 0.0

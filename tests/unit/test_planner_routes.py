"""The table of routes that a gateway may choose from without asking."""

from dataclasses import replace

import pytest

from splitplane.domain.measurements import Missing, Value
from splitplane.domain.plans import Candidate, Plan
from splitplane.domain.snapshots import FixedPlan, Mode, PayPerUse, Preference
from splitplane.planner import Kept, plan
from splitplane.planner.context import build_context
from splitplane.planner.evaluation import assess
from splitplane.planner.routes import LIMIT, admissible, admissible_routes
from splitplane.simulation.strategies import cloud_only
from tests.support.planner_cases import (
    CLOUD,
    EDGE,
    MEBIBYTE,
    POLICY,
    SNAPSHOT,
    edge_only,
    links,
    serving,
    split,
    with_tiers,
)

CONTEXT = build_context(SNAPSHOT, POLICY)


def test_the_targets_own_route_comes_first_and_the_edge_alone_is_a_way_out():
    decision = plan(SNAPSHOT, POLICY, 0.0)
    assert decision.routes[0].plan == decision.target.plan
    assert "edge:0-6" in [str(route.plan) for route in decision.routes]


@pytest.mark.parametrize("megabits", [1, 3, 10, 50, 1000])
@pytest.mark.parametrize("prefer", Preference)
def test_every_route_runs_on_what_is_resident_and_keeps_the_input_private(megabits: int, prefer: Preference):
    snapshot, policy = replace(SNAPSHOT, links=links(megabits)), replace(POLICY, prefer=prefer)
    decision = plan(snapshot, policy, 0.0)
    pods = {(s.tier, s.resident_first, s.resident_last, s.replicas) for s in decision.target.plan.stages}
    assert 1 <= len(decision.routes) <= LIMIT
    for route in decision.routes:
        for stage in route.plan.stages:
            assert (stage.tier, stage.resident_first, stage.resident_last, stage.replicas) in pods
            assert stage.tier == "edge" or stage.first >= 1


def test_a_route_carries_the_highest_rate_that_its_replicas_bear():
    alone = next(route for route in admissible_routes(CONTEXT, split(1)) if len(route.plan.stages) == 1)
    assert alone.predicted.max_rate_per_second == pytest.approx(2 * 0.7 / (8 * 0.0502 + 0.002))


def test_a_route_that_cannot_bear_the_demand_is_predicted_at_what_it_bears():
    routes = admissible_routes(replace(CONTEXT, rate=10.5), split(1, edge=2, cloud=2))
    alone = next(route for route in routes if len(route.plan.stages) == 1)
    assert alone.predicted.max_rate_per_second < 10.5
    assert alone.predicted.p95_seconds < 1.0


@pytest.mark.parametrize("served", [split(1), split(2), split(5)])
def test_every_other_route_is_the_best_at_some_bandwidth_or_the_only_one_over_its_tiers(served: Plan):
    found = admissible(CONTEXT, served)
    for place, route in enumerate(found.routes[1:], start=1):
        alike = [each for each in found.routes if tiers(each) == tiers(route)]
        assert found.steps.ranges(place) or alike == [route]


def test_a_fixed_plan_gives_way_to_another_route_at_no_bandwidth_and_keeps_its_way_out():
    fixed = FixedPlan((("edge", 0, 1), ("cloud", 1, 6)), ("fp32",))
    for megabits in (0.1, 1, 10, 1000):
        snapshot = replace(SNAPSHOT, links=links(megabits))
        decision = plan(snapshot, replace(POLICY, mode=Mode.FIXED, fixed=fixed, codecs=("fp32",)), 0.0)
        assert [tiers(route) for route in decision.routes] == [["edge", "cloud"], ["edge"]]
        assert decision.steps is not None
        assert (decision.steps.starts, decision.steps.routes) == ((0.0,), (0,))
        # Both are given what they bear at the link's bandwidth, not at that for which they were planned.
        for there in (0.05, 2.0, 300.0):
            context = build_context(replace(SNAPSHOT, links=links(there)), replace(POLICY, codecs=("fp32",)))
            bear = [assess(context, route.plan).predicted.max_rate_per_second for route in decision.routes]
            assert [each.at(there * 125e3) for each in decision.steps.capacities] == pytest.approx(bear)


def test_a_fixed_plan_that_crosses_no_link_or_one_without_numbers_has_no_steps():
    for stages, codecs, megabits in (
        ((("edge", 0, 6),), (), 50),
        ((("edge", 0, 1), ("cloud", 1, 6)), ("fp32",), Missing("no series")),
    ):
        policy = replace(POLICY, mode=Mode.FIXED, fixed=FixedPlan(stages, codecs), codecs=("fp32",))
        assert plan(replace(SNAPSHOT, links=links(megabits)), policy, 0.0).steps is None


def tiers(route: Candidate) -> list[str]:
    return [stage.tier for stage in route.plan.stages]


def test_a_stage_that_holds_part_of_the_model_offers_no_way_out():
    snapshot = with_tiers(SNAPSHOT, edge={"memory_limit_bytes": 350 * MEBIBYTE})
    assert all(len(route.plan.stages) == 2 for route in plan(snapshot, POLICY, 0.0).routes)


def test_a_dead_tier_leaves_only_the_routes_that_live():
    snapshot = with_tiers(SNAPSHOT, cloud={"ready_nodes": 0})
    routes = admissible_routes(build_context(snapshot, POLICY), split(1))
    assert [str(route.plan) for route in routes] == ["edge:0-6"]


def test_over_a_link_without_numbers_only_the_plans_own_route_remains():
    context = build_context(replace(SNAPSHOT, links=links(Missing("no series")), active=serving(split(1))), POLICY)
    assert [str(route.plan) for route in admissible_routes(context, split(1))] == [
        "edge:0-1|cloud:1-6 int8",
        "edge:0-6",
    ]


def test_the_baselines_are_there_to_compare_with_even_where_they_break_a_limit():
    alternatives = plan(SNAPSHOT, POLICY, 0.0).alternatives
    assert str(alternatives["edge-only"].plan) == "edge:0-6"
    assert alternatives["edge-only"].violations == ()
    assert str(alternatives["cloud-only"].plan) == "cloud:0-6"
    assert alternatives["cloud-only"].violations == ("privacy",)


def test_the_baselines_use_capacity_that_is_paid_by_the_request_where_that_suits_them_best():
    paid = with_tiers(SNAPSHOT, cloud={"pay_per_use": PayPerUse(0.0, 0.0, 0.01), "min_replicas": 0})
    policy = replace(POLICY, prefer=Preference.COST)
    always, used = (plan(each, policy, 0.0).alternatives["cloud-only"] for each in (SNAPSHOT, paid))
    assert (used.plan.stages[0].replicas, used.plan.stages[0].pay_per_use) == (0, True)
    assert used.predicted.cost_per_hour < always.predicted.cost_per_hour
    dear = with_tiers(SNAPSHOT, cloud={"pay_per_use": PayPerUse(1.0, 1.0, 0.01)})
    assert plan(dear, policy, 0.0).alternatives["cloud-only"] == always


@pytest.mark.parametrize(
    ("rate", "limit", "breaks"), [(3.0, 0.3, {"p95"}), (9.0, 30.0, {"utilization"}), (3.0, 30.0, set())]
)
def test_a_way_out_tells_the_limits_that_it_breaks(rate: float, limit: float, breaks: set[str]):
    context = build_context(replace(SNAPSHOT, arrival_rate=Value(rate)), replace(POLICY, max_p95_seconds=limit))
    out = next(
        route for route in admissible_routes(context, split(1, edge=2, cloud=2)) if str(route.plan) == "edge:0-6"
    )
    assert set(out.violations) == breaks


@pytest.mark.parametrize(("last", "away"), [(1, "cloud"), (0, "fog")])
def test_cloud_only_is_the_last_tier_that_can_be_used(last: int, away: str):
    far = replace(CLOUD, ready_nodes=last)
    ways = tuple(replace(links(50)[0], source=a, target=b) for a, b in (("edge", "fog"), ("edge", "cloud")))
    snapshot = replace(SNAPSHOT, tiers=(EDGE, replace(CLOUD, name="fog"), far), links=ways)
    assert str(plan(snapshot, POLICY, 0.0).alternatives["cloud-only"].plan) == f"{away}:0-6"
    served = cloud_only(snapshot, POLICY, 0.0, Kept(snapshot.profile))
    assert str(served.plan) == f"{away}:0-6"


def test_an_edge_only_plan_has_one_route():
    assert [route.plan for route in admissible_routes(CONTEXT, edge_only(3))] == [edge_only(3)]

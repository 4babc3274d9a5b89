"""What must hold for every input: more is never worse, missing is never zero, NaN never wins."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitplane.domain.measurements import Error, Idle, Measurement, Missing, Stale, Value
from splitplane.domain.snapshots import Action, Policy, Preference, Snapshot
from splitplane.planner import plan
from tests.support.planner_cases import POLICY, SNAPSHOT, follow, links, serving, split, with_tiers

rates = st.floats(0.05, 14.0)
megabits = st.floats(0.5, 200.0)
scvs = st.sampled_from((0.0, 0.5, 1.0, 3.0))
FREE = replace(POLICY, max_p95_seconds=None, max_cost_per_hour=None)
quick = settings(max_examples=80)


def at(rate: float, bandwidth: float = 50.0, scv: float = 0.0) -> Snapshot:
    return replace(SNAPSHOT, arrival_rate=Value(rate), links=links(bandwidth), arrival_scv=scv)


@quick
@given(rates, megabits, st.floats(1.0, 20.0), scvs)
def test_more_bandwidth_never_raises_the_best_p95(rate: float, bandwidth: float, factor: float, scv: float):
    slow = plan(at(rate, bandwidth, scv), FREE, 0.0).target.predicted.p95_seconds
    fast = plan(at(rate, bandwidth * factor, scv), FREE, 0.0).target.predicted.p95_seconds
    # Among plans within 3 % of the lowest p95 the cheapest is taken.
    assert fast <= slow * 1.03 * (1.0 + 1e-9)


@quick
@given(rates, megabits, st.floats(0.3, 1.0), st.floats(0.5, 1.0), scvs)
def test_a_tighter_latency_limit_never_lowers_the_cost(rate, bandwidth, limit, factor, scv):
    policy = replace(FREE, prefer=Preference.COST, max_p95_seconds=limit)
    loose = plan(at(rate, bandwidth, scv), policy, 0.0)
    tight = plan(at(rate, bandwidth, scv), replace(policy, max_p95_seconds=limit * factor), 0.0)
    if tight.feasible:
        assert loose.feasible
        # Among plans within 2 % of the lowest cost the fastest is taken.
        assert tight.target.predicted.cost_per_hour * 1.02 >= loose.target.predicted.cost_per_hour


@quick
@given(rates, megabits, st.floats(0.1, 1.5), st.floats(0.5, 1.0))
def test_a_tighter_cost_limit_never_lowers_the_p95(rate, bandwidth, limit, factor):
    policy = replace(FREE, max_cost_per_hour=limit)
    loose = plan(at(rate, bandwidth), policy, 0.0)
    tight = plan(at(rate, bandwidth), replace(policy, max_cost_per_hour=limit * factor), 0.0)
    if tight.feasible:
        assert tight.target.predicted.p95_seconds * 1.03 >= loose.target.predicted.p95_seconds


@quick
@given(rates, st.floats(1.0, 3.0))
def test_more_demand_never_takes_replicas_away_from_the_same_split(rate: float, factor: float):
    policy = replace(FREE, prefer=Preference.COST, max_partitions=1)
    few = plan(at(rate), policy, 0.0).target
    many = plan(at(rate * factor), policy, 0.0).target
    assert many.plan.replicas("edge") >= few.plan.replicas("edge")


@quick
@given(rates, megabits, scvs, st.sampled_from(Preference))
def test_a_plan_without_violations_satisfies_every_limit(rate, bandwidth, scv, prefer):
    decision = plan(at(rate, bandwidth, scv), replace(POLICY, prefer=prefer), 0.0)
    predicted = decision.target.predicted
    if decision.feasible:
        assert predicted.p95_seconds <= 0.6
        assert predicted.cost_per_hour <= 1.0
        assert predicted.max_rate_per_second >= rate * (1.0 - 1e-9)
    assert all(s.resident_first >= 1 for s in decision.target.plan.stages if s.tier == "cloud")


@quick
@given(rates, megabits, scvs)
def test_equal_arguments_give_equal_decisions(rate: float, bandwidth: float, scv: float):
    snapshot = replace(at(rate, bandwidth, scv), active=serving(split(1)))
    assert plan(snapshot, POLICY, 5.0) == plan(snapshot, POLICY, 5.0)


ABSENT: list[Measurement] = [
    Missing("no series"),
    Stale(600.0),
    Error("not reachable"),
    Value(math.nan),
    Value(math.inf),
    Value(-3.0),
]


@pytest.mark.parametrize("rate", ABSENT, ids=repr)
def test_a_rate_that_is_not_known_changes_nothing(rate: Measurement):
    active = serving(split(2, edge=6, cloud=2), low=-5_000.0)
    decision = plan(replace(SNAPSHOT, arrival_rate=rate, active=active), POLICY, 0.0)
    assert (decision.action, decision.gate, decision.reason) == (Action.HOLD, "metrics", "MetricsMissing")
    assert decision.target.plan == active.plan
    assert decision.low_demand_since is None
    assert "arrival rate" in decision.message


@pytest.mark.parametrize("rate", ABSENT, ids=repr)
def test_a_pipeline_comes_up_before_any_rate_is_known(rate: Measurement):
    decision = plan(replace(SNAPSHOT, arrival_rate=rate), POLICY, 0.0)
    assert decision.action is Action.START
    assert decision.target.predicted.max_rate_per_second >= 1.0


def test_a_proven_zero_is_planned_for_and_never_scales_to_nothing():
    snapshot = replace(SNAPSHOT, arrival_rate=Idle(), active=serving(split(1, edge=2, cloud=1)))
    decision = plan(snapshot, POLICY, 0.0)
    assert decision.gate != "metrics"
    assert all(stage.replicas >= 1 for stage in decision.target.plan.stages)
    assert plan(replace(SNAPSHOT, arrival_rate=Value(0.0)), POLICY, 0.0) == plan(
        replace(SNAPSHOT, arrival_rate=Idle()), POLICY, 0.0
    )


@pytest.mark.parametrize("price", ABSENT, ids=repr)
@pytest.mark.parametrize("policy", [POLICY, replace(FREE, prefer=Preference.COST)], ids=["limit", "preference"])
def test_a_price_that_is_not_known_holds_the_plan_when_money_matters(price: Measurement, policy: Policy):
    snapshot = with_tiers(replace(SNAPSHOT, active=serving(split(2))), cloud={"price_per_hour": price})
    decision = plan(snapshot, policy, 0.0)
    assert (decision.action, decision.gate) == (Action.HOLD, "metrics")
    assert "price of tier cloud" in decision.message


@pytest.mark.parametrize("price", ABSENT, ids=repr)
def test_a_tier_of_unknown_price_is_not_chosen_at_the_start_when_money_matters(price: Measurement):
    decision = plan(with_tiers(SNAPSHOT, cloud={"price_per_hour": price}), POLICY, 0.0)
    assert {stage.tier for stage in decision.target.plan.stages} == {"edge"}


@pytest.mark.parametrize("price", ABSENT, ids=repr)
def test_a_price_that_nobody_asks_for_may_be_unknown(price: Measurement):
    decision = plan(with_tiers(SNAPSHOT, cloud={"price_per_hour": price}), FREE, 0.0)
    assert str(decision.target.plan) == "edge:0-1|cloud:1-6 int8"
    assert math.isnan(decision.target.predicted.cost_per_hour)


@pytest.mark.parametrize("bandwidth", [*ABSENT, Idle()], ids=repr)
def test_no_plan_goes_over_a_link_that_nobody_has_measured(bandwidth: Measurement):
    decision = plan(replace(SNAPSHOT, links=links(bandwidth)), POLICY, 0.0)
    assert str(decision.target.plan) == "edge:0-6"
    assert all(len(route.plan.stages) == 1 for route in decision.routes)


@pytest.mark.parametrize("bandwidth", [*ABSENT, Idle()], ids=repr)
def test_the_active_plan_stays_while_its_link_is_not_measured(bandwidth: Measurement):
    first = plan(SNAPSHOT, POLICY, 0.0)
    snapshot = replace(follow(SNAPSHOT, first, 0.0), links=links(bandwidth))
    remembered = plan(snapshot, POLICY, 500.0)
    assert remembered.target.plan == first.target.plan
    assert remembered.target.predicted.p95_seconds == pytest.approx(first.target.predicted.p95_seconds)
    assert snapshot.active is not None
    forgotten = plan(replace(snapshot, active=replace(snapshot.active, inputs=None)), POLICY, 500.0)
    assert (forgotten.gate, forgotten.target.plan) == ("metrics", first.target.plan)


def test_demand_is_followed_over_a_link_that_is_not_measured_now():
    snapshot = follow(SNAPSHOT, plan(SNAPSHOT, POLICY, 0.0), 0.0)
    snapshot = replace(snapshot, links=links(Missing("no series")), arrival_rate=Value(10.5))
    assert plan(snapshot, POLICY, 500.0).target.plan.replicas("cloud") == 2


def test_a_link_measured_to_pass_nothing_is_left():
    snapshot = replace(SNAPSHOT, links=links(0.0), active=serving(split(1)))
    decision = plan(snapshot, POLICY, 0.0)
    assert decision.action is Action.SWITCH
    assert str(decision.target.plan) == "edge:0-6"


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (replace(POLICY, gateway_tier="moon"), "gateway's tier 'moon'"),
        (replace(POLICY, max_utilization=1.5), "utilisation ceiling"),
    ],
)
def test_a_policy_that_contradicts_the_snapshot_is_refused_with_the_cause(policy: Policy, says: str):
    with pytest.raises(ValueError, match=says):
        plan(SNAPSHOT, policy, 0.0)

"""The pitch tracker through a day: a slow link, more demand, a higher price, a dead cloud."""

import random
from dataclasses import replace

import pytest

from splitplane.domain.measurements import Missing, Value
from splitplane.domain.profiles import Profile
from splitplane.domain.snapshots import Action, Decision, Link, Preference, Snapshot
from splitplane.planner import plan
from tests.support.planner_cases import (
    CREPE_PREFIX_MILLISECONDS,
    POLICY,
    SNAPSHOT,
    crepe,
    device,
    follow,
    links,
    serving,
    shape,
    split,
    with_tiers,
)


def scenario(profile: Profile) -> dict[str, Decision]:
    """One decision per step, each carried out before the next, 100 s apart."""
    steps = {
        "start": (3.5, 50.0, 0.30, 1),
        "slow link": (3.5, 3.0, 0.30, 1),
        "fast link": (3.5, 50.0, 0.30, 1),
        "more demand": (10.5, 50.0, 0.30, 1),
        "higher price": (10.5, 50.0, 0.60, 1),
        "cloud gone": (10.5, 50.0, 0.60, 0),
    }
    decisions = {}
    snapshot: Snapshot = replace(SNAPSHOT, profile=profile)
    for number, (step, (rate, megabits, price, nodes)) in enumerate(steps.items()):
        now = 100.0 * number
        snapshot = replace(snapshot, time=now, arrival_rate=Value(rate), links=links(megabits))
        snapshot = with_tiers(
            snapshot, cloud={"price_per_hour": Value(price), "ready_nodes": nodes, "slots": 4 * nodes}
        )
        decisions[step] = plan(snapshot, POLICY, now)
        snapshot = follow(snapshot, decisions[step], now)
    return decisions


def test_every_step_of_the_scenario_comes_out_of_the_planner():
    decisions = scenario(crepe())
    assert {step: (shape(d.target.plan), d.action, d.reason) for step, d in decisions.items() if d.target} == {
        "start": ("edge:0-1|cloud:1-6 int8 x2+1", Action.START, "InitialPlan"),
        "slow link": ("edge:0-2|cloud:2-6 int8 x2+1", Action.SWITCH, "LinkChanged"),
        "fast link": ("edge:0-1|cloud:1-6 int8 x2+1", Action.SWITCH, "LinkChanged"),
        "more demand": ("edge:0-1|cloud:1-6 int8 x2+2", Action.SWITCH, "DemandGrew"),
        "higher price": ("edge:0-2|cloud:2-6 int8 x7+1", Action.SWITCH, "PriceChanged"),
        "cloud gone": ("edge:0-6 x7", Action.SWITCH, "NodeLost"),
    }
    assert all(decision.feasible and not decision.target.violations for decision in decisions.values())


def test_the_slow_link_is_answered_by_routing_alone():
    decisions = scenario(crepe())
    before, after = decisions["start"].target.plan, decisions["slow link"].target.plan
    for old, new in zip(before.stages, after.stages, strict=True):
        assert (old.tier, old.resident_first, old.resident_last, old.replicas) == (
            new.tier,
            new.resident_first,
            new.resident_last,
            new.replicas,
        )


def test_a_link_that_passes_nothing_is_left_at_once_though_its_delay_is_unknown():
    served = follow(SNAPSHOT, plan(SNAPSHOT, POLICY, 0.0), 0.0)
    cut = replace(served, time=1.0, links=(Link("edge", "cloud", Value(0.0), Missing("no series")),))
    decision = plan(cut, POLICY, 1.0)
    assert (decision.action, decision.reason) == (Action.SWITCH, "LinkChanged")
    assert decision.target
    assert {stage.tier for stage in decision.target.plan.stages} == {"edge"}


EVEN = (0.0, 8.0, 17.0, 25.0, 33.0, 42.0, 50.0)
"""Segments of about one length, in milliseconds, so that each further one on the edge takes notably longer."""

EVENLY = replace(
    SNAPSHOT,
    profile=replace(
        crepe(), devices={"edge": device("edge", 8.0, prefix=EVEN), "cloud": device("cloud", 1.5, prefix=EVEN)}
    ),
)
PRIVATE = replace(POLICY, prefer=Preference.PRIVACY)


@pytest.mark.parametrize(
    ("limit", "summary"),
    [(0.175, "edge:0-1|cloud:1-6 int8 x2+1"), (0.30, "edge:0-3|cloud:3-6 fp16 x2+1"), (0.60, "edge:0-6 x3")],
)
def test_privacy_goes_as_deep_as_the_limits_allow_and_then_for_the_least_cost(limit, summary):
    decision = plan(EVENLY, replace(PRIVATE, max_p95_seconds=limit), 0.0)
    assert (shape(decision.target.plan), decision.feasible) == (summary, True)


def test_a_gain_in_privacy_is_the_share_of_segments_that_leaves_the_untrusted_tiers():
    decision = plan(replace(EVENLY, active=serving(split(2))), replace(PRIVATE, max_p95_seconds=0.30), 0.0)
    assert str(decision.best.plan) == "edge:0-3|cloud:3-6 fp16"
    assert decision.gain == pytest.approx(0.25)


def test_costs_stay_within_the_limit_and_the_first_segment_stays_on_the_edge():
    for decision in scenario(crepe()).values():
        assert decision.target.predicted.cost_per_hour <= 1.0
        for route in decision.routes:
            assert all(stage.resident_first >= 1 for stage in route.plan.stages if stage.tier == "cloud")


@pytest.mark.parametrize("seed", range(20))
def test_with_a_slower_cloud_the_scenario_bears_ten_percent_error_in_either_device_speed(seed):
    rng = random.Random(seed)
    profile = replace(
        crepe(),
        devices={
            "edge": device("edge", 8.0 * rng.uniform(0.9, 1.1)),
            "cloud": device("cloud", 2.0 * rng.uniform(0.9, 1.1)),
        },
    )
    steps = {step: decision.target.plan for step, decision in scenario(profile).items()}
    assert str(steps["start"]) == "edge:0-1|cloud:1-6 int8"
    assert str(steps["slow link"]) == "edge:0-2|cloud:2-6 int8"
    assert shape(steps["fast link"]) == shape(steps["start"])
    assert shape(steps["more demand"]) == "edge:0-1|cloud:1-6 int8 x2+2"
    assert str(steps["higher price"]) == "edge:0-2|cloud:2-6 int8"
    assert steps["higher price"].replicas("cloud") == 1
    assert steps["higher price"].replicas("edge") >= 5
    assert str(steps["cloud gone"]) == "edge:0-6"


def test_the_fixture_is_the_measured_model():
    assert crepe().devices["edge"].prefix_seconds[1] == pytest.approx(8 * CREPE_PREFIX_MILLISECONDS[1] / 1000)


def test_the_cause_is_the_change_that_made_the_plan_unfit_not_the_largest_one():
    snapshot = replace(SNAPSHOT, profile=crepe(), arrival_rate=Value(3.5), links=links(11.0))
    snapshot = with_tiers(snapshot, cloud={"price_per_hour": Value(0.30), "ready_nodes": 1, "slots": 4})
    snapshot = follow(snapshot, plan(snapshot, POLICY, 0.0), 0.0)
    later = replace(snapshot, time=100.0, arrival_rate=Value(10.5), links=links(50.0))
    decision = plan(later, POLICY, 100.0)
    assert (decision.action, decision.reason) == (Action.SWITCH, "DemandGrew")

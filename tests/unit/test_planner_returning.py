"""A plan that was left comes back once something has changed by more than noise makes of it, and not before."""

from dataclasses import replace

import pytest

from splitplane.domain.measurements import Value
from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import Action, Left, PayPerUse, Policy, Preference, Snapshot, Variant
from splitplane.planner import choose, dump_call, load_call
from splitplane.planner.context import build_context
from tests.support.planner_cases import (
    POLICY,
    SNAPSHOT,
    crepe,
    device,
    edge_only,
    follow,
    links,
    serving,
    split,
    with_tiers,
)

CHEAP, DEAR = edge_only(3), split(2, edge=3, cloud=1)
COST = replace(POLICY, prefer=Preference.COST, max_cost_per_hour=1.0)
Case = tuple[Snapshot, Policy]


def left(gone: Plan) -> Snapshot:
    """``DEAR`` serves, and another plan was left for it on these numbers."""
    snapshot = replace(SNAPSHOT, active=serving(DEAR))
    inputs = build_context(snapshot, COST).inputs
    return replace(snapshot, active=replace(serving(DEAR), left=(Left(gone, inputs),)))


def test_a_plan_that_was_left_does_not_come_back_on_the_same_numbers():
    decision = choose(left(CHEAP), COST, 0.0)
    assert (decision.action, decision.gate, decision.reason) == (Action.HOLD, "return", "HeldByReturn")
    assert "edge:0-6 x3" in decision.message
    for nodes in (2, 5):
        more = with_tiers(left(CHEAP), edge={"ready_nodes": nodes}, cloud={"ready_nodes": nodes})
        assert choose(more, COST, 0.0).gate == "return"
    assert "nothing has changed since" in decision.message


def test_the_same_split_with_other_replicas_was_not_left():
    assert choose(left(edge_only(2)), COST, 0.0).action is Action.SWITCH


@pytest.mark.parametrize("off", [0.95 / 1.05, 1.05 / 0.95])
def test_noise_of_five_per_cent_brings_it_not_back(off: float):
    seen = replace(left(CHEAP), arrival_rate=Value(3.5 * off), links=links(50.0 * off), speed_corrections={"edge": off})
    decision = choose(seen, COST, 0.0)
    assert decision.target is not None
    assert decision.target.plan != CHEAP


def of_before(snapshot: Snapshot) -> Snapshot:
    """What an operator has kept that did not name the rules."""
    assert snapshot.active is not None
    old = tuple(replace(each, inputs=replace(each.inputs, rules="")) for each in snapshot.active.left)
    return replace(snapshot, active=replace(snapshot.active, left=old))


# As long in all, and longer before the first cuts.
OTHERWISE = {**crepe().devices, "cloud": device("cloud", 1.5, prefix=(0.0, 20.0, 41.7, 44.0, 45.3, 46.8, 50.2))}
CHANGES: dict[str, Case] = {
    "load": (replace(left(CHEAP), arrival_rate=Value(3.1)), COST),
    "link": (replace(left(CHEAP), links=links(44.0)), COST),
    "delay": (replace(left(CHEAP), links=links(50.0, delay=0.003)), COST),
    "a tier's speed": (replace(left(CHEAP), speed_corrections={"cloud": 1.2}), COST),
    "a fixed time per request": (replace(left(CHEAP), offset_corrections={"cloud": 0.02}), COST),
    "burstiness": (replace(left(CHEAP), arrival_scv=0.5), COST),
    "a price": (with_tiers(left(CHEAP), cloud={"price_per_hour": Value(0.35)}), COST),
    "a tier that is gone": (with_tiers(left(CHEAP), cloud={"ready_nodes": 0}), COST),
    "the limit on cost": (left(CHEAP), replace(COST, max_cost_per_hour=1.2)),
    "a limit on cost of the user's own by a little": (left(CHEAP), replace(COST, max_cost_per_hour=1.01)),
    "no limit on cost": (left(CHEAP), replace(COST, max_cost_per_hour=None)),
    "another limit": (left(CHEAP), replace(COST, max_p95_seconds=0.65)),
    "the price of what leaves a tier": (with_tiers(left(CHEAP), edge={"egress_price_per_gib": 0.01}), COST),
    "pay-per-use": (with_tiers(left(CHEAP), cloud={"pay_per_use": PayPerUse(price_per_request=1.0)}), COST),
    "a tier's least replicas": (with_tiers(left(CHEAP), edge={"min_replicas": 1}), COST),
    "a tier's most replicas": (with_tiers(left(CHEAP), cloud={"max_replicas": 1}), COST),
    "memory": (with_tiers(left(CHEAP), edge={"memory_limit_bytes": 4 << 30}), COST),
    "trust": (with_tiers(left(CHEAP), cloud={"trusted": True}), COST),
    "a grant": (with_tiers(left(CHEAP), cloud={"granted": 1}), COST),
    "the profile": (replace(left(CHEAP), profile=replace(SNAPSHOT.profile, devices=OTHERWISE)), COST),
    "a variant": (replace(left(CHEAP), variants=(Variant("worse", crepe(edge=80.0, cloud=80.0), 0.5),)), COST),
    "what was kept before there was a name of the rules": (of_before(left(CHEAP)), COST),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_comes_back_once_something_has_changed(change: str):
    decision = choose(*CHANGES[change], 0.0)
    assert decision.action is Action.SWITCH
    assert decision.target is not None
    assert decision.target.plan == CHEAP


def test_it_comes_back_at_once_where_the_active_plan_may_not_stay():
    decision = choose(left(CHEAP), replace(COST, codecs=("fp32",)), 0.0)
    assert decision.action is Action.SWITCH
    same = replace(left(CHEAP), profile=replace(SNAPSHOT.profile, cuts=SNAPSHOT.profile.cuts))
    assert choose(with_tiers(same, cloud={"granted": 0}), COST, 0.0).action is Action.SWITCH


def test_what_is_left_is_remembered_until_something_has_changed():
    snapshot = replace(SNAPSHOT, active=serving(DEAR))
    decision = choose(snapshot, COST, 0.0)
    assert [each.plan for each in decision.left] == [DEAR]
    snapshot = replace(follow(snapshot, decision, 0.0), links=links(5.0))  # so that the edge alone no longer serves
    snapshot = replace(snapshot, arrival_rate=Value(18.0))
    later = choose(snapshot, COST, 1000.0)
    assert later.action is Action.SWITCH
    assert [each.plan for each in later.left] == [CHEAP]


def test_a_plan_whose_nodes_are_gone_was_not_left_by_choice_and_what_was_left_for_it_may_come_back():
    lost = with_tiers(left(edge_only(2)), cloud={"ready_nodes": 0})
    decision = choose(lost, COST, 0.0)
    assert (decision.reason, decision.left) == ("NodeLost", ())


def test_a_part_of_a_limit_on_cost_that_sites_share_wanders():
    snapshot = replace(SNAPSHOT, active=serving(DEAR), budget=0.9)
    inputs = build_context(snapshot, COST).inputs
    seen = replace(snapshot, active=replace(serving(DEAR), left=(Left(CHEAP, inputs),)))
    assert choose(replace(seen, budget=0.95), COST, 0.0).gate == "return"
    assert choose(replace(seen, budget=0.75), COST, 0.0).action is Action.SWITCH


def test_it_is_part_of_the_logged_call():
    call = left(CHEAP), COST, 0.0
    assert load_call(dump_call(*call)) == call
    assert choose(*load_call(dump_call(*call))) == choose(*call)


def test_it_comes_back_at_once_where_waits_on_the_active_plan_have_no_end():
    thin, bold = split(2, edge=1, cloud=1), replace(COST, max_utilization=0.9)

    def under(rate: float) -> Snapshot:
        snapshot = with_tiers(
            replace(SNAPSHOT, active=serving(thin), arrival_rate=Value(rate)), edge={"min_replicas": 1}
        )
        inputs = build_context(replace(snapshot, arrival_rate=Value(2.8)), bold).inputs
        return replace(snapshot, active=replace(serving(thin), left=(Left(edge_only(2), inputs),)))

    assert choose(under(2.95), bold, 0.0).gate == "return"
    decision = choose(under(3.0), bold, 0.0)
    assert (decision.action, decision.target and decision.target.plan) == (Action.SWITCH, edge_only(2))

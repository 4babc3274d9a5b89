"""Plans that come back to a tier from another, where that is allowed: edge, cloud, edge."""

import random
from dataclasses import replace

import numpy as np
import pytest

from splitplane.domain.measurements import Value
from splitplane.domain.plans import Plan, Stage
from splitplane.domain.profiles import DeviceProfile
from splitplane.domain.snapshots import Policy, Preference, Snapshot, Tier
from splitplane.planner import explain, frontier, plan
from splitplane.planner.bars import Aim
from splitplane.planner.choice import pick
from splitplane.planner.context import ContradictionError, build_context
from splitplane.planner.evaluation import assess
from splitplane.planner.frontier import frontier_of_lines, in_the_running
from splitplane.planner.selecting import highest_rate
from splitplane.simulation.events import by_request
from splitplane.simulation.replaying import Ground, Scenario, constant
from splitplane.simulation.traces import Trace
from tests.support.planner_cases import CODEC_TIMES, MEBIBYTE, SNAPSHOT, crepe, serving, shape, with_tiers
from tests.support.planner_random import random_case
from tests.support.planner_reference import frontier as enumerated


def device(name: str, *segment_seconds: float) -> DeviceProfile:
    prefix = (0.0, *np.cumsum(segment_seconds).tolist())
    return DeviceProfile(name, prefix, 0.02, 0.002, CODEC_TIMES, 100 * MEBIBYTE)


def made_for_it(*, cloud_price: float = 1.0, replicas: int = 8) -> tuple[Snapshot, Policy]:
    """A light beginning, a heavy middle that a dear accelerator does fifty times as fast, and a long tail that it does
    no faster than the edge."""
    model = crepe()
    heavy = replace(
        model,
        cuts=tuple(replace(cut, index=place) for place, cut in enumerate(model.cuts[-4:])),
        weight_bytes=model.weight_bytes[-3:],
        devices={"edge": device("edge", 0.01, 1.0, 0.1), "cloud": device("cloud", 0.01, 0.02, 0.1)},
    )
    tiers = (
        Tier("edge", "edge", True, 1, replicas, Value(0.05), 0.0, None, replicas, 2),
        Tier("cloud", "cloud", False, 0, 4, Value(cloud_price), 0.0, None, 4, 1),
    )
    snapshot = replace(SNAPSHOT, profile=heavy, tiers=tiers, arrival_rate=Value(15.0), arrival_scv=1.0)
    policy = Policy(max_p95_seconds=0.5, gateway_tier="edge", max_partitions=3, allow_return=True)
    return snapshot, policy


def test_a_plan_comes_back_to_the_edge_where_that_is_allowed_and_pays():
    snapshot, policy = made_for_it()
    back = plan(snapshot, policy, 0.0).target
    assert back is not None
    assert shape(back.plan) == "edge:0-1|cloud:1-2|edge:2-3 fp32 fp32 x1+1+2"
    assert not back.violations
    other = plan(snapshot, replace(policy, allow_return=False), 0.0).target
    assert other is not None
    assert other.predicted.cost_per_hour > 1.5 * back.predicted.cost_per_hour


def test_a_plan_comes_back_only_where_that_is_allowed():
    snapshot, policy = made_for_it()
    for kept in (replace(policy, allow_return=False), replace(policy, max_partitions=2)):
        assert not any(candidate.plan.revisits for candidate in frontier(snapshot, kept))
    target = plan(snapshot, policy, 0.0).target
    assert target is not None
    held = replace(snapshot, active=serving(target.plan))
    decision = plan(held, replace(policy, allow_return=False), 0.0)
    assert decision.reason == "SpecChanged"
    assert decision.target is not None
    assert decision.target.plan.revisits is None


def test_where_it_does_not_pay_the_best_plan_that_comes_back_is_told():
    snapshot, policy = made_for_it(cloud_price=0.05)
    decision = explain(snapshot, policy, 0.0)
    assert decision.target is not None
    assert decision.target.plan.revisits is None
    told = decision.alternatives["there-and-back"]
    assert told.plan.revisits == "edge"
    assert told.predicted.cost_per_hour > decision.target.predicted.cost_per_hour
    assert "there-and-back" not in explain(snapshot, replace(policy, allow_return=False), 0.0).alternatives


def back(head: int, tail: int, *, cloud: int = 1) -> Plan:
    return Plan((Stage("edge", 0, 1, 0, 1, head), Stage("cloud", 1, 2, 0, 3, cloud), Stage("edge", 2, 3, 2, 3, tail)),
                ("fp32", "fp32"))  # fmt: skip


@pytest.mark.parametrize(
    ("plan_", "tier", "broken"),
    [
        (back(1, 3), {}, ()),
        (back(3, 6), {}, ("replicas",)),
        (back(1, 3), {"min_replicas": 5}, ("replicas",)),
        (back(1, 3), {"min_replicas": 4}, ()),
        (back(1, 3), {"granted": 3}, ("grant",)),
        (back(1, 3), {"slots": 2}, ("utilization",)),
        (back(1, 1), {"slots": 1}, ("node-loss", "utilization")),
    ],
)
def test_both_stages_together_have_the_replicas_of_their_tier(
    plan_: Plan, tier: dict[str, object], broken: tuple[str, ...]
):
    snapshot, policy = made_for_it()
    snapshot = with_tiers(snapshot, edge=tier)
    assert set(assess(build_context(snapshot, replace(policy, max_p95_seconds=None)), plan_).violations) == set(broken)


def test_crossings_in_the_same_direction_share_the_link():
    """Out go the first activation and the answer of the last stage, back the second activation and the same answer."""
    snapshot, policy = made_for_it()
    slow = replace(snapshot, links=(replace(snapshot.links[0], bandwidth_bytes_per_second=Value(200e3)),))
    sent = [cut.wire_bytes["fp32"] for cut in snapshot.profile.cuts]
    borne = assess(build_context(slow, policy), back(4, 4, cloud=4)).predicted.max_rate_per_second
    assert borne == pytest.approx(0.8 * 200e3 / (max(sent[1], sent[2]) + sent[3]))


def test_a_model_with_early_exits_is_refused():
    snapshot, policy = made_for_it()
    with pytest.raises(ContradictionError, match="come back to a tier are not weighed for models with early exits"):
        plan(replace(snapshot, reach=(1.0, 0.5, 0.5, 0.5)), policy, 0.0)


def test_requests_are_replayed_one_by_one_only_where_they_visit_a_tier_once():
    snapshot, policy = made_for_it()
    flat = Scenario(snapshot, policy, Trace(np.full(4, 15.0)), Trace(np.full(4, 6e6)))
    metrics = constant(Ground(flat), back(1, 3))
    assert metrics.within > 0.95
    with pytest.raises(ValueError, match="--events goes without --allow-return"):
        by_request(metrics)


def test_replicas_that_may_not_go_yet_stay_with_the_first_of_the_two_stages():
    """Fewer would do, but demand has not been low for long."""
    snapshot, policy = made_for_it()
    edge_only = serving(Plan((Stage("edge", 0, 3, 0, 3, 6),)))
    moved = plan(replace(snapshot, active=edge_only), policy, 0.0).target
    assert moved is not None
    assert shape(moved.plan) == "edge:0-1|cloud:1-2|edge:2-3 fp32 fp32 x4+1+2"


def random_back(seed: int) -> tuple[Snapshot, Policy]:
    snapshot, policy = random_case(seed)
    tiers = tuple(replace(tier, min_replicas=random.Random(seed).randint(0, 3)) for tier in snapshot.tiers)
    return replace(snapshot, tiers=tiers), replace(policy, max_partitions=3, allow_return=True)


def test_the_highest_rate_is_the_highest_at_which_any_plan_is_enumerated():
    for seed in range(41_000, 41_012):
        snapshot, policy = random_back(seed)
        highest = highest_rate(build_context(snapshot, policy))
        if highest > 0.0:
            below, above = (replace(snapshot, arrival_rate=Value(highest * part)) for part in (1 - 1e-6, 1 + 1e-6))
            assert enumerated(below, policy), seed
            assert not enumerated(above, policy), seed


def test_the_best_plan_is_the_best_of_the_frontier():
    for seed in range(42_000, 42_060):
        snapshot, policy = random_back(seed)
        policy = replace(policy, prefer=random.Random(seed).choice(list(Preference)))
        context = build_context(snapshot, policy)
        some, whole = in_the_running(context, context.rate, Aim.of(policy)), frontier_of_lines(context, context.rate)
        assert bool(len(some)) == bool(len(whole)), seed
        if len(whole):
            picked, best = (each.candidate(context, pick(policy, each)) for each in (some, whole))
            assert picked == best, seed

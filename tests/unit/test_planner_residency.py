"""What pods keep resident: as much as memory and trust allow, and no change without need."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitplane.domain.inputs import padding_masks
from splitplane.domain.plans import Plan, Stage
from splitplane.domain.profiles import Cut, TensorSpec, Tied
from splitplane.domain.snapshots import Action
from splitplane.planner import frontier, plan
from splitplane.planner.context import build_context
from splitplane.planner.evaluation import assess
from splitplane.planner.keeping import Kept
from splitplane.planner.residency import holds, resident_range
from tests.support.planner_cases import MEBIBYTE, POLICY, SNAPSHOT, edge_only, serving, split, with_tiers

OPEN = replace(POLICY, raw_input_stays_trusted=False)


def test_an_edge_with_room_keeps_the_whole_model_and_an_untrusted_cloud_all_but_the_private_range():
    first, second = plan(SNAPSHOT, POLICY, 0.0).target.plan.stages
    assert (first.resident_first, first.resident_last) == (0, 6)
    assert (second.resident_first, second.resident_last) == (1, 6)


def test_an_untrusted_cloud_starts_past_every_cut_that_an_input_crosses_as_it_is():
    def carrying(index: int, name: str) -> Cut:
        cut = SNAPSHOT.profile.cuts[index]
        return replace(cut, tensors=(*cut.tensors, TensorSpec(name, "FP32", (9,)))) if 0 < index < 3 else cut

    for name, first in (("x0", 3), ("x0.div", 3), ("x01", 1)):
        profile = replace(SNAPSHOT.profile, cuts=tuple(carrying(index, name) for index in range(7)))
        snapshot = replace(SNAPSHOT, profile=profile)
        decision = plan(snapshot, POLICY, 0.0)
        assert decision.target.plan.stages[1].first >= first
        assert decision.target.plan.stages[1].resident_first == first
        assert all(each.plan.stages[-1].first >= first for each in frontier(snapshot, POLICY) if "cloud" in str(each))
        open_ = plan(snapshot, OPEN, 0.0).target.plan
        assert open_.stages[0].resident_first == 0


def test_masks_of_padding_may_cross():
    ids, mask, image = (
        TensorSpec("ids", "INT64", (9,)), TensorSpec("attention_mask", "INT64", (9,)), TensorSpec("mask", "FP32", (9,))
    )  # fmt: skip
    assert padding_masks((ids, mask)) == {"attention_mask"}
    assert padding_masks((image, mask)) == padding_masks((image, ids)) == set()
    picture, shown = (TensorSpec(name, "UINT8", (8, 8)) for name in ("picture", "object_mask"))
    assert padding_masks((picture, shown)) == set()


def test_without_a_private_input_the_cloud_may_keep_everything_and_serve_alone():
    decision = plan(SNAPSHOT, OPEN, 0.0)
    assert str(decision.target.plan) == "cloud:0-6"
    assert decision.target.plan.stages[0].resident_first == 0


def test_a_trusted_tier_beyond_the_gateway_may_see_the_raw_input():
    decision = plan(with_tiers(SNAPSHOT, cloud={"trusted": True}), POLICY, 0.0)
    assert str(decision.target.plan) == "cloud:0-6"


def test_memory_bounds_what_is_resident_from_the_tiers_own_side():
    # Runtime 300, activations 8, weights 4 + 32 + 8 + 8 + 16 + 20 MiB.
    snapshot = with_tiers(
        SNAPSHOT,
        edge={"memory_limit_bytes": 350 * MEBIBYTE},
        cloud={"memory_limit_bytes": 345 * MEBIBYTE},
    )
    context = build_context(snapshot, POLICY)
    assert resident_range(context, "edge", 0, 1) == (0, 2)
    assert resident_range(context, "cloud", 4, 6) == (4, 6)
    assert resident_range(context, "cloud", 5, 6) == (4, 6)


@given(st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.integers(0, 2**40)), max_size=8))
def test_a_range_holds_each_weight_once_however_many_of_its_segments_use_it(weights):
    tied = [Tied(*each, size) for users, size in weights for each in pairwise(sorted(users))]
    profile = replace(
        SNAPSHOT.profile,
        weight_bytes=tuple(sum(size for users, size in weights if segment in users) for segment in range(6)),
        tied=tuple(tied),
    )
    first, last = np.array(list(combinations(range(7), 2))).T
    brute = [sum(size for users, size in weights if users & set(range(a, b))) for a, b in zip(first, last, strict=True)]
    assert Kept(profile).held_bytes(first, last).tolist() == brute
    assert [profile.held_bytes(a, b) for a, b in zip(first, last, strict=True)] == brute


def test_tied_weights_fit_where_they_fit_once():
    # The last 4 MiB are the first.
    profile = replace(SNAPSHOT.profile, tied=(Tied(0, 5, 4 * MEBIBYTE),))
    needed = SNAPSHOT.profile.resident_bytes("edge", 0, 6) - 4 * MEBIBYTE
    for limit, fits in ((needed, True), (needed - 1, False)):
        snapshot = with_tiers(replace(SNAPSHOT, profile=profile), edge={"memory_limit_bytes": limit})
        context = build_context(snapshot, POLICY)
        assert (resident_range(context, "edge", 0, 1) == (0, 6)) == fits
        assert holds(context, "edge", np.array([0, 0]), np.array([5, 6])).tolist() == [True, fits]


def test_no_plan_needs_more_memory_than_a_pod_may_have():
    snapshot = with_tiers(SNAPSHOT, edge={"memory_limit_bytes": 320 * MEBIBYTE})
    decision = plan(snapshot, POLICY, 0.0)
    assert str(decision.target.plan) == "edge:0-1|cloud:1-6 int8"
    assert plan(with_tiers(snapshot, cloud={"memory_limit_bytes": 320 * MEBIBYTE}), POLICY, 0.0).target is None


def test_what_is_resident_stays_while_it_serves():
    kept = Plan((Stage("edge", 0, 2, 0, 4, 2), Stage("cloud", 2, 6, 1, 6, 1)), ("int8",))
    decision = plan(replace(SNAPSHOT, active=serving(kept)), POLICY, 0.0)
    assert decision.action is Action.SWITCH
    assert [(s.resident_first, s.resident_last) for s in decision.target.plan.stages] == [(0, 4), (1, 6)]


def test_what_is_resident_grows_when_a_plan_needs_more():
    narrow = Plan((Stage("edge", 0, 2, 0, 3, 2), Stage("cloud", 2, 6, 2, 6, 1)), ("int8",))
    decision = plan(replace(SNAPSHOT, active=serving(narrow)), POLICY, 0.0)
    assert [(s.resident_first, s.resident_last) for s in decision.target.plan.stages] == [(0, 3), (1, 6)]


@pytest.mark.parametrize("raw", [True, False])
def test_a_private_range_that_is_resident_on_an_untrusted_tier_is_removed_at_once(raw: bool):
    whole = Plan((Stage("edge", 0, 2, 0, 6, 2), Stage("cloud", 2, 6, 0, 6, 1)), ("int8",))
    snapshot = replace(SNAPSHOT, active=serving(whole, since=0.0))
    decision = plan(snapshot, replace(POLICY, raw_input_stays_trusted=raw), 1.0)
    assert ("privacy" in decision.current.violations) == raw
    if raw:
        assert decision.action is Action.SWITCH
        assert decision.target.plan.stages[1].resident_first == 1


def test_a_plan_of_another_model_does_not_count_as_valid():
    context = build_context(SNAPSHOT, POLICY)
    assert assess(context, split(1, segments=9)).violations == ("spec",)
    assert assess(context, edge_only(99)).violations == ("replicas",)

"""Variants of a model: the frontier is that of their union, limits hold across them, and gates hold between them."""

import random
from dataclasses import replace

import numpy as np
import pytest

from splitplane.domain.measurements import Value
from splitplane.domain.plans import Plan
from splitplane.domain.profiles import Profile
from splitplane.domain.snapshots import Action, FixedPlan, Mode, Policy, Preference, Snapshot, Variant
from splitplane.planner import ContradictionError, Kept, dump_call, explain, frontier, load_call, plan, plan_sites
from splitplane.planner.choice import severity
from splitplane.planner.context import build_context
from splitplane.planner.evaluation import assess
from splitplane.planner.gates import is_scale_down, moves_pods
from splitplane.planner.options import LOSS_STEP, loss_steps
from splitplane.planner.selecting import best_plan, current_frontier
from tests.support.planner_cases import (
    POLICY,
    SNAPSHOT,
    crepe,
    edge_only,
    follow,
    links,
    serving,
    shape,
    split,
    with_noise,
)
from tests.support.planner_random import random_case
from tests.support.planner_reference import Row, choose, enumerate_rows, pareto

CHEAP = replace(POLICY, prefer=Preference.COST, max_cost_per_hour=None)


def smaller(share: float) -> Profile:
    """The pitch tracker with all times times ``share``."""
    made = crepe(edge=8.0 * share, cloud=1.5 * share)
    return replace(made, fingerprint=f"crepe-{share}")


TINY = Variant("tiny", smaller(0.2), 0.03)
SMALL = Variant("small", smaller(0.5), 0.01)
BOTH = replace(SNAPSHOT, variants=(TINY, SMALL), arrival_scv=1.0)


def with_variants(seed: int) -> tuple[Snapshot, Policy]:
    """A random pipeline with one or two variants, of other sizes, some of them too inaccurate."""
    snapshot, policy = random_case(seed)
    rng = random.Random(seed)
    variants = tuple(
        Variant(name, random_case(1000 * seed + number)[0].profile, rng.choice((0.0, 0.002, 0.0083, 0.05)))
        for number, name in enumerate(("small", "tiny")[: rng.choice((1, 2))])
    )
    return replace(snapshot, variants=variants), policy


def union(snapshot: Snapshot, policy: Policy) -> list[Row]:
    """All plans of all variants within the limits that hold for every plan, one by one."""
    rows = []
    for profile, lost in ((snapshot.profile, 0.0), *((each.profile, each.accuracy_loss) for each in snapshot.variants)):
        steps = int(loss_steps(np.array(lost)))
        allowed = policy
        if policy.max_accuracy_loss is not None:
            left = policy.max_accuracy_loss - steps * LOSS_STEP
            if left < -1e-9:
                continue
            allowed = replace(policy, max_accuracy_loss=max(0.0, left) + 1e-12)
        found = enumerate_rows(replace(snapshot, profile=profile, variants=()), allowed)
        rows += [replace(row, loss=row.loss + steps) for row in found if row.utilization <= 0.7 * (1.0 + 1e-9)]
    return rows


@pytest.mark.parametrize("batch", range(5))
def test_the_frontier_and_the_best_plan_are_those_of_all_variants_together(batch: int):
    chosen = []
    for seed in range(50_000 + 20 * batch, 50_000 + 20 * (batch + 1)):
        snapshot, policy = with_variants(seed)
        context = build_context(snapshot, policy)
        found, rows = current_frontier(context), union(snapshot, policy)
        mine = sorted(zip(found.cost, found.p95, found.leak, found.loss, strict=True))
        theirs = sorted(row.traits for row in pareto(rows))
        assert len(mine) == len(theirs), seed
        if not theirs:
            continue
        np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-9, atol=1e-12, err_msg=str(seed))
        best, expected = best_plan(context), choose(rows, policy)
        assert best is not None
        assert best.predicted.p95_seconds == pytest.approx(expected.p95, rel=1e-9), seed
        assert best.predicted.cost_per_hour == pytest.approx(expected.cost, rel=1e-9, abs=1e-12), seed
        chosen.append(best.plan.variant)
    assert len(set(chosen)) > 1


def test_without_variants_nothing_differs_and_a_variant_has_names_of_its_own():
    alone = plan(replace(SNAPSHOT, arrival_scv=1.0), CHEAP, 0.0)
    assert alone.target is not None
    assert alone.target.plan.variant == ""
    tiny = replace(edge_only(3), variant="tiny")
    assert str(tiny) == "tiny/edge:0-6"
    assert tiny != edge_only(3)
    assert tiny.digest != edge_only(3).digest
    assert moves_pods(edge_only(3), tiny)
    assert not is_scale_down(edge_only(3), replace(edge_only(2), variant="tiny"))


def test_the_limit_on_accuracy_loss_counts_what_the_variant_loses_and_what_crossings_lose_on_top():
    cuts = tuple(replace(cut, accuracy_loss={"fp16": 0.0, "int8": 0.005}) for cut in TINY.profile.cuts)
    lossy = replace(TINY, profile=replace(TINY.profile, cuts=cuts))
    snapshot = replace(BOTH, variants=(lossy, SMALL))
    best = {}
    for limit in (None, 0.035, 0.034, 0.03, 0.029, 0.01, 0.009):
        decision = plan(snapshot, replace(CHEAP, max_accuracy_loss=limit), 0.0)
        assert decision.target is not None
        best[limit] = decision.target.plan.variant
    assert best == {None: "tiny", 0.035: "tiny", 0.034: "tiny", 0.03: "tiny", 0.029: "small", 0.01: "small", 0.009: ""}
    context = build_context(snapshot, replace(CHEAP, max_accuracy_loss=0.034))
    crossing = replace(split(2, "int8"), variant="tiny")
    assert assess(context, crossing).violations == ("accuracy",)
    assert assess(context, crossing).predicted.accuracy_loss == pytest.approx(0.035)
    assert assess(context, replace(crossing, codecs=("fp16",))).violations == ()


def test_the_best_plan_is_explained_with_what_the_other_variants_would_have_given():
    busy = replace(BOTH, arrival_rate=Value(12.0), links=())
    decision = explain(busy, replace(CHEAP, max_accuracy_loss=0.02), 0.0)
    assert decision.target is not None
    assert decision.target.plan.variant == "small"
    assert decision.message.startswith("start small/")
    assert "accuracy" in decision.binding
    reference, tiny = decision.alternatives["reference"], decision.alternatives["variant tiny"]
    assert tiny.violations == ("accuracy",)
    assert tiny.predicted.cost_per_hour < decision.target.predicted.cost_per_hour < reference.predicted.cost_per_hour
    assert decision.alternatives["edge-only"].plan.variant == "small"
    alone = plan(replace(busy, variants=()), CHEAP, 0.0).target
    assert alone is not None
    assert reference.plan == alone.plan


def test_routes_stay_within_the_variant_whose_pods_are_there():
    decision = plan(replace(BOTH, links=links(200)), replace(CHEAP, prefer=Preference.LATENCY), 0.0)
    assert decision.target is not None
    assert decision.target.plan.variant == "tiny"
    assert len(decision.routes) > 1
    assert {route.plan.variant for route in decision.routes} == {"tiny"}


def test_what_is_resident_of_one_variant_is_not_taken_for_another():
    edge, cloud = split(1).stages
    held = Plan((replace(edge, resident_last=3), cloud), ("int8",), "tiny")
    fast = replace(CHEAP, prefer=Preference.LATENCY)
    for variants, kept in (((TINY,), 3), ((replace(TINY, name="other"),), 6), ((), 6)):
        snapshot = replace(BOTH, links=links(200), variants=variants, active=serving(held))
        best = plan(snapshot, fast, 1e6).best
        assert best is not None
        assert best.plan.cuts == (1,)
        assert best.plan.stages[0].resident_last == kept


def test_a_change_between_variants_passes_the_gates_unless_a_limit_forces_it():
    tiny = explain(BOTH, CHEAP, 0.0).target
    assert tiny is not None
    dear = replace(BOTH, active=serving(edge_only(3), since=0.0))
    held = plan(dear, CHEAP, 10.0)
    assert (held.action, held.gate) == (Action.HOLD, "cooldown")
    early = plan(dear, CHEAP, 1000.0)  # fewer replicas wait for the scale-down window, of another variant, too
    assert early.target is not None
    assert (early.target.plan.variant, early.target.plan.replicas("edge")) == ("tiny", 3)
    later = replace(dear, active=replace(dear.active, low_demand_since=0.0)) if dear.active else dear
    assert plan(later, replace(CHEAP, cooldown_seconds=1e4), 1000.0).gate == "cooldown"
    assert plan(later, replace(CHEAP, min_gain=0.9), 1000.0).gate == "gain"
    moved = plan(later, CHEAP, 1000.0)
    assert (moved.action, moved.target) == (Action.SWITCH, moved.best)
    assert moved.target is not None
    assert moved.target.plan.variant == "tiny"
    strict = replace(CHEAP, max_accuracy_loss=0.0)
    back = plan(replace(BOTH, active=serving(tiny.plan, since=0.0)), strict, 1.0)  # within every cool-down
    assert (back.action, back.reason) == (Action.SWITCH, "SpecChanged")
    assert back.target is not None
    assert back.target.plan.variant == ""


def test_a_plan_of_a_variant_that_is_offered_no_more_goes():
    gone = replace(BOTH, variants=(SMALL,), active=serving(replace(edge_only(2), variant="tiny")))
    for policy in (CHEAP, replace(CHEAP, prefer=Preference.PRIVACY), replace(CHEAP, mode=Mode.ADVISORY)):
        decision = plan(gone, policy, 0.0)
        assert decision.current is not None
        assert decision.current.violations == ("spec",)
        assert decision.action is Action.SWITCH
        assert decision.target is not None
        assert decision.target.plan.variant in {"", "small"}


@pytest.mark.parametrize("seed", range(6))
def test_with_noise_under_constant_load_no_plan_of_any_variant_comes_back(seed: int):
    rng = random.Random(seed)
    policy = replace(
        CHEAP, prefer=rng.choice(list(Preference)), max_p95_seconds=rng.uniform(0.1, 0.6),
        max_cost_per_hour=rng.uniform(0.05, 0.5), max_accuracy_loss=rng.choice((None, 0.02)),
    )  # fmt: skip
    calm = replace(BOTH, arrival_rate=Value(rng.uniform(1.0, 20.0)), links=links(rng.choice((3.0, 20.0, 80.0))))
    snapshot, kept, visited = calm, Kept(calm.profile), []
    for tick in range(40):
        decision = plan(with_noise(rng, snapshot, calm), policy, 60.0 * tick, kept=kept)
        if decision.action is not Action.HOLD and decision.target is not None:
            visited.append(f"{shape(decision.target.plan)}")
            if decision.current is not None:
                assert severity(decision.target) <= severity(decision.current)
        snapshot = follow(snapshot, decision, 60.0 * tick)
    assert len(visited) == len(set(visited)), visited


def test_a_decision_among_variants_replays_from_its_record_and_with_what_was_kept():
    snapshot = replace(BOTH, active=serving(replace(edge_only(2), variant="tiny")))
    recorded = load_call(dump_call(snapshot, CHEAP, 5.0))
    kept = Kept(snapshot.profile)
    expected = plan(snapshot, CHEAP, 5.0)
    assert plan(*recorded) == expected
    assert plan(snapshot, CHEAP, 5.0, kept=kept) == plan(snapshot, CHEAP, 5.0, kept=kept) == expected


def test_nothing_that_one_variant_bears_is_overload():
    busy = replace(BOTH, arrival_rate=Value(40.0), links=())  # eight replicas of the reference bear 14
    decision = plan(busy, CHEAP, 0.0)
    assert decision.target is not None
    assert decision.target.plan.variant == "tiny"
    assert decision.feasible
    over = plan(replace(busy, arrival_rate=Value(4000.0)), CHEAP, 0.0)
    assert over.target is not None
    assert over.target.violations[0] == "utilization"
    assert over.target.plan.variant == "tiny"


def test_a_fixed_plan_is_one_of_the_model_itself():
    fixed = replace(CHEAP, mode=Mode.FIXED, fixed=FixedPlan((("edge", 0, 6),), ()))
    decision = plan(BOTH, fixed, 0.0)
    assert decision.target is not None
    assert decision.target.plan.variant == ""


def test_variants_that_contradict_each_other_are_refused():
    for variants, message in (
        ((TINY, TINY), "names, each its own"),
        ((replace(TINY, name=""),), "names, each its own"),
        ((replace(TINY, accuracy_loss=1.5),), "loses 1.5 in accuracy"),
    ):
        with pytest.raises(ContradictionError, match=message):
            frontier(replace(SNAPSHOT, variants=variants), CHEAP)
    with pytest.raises(ContradictionError, match="leave out its variants"):
        plan_sites({"north": BOTH}, CHEAP, shared="cloud")

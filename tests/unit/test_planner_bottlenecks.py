"""Which stage or link the load is too much for: the one whose relief lets the plan bear more."""

from dataclasses import replace

import pytest

from splitplane.domain.measurements import Value
from splitplane.domain.plans import Plan, Stage
from splitplane.planner import choose, why_overloaded
from splitplane.planner.bottlenecks import bottleneck
from splitplane.planner.context import build_context
from splitplane.planner.evaluation import assess
from tests.support.planner_cases import POLICY, SNAPSHOT, edge_only, links, split, with_tiers
from tests.support.planner_random import random_case


@pytest.mark.parametrize("seed", range(60))
def test_the_busiest_of_a_plans_stages_and_links_is_what_bounds_its_rate(seed: int):
    snapshot, policy = random_case(seed)
    target = choose(snapshot, policy, 0.0).target
    if target is None:
        return
    context = build_context(snapshot, policy)
    found = bottleneck(context, target.plan)
    assert found is not None
    predicted = assess(context, target.plan).predicted
    if found.busy > 0.0:
        assert context.rate / found.busy * policy.max_utilization == pytest.approx(predicted.max_rate_per_second)
    kind, *where = found.name.split()
    if kind == "stage":
        tier = where[0].partition(":")[0]
        stages = tuple(
            replace(stage, replicas=stage.replicas + 4) if stage.tier == tier else stage for stage in target.plan.stages
        )
        wide = replace(
            snapshot, tiers=tuple(replace(each, max_replicas=99, slots=99) for each in snapshot.tiers)
        )  # fmt: skip
        more = assess(build_context(wide, policy), replace(target.plan, stages=stages))
    else:
        source, _, end = where
        quick = tuple(
            replace(each, bandwidth_bytes_per_second=Value(1e12))
            if {each.source, each.target} == {source, end}
            else each
            for each in snapshot.links
        )
        more = assess(build_context(replace(snapshot, links=quick), policy), target.plan)
    assert more.predicted.max_rate_per_second > predicted.max_rate_per_second


@pytest.mark.parametrize(
    ("plan", "megabits", "name"),
    [
        (split(1, edge=2, cloud=1), 1000.0, "stage cloud:1-6"),
        (split(2, edge=2, cloud=1), 1000.0, "stage edge:0-2"),
        (split(1, "fp32", edge=2, cloud=1), 10.0, "link edge to cloud"),
        (edge_only(3), 10.0, "stage edge:0-6"),
        (Plan((Stage("cloud", 0, 6, 0, 6, 4),)), 0.01, "link edge to cloud"),
    ],
)
def test_it_is_named_by_its_tier_and_cuts_or_its_ends(plan: Plan, megabits: float, name: str):
    found = bottleneck(build_context(replace(SNAPSHOT, links=links(megabits)), POLICY), plan)
    assert found is not None
    assert found.name == name


def test_nothing_is_told_where_the_load_is_borne_or_nothing_is_known():
    context = build_context(SNAPSHOT, POLICY)
    assert not why_overloaded(SNAPSHOT, POLICY, assess(context, edge_only(3)))
    loud = replace(SNAPSHOT, arrival_rate=Value(400.0))
    over = assess(build_context(loud, POLICY), edge_only(3))
    assert why_overloaded(loud, POLICY, over).startswith("stage edge:0-6 would be busy for ")
    assert bottleneck(build_context(with_tiers(SNAPSHOT, edge={"ready_nodes": 0}), POLICY), edge_only(3)) is None
    assert bottleneck(build_context(replace(SNAPSHOT, links=()), POLICY), split(1)) is None

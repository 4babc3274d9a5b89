"""The search against HiGHS, where planning is a mixed integer linear programme."""

import numpy as np
import pytest

from splitplane.planner.context import build_context
from splitplane.planner.frontier import frontier_of_lines
from tests.support.planner_graphs import graph, three_tiers
from tests.support.planner_milp import cheapest


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("loss", [0.002, 0.02])
def test_the_cheapest_plan_within_limits_on_latency_and_accuracy_is_the_one_that_highs_finds(seed: int, loss: float):
    snapshot, policy = three_tiers(graph(14, seed=seed, time_cv=0.0), rate=20.0, arrival_scv=0.0)
    context = build_context(snapshot, policy)
    found = frontier_of_lines(context, context.rate)
    able = found.loss <= round(loss * 1000)
    seconds = np.unique(found.p95[able])
    assert len(seconds) > 1
    for p95 in seconds[[0, len(seconds) // 2, -1]]:
        best = found.cost[able & (found.p95 <= p95)].min()
        assert cheapest(context, p95=p95, loss=loss).cost == pytest.approx(best, rel=1e-6)

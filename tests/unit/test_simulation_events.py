"""A replay of single requests: exact where it can be told, and near the formulas where those hold."""

from dataclasses import replace

import numpy as np
import pytest

from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import Preference, Snapshot
from splitplane.simulation.events import by_request, through_link, through_pool
from splitplane.simulation.replaying import SWITCH_SECONDS, Ground, Metrics, Scenario, constant, replay
from splitplane.simulation.strategies import Choice, planner
from splitplane.simulation.traces import Trace, arrivals, bandwidths
from tests.support.planner_batches import shared
from tests.support.planner_cases import POLICY, SNAPSHOT, edge_only, split

CHEAP = replace(POLICY, prefer=Preference.COST)
POISSON = replace(SNAPSHOT, arrival_scv=1.0)


def steady(rate: float, *, bins: int = 400, bandwidth: float = 6.25e6, snapshot: Snapshot = POISSON) -> Ground:
    return Ground(Scenario(snapshot, CHEAP, Trace(np.full(bins, rate)), Trace(np.full(bins, bandwidth))))


@pytest.mark.parametrize("plan", [edge_only(3), edge_only(5), split(2)])
@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_a_steady_replay_gives_the_responses_that_the_formulas_predict(plan: Plan, busy: float):
    most = steady(1.0, bins=1).course(plan).most[0]
    metrics = constant(steady(busy * most, bins=round(600.0 / most * 3)), plan)
    found = by_request(metrics)
    assert found.p95 == pytest.approx(metrics.p95, rel=0.12)
    assert found.within == pytest.approx(metrics.within, abs=0.05)
    assert found.refused == 0.0


def test_what_a_plan_cannot_work_off_waits_is_late_and_is_turned_away():
    most = steady(1.0, bins=1).course(edge_only(3)).most[0]
    rates = np.repeat([0.5 * most, 2.0 * most, 0.5 * most], (20, 20, 40))
    ground = Ground(Scenario(POISSON, CHEAP, Trace(rates), Trace(np.full(80, 6e6))))
    metrics = constant(ground, edge_only(3))
    found = by_request(metrics)
    assert found.within == pytest.approx(metrics.within, abs=0.06)
    assert 0.1 < found.refused < 0.5


def test_no_plan_serves_nobody():
    metrics = replay(steady(1.0, bins=4), {"none": lambda *_: None})["none"]
    assert (by_request(metrics).within, by_request(metrics).refused) == (0.0, 1.0)


def test_replicas_are_there_when_a_switch_is_done_and_not_before():
    """Before, the three of the old plan serve those that come, who are late; requests end where they began."""
    ground = steady(14.0, bins=8)

    def later(_snapshot, _policy, now, _kept):
        return Choice(edge_only(3) if now < 60.0 else edge_only(8))

    found = by_request(replay(ground, {"later": later})["later"])
    never = by_request(constant(ground, edge_only(3)))
    always = by_request(constant(ground, edge_only(8)))
    assert never.within < found.within < always.within
    assert found.within < 1.0 - (60.0 + 0.8 * SWITCH_SECONDS) / 240.0


def leave(reached: list[float], sizes: list[tuple[float, int]], *, fixed: float = 0.0, most: int = 1) -> list[float]:
    """When those leave that take a second each."""
    one = np.ones(len(reached))
    left = through_pool(np.array(reached), one, sizes, fixed=fixed * one, most=most * one.astype(np.int64))
    return [round(each, 6) for each in left.tolist()]


def test_replicas_serve_in_the_order_of_coming_and_new_ones_join():
    reached = [0.0, 0.1, 0.2, 5.0, 5.1]
    assert leave(reached, [(0.0, 1)]) == [1.0, 2.0, 3.0, 6.0, 7.0]
    assert leave(reached, [(0.0, 1), (4.0, 2)]) == [1.0, 2.0, 3.0, 6.0, 6.1]
    assert leave(reached, [(0.0, 2), (4.0, 1)]) == [1.0, 1.1, 2.0, 6.0, 7.0]


def test_a_free_replica_computes_together_what_waits():
    assert leave([0.0, 0.1, 0.2, 0.3, 0.4], [(0.0, 1)], fixed=0.5, most=3) == [1.0, 3.0, 3.0, 3.0, 4.0]


def test_no_more_wait_than_a_gateway_takes_in():
    left = leave([0.0] + [0.5] * 300, [(0.0, 1)])
    assert [np.isfinite(each) for each in left] == [True] * 257 + [False] * 44


def test_a_link_passes_one_after_the_other_at_the_bandwidth_of_the_time():
    left = through_link(np.array([0.0, 0.5, 40.0]), np.array([100.0, 100.0, 100.0]), np.array([100.0, 50.0]), 30.0)
    assert left.tolist() == [1.0, 2.0, 42.0]


def test_what_begins_to_cross_while_a_link_is_down_has_crossed_soon_after_it_is_back():
    left = through_link(np.array([5.0, 12.0, 45.0]), np.array([100.0, 200.0, 10.0]), np.array([20.0, 1.0, 50.0]), 10.0)
    assert left == pytest.approx([10.0, 23.84, 45.2])


def test_a_day_of_the_planner_holds_request_by_request():
    """A diurnal day over a wandering link: what the replay of bins says of it is what its requests see."""
    load, link = arrivals("diurnal", 3.5, seed=6, bins=1440), bandwidths("wandering", 2.5e6, seed=7, bins=1440)
    metrics: Metrics = replay(Ground(Scenario(POISSON, CHEAP, load, link)), {"splitplane": planner})["splitplane"]
    found = by_request(metrics)
    assert found.within == pytest.approx(metrics.within, abs=0.02)
    assert by_request(metrics) == found


def test_batches_bear_more_as_the_formulas_say():
    """At a load that replicas could not serve one by one."""
    batching = replace(CHEAP, max_batch=8, max_p95_seconds=10.0)
    snapshot = replace(POISSON, profile=shared(POISSON.profile))
    most = steady(1.0, bins=1).course(edge_only(2)).most[0]
    rate = Trace(np.full(round(600.0 / most * 3), 1.3 * most))
    metrics = constant(Ground(Scenario(snapshot, batching, rate, Trace(np.full(len(rate), 6e6)))), edge_only(2))
    found = by_request(metrics)
    assert found.refused == 0.0
    assert found.p95 == pytest.approx(metrics.p95, rel=0.2)


def test_what_is_not_replayed_is_refused():
    leaving = replace(POISSON, reach=(1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="exit"):
        by_request(constant(steady(1.0, bins=2, snapshot=leaving), edge_only(3)))

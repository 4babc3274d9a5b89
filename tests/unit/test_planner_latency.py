"""Predicted response times: against an event simulation, and where theory is exact."""

import heapq
import random

import numpy as np
import pytest

from splitplane.domain.plans import Plan, Stage
from splitplane.planner.context import build_context
from splitplane.planner.evaluation import assess
from splitplane.planner.queueing import Response, Station, erlang_c, respond
from tests.support.planner_cases import POLICY, SNAPSHOT

Spec = tuple[float, float, int]  # mean service, coefficient of variation, servers


def simulate(stations: list[Spec], rate: float, *, poisson: bool, requests: int = 30_000) -> float:
    """95th percentile of the response time, by running every request through every queue."""
    rng = random.Random(7)
    clock, arrivals = 0.0, []
    for _ in range(requests):
        clock += rng.expovariate(rate) if poisson else 1.0 / rate
        arrivals.append(clock)
    times = list(arrivals)
    for mean, cv, servers in stations:
        free = [0.0] * servers
        for index in sorted(range(requests), key=times.__getitem__):
            service = rng.gammavariate(1.0 / cv**2, mean * cv**2) if cv else mean
            times[index] = max(times[index], heapq.heappop(free)) + service
            heapq.heappush(free, times[index])
    return sorted(end - start for start, end in zip(arrivals, times, strict=True))[int(0.95 * requests)]


def predict(stations: list[Spec], rate: float, scv: float) -> Response:
    def column(value: float) -> np.ndarray:
        return np.array([value], dtype=np.float64)

    return respond(
        [Station(column(mean), column((mean * cv) ** 2), column(servers)) for mean, cv, servers in stations],
        constant=column(0.0),
        rate=rate,
        arrival_scv=scv,
    )


def lines() -> list[tuple[list[Spec], bool]]:
    """Edge, link, cloud at several loads, variabilities and replica counts, at 3.5 requests per second."""
    cases = []
    for poisson in (False, True):
        for cv in (0.0, 0.05, 0.3, 1.0):
            for servers in ((1, 1), (2, 1), (6, 2)):
                for load in ((0.3, 0.3), (0.7, 0.2), (0.5, 0.7)):
                    edge, cloud = ((rho * count / 3.5, cv, count) for rho, count in zip(load, servers, strict=True))
                    cases.append(([edge, (0.15 / 3.5, 0.0, 1), cloud], poisson))
    return cases


def test_p95_agrees_with_a_simulation_up_to_a_utilisation_of_70_percent():
    errors = []
    for stations, poisson in lines():
        predicted = predict(stations, 3.5, float(poisson)).p95[0]
        errors.append(abs(predicted / simulate(stations, 3.5, poisson=poisson) - 1.0))
    assert max(errors) < 0.20
    assert np.mean(np.array(errors) < 0.10) > 0.9


def test_a_constant_rate_client_sees_the_plain_sum_of_service_times():
    stations = [(0.33, 0.0, 2), (0.02, 0.0, 1), (0.07, 0.0, 1)]
    assert predict(stations, 3.5, 0.0).p95[0] == pytest.approx(0.42, rel=0.03)


def test_the_wait_is_exact_for_one_exponential_server():
    response = predict([(0.1, 1.0, 1)], 7.0, 1.0)
    assert response.mean[0] == pytest.approx(0.1 / 0.3)
    assert response.p95[0] == pytest.approx(0.1 / 0.3 * 2.9957, rel=0.02)


def test_erlang_c_matches_published_values():
    assert erlang_c(np.array([1.0, 2.0, 5.0]), np.array([0.5, 1.0, 4.0])) == pytest.approx(
        [0.5, 1.0 / 3.0, 0.5541], abs=1e-4
    )


def test_a_saturated_station_has_no_finite_response():
    response = predict([(0.3, 0.1, 1)], 3.5, 0.0)
    assert np.isinf(response.p95[0])
    assert response.utilization[0] == pytest.approx(1.05)
    assert response.capacity[0] == pytest.approx(1.0 / 0.3)


def test_bursty_arrivals_take_longer_than_smooth_ones():
    p95 = [predict([(0.15, 0.1, 1)], 3.5, scv).p95[0] for scv in (0.0, 0.5, 1.0, 4.0)]
    assert p95 == sorted(p95)
    assert p95[0] < p95[-1]


def test_a_split_takes_the_time_of_its_stages_codecs_link_and_propagation():
    context = build_context(SNAPSHOT, POLICY)
    plan = Plan((Stage("edge", 0, 1, 0, 6, 2), Stage("cloud", 1, 6, 1, 6, 1)), ("int8",))
    by_hand = (
        8 * 0.0037
        + 0.002
        + 524288 * 6e-10  # edge, its overhead, encoding
        + 131072 / 6.25e6
        + 0.002  # there
        + 1.5 * 0.0465
        + 0.002
        + 524288 * 4e-10  # cloud, its overhead, decoding
        + 1440 / 6.25e6
        + 0.002  # back
    )
    assert assess(context, plan).predicted.mean_seconds == pytest.approx(by_hand, rel=0.01)


def test_raw_input_crosses_the_link_when_the_first_stage_is_beyond_it():
    context = build_context(SNAPSHOT, POLICY)
    cloud = assess(context, Plan((Stage("cloud", 0, 6, 0, 6, 1),)))
    by_hand = 4096 / 6.25e6 + 0.002 + 1.5 * 0.0502 + 0.002 + 1440 / 6.25e6 + 0.002
    assert cloud.predicted.mean_seconds == pytest.approx(by_hand, rel=0.01)
    assert cloud.violations == ("privacy",)


def test_the_highest_rate_keeps_the_busiest_station_at_the_ceiling():
    context = build_context(SNAPSHOT, POLICY)
    plan = Plan((Stage("edge", 0, 6, 0, 6, 3),))
    assert assess(context, plan).predicted.max_rate_per_second == pytest.approx(3 * 0.7 / (8 * 0.0502 + 0.002))

"""Predicted response times: against an event simulation, and where theory is exact."""

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitplane.domain.measurements import Value
from splitplane.domain.plans import Plan, Stage
from splitplane.planner import plan
from splitplane.planner.context import build_context
from splitplane.planner.erlang import waiting_chance
from splitplane.planner.evaluation import assess
from splitplane.planner.queueing import (
    Response,
    Station,
    damp,
    overflow_share,
    percentile_95,
    respond,
    round_up,
    wait,
)
from tests.support import planner_batches
from tests.support.planner_batches import Stop
from tests.support.planner_cases import POLICY, SNAPSHOT
from tests.support.planner_simulation import Line, gaps, percentile, simulate


def column(value: float) -> np.ndarray:
    return np.array([value], dtype=np.float64)


def predict(line: Line) -> Response:
    stations = [Station(column(mean), cv, column(servers)) for mean, cv, servers in line.stations]
    return respond(stations, constant=column(0.0), rate=line.rate, arrival_scv=line.arrival_scv)


def random_plan(rng: np.random.Generator) -> Line:
    """One to three stages of up to 16 replicas with links between them, each busy for at most 80 % of the time."""
    stations: list[tuple[float, float, int]] = []
    stages = rng.integers(1, 4)
    for stage in range(stages):
        if stage > 0:
            stations.append((float(rng.uniform(0.02, 0.8)), 0.0, 1))
        replicas = int(rng.choice((1, 1, 2, 2, 3, 4, 6, 8, 12, 16)))
        busy, cv = rng.uniform(0.1, 0.8), float(rng.choice((0.02, 0.05, 0.1, 0.2, 0.3, 0.5)))
        stations.append((float(busy) * replicas, cv, replicas))
    if stages > 1:
        stations.append((float(rng.uniform(0.001, 0.1)), 0.0, 1))
    return Line(tuple(stations), rate=1.0)


def test_p95_of_200_random_plans_agrees_with_an_event_simulation_within_10_percent():
    rng = np.random.default_rng(5)
    lines = [random_plan(rng) for _ in range(200)]
    times = simulate(lines, requests=120_000, warm_up=5_000)
    predicted = [predict(line) for line in lines]

    def errors(values: list[float], share: float) -> np.ndarray:
        return np.abs(np.array(values) / percentile(times, share) - 1.0)

    p95 = errors([response.p95[0] for response in predicted], 0.95)
    assert p95.max() < 0.10, lines[int(p95.argmax())]
    assert np.mean(errors([response.p50(0) for response in predicted], 0.50) < 0.10) > 0.97
    assert np.mean(errors([response.p99(0) for response in predicted], 0.99) < 0.10) > 0.97


def test_it_holds_where_each_replica_has_a_queue_as_it_has_behind_a_gateway():
    """To find the shortest queue of several is nearly as good as to share one, which is what the formulas say."""
    rng = np.random.default_rng(5)
    lines = [random_plan(rng) for _ in range(200)]
    stops = [tuple(Stop(mean, cv, servers) for mean, cv, servers in line.stations) for line in lines]
    times = planner_batches.simulate(stops, requests=12_000, warm_up=1_000, one_queue=False)
    errors = np.array([predict(line).p95[0] for line in lines]) / percentile(times, 0.95) - 1.0
    assert np.mean(np.abs(errors) < 0.10) > 0.95
    assert np.abs(errors).max() < 0.15


@pytest.mark.parametrize(
    "stations",
    [
        ((0.33, 0.0, 2), (0.02, 0.0, 1), (0.07, 0.0, 1)),
        ((1.6, 0.05, 8), (0.1, 0.0, 1), (0.18, 0.05, 1)),
        ((0.2, 0.3, 1), (0.05, 0.0, 1), (0.3, 0.3, 2)),
    ],
)
def test_p95_agrees_with_a_simulation_for_a_client_at_a_constant_rate(stations):
    line = Line(stations, rate=3.5, arrival_scv=0.0)
    simulated = percentile(simulate([line], requests=20_000, warm_up=1_000), 0.95)[0]
    assert predict(line).p95[0] == pytest.approx(simulated, rel=0.10)


def test_a_constant_rate_client_sees_the_plain_sum_of_constant_service_times():
    line = Line(((0.33, 0.0, 2), (0.02, 0.0, 1), (0.07, 0.0, 1)), rate=3.5, arrival_scv=0.0)
    assert predict(line).mean[0] == pytest.approx(0.42)
    assert 0.42 <= predict(line).p95[0] <= 0.42 * (1.0 + 2.0**-8)


def test_of_stations_with_constant_service_only_the_slowest_makes_requests_wait():
    slow, quick = (0.2, 0.0, 1), (0.1, 0.0, 1)
    alone = predict(Line((slow,), rate=4.0))
    for stations in ((slow, quick), (quick, slow)):
        assert predict(Line(stations, rate=4.0)).mean[0] == pytest.approx(alone.mean[0] + 0.1)


def test_the_waits_of_stations_with_exponential_service_add_up():
    stations = ((0.2, 1.0, 1), (0.15, 1.0, 1))
    waits = [predict(Line((station,), rate=4.0)).mean[0] for station in stations]
    assert predict(Line(stations, rate=4.0)).mean[0] == pytest.approx(sum(waits))


def test_the_wait_is_exact_for_one_exponential_server():
    response = predict(Line(((0.1, 1.0, 1),), rate=7.0))
    assert response.mean[0] == pytest.approx(0.1 / 0.3)
    for predicted, quantile in ((response.p50(0), 0.6931), (response.p95[0], 2.9957), (response.p99(0), 4.6052)):
        assert predicted == pytest.approx(0.1 / 0.3 * quantile, rel=0.02)


def test_erlang_c_matches_published_values():
    servers, offered = np.array([1.0, 2.0, 5.0]), np.array([0.5, 1.0, 4.0])
    assert waiting_chance(servers, offered / servers) == pytest.approx([0.5, 1.0 / 3.0, 0.5541], abs=1e-4)


@pytest.mark.parametrize("servers", [1, 16, 100, 256, 300, 512, 1000, 4000])
def test_erlang_c_holds_for_many_servers(servers: int):
    for load in (0.3, 0.8, 0.9, 0.95, 0.98):
        blocking = 1.0
        for count in range(1, servers + 1):
            blocking = servers * load * blocking / (count + servers * load * blocking)
        exact = blocking / (1.0 - load * (1.0 - blocking))
        found = waiting_chance(np.array([float(servers)]), np.array([load]))[0]
        assert found == pytest.approx(exact, abs=0.005)


def test_a_load_that_nothing_bears_takes_no_longer_to_plan_for_than_any_other():
    before = time.process_time()
    decisions = [plan(replace(SNAPSHOT, arrival_rate=Value(rate)), POLICY, 0.0) for rate in (1e3, 1.7e3, 1e5, 1e9)]
    assert time.process_time() - before < 4.0
    assert len({decision.target.plan for decision in decisions}) == 1


def test_a_saturated_station_has_no_finite_response():
    response = predict(Line(((0.3, 0.1, 1),), rate=3.5, arrival_scv=0.0))
    assert np.isinf([response.mean[0], response.p50(0), response.p95[0], response.p99(0)]).all()
    assert response.utilization[0] == pytest.approx(1.05)
    assert response.capacity[0] == pytest.approx(1.0 / 0.3)


LEVELS = st.floats(0.0, 1.0)


@st.composite
def any_station(draw: st.DrawFn) -> Station:
    service = draw(st.one_of(st.just(0.0), st.floats(1e-6, 30.0)))
    extra = draw(st.one_of(st.none(), st.none(), st.floats(0.0, 10.0)))
    cv = draw(st.one_of(st.sampled_from((0.0, 0.02, 5.0)), st.floats(0.0, 1e3)))
    servers = draw(st.integers(0 if extra is not None else 1, 16))
    return Station(column(service), cv, column(servers), extra, others=draw(LEVELS) * 0.5 * servers)


@given(
    stations=st.lists(any_station(), min_size=1, max_size=5), rate=st.floats(0.01, 1e3), constant=LEVELS,
    arrival_scv=st.one_of(st.sampled_from((0.0, 1.0, 25.0)), st.floats(0.0, 1e6)),
)  # fmt: skip
@settings(max_examples=1500, deadline=None)
def test_percentiles_rise_from_what_passing_takes_without_a_wait(
    stations: list[Station], rate: float, constant: float, arrival_scv: float
):
    found = respond(stations, constant=column(constant), rate=rate, arrival_scv=arrival_scv)
    unvaried = constant + sum(float(each.service[0]) for each in stations if each.cv == 0.0)
    p50, p95, p99 = found.p50(0), float(found.p95[0]), found.p99(0)
    assert 0.0 <= constant <= p50 <= p95 <= p99
    if all(each.cv == 0.0 for each in stations):
        assert p50 >= unvaried * (1.0 - 1e-9)


@pytest.mark.parametrize("scv", [26.0, 1e6, 1e300, -3.0])
def test_what_is_measured_beyond_any_formula_counts_as_the_most_that_one_bears(scv: float):
    """A profile may hold any number, and a snapshot that somebody else made."""
    wild = replace(SNAPSHOT, arrival_scv=scv)
    known = replace(SNAPSHOT, arrival_scv=min(25.0, max(0.0, scv)))
    assert plan(wild, POLICY, 0.0) == plan(known, POLICY, 0.0)
    device = replace(SNAPSHOT.profile.devices["edge"], time_cv=abs(scv))
    bounded = replace(device, time_cv=min(5.0, abs(scv)))
    one, two = (
        replace(SNAPSHOT, profile=replace(SNAPSHOT.profile, devices={**SNAPSHOT.profile.devices, "edge": each}))
        for each in (device, bounded)
    )
    assert plan(one, POLICY, 0.0).target == plan(two, POLICY, 0.0).target


def test_bursty_arrivals_take_longer_than_smooth_ones():
    p95 = [predict(Line(((0.15, 0.1, 1),), rate=3.5, arrival_scv=scv)).p95[0] for scv in (0.0, 0.5, 1.0, 4.0)]
    assert p95 == sorted(p95)
    assert p95[0] < p95[-1]


@pytest.mark.parametrize("scv", [0.0, 0.01, 0.25, 1.0, 2.0])
@pytest.mark.parametrize("arrival_scv", [0.0, 0.3, 1.0, 2.0, 4.0])
def test_a_further_replica_never_makes_a_wait_longer_or_more_variable(scv: float, arrival_scv: float):
    service = np.geomspace(0.005, 30.0, 4000)
    columns = []
    for count in range(1, 33):
        servers = np.full_like(service, float(count))
        able = service / servers < 0.98
        mean, variance, third = (np.full_like(service, np.inf) for _ in range(3))
        cumulants = wait(service[able], scv, servers[able], 1.0, arrival_scv)
        mean[able] = cumulants[0]
        variance[able], third[able] = damp(*cumulants[1:])
        columns.append((mean, variance, third))
    for fewer, more in pairwise(columns):
        for power, (longer, shorter) in enumerate(zip(fewer, more, strict=True), start=1):
            assert np.all(shorter <= longer + 1e-20 * service**power)


cumulant = st.floats(0.0, 10.0)


@settings(max_examples=500)
@given(cumulant, cumulant, cumulant, st.integers(0, 2), st.floats(0.0, 5.0))
def test_p95_never_falls_when_a_cumulant_grows(mean: float, variance: float, third: float, which: int, more: float):
    cumulants = [np.array([value]) for value in (mean, variance + 1e-9, third)]
    before = percentile_95(*cumulants)[0]
    cumulants[which] = cumulants[which] + more
    assert percentile_95(*cumulants)[0] >= before


@given(st.floats(1e-6, 1e6))
def test_a_prediction_is_rounded_up_by_less_than_half_a_percent(value: float):
    rounded = round_up(np.array([value]))
    assert value <= rounded[0] <= value * (1.0 + 2.0**-8)
    assert round_up(rounded) == rounded
    assert np.isinf(round_up(np.array([np.inf])))[0]


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


def served_elsewhere(servers: int, service: float, cv: float, scv: float, requests: int = 60_000) -> float:
    """Share of requests that find all servers busy, by an event simulation in which those go away."""
    rng = np.random.default_rng(7)
    at = np.cumsum(gaps(Line((), rate=1.0, arrival_scv=scv), requests, rng))
    times = rng.standard_gamma(1.0 / cv**2, size=requests) * service * cv**2
    free = np.zeros(servers)
    lost = 0
    for arrival, seconds in zip(at.tolist(), times.tolist(), strict=True):
        first = int(free.argmin())
        if free[first] > arrival:
            lost += 1
        else:
            free[first] = arrival + seconds
    return lost / requests


@pytest.mark.parametrize(("servers", "service"), [(1, 0.4), (2, 1.5), (4, 3.0), (8, 5.0)])
@pytest.mark.parametrize(("scv", "within"), [(1.0, 0.05), (2.0, 0.08), (0.5, 0.55)])
def test_what_finds_all_replicas_busy_agrees_with_an_event_simulation(
    servers: int, service: float, scv: float, within: float
):
    predicted = overflow_share(np.array([float(servers)]), np.array([service]), scv)[0]
    assert predicted == pytest.approx(served_elsewhere(servers, service, 0.3, scv), rel=within)


@given(st.floats(0.01, 40.0), st.floats(0.1, 4.0))
def test_with_more_replicas_less_is_paid_by_the_use(offered: float, scv: float):
    share = overflow_share(np.arange(33.0), np.full(33, offered), scv)
    assert share[0] == 1.0
    assert (np.diff(share) <= 0.0).all()


def test_where_nobody_queues_only_who_is_served_elsewhere_takes_longer():
    def of(servers: float) -> Response:
        station = Station(np.array([0.2]), 0.0, np.array([servers]), extra=0.5)
        return respond([station], constant=np.zeros(1), rate=5.0, arrival_scv=1.0)

    none, one, many = of(0.0), of(1.0), of(16.0)
    assert none.mean[0] == pytest.approx(0.7)
    assert none.p95[0] == pytest.approx(0.7, rel=0.005)
    assert one.mean[0] == pytest.approx(0.2 + 0.5 * 0.5)  # Erlang's B of one server with one busy on average
    assert one.p95[0] == pytest.approx(0.7, rel=0.005)
    assert many.p95[0] == pytest.approx(0.2, rel=0.005)
    assert np.isinf(none.capacity[0])

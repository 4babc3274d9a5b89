"""How bursty arrivals seem to the planner: bursts and batches show, pauses and changes of the rate do not."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, count, takewhile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from splitplane.domain.measurements import MOST_SCV, Value
from splitplane.planner import plan
from splitplane.runtime.arrivals import Burstiness
from splitplane.runtime.metrics import GatewayMetrics
from tests.support.planner_cases import POLICY, SNAPSHOT, shape

MINUTES = 200.0


def steady(rate: float, start: float = 0.0, end: float = MINUTES) -> Iterator[float]:
    """A metronome, a bit unsteady as clients are."""
    noise, spread = random.Random(1), min(0.002, 0.1 / rate)
    return (start + k / rate + noise.gauss(0.0, spread) for k in range(int((end - start) * rate)))


def poisson(rate: float, seed: int, start: float = 0.0, end: float = MINUTES) -> Iterator[float]:
    draw, now = random.Random(seed), start
    while (now := now + draw.expovariate(rate)) < end:
        yield now


def batches(size: int, starts: Iterator[float]) -> Iterator[float]:
    return (start + 0.0005 * k for start in takewhile(lambda at: at < MINUTES, starts) for k in range(size))


def every(seconds: float) -> Iterator[float]:
    return (seconds * k for k in count())


def estimate(arrivals: Iterator[float], *at: float) -> list[float]:
    """The estimates at some times while requests arrive."""
    burstiness, waiting, found = Burstiness(), list(at), []
    for now in chain(sorted(arrivals), [float("inf")]):
        while waiting and waiting[0] <= now:
            found.append(burstiness.scv(waiting.pop(0)))
        if waiting:
            burstiness.arrived(now)
    return found


ONE_THEN_NOTHING = [0.5]


@pytest.mark.parametrize("rate", [3.5, 10.0, 1000.0])
def test_a_pause_before_a_steady_stream_is_no_burst(rate: float) -> None:
    # Seen on a cluster: an SCV of 79 to 205 for more than 50 s, and a plan of three times as many replicas.
    stream = chain(ONE_THEN_NOTHING, steady(rate, start=90.5))
    assert max(estimate(stream, *(95.0 + k for k in range(60)))) < 0.4


@pytest.mark.parametrize("rate", [3.5, 10.0])
def test_after_a_pause_the_planner_starts_no_more_than_without_one(rate: float) -> None:
    snapshot = replace(SNAPSHOT, arrival_rate=Value(rate))
    wanted = shape(plan(replace(snapshot, arrival_scv=0.0), POLICY, 0.0).target.plan)
    for scv in estimate(chain(ONE_THEN_NOTHING, steady(rate, start=90.5)), *(100.0 + 5 * k for k in range(12))):
        assert shape(plan(replace(snapshot, arrival_scv=scv), POLICY, 0.0).target.plan) == wanted


@pytest.mark.parametrize(
    "before",
    [steady(3.5, end=90.0), every(5.0), poisson(0.2, 1, end=90.0)],
    ids=["tripled", "from one every 5 s", "from a trickle"],
)
def test_a_changed_rate_is_hardly_more_bursty_than_poisson_and_soon_forgotten(before: Iterator[float]) -> None:
    stream = list(chain(takewhile(lambda at: at < 90.0, before), steady(10.5, start=90.0)))
    assert max(estimate(iter(stream), *(100.0 + 5 * k for k in range(18)))) < 1.5
    assert estimate(iter(stream), 155.0)[0] < 0.1


@pytest.mark.parametrize("rate", [3.5, 10.0, 100.0])
def test_poisson_arrivals_are_one_and_a_metronome_is_nearly_zero(rate: float) -> None:
    found = [estimate(poisson(rate, seed), 190.0)[0] for seed in range(20)]
    assert sum(found) / len(found) == pytest.approx(1.0, abs=0.1)
    assert all(0.7 < scv < 1.5 for scv in found)
    assert estimate(steady(rate), 190.0)[0] < 0.1


@pytest.mark.parametrize(
    ("arrivals", "least", "most"),
    [
        (batches(5, every(0.5)), 3.5, 4.5),
        (batches(20, every(2.0)), 17.0, 20.0),
        (batches(20, every(15.0)), 15.0, 20.0),
        (batches(4, poisson(2.0, 3)), 3.0, 5.0),
        (chain.from_iterable(steady(20.0, start, start + 1.0) for start in range(0, 200, 4)), 8.0, 12.0),
        (chain.from_iterable(steady(10.0, start, start + 5.0) for start in range(0, 200, 10)), 8.0, 14.0),
    ],
    ids=["5 every 0.5 s", "20 every 2 s", "20 every 15 s", "4 at Poisson times", "1 s of 4 s", "5 s of 10 s"],
)
def test_true_bursts_show(arrivals: Iterator[float], least: float, most: float) -> None:
    stream = list(arrivals)
    for scv in estimate(iter(stream), 100.0, 141.0, 183.0):
        assert least < scv < most


def test_nothing_seen_counts_as_poisson_and_few_arrivals_prove_little() -> None:
    assert Burstiness().scv(1000.0) == 1.0
    two = Burstiness()
    two.arrived(10.0)
    two.arrived(10.001)
    assert two.scv(11.0) == pytest.approx(1.0, abs=0.15)
    assert two.scv(500.0) == 1.0


@given(st.lists(st.floats(0.0, 30.0), max_size=60), st.floats(0.0, 100.0))
@example([5e-324, 1e-200], 1.0)
def test_an_estimate_is_a_bounded_number_whatever_arrives(gaps: list[float], later: float) -> None:
    burstiness, now = Burstiness(), 0.0
    for gap in gaps:
        now += gap
        burstiness.arrived(now)
    assert 0.0 <= burstiness.scv(now + later) <= MOST_SCV


def test_the_gateway_exports_the_estimate_of_the_moment_of_the_scrape() -> None:
    now = [0.0]
    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry, namespace="shop", pipeline="tracker", clock=clock)
    labels = {"namespace": "shop", "pipeline": "tracker"}
    assert registry.get_sample_value("splitplane_arrival_scv", labels) == 1.0
    for at in steady(10.0, end=40.0):
        now[0] = max(now[0], at)
        metrics.arrived()
    assert (registry.get_sample_value("splitplane_arrival_scv", labels) or 1.0) < 0.1
    now[0] += 120.0
    assert registry.get_sample_value("splitplane_arrival_scv", labels) == 1.0

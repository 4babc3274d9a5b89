"""Requests that are computed together, as the planner counts them: delays, sizes, capacity, exactness of the search."""

import random
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from splitplane.domain.batches import paying_samples
from splitplane.domain.plans import Plan, Stage
from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner import search as searching
from splitplane.planner.batching import Together, delay_moments, delays, paying_size
from splitplane.planner.context import build_context
from splitplane.planner.evaluation import assess, evaluate
from splitplane.planner.frontier import frontier_of_lines
from splitplane.planner.layouts import Layout
from splitplane.planner.queueing import Response, Station, damp, percentile_95, respond, service_third
from splitplane.runtime.routes import Limits
from splitplane.runtime.stage.batching import TRIES, Sizes
from tests.support.planner_batches import Stop, shared, simulate
from tests.support.planner_cases import POLICY, SNAPSHOT
from tests.support.planner_random import random_case
from tests.support.planner_reference import enumerate_rows
from tests.support.planner_simulation import percentile

BATCHED = replace(SNAPSHOT, profile=shared(SNAPSHOT.profile), arrival_scv=1.0)
TOGETHER = replace(POLICY, max_batch=8, max_p95_seconds=16.0)


def predict(line: tuple[Stop, ...], scv: float = 1.0) -> Response:
    def column(value: float) -> np.ndarray:
        return np.array([value], dtype=np.float64)

    stations = [
        Station(
            column(stop.service), stop.cv, column(stop.servers),
            together=Together(column(stop.fixed), np.array([stop.most])) if stop.most > 1 else None,
        )
        for stop in line
    ]  # fmt: skip
    return respond(stations, constant=column(0.0), rate=1.0, arrival_scv=scv)


def random_stop(rng: np.random.Generator) -> Stop:
    """A stage whose largest batch is the one that pays, busy for 10 to 80 % of what it bears."""
    servers = int(rng.choice((1, 1, 2, 2, 3, 4, 6, 8, 12, 16)))
    busy, cv = rng.uniform(0.1, 0.8), float(rng.choice((0.02, 0.05, 0.1, 0.2, 0.3, 0.5)))
    fixed, limit = rng.uniform(0.1, 0.95), int(rng.choice((4, 8, 16)))
    most = int(paying_size(np.ones(1), np.array([1.0 - fixed]), most=limit, within_seconds=None)[0])
    fixed = fixed * rng.uniform(0.7, 1.0) if most > 1 else 0.0
    return Stop(float(busy * servers / (fixed / most + 1.0 - fixed)), cv, servers, float(fixed), most)


def random_line(rng: np.random.Generator) -> tuple[Stop, ...]:
    """One to three such stages with links between them."""
    line = [random_stop(rng)]
    for _ in range(rng.integers(0, 3)):
        line += [Stop(float(rng.uniform(0.02, 0.8)), 0.0), random_stop(rng)]
    if len(line) > 1:
        line.append(Stop(float(rng.uniform(0.001, 0.1)), 0.0))
    return tuple(line)


def test_p95_of_200_random_plans_with_batches_agrees_with_an_event_simulation():
    """What comes in batches to the next stage waits longer there, which is not counted: most of the errors are that."""
    rng = np.random.default_rng(11)
    lines = [random_line(rng) for _ in range(200)]
    times = simulate(lines, requests=12_000, warm_up=1_000)
    errors = np.array([predict(line).p95[0] for line in lines]) / percentile(times, 0.95) - 1.0
    single = np.array([len(line) == 1 for line in lines])
    assert np.mean(np.abs(errors[single]) < 0.10) > 0.93
    assert np.mean(np.abs(errors[~single]) < 0.10) > 0.91
    assert np.mean(np.abs(errors) < 0.10) > 0.94
    assert np.mean(np.abs(errors) < 0.20) > 0.98
    assert abs(np.mean(errors)) < 0.02


def test_the_delay_without_batches_is_the_exact_wait_of_constant_service():
    mean, variance, _ = delay_moments(0.6, 0.0, 1)
    assert mean == pytest.approx(0.6 / (2 * 0.4))
    assert variance == pytest.approx(0.6 / (3 * 0.4) + mean**2)


@pytest.mark.parametrize("busy", [0.2, 0.4, 0.6])
def test_the_delay_with_large_batches_is_close_below_the_known_bound(busy: float):
    """Inoue, "Queueing analysis of GPU-based inference servers with dynamic batching" (2021): no limit on a batch."""
    fixed, most = 0.6, 64
    once, each = fixed, 1.0 - fixed
    rate = busy * most / (once + each * most)
    load = rate * each
    bounds = (
        (each + once) / (2 * (1 - load)) * (1 + 2 * rate * once + (1 - rate * once) / (1 + load)),
        1.5 * once / (1 - load) + each / 2 * (load + 2) / (1 - load**2),
    )
    response = 1.0 + delay_moments(busy, fixed, most)[0]
    assert response <= min(bounds) * (1 + 1e-3)
    assert response == pytest.approx(min(bounds), rel=0.07)


@pytest.mark.parametrize("fixed", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("most", [2, 4, 8, 16])
@pytest.mark.parametrize(("scv", "arrival_scv"), [(0.0, 1.0), (0.01, 0.0), (0.25, 2.0), (1.0, 0.5)])
def test_a_further_replica_never_makes_a_delay_longer_or_more_variable(
    fixed: float, most: int, scv: float, arrival_scv: float
):
    service = np.geomspace(0.005, 60.0, 1500)
    together = Together(np.full_like(service, fixed), np.full(service.shape, most))
    columns, p95 = [], []
    for count in range(1, 17):
        servers = np.full_like(service, float(count))
        found = delays(service, scv, servers, 1.0, arrival_scv, together)
        able = together.at_least(service) / servers < 0.9
        columns.append([np.where(able, cumulant, np.inf) for cumulant in found])
        variance, third = damp(*(cumulant.copy() for cumulant in found[1:]))
        variance, third = variance + scv * service**2, third + service_third(service, scv)
        p95.append(np.where(able, percentile_95(service + found[0], variance, third), np.inf))
    for fewer, more in pairwise(columns):
        for power, (longer, shorter) in enumerate(zip(fewer, more, strict=True), start=1):
            assert np.all(shorter <= longer * (1 + 1e-9) + 1e-12 * service**power)
    for slower, faster in pairwise(p95):
        assert np.all(faster <= slower)


def test_without_leave_or_without_measured_batches_predictions_are_the_same_to_the_bit():
    plans = [Plan((Stage("edge", 0, 6, 0, 6, count),)) for count in (2, 5)]
    plans.append(Plan((Stage("edge", 0, 1, 0, 6, 8), Stage("cloud", 1, 6, 1, 6, 4)), ("int8",)))
    for each in plans:
        plain = assess(build_context(SNAPSHOT, POLICY), each)
        assert assess(build_context(SNAPSHOT, replace(POLICY, max_batch=8)), each) == plain
        unwanted = replace(SNAPSHOT, profile=shared(SNAPSHOT.profile))
        assert assess(build_context(unwanted, POLICY), each) == plain


def test_a_replica_bears_what_full_batches_of_it_give():
    context = build_context(BATCHED, TOGETHER)
    alone = 8 * 0.0502
    four = alone * (0.6 + 0.4 * 4) + 4 * 0.002  # eight at once would save less than 15 % of a sample's time
    predicted = assess(context, Plan((Stage("edge", 0, 6, 0, 6, 3),))).predicted
    assert predicted.max_rate_per_second == pytest.approx(3 * 4 / four * POLICY.max_utilization)


def test_a_batch_takes_no_longer_than_a_quarter_of_the_latency_limit_and_leaves_room_in_memory():
    alone, more = np.array([0.4]), np.array([0.16])
    assert paying_size(alone, more, most=16, within_seconds=None) == 16
    assert paying_size(alone, more, most=16, within_seconds=1.2) == 4
    assert paying_size(alone, more, most=3, within_seconds=None) == 2
    tight = BATCHED.profile.resident_bytes("edge", 0, 6) + 2 * BATCHED.profile.activation_bytes
    edge, cloud = BATCHED.tiers
    context = build_context(replace(BATCHED, tiers=(replace(edge, memory_limit_bytes=tight), cloud)), TOGETHER)
    assert context.samples == 3


@pytest.mark.parametrize("fixed", [0.05, 0.15, 0.25, 0.33, 0.4, 0.55, 0.7, 0.85, 0.97])
@pytest.mark.parametrize("limits", [Limits(8), Limits(16), Limits(16, seconds=0.25), Limits(4)])
def test_the_size_that_is_counted_is_the_one_that_a_stage_comes_to(fixed: float, limits: Limits):
    """A stage that is offered whatever it asks for, on a device whose batches take what the planner believes."""
    alone, more = 0.1, 0.1 * (1.0 - fixed)
    sizes = Sizes(lambda: 0.0)
    for _ in range(50):
        size = sizes.most(limits)
        for _ in range(TRIES):
            sizes.ran(size, alone + (size - 1) * more, requests=size)
    counted = paying_size(np.array([alone]), np.array([more]), most=limits.samples, within_seconds=limits.seconds)
    assert sizes.most(limits) == counted[0]


@pytest.mark.parametrize("fixed", [0.1, 0.35, 0.5, 0.8])
def test_the_size_that_a_stage_begins_at_is_none_that_is_not_counted(fixed: float):
    device = shared(SNAPSHOT.profile, fixed).devices["edge"]
    alone = device.range_seconds(0, 6)
    begins = paying_samples(device, 0, 6, most=16, within_seconds=None)
    counted = int(paying_size(np.array([alone]), np.array([alone * (1.0 - fixed)]), most=16, within_seconds=None)[0])
    assert begins == 1 or begins <= counted


def with_batches(seed: int) -> tuple[Snapshot, Policy]:
    snapshot, policy = random_case(seed)
    rng = random.Random(seed)
    profile = snapshot.profile
    for name in profile.devices:
        device = shared(profile, rng.uniform(0.1, 0.9)).devices[name]
        profile = replace(profile, devices={**profile.devices, name: device})
    return replace(snapshot, profile=profile), replace(policy, max_batch=rng.choice((4, 8, 16)))


@pytest.mark.parametrize("batch", range(4))
def test_the_frontier_with_batches_is_that_of_a_full_enumeration(batch: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(searching, "_FEW", 0)
    sizes = []
    for seed in range(40_000 + 25 * batch, 40_000 + 25 * (batch + 1)):
        snapshot, policy = with_batches(seed)
        context = build_context(snapshot, policy)
        found = frontier_of_lines(context, context.rate)
        mine = sorted(zip(found.cost, found.p95, found.leak, found.loss, strict=True))
        theirs = enumerated(snapshot, policy)
        assert len(mine) == len(theirs), seed
        if theirs:
            np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-9, atol=1e-12, err_msg=str(seed))
        sizes.append(len(theirs))
    assert np.mean(np.array(sizes) > 1) > 0.4


def enumerated(snapshot: Snapshot, policy: Policy) -> list[tuple[float, ...]]:
    """Cost, p95, leak and loss of the plans that none beats: each evaluated by itself."""
    context = build_context(snapshot, policy)
    by_tiers = defaultdict(list)
    for row in enumerate_rows(snapshot, policy):
        by_tiers[tuple(stage[0] for stage in row.stages)].append(row)
    traits: list[np.ndarray] = []
    for tiers, rows in by_tiers.items():
        bounds = [np.array([row.stages[k][1] for row in rows]) for k in range(len(tiers))]
        codecs = [np.array([context.table.codecs.index(row.codecs[k]) for row in rows]) for k in range(len(tiers) - 1)]
        replicas = tuple(np.array([row.stages[k][3] for row in rows]) for k in range(len(tiers)))
        end = np.full(len(rows), snapshot.profile.segments)
        table = evaluate(context, Layout(tiers, (*bounds, end), tuple(codecs), replicas))
        kept = table.where(np.flatnonzero(table.utilization <= policy.max_utilization * (1 + 1e-9)))
        traits.append(np.column_stack([kept.cost, kept.p95, kept.leak, kept.loss_steps]))
    everything = np.concatenate(traits) if traits else np.zeros((0, 4))
    kept_rows: list[tuple[float, ...]] = []
    for each in sorted(map(tuple, everything.tolist())):
        if not any(all(a <= b for a, b in zip(other, each, strict=True)) for other in kept_rows):
            kept_rows.append(each)
    return kept_rows

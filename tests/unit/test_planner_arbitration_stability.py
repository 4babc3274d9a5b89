"""Pipelines that share nodes settle on plans that stay: noise makes none come back, and a real change moves at once."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from splitplane.domain.measurements import Value
from splitplane.domain.snapshots import Action, Policy, Preference, Snapshot
from splitplane.planner import choose
from splitplane.planner.arbitration import arbitrate
from splitplane.planner.claims import Claim, Need, Room
from splitplane.planner.highs import solve
from splitplane.planner.keeping import Kept
from splitplane.planner.offers import offers
from tests.support.planner_cases import (
    POLICY,
    SNAPSHOT,
    edge_only,
    follow,
    links,
    serving,
    shape,
    with_noise,
    with_tiers,
)

EVERY = 60.0
CORE = (("cpu", 1.0),)


@dataclass
class Pipeline:
    """One of those that share the edge; ``plans`` are those that it has had."""

    calm: Snapshot
    policy: Policy
    priority: int = 0
    plans: list[str] = field(default_factory=list)
    granted: int | None = None

    def __post_init__(self) -> None:
        self.now, self.kept = self.calm, Kept(self.calm.profile)

    def replicas(self) -> int:
        return self.now.active.plan.replicas("edge") if self.now.active else 0


def pipeline(
    rate: float, megabits: float, p95: float, prefer: Preference, *, slots: int, priority: int = 0
) -> Pipeline:  # fmt: skip
    edge: dict[str, object] = {"slots": slots, "min_replicas": 0}
    snapshot = replace(
        with_tiers(SNAPSHOT, edge=edge, cloud={"slots": 4}),
        arrival_rate=Value(rate), arrival_scv=1.0, links=links(megabits),
    )  # fmt: skip
    policy = replace(POLICY, prefer=prefer, max_p95_seconds=p95, max_cost_per_hour=None)
    return Pipeline(snapshot, policy, priority)


def some(rng: random.Random, count: int, slots: int) -> list[Pipeline]:
    return [
        pipeline(
            rng.uniform(2, 10), rng.choice([8.0, 20.0, 50.0]), rng.uniform(0.3, 0.9),
            rng.choice(list(Preference)), slots=slots,
        )
        for _ in range(count)
    ]  # fmt: skip


def step(pipelines: Sequence[Pipeline], slots: int, now: float, *, noise: random.Random | None = None) -> None:
    """Settle them once on one node, then let each plan with its grant."""
    need = Need(CORE, frozenset({"n"}))
    seen = [with_noise(noise, each.now, each.calm) if noise else each.now for each in pipelines]
    claims = [
        Claim(
            str(number), each.priority, {"edge": need},
            offers(snapshot, each.policy, ("edge",), kept=each.kept),
            {} if each.granted is None else {"edge": each.granted},
        )
        for number, (each, snapshot) in enumerate(zip(pipelines, seen, strict=True))
    ]  # fmt: skip
    settled = arbitrate(claims, [Room("n", {"cpu": float(slots), "pods": 110.0})], solve)
    granted = [each["edge"] for each in settled.granted]
    assert sum(granted) <= slots
    for each, snapshot, count in zip(pipelines, seen, granted, strict=True):
        each.granted = count
        decision = choose(with_tiers(snapshot, edge={"granted": count}), each.policy, now, kept=each.kept)
        if decision.action is not Action.HOLD:
            assert decision.target is not None
            each.plans.append(shape(decision.target.plan))
        each.now = replace(each.calm, active=follow(each.now, decision, now).active)
        if count:  # without any, what can serve nowhere else frees its pods by other means
            assert each.replicas() <= count


# Seeds whose plans alternated before what runs was always offered, and others.
@pytest.mark.parametrize(("seed", "count", "slots", "priorities"), [
    (0, 3, 8, [0]), (1, 2, 6, [0]), (1, 3, 8, [0]), (5, 3, 8, [0]), (6, 3, 8, [0]), (6, 4, 8, [0, 10]),
    (7, 2, 6, [0, 10]), (7, 3, 8, [0, 5, 10]), (8, 2, 6, [0, 10]), (8, 4, 8, [0, 10]),
])  # fmt: skip
def test_noise_brings_no_plan_back_that_was_left(seed: int, count: int, slots: int, priorities: list[int]) -> None:
    rng = random.Random(seed)
    pipelines = some(rng, count, slots)
    for number, each in enumerate(pipelines):
        each.priority = priorities[number % len(priorities)]
    for tick in range(40):
        step(pipelines, slots, EVERY * tick, noise=rng)
    for each in pipelines:
        assert len(each.plans) == len(set(each.plans)), each.plans


def test_a_breach_within_the_band_is_mended_before_a_lower_priority_takes_what_is_free() -> None:
    urgent, other = (pipeline(6.0, 2.0, 0.6, Preference.COST, slots=8, priority=priority) for priority in (10, 0))
    urgent.now = replace(urgent.calm, active=serving(edge_only(4)))  # slow by less than noise may make it
    step([other, urgent], 8, 0.0)
    assert [other.replicas(), urgent.replicas()] == [3, 5]


@pytest.fixture
def settled() -> list[Pipeline]:
    """Two that want five replicas each of eight, and have lived with what they got for ten minutes of noise."""
    rng = random.Random(1)
    pipelines = [pipeline(9.0, 2.0, 0.6, Preference.COST, slots=8) for _ in range(2)]
    for tick in range(10):
        step(pipelines, 8, EVERY * tick, noise=rng)
    assert all(each.replicas() for each in pipelines)
    return pipelines


def test_a_load_that_doubles_moves_grants_at_once(settled: list[Pipeline]) -> None:
    busy, quiet = sorted(settled, key=Pipeline.replicas)
    for each, factor in ((quiet, 0.25), (busy, 2.0)):
        each.calm = replace(each.calm, arrival_rate=Value(9.0 * factor))
        each.now = replace(each.calm, active=each.now.active)
    before = busy.replicas()
    assert before < quiet.replicas()
    step(settled, 8, 600.0)
    assert busy.replicas() > max(before, quiet.replicas())


def test_a_node_that_goes_and_a_priority_that_comes_move_grants_at_once(settled: list[Pipeline]) -> None:
    step(settled, 5, 600.0)
    assert 0 < sum(each.replicas() for each in settled) <= 5
    urgent = pipeline(9.0, 2.0, 0.6, Preference.COST, slots=8, priority=10)
    step([*settled, urgent], 5, 660.0)
    assert urgent.replicas() >= 4
    assert sum(each.granted or 0 for each in (*settled, urgent)) <= 5

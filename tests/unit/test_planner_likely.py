"""What a stage between two others keeps resident: what makes it likeliest that the next plan needs no new pod."""

import random
from dataclasses import replace
from itertools import combinations, product

import pytest

from splitplane.domain.measurements import Value
from splitplane.domain.plans import Plan, Stage
from splitplane.domain.snapshots import RECENT_SHARES, Link, Policy, Preference, Snapshot
from splitplane.planner import dump_call, load_call, plan
from splitplane.planner.likely import Future, likeliest
from tests.support.planner_cases import MEBIBYTE, serving
from tests.support.planner_graphs import graph, three_tiers


@pytest.mark.parametrize("seed", range(200))
def test_no_other_ranges_within_memory_serve_more_of_what_may_come(seed: int) -> None:
    rng = random.Random(seed)
    end, stages = rng.randint(2, 6), rng.randint(1, 3)
    weights = [rng.randint(1, 5) for _ in range(end)]
    limits = [rng.randint(5, 20) for _ in range(stages)]
    every = list(combinations(range(end + 1), 2))

    def able(place: int, kept: tuple[int, int]) -> bool:
        return sum(weights[slice(*kept)]) <= limits[place]

    own = [rng.choice([each for each in every if able(place, each)]) for place in range(stages)]
    futures = [
        Future(rng.random(), tuple(rng.choice([None, *every]) for _ in range(stages))) for _ in range(rng.randint(0, 5))
    ]

    def share(kept: tuple[tuple[int, int], ...]) -> float:
        return sum(
            future.share
            for future in futures
            if all(each is None or holds(mine, each) for mine, each in zip(kept, future.ranges, strict=True))
        )

    found = likeliest(own, futures, able)
    assert all(able(place, each) and holds(each, own[place]) for place, each in enumerate(found))
    possible = product(*(
        [each for each in every if able(place, each) and holds(each, own[place])] for place in range(stages)
    ))  # fmt: skip
    assert share(found) == pytest.approx(max(map(share, possible)))


def holds(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


SEGMENTS, ROOM = 24, 3


def case(megabytes: float, recent: tuple[float, ...] = ()) -> tuple[Snapshot, Policy]:
    """A model on three tiers; ``fog`` has memory for three of its segments, and the links that leave ``edge`` are, or
    lately were, so many megabytes per second fast."""
    snapshot, policy = three_tiers(graph(SEGMENTS, seed=21), rate=4.0, replicas=4)
    memory = (300 + 8 + 2 * ROOM) * MEBIBYTE
    tiers = tuple(replace(tier, memory_limit_bytes=memory if tier.name == "fog" else None) for tier in snapshot.tiers)

    def faster(link: Link) -> Link:
        if link.source != "edge":
            return replace(link, bandwidth_bytes_per_second=Value(8e7))
        factor = 1e6 if link.target == "fog" else 3e5
        past = tuple(factor * each for each in recent)
        return replace(link, bandwidth_bytes_per_second=Value(factor * megabytes), recent=past)

    links = tuple(faster(link) for link in snapshot.links)
    return replace(snapshot, tiers=tiers, links=links), replace(policy, prefer=Preference.LATENCY)


def middle(snapshot: Snapshot, policy: Policy) -> Stage:
    decision = plan(snapshot, policy, 0.0)
    assert decision.target is not None
    assert len(decision.target.plan.stages) == 3
    return decision.target.plan.stages[1]


PAST = (5.0, 6.0, 7.0, 8.0, 10.0)


def test_a_middle_stage_has_room_for_the_cut_that_a_faster_link_will_bring() -> None:
    assert len(PAST) == len(RECENT_SHARES)
    now, later = middle(*case(6.0, PAST)), middle(*case(8.0))
    assert (now.first, now.last) == (2, 4)
    assert (later.first, later.last) == (1, 2)
    assert (now.resident_first, now.resident_last) == (1, 4)
    without = middle(*case(6.0))
    assert (without.resident_first, without.resident_last) == (2, 5)


@pytest.mark.parametrize(("past", "loads"), [(PAST, False), ((), True)])
def test_the_change_that_was_likely_loads_nothing(past: tuple[float, ...], loads: bool) -> None:
    first = plan(*case(6.0, past), 0.0).target.plan
    snapshot, policy = case(8.0, past)
    decision = plan(replace(snapshot, active=serving(first)), replace(policy, min_gain=0.0), 10_000.0)
    assert decision.target.plan.cuts == (1, 2)
    assert (resident(decision.target.plan) != resident(first)) == loads


def resident(plan: Plan) -> list[tuple[str, int, int]]:
    return [(stage.tier, stage.resident_first, stage.resident_last) for stage in plan.stages]


def test_what_is_resident_stays_while_the_past_of_the_link_changes() -> None:
    snapshot, policy = case(6.0, PAST)
    first = plan(snapshot, policy, 0.0).target
    changed, _ = case(6.0, (5.0, 5.0, 5.5, 5.5, 6.0))
    decision = plan(replace(changed, active=serving(first.plan)), policy, 10_000.0)
    assert decision.target.plan == first.plan


def test_the_same_past_gives_the_same_residency_again() -> None:
    snapshot, policy = case(6.0, PAST)
    assert plan(*load_call(dump_call(snapshot, policy, 0.0))) == plan(snapshot, policy, 0.0)

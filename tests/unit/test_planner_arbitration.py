"""Who gets how much of nodes that cannot hold what all pipelines would choose."""

import itertools
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from splitplane.domain.measurements import Value
from splitplane.domain.plans import Candidate
from splitplane.domain.snapshots import Policy, Preference, Snapshot
from splitplane.planner import Kept, plan
from splitplane.planner import offers as offering
from splitplane.planner.arbitration import Settlement, arbitrate
from splitplane.planner.claims import Claim, Need, Offer, Room
from splitplane.planner.context import Context
from splitplane.planner.highs import solve
from splitplane.planner.offers import offers
from splitplane.planner.packing import Packing
from splitplane.planner.selecting import best_plan
from tests.support.planner_cases import POLICY, SNAPSHOT, edge_only, links, serving, with_tiers
from tests.support.planner_claims import scarce


def value(claims: Sequence[Claim], chosen: Sequence[int]) -> float:
    return sum(claim.worth(number) for claim, number in zip(claims, chosen, strict=True))


def fits(claims: Sequence[Claim], rooms: Sequence[Room], chosen: Sequence[int]) -> bool:
    """Whether the replicas fit on the nodes in some way: every way is tried."""
    needs = [
        claim.needs[tier]
        for claim, number in zip(claims, chosen, strict=True)
        if number < len(claim.offers)
        for tier, count in claim.offers[number].replicas.items()
        for _ in range(count)
    ]

    def place(at: int, packing: Packing) -> bool:
        if at == len(needs):
            return True
        for node in range(len(rooms)):
            placed = packing.take_most(at, 1, packing.may[at].nonzero()[0][packing.may[at].nonzero()[0] == node])
            if placed.nodes:
                if place(at + 1, packing):
                    return True
                packing.give(placed)
        return False

    return place(0, Packing(rooms, needs)) if needs else True


def best_of_all(claims: Sequence[Claim], rooms: Sequence[Room]) -> float:
    choices = sorted(
        itertools.product(*(range(len(claim.offers) + 1) for claim in claims)),
        key=lambda chosen: -value(claims, chosen),
    )
    return next(value(claims, chosen) for chosen in choices if fits(claims, rooms, chosen))


def check_nodes(claims: Sequence[Claim], rooms: Sequence[Room], settled: Settlement) -> None:
    """Every replica of the offers chosen stands on a node that takes it, and none is asked for more than it has."""
    used: dict[str, Counter[str]] = {room.name: Counter() for room in rooms}
    for claim, number, where in zip(claims, settled.chosen, settled.nodes, strict=True):
        replicas = claim.offers[number].replicas if number < len(claim.offers) else {}
        assert {tier: len(nodes) for tier, nodes in where.items() if nodes} == dict(replicas)
        for tier, nodes in where.items():
            assert set(nodes) <= claim.needs[tier].nodes
            for node in nodes:
                used[node].update({**dict(claim.needs[tier].requests), "pods": 1.0})
    for room in rooms:
        assert all(asked <= room.free[name] * (1 + 1e-9) for name, asked in used[room.name].items()), room.name


@pytest.mark.parametrize("seed", range(12))
def test_the_programmes_answer_is_the_best_of_all_choices(seed: int) -> None:
    claims, rooms = scarce(4, 2, seed=seed)
    rooms = [replace(room, free={**room.free, "cpu": 3.0 + seed % 3}) for room in rooms]
    settled = arbitrate(claims, rooms, solve, seconds=30.0)
    best = best_of_all(claims, rooms)
    assert value(claims, settled.chosen) == pytest.approx(best, rel=2e-3)
    check_nodes(claims, rooms, settled)


def test_settling_claims_prints_nothing() -> None:
    """In a process of its own: HiGHS would print its banner at its first use only."""
    program = "from tests.unit.test_planner_arbitration import *; arbitrate(*scarce(4, 2), solve)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_is_better_than_the_gap_says(seed: int) -> None:
    claims, rooms = scarce(4, 2, seed=seed)
    rooms = [replace(room, free={**room.free, "cpu": 3.0 + seed % 3}) for room in rooms]
    settled = arbitrate(claims, rooms, None)
    got = value(claims, settled.chosen)
    assert best_of_all(claims, rooms) <= got + settled.gap * max(1.0, abs(got)) + 1e-9
    check_nodes(claims, rooms, settled)


@pytest.mark.parametrize("priorities", [1, 3])
def test_many_claims_stay_within_the_nodes_and_near_the_bound(priorities: int) -> None:
    claims, rooms = scarce(150, 30, priorities=priorities, seed=3)
    settled = arbitrate(claims, rooms, solve)
    check_nodes(claims, rooms, settled)
    assert settled.gap < 0.05
    greedy = arbitrate(claims, rooms, None)
    if priorities == 1:
        assert value(claims, settled.chosen) >= value(claims, greedy.chosen)


def counted(name: str, most: int, *, priority: int = 0, held: int = 0) -> Claim:
    need = Need((("cpu", 1.0),), frozenset({"n"}))
    ways = tuple(
        Offer({"edge": count}, count / most, count == most, 0.1 * count, count == held) for count in range(most, 0, -1)
    )
    return Claim(name, priority, {"edge": need}, ways)


def granted(claims: Sequence[Claim], cores: float) -> list[int]:
    settled = arbitrate(claims, [Room("n", {"cpu": cores, "pods": 110.0})], solve)
    return [len(where["edge"]) for where in settled.nodes]


def test_equals_share_and_a_higher_priority_comes_first() -> None:
    assert granted([counted("a", 4), counted("b", 4)], 6.0) in ([4, 2], [2, 4])  # one keeps its limits, none starves
    assert granted([counted("a", 5), counted("b", 5)], 4.0) == [2, 2]
    assert granted([counted("a", 4), counted("b", 4, priority=1)], 6.0) == [2, 4]
    assert granted([counted("a", 4), counted("b", 4, priority=1)], 3.0) == [0, 3]


def test_without_any_node_nobody_gets_anything() -> None:
    settled = arbitrate([counted("a", 2)], [], solve)
    assert (settled.chosen, settled.nodes) == ((2,), ({"edge": ()},))


def test_a_higher_priority_stands_where_that_leaves_more_for_a_lower_one() -> None:
    rooms = [Room("n", {"cpu": 6.0, "pods": 110.0}), Room("m", {"cpu": 5.0, "pods": 110.0})]
    high, low = counted("high", 5, priority=1), counted("low", 4)
    high = replace(high, needs={"edge": replace(high.needs["edge"], nodes=frozenset("nm"))})
    low = replace(low, needs={"edge": replace(low.needs["edge"], nodes=frozenset("m"))})
    for claims in ([high, low], [low, high]):
        settled = arbitrate(claims, rooms, solve)
        check_nodes(claims, rooms, settled)
        assert settled.gap == 0.0
        assert [grants["edge"] for grants in settled.granted] == [5 if claim.priority else 4 for claim in claims]
    running = replace(low, offers=tuple(replace(offer, held=offer.replicas["edge"] == 2) for offer in low.offers))
    assert arbitrate([high, running], rooms, None).granted[1]["edge"] >= 2


def test_of_two_equal_answers_the_one_that_moves_nothing_is_taken() -> None:
    for holder in (0, 1):
        claims = [counted("a", 3, held=3 if holder == 0 else 1), counted("b", 3, held=3 if holder == 1 else 1)]
        assert granted(claims, 4.0)[holder] == 3


def test_who_breaks_a_limit_has_what_mends_it_before_lower_priorities_if_all_of_it_has_room_beside_equals() -> None:
    needy = counted("a", 4, priority=1, held=3)
    mends, held, *fewer = needy.offers
    ways = replace(mends, keeps_limits=False, mends=True), replace(held, keeps_limits=True), *fewer
    needy = replace(needy, offers=ways)
    assert granted([counted("b", 3), needy], 6.0) == [2, 4]
    assert granted([counted("b", 3, priority=1), needy], 6.0) == [3, 3]
    far = replace(needy, offers=(replace(ways[0], replicas={"edge": 8}), *ways[1:]))
    assert granted([counted("b", 3), far], 6.0) == [3, 3]


def test_offers_are_the_planners_own_choices_with_fewer_replicas() -> None:
    busy = replace(
        with_tiers(SNAPSHOT, edge={"min_replicas": 0}), arrival_rate=Value(12.0), active=serving(edge_only(6))
    )
    policy = replace(POLICY, max_cost_per_hour=None)
    found = offers(busy, policy, ("edge",))
    counts = [offer.replicas.get("edge", 0) for offer in found]
    # What serves is offered though it is dearer; the raw input may not leave the edge, so nothing takes none of it.
    assert counts == [1, 6]
    assert [offer.held for offer in found] == [False, True]
    assert found[0].keeps_limits
    assert all(math.isfinite(offer.cost) for offer in found)
    alone = offers(replace(busy, active=None, links=()), policy, ("edge",))
    counts = [offer.replicas["edge"] for offer in alone]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) > 3


CORE = Need((("cpu", 1.0),), frozenset({"n"}))


def wishing(rate: float, megabits: float, prefer: Preference, p95: float, *, slots: int) -> tuple[Snapshot, Policy]:
    """A pipeline alone on an edge with so many slots."""
    edge: dict[str, object] = {"slots": slots, "max_replicas": slots, "min_replicas": 0}
    snapshot = replace(
        with_tiers(SNAPSHOT, edge=edge), arrival_rate=Value(rate), arrival_scv=1.0, links=links(megabits)
    )
    return snapshot, replace(POLICY, prefer=prefer, max_p95_seconds=p95, max_cost_per_hour=None)


@pytest.mark.parametrize("prefer", list(Preference))
def test_offers_are_worth_what_the_planner_makes_of_them(prefer: Preference) -> None:
    """Where share and limits are equal, what is preferred decides; of those over the limit on p95, the least over."""
    snapshot, policy = wishing(5.0, 5.0, prefer, 0.75, slots=12)
    found = offers(snapshot, policy, ("edge",))
    claim = Claim("p", 0, {"edge": CORE}, found)
    worth = [claim.worth(number) for number in range(len(found))]
    assert worth[0] == max(worth)
    p95 = []
    for offer in found:
        granted = with_tiers(snapshot, edge={"granted": offer.replicas.get("edge", 0)})
        chosen = plan(granted, policy, 0.0).target
        assert chosen is not None
        p95.append(chosen.predicted.p95_seconds)
    within = [number for number, offer in enumerate(found) if offer.keeps_limits]
    over = [number for number, offer in enumerate(found) if not offer.keeps_limits and offer.carried == 1.0]
    assert min((worth[number] for number in within), default=2.0) > max((worth[number] for number in over), default=0.0)
    if prefer is Preference.LATENCY:
        assert len(within) > 2
        assert sorted(within, key=lambda number: -worth[number]) == sorted(within, key=lambda number: p95[number])
    assert sorted(over, key=lambda number: -worth[number]) == sorted(over, key=lambda number: p95[number])


def test_a_higher_priority_that_prefers_latency_has_its_first_wish_before_others_have_theirs() -> None:
    ours = offers(*wishing(5.0, 5.0, Preference.LATENCY, 0.89, slots=12), ("edge",))
    theirs = offers(*wishing(25.0, 1.0, Preference.COST, 0.6, slots=12), ("edge",))
    claims = [Claim("ours", 10, {"edge": CORE}, ours), Claim("theirs", 0, {"edge": CORE}, theirs)]
    wish = ours[0].replicas["edge"]
    assert any(offer.keeps_limits for offer in ours[1:])
    assert theirs[0].replicas["edge"] == 12
    assert granted(claims, 12.0) == [wish, 12 - wish]


@pytest.mark.parametrize("seed", range(12))
def test_nobody_gives_way_whose_first_wish_has_room(seed: int) -> None:
    rng = random.Random(seed)
    slots = rng.choice([6, 8, 10])
    claims = []
    for number in range(rng.randint(2, 4)):
        rate, megabits, p95 = round(rng.uniform(2, 10), 1), rng.choice([8.0, 20.0, 50.0]), rng.uniform(0.4, 0.9)
        found = offers(*wishing(rate, megabits, Preference.LATENCY, p95, slots=slots), ("edge",))
        claims.append(Claim(f"p{number}", 0, {"edge": CORE}, found))
    got = granted(claims, float(slots))
    for claim, count in zip(claims, got, strict=True):
        wish = claim.offers[0].replicas.get("edge", 0)
        assert count == wish or wish - count > slots - sum(got), (got, claim)


def test_offers_are_searched_for_again_only_where_what_they_rest_on_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    searched: list[float] = []

    def noted(context: Context) -> Candidate | None:
        searched.append(context.rate)
        return best_plan(context)

    monkeypatch.setattr(offering, "best_plan", noted)
    snapshot = replace(SNAPSHOT, arrival_rate=Value(12.0), active=serving(edge_only(6)))
    kept = Kept(snapshot.profile)
    first = offers(snapshot, POLICY, ("edge",), kept=kept)
    count = len(searched)
    later = replace(snapshot, time=60.0, active=serving(edge_only(6), low=30.0))
    assert offers(later, POLICY, ("edge",), kept=kept) == first
    assert len(searched) == count
    changes: list[dict[str, Any]] = [
        {"arrival_rate": Value(11.0)},
        {"links": links(7.0)},
        {"active": serving(edge_only(5))},
        {"set_aside": frozenset({plan(snapshot, POLICY, 0.0).target.plan.digest})},
    ]
    for change in changes:
        changed = replace(snapshot, **change)
        assert offers(changed, POLICY, ("edge",), kept=kept) == offers(changed, POLICY, ("edge",)), change
    assert len(searched) > count

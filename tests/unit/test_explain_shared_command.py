"""``splitplane explain --call --about``: what sites share and what pipelines are granted, made again with why."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitplane.cli import app
from splitplane.domain.measurements import Value
from splitplane.domain.snapshots import FixedPlan, Mode, Policy, Preference, Snapshot
from splitplane.planner import dump_call
from splitplane.planner.arbitration import Settlement, arbitrate
from splitplane.planner.claims import Claim, Need, Offer, Room
from splitplane.planner.granting import told
from splitplane.planner.highs import solve
from splitplane.planner.packing import Packing
from splitplane.planner.pooling import Pooling, Sized, explain_size
from splitplane.planner.pools import Pool
from splitplane.planner.shared_replay import Sizing, dump_settling, dump_sizing
from tests.support.command_output import unwrapped
from tests.support.planner_cases import POLICY, SNAPSHOT, edge_only, links, serving, with_tiers
from tests.support.planner_claims import scarce
from tests.support.planner_sites import CHEAP

EAGER = replace(CHEAP, prefer=Preference.LATENCY)
WINDOW = CHEAP.scale_down_window_seconds
NOON = 1_790_000_000.0


def explained(log: Path, text: str, *arguments: str) -> str:
    log.write_text(text)
    result = CliRunner().invoke(app, ["explain", "--call", str(log), *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "operator.log"


def site(rate: float, *, most: int = 40, megabits: float = 50) -> Snapshot:
    snapshot = replace(SNAPSHOT, links=links(megabits), arrival_rate=Value(rate), arrival_scv=1.0)
    return with_tiers(snapshot, cloud={"max_replicas": most, "slots": most})


def sized(sites: Mapping[str, Snapshot], *, policy: Policy = EAGER, now: float = 0.0, before: Pooling) -> Sized:
    return explain_size(sites, policy, now, shared="cloud", before=before)


def pool_line(sites: Mapping[str, Snapshot], *, before: Pooling, after: Pooling, now: float = NOON) -> str:
    return f"INFO Pool of shop/tracker: {dump_sizing(Sizing(sites, EAGER, now, 'cloud', before, after))}\n"


def test_why_a_pool_is_sized_so_is_told_with_each_sites_part_of_it(log: Path):
    sites = {"north": site(6.0), "south": site(3.0)}
    made = sized(sites, before=Pooling(), now=NOON).pooling
    assert made.pool is not None
    output = explained(log, pool_line(sites, before=Pooling(), after=made), "--about", "pool").splitlines()
    assert output[0] == "shop/tracker at 2026-09-21 14:13:20 UTC: what 2 sites share on tier cloud"
    assert output[1] == f"nothing shared -> {made.pool.replicas} replicas of cuts 1-6"
    assert output[2] == "Made again: the same, bit for bit"
    assert output[3].startswith(f"The best plan of all sites takes {made.pool.replicas} replicas, ")
    assert output[4] == "Held by no gate"
    rows = {line.split()[0]: line for line in output[6:]}
    assert set(rows) == set(sites)
    for name, row in rows.items():
        assert "edge:0-1|cloud:1-6" in row
        assert f"{made.loads[name]:.2f}" in row


def test_a_pool_that_this_version_would_size_otherwise_is_told_as_such(log: Path):
    sites = {"north": site(6.0)}
    output = explained(log, pool_line(sites, before=Pooling(), after=Pooling(Pool(1, 6, 39))))
    assert "nothing shared -> 39 replicas of cuts 1-6" in output
    assert "Made again by this version: " in output
    assert "bit for bit" not in output


def full() -> Pooling:
    return sized({name: site(6.0) for name in "abcd"}, before=Pooling()).pooling


def gate_cases() -> dict[str, tuple[tuple[str, ...], Sized]]:
    loud = full()
    assert loud.pool is not None
    few = {"a": replace(site(1.0), active=serving(edge_only(2)))}
    refused = {"a": with_tiers(site(6.0), cloud={"granted": 0})}
    lost = {"a": with_tiers(site(6.0), cloud={"ready_nodes": 0})}
    busy = {"a": replace(site(20.0), active=serving(edge_only(2)))}
    fewer_than_far = {name: site(9.0) for name in "abcd"}
    alone = sized(few, before=Pooling()).found
    assert alone is not None
    lean = replace(EAGER, max_cost_per_hour=alone.cost_per_hour + 0.01)
    away = replace(EAGER, mode=Mode.FIXED, fixed=FixedPlan((("edge", 0, 1), ("cloud", 1, 6)), ("int8",)))
    cheap = {
        name: replace(with_tiers(site(6.0), cloud={"price_per_hour": Value(0.05)}), active=serving(edge_only(3)))
        for name in "abcd"
    }
    small, late = {name: site(6.0, most=1) for name in "abcd"}, {"a": site(1.0, most=1)}
    return {
        "free": ((), sized({name: site(6.0) for name in "abcd"}, before=loud)),
        "scale-down": (("scale-down",), sized(few, before=loud, now=10.0)),
        "headroom": (("headroom",), sized(fewer_than_far, before=Pooling(replace(loud.pool, replicas=6)))),
        "after the window": ((), sized(few, before=replace(loud, low_since=0.0), now=WINDOW)),
        "granted": (("granted",), sized(refused, before=loud)),
        "unavailable": (("unavailable",), sized(lost, before=loud)),
        "advisory": (("advisory",), sized(busy, before=loud, policy=replace(EAGER, mode=Mode.ADVISORY))),
        "room": (("room",), sized(small, before=Pooling(Pool(1, 6, 1)), policy=away)),
        "range": (("room",), sized(late, before=Pooling(Pool(5, 6, 1)), policy=away)),
        "cost": (("cost",), sized(few, before=loud, policy=lean)),
        "gain": (("gain",), sized(cheap, before=Pooling(Pool(1, 6, 2)), policy=CHEAP)),
    }


def test_what_keeps_a_pool_from_what_its_sites_would_take_is_named():
    cases = gate_cases()
    assert {name: found.gates for name, (_, found) in cases.items()} == {
        name: each for name, (each, _) in cases.items()
    }
    held = cases["gain"][1]
    assert held.pooling.pool is not None
    assert (held.wanted, held.pooling.pool.replicas) == (3, 2)
    assert (cases["room"][1].wanted, cases["room"][1].pooling.pool) == (4, Pool(1, 6, 1))
    assert cases["headroom"][1].enough >= 6 > cases["headroom"][1].wanted


def test_how_long_fewer_replicas_would_have_done_is_told(log: Path):
    loud, few = full(), {"a": site(1.0)}
    before = replace(loud, low_since=NOON - 40.0)
    after = sized(few, before=before, now=NOON).pooling
    output = explained(log, pool_line(few, before=before, after=after))
    assert (
        "Held by gate: scale-down (fewer would do, but not yet for the whole scale-down window, 40 s so far)" in output
    )


NODES = frozenset({"e1", "e2"})
CORE = Need((("cpu", 1.0),), NODES)
ROOMS = [Room("e1", {"cpu": 2.0}), Room("e2", {"cpu": 1.0})]


def claim(name: str, priority: int, *counts: int, cost: float = 0.1, held: bool = False) -> Claim:
    most = max(counts)
    offers = [Offer({"edge": count}, count / most, count == most, cost * count, held) for count in counts]
    return Claim(f"shop/{name}", priority, {"edge": CORE}, tuple(offers))


def settled(*claims: Claim) -> Settlement:
    return arbitrate(claims, ROOMS, solve, seconds=60.0)


def grants_line(claims: tuple[Claim, ...], found: Settlement) -> str:
    return f"INFO Grants of {len(claims)} pipelines: {dump_settling(claims, ROOMS, found)}\n"


def test_each_claim_is_told_with_what_it_asked_for_and_got_and_why(log: Path):
    claims = claim("first", 10, 2, 1), claim("second", 0, 3, 2, 1), claim("third", 0, 2)
    output = explained(log, grants_line(claims, settled(*claims)), "--about", "grants").splitlines()
    assert output[0].startswith("3 pipelines on 2 nodes: 1 have their first wish; at most ")
    assert output[1] == "Made again: the same, bit for bit"
    assert output[2].startswith("Priority 10: 1 claims, 0 of them with less than their first wish, by the greedy ")
    assert output[3].startswith("Priority 0: 2 claims, 2 of them with less than their first wish, by the ")
    rows = {line.split()[0]: line for line in output[5:]}
    assert "edge: 2" in rows["shop/first"]
    assert rows["shop/first"].rstrip().endswith("its first wish")
    assert "edge: 3" in rows["shop/second"]
    assert "edge: 1" in rows["shop/second"]
    assert rows["shop/second"].rstrip().endswith("edge has room for 1 of 3 replicas beside shop/first (priority 10)")
    assert "nothing" in rows["shop/third"]
    assert (
        "edge has room for 0 of 2 replicas beside shop/first (priority 10) and beside shop/second (priority 0)"
        in (rows["shop/third"])
    )
    alone = explained(log, log.read_text(), "--pipeline", "shop/third").splitlines()
    assert [line.split()[0] for line in alone[5:]] == ["shop/third"]


def test_a_plan_that_runs_may_be_worth_more_than_a_first_wish():
    offers = tuple(
        Offer({"edge": count}, 1.0, True, cost, held) for count, cost, held in ((2, 0.2, False), (1, 0.1, True))
    )
    claims = Claim("shop/kept", 0, {"edge": CORE}, offers), claim("other", 0, 3, 1)
    rows = told(claims, ROOMS, settled(*claims))
    assert [row.offer.replicas["edge"] for row in rows if row.offer] == [1, 1]
    assert rows[0].why == "its first wish would fit: that is what runs"


@pytest.mark.parametrize("seed", range(6))
def test_what_is_told_of_room_is_what_the_nodes_have_beside_the_others(seed: int):
    claims, rooms = scarce(30, 6, priorities=3, seed=seed)
    found = arbitrate(claims, rooms, solve)
    rows = told(claims, rooms, found)
    assert [row.claim for row in rows] == claims
    less = [row for row in rows if row.why != "its first wish"]
    assert less
    for place, row in enumerate(rows):
        assert (row.why == "its first wish") == (found.chosen[place] == 0)
        count = row.asked.get("edge", 0)
        packing = Packing(rooms, [claims[place].needs["edge"], *(each.needs["edge"] for each in claims)])
        for other, nodes in enumerate(found.nodes):
            for name in nodes["edge"] if other != place else ():
                packing.free[[room.name for room in rooms].index(name)] -= packing.asked[other + 1]
        room = int(packing.slots(0).sum())
        if row.why.startswith("edge has room"):
            assert row.why.startswith(f"edge has room for {room} of {count} replicas")
        else:
            assert room >= count


def test_a_solver_that_was_stopped_makes_no_record_look_wrong(log: Path):
    claims, rooms = scarce(60, 12, seed=3)
    found = arbitrate(claims, rooms, lambda columns, packing, _: solve(columns, packing, 1e-6))
    output = explained(log, f"Grants of 60 pipelines: {dump_settling(claims, rooms, found)}\n")
    assert "Made again: not the same, as the time limit stopped the solver" in output
    assert "whose solver was stopped by its time limit" in output


@pytest.mark.parametrize("words", ["not recorded, as that takes 2000000 bytes", ""])
def test_grants_that_hold_no_numbers_are_told_in_their_words(log: Path, words: str):
    claims = claim("first", 10, 2, 1), claim("second", 0, 3, 2, 1)
    before = grants_line(claims, settled(*claims))
    last = (
        f"INFO Grants of 2 pipelines: {words}" if words else "INFO Grants are taken back, as nobody is short any more"
    )
    output = explained(log, f"{before}{last}\n", "--about", "grants")
    assert output.startswith(f"Grants: {words or 'Grants are taken back, as nobody is short any more'}")


def test_a_decision_comes_first_and_other_records_are_chosen(log: Path):
    sites = {"north": site(6.0)}
    made = sized(sites, before=Pooling()).pooling
    claims = claim("first", 10, 2, 1), claim("second", 0, 3, 2, 1)
    text = (
        f"INFO Start of shop/tracker-north: {dump_call(SNAPSHOT, POLICY, NOON)}\n"
        f"{pool_line(sites, before=Pooling(), after=made)}{grants_line(claims, settled(*claims))}"
        f"INFO Grants of 9 pipelines: {{\"claims\":[{{\"pipe\n"
    )  # fmt: skip
    assert explained(log, text).startswith("shop/tracker-north at ")
    assert "share on tier cloud" in explained(log, text, "--pipeline", "shop/tracker")
    assert "share on tier cloud" in explained(log, text, "--about", "pool")
    assert explained(log, text, "--about", "grants").startswith("2 pipelines on 2 nodes")
    assert explained(log, text, "--pipeline", "shop/second").startswith("2 pipelines on 2 nodes")
    for arguments, says in (
        (("--about", "pool", "--pipeline", "shop/none"), "no recorded pool of shop/none, but of shop/tracker"),
        (("--about", "grants", "--pipeline", "shop/none"), "no recorded grants of shop/none"),
        (("--about", "decision", "--pipeline", "shop/tracker"), "of shop/tracker, but of shop/tracker-north"),
    ):
        result = CliRunner().invoke(app, ["explain", "--call", str(log), *arguments])
        assert result.exit_code == 2
        assert unwrapped(says) in unwrapped(result.output)

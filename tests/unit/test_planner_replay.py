"""Decisions can be kept as JSON and made again, bit for bit."""

import json
import math
from dataclasses import replace

import pytest

from splitplane.domain.measurements import Error, Idle, Missing, Stale, Value
from splitplane.domain.snapshots import FixedPlan, Mode, Policy, Preference, Snapshot
from splitplane.planner import dump_call, load_call, plan
from splitplane.planner.arbitration import arbitrate
from splitplane.planner.highs import solve
from splitplane.planner.pooling import Pooling, size_pool
from splitplane.planner.shared_replay import Sizing, dump_settling, dump_sizing, load_settling, load_sizing
from tests.support.planner_cases import POLICY, SNAPSHOT, follow, links, serving, split, with_tiers
from tests.support.planner_claims import scarce
from tests.support.planner_random import random_case
from tests.support.planner_sites import CHEAP

FIXED = replace(POLICY, mode=Mode.FIXED, fixed=FixedPlan((("edge", 0, 3), ("cloud", 3, 6)), ("fp16",)))


@pytest.mark.parametrize(
    "snapshot",
    [
        SNAPSHOT,
        replace(SNAPSHOT, active=serving(split(2), low=-3.0), set_aside=frozenset({"0123456789"})),
        follow(SNAPSHOT, plan(SNAPSHOT, POLICY, 0.0), 0.1),
        replace(SNAPSHOT, arrival_rate=Stale(12.5), links=links(Missing("no series"))),
        replace(SNAPSHOT, arrival_rate=Error("refused"), speed_corrections={"edge": 1.0 / 3.0}),
        replace(SNAPSHOT, offset_corrections={"edge": -0.001 / 3.0}),
        replace(SNAPSHOT, arrival_rate=Idle()),
        with_tiers(SNAPSHOT, cloud={"memory_limit_bytes": 1 << 30}),
    ],
)
@pytest.mark.parametrize("policy", [POLICY, FIXED, Policy(gateway_tier="edge")])
def test_a_recorded_call_replays_bit_for_bit(snapshot: Snapshot, policy: Policy):
    line = dump_call(snapshot, policy, 1.1)
    assert "\n" not in line
    again = load_call(line)
    assert again == (snapshot, policy, 1.1)
    assert plan(*again) == plan(snapshot, policy, 1.1)
    assert dump_call(*again) == line


@pytest.mark.parametrize("seed", range(40))
def test_random_calls_replay_bit_for_bit(seed: int):
    line = dump_call(*random_case(seed), 0.0)
    assert plan(*load_call(line)) == plan(*random_case(seed), 0.0)


@pytest.mark.parametrize(
    "line", ["", "{}", "[]", "3", json.dumps({"snapshot": {"pipeline": 1}, "policy": {}, "now": 0}), '{"snapshot": 1}']
)
def test_what_is_no_recorded_call_is_refused(line: str):
    with pytest.raises(ValueError, match=r"recorded call|Expecting"):
        load_call(line)


def test_a_plans_name_does_not_depend_on_the_process():
    assert split(1).digest != split(1, edge=3).digest
    assert split(1).digest == "2f160d08d7"


def test_numbers_keep_all_their_digits():
    snapshot = replace(SNAPSHOT, arrival_scv=math.pi / 1e7)
    assert load_call(dump_call(snapshot, POLICY, 0.0))[0].arrival_scv == math.pi / 1e7


def test_the_sizing_of_a_pool_replays_bit_for_bit_and_holds_a_profile_once():
    sites = {
        name: with_tiers(
            replace(SNAPSHOT, links=links(megabits), arrival_rate=Value(rate)), cloud={"max_replicas": 40, "slots": 40}
        )
        for name, megabits, rate in (("south", 50, 1.0 / 3.0), ("north", 20, 7.7), ("east", 50, 11.1))
    }
    policy = replace(CHEAP, prefer=Preference.LATENCY)
    before = Pooling()
    for now in (0.1, 30.3):
        after = size_pool(sites, policy, now, shared="cloud", before=before)
        assert after.pool is not None
        line = dump_sizing(Sizing(sites, policy, now, "cloud", before, after))
        assert "\n" not in line
        assert line.count('"fingerprint"') == 1
        found = load_sizing(line)
        assert list(found.snapshots.items()) == list(sites.items())
        assert (found.policy, found.now, found.shared, found.before, found.after) == (
            policy, now, "cloud", before, after
        )  # fmt: skip
        assert found.again().pooling == after
        before = after
        sites = {name: replace(each, arrival_rate=Value(25.5)) for name, each in sites.items()}


def test_the_settlement_of_claims_replays_and_tells_who_answered():
    claims, rooms = scarce(40, 8, priorities=2, seed=3)
    settled = arbitrate(claims, rooms, solve, seconds=60.0)
    assert [answer.priority for answer in settled.answers] == [1, 0]
    assert {answer.by for answer in settled.answers} <= {"greedy", "solver"}
    assert not any(answer.stopped for answer in settled.answers)
    found = load_settling(dump_settling(claims, rooms, settled))
    assert (found.claims, found.rooms, found.settled) == (tuple(claims), tuple(rooms), settled)
    assert found.again(solve) == settled
    assert found.again(None).answers != settled.answers


def test_a_solver_that_the_time_limit_stops_is_told_of_as_such_a_run_need_not_repeat():
    claims, rooms = scarce(60, 12, seed=3)
    settled = arbitrate(claims, rooms, lambda columns, packing, _: solve(columns, packing, 1e-6))
    (answer,) = settled.answers
    assert answer.stopped
    assert answer.gap == settled.gap > 0.0
    assert load_settling(dump_settling(claims, rooms, settled)).settled.answers == (answer,)


@pytest.mark.parametrize("line", ["{}", "[]", "3", '{"sites": [[1]], "profiles": []}', '{"claims": [{}], "needs": []}'])
def test_what_is_no_record_of_what_is_shared_is_refused(line: str):
    for load in (load_sizing, load_settling):
        with pytest.raises(ValueError, match="not a recorded"):
            load(line)

"""Decisions can be kept as JSON and made again, bit for bit."""

import json
import math
from dataclasses import replace

import pytest

from splitplane.domain.measurements import Error, Idle, Missing, Stale
from splitplane.domain.snapshots import FixedPlan, Mode, Policy, Snapshot
from splitplane.planner import dump_call, load_call, plan
from tests.support.planner_cases import POLICY, SNAPSHOT, follow, links, serving, split, with_tiers
from tests.support.planner_random import random_case

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

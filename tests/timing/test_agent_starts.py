"""Containers start in turns on one machine, whichever agent starts them; no turn is held for longer than it is used."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from splitplane.local.agent import starts
from splitplane.local.agent.process import Process
from splitplane.local.agent.starts import Turn, Turns, in_turns

BUSY = "while True: pass"
IDLE = "import time; time.sleep(60)"
Start = Callable[[str], Awaitable[Process]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts Python programs as containers are started."""
    begun: list[Process] = []

    async def start(program: str) -> Process:
        argv = (sys.executable, "-c", program)
        process = Process.start(argv, env={}, cwd=tmp_path, container_id=f"test://{len(begun)}", on_output=lambda _: 0)
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        await process.wait()


def taken(turns: Turns) -> Turn:
    turn = turns.take()
    assert turn is not None
    return turn


async def seconds_held(turn: Turn, process: Process, ready: Callable[[], bool] = lambda: False) -> float:
    began = time.monotonic()
    await asyncio.wait_for(turn.end_when_started(process, ready), 30)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("probe", "queues"), [("readinessProbe", True), ("startupProbe", True), ("livenessProbe", False)]
)
def test_only_a_start_whose_end_can_be_seen_takes_a_turn(probe: str, queues: bool) -> None:
    assert in_turns({"name": "c", probe: {}}) is queues


def test_agents_share_as_many_turns_as_there_are(tmp_path: Path) -> None:
    one, other = (Turns(tmp_path / "starts", slots=2) for _ in range(2))
    first = taken(one)
    taken(other)
    assert one.take() is None
    assert other.take() is None
    first.end()
    first.end()
    taken(other)
    assert one.take() is None


def test_the_turn_of_an_agent_that_is_killed_is_free_again(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib; from splitplane.local.agent.starts import Turns\n"
        "turn = Turns(pathlib.Path(sys.argv[1]), slots=1).take(); print(turn is not None, flush=True); time.sleep(60)"
    )
    agent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "True\n"
        turns = Turns(tmp_path, slots=1)
        assert turns.take() is None
        agent.kill()
        agent.wait()
        taken(turns)


async def test_a_container_does_not_inherit_the_turn_that_it_was_started_in(tmp_path: Path, start: Start) -> None:
    turns = Turns(tmp_path, slots=1)
    turn = taken(turns)
    process = await start(IDLE)
    turn.end()
    taken(turns)
    assert process.running


async def test_a_turn_lasts_while_the_start_takes_a_core_and_until_it_is_ready(tmp_path: Path, start: Start) -> None:
    turns, process = Turns(tmp_path, slots=1), await start(BUSY)
    since = time.monotonic()
    held = await seconds_held(taken(turns), process, ready=lambda: time.monotonic() > since + 2.0)
    assert 2.0 <= held < 4.0
    taken(turns)


async def test_a_turn_ends_when_the_container_rests_though_it_is_not_ready(tmp_path: Path, start: Start) -> None:
    # Such as a gateway, which is ready only once the stages that wait for a turn are.
    assert await seconds_held(taken(Turns(tmp_path, slots=1)), await start(IDLE)) < 5.0


async def test_a_turn_ends_with_its_container(tmp_path: Path, start: Start) -> None:
    turns, process = Turns(tmp_path, slots=1), await start(BUSY)
    asyncio.get_running_loop().call_later(0.5, process.kill)
    assert await seconds_held(taken(turns), process) < 3.0
    taken(turns)


async def test_no_turn_is_held_for_ever(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "LONGEST_SECONDS", 1.5)
    assert 1.5 <= await seconds_held(taken(Turns(tmp_path, slots=1)), await start(BUSY)) < 4.0

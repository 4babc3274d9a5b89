"""Containers' processes: output, exit codes, and that nothing survives its container or a killed agent."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from splitplane.local.agent import process
from splitplane.local.agent.process import Process

SLEEP = "import time; time.sleep(600)"
# A child in a session of its own, known to belong here only by its environment.
FAMILY = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)
print(child.pid, flush=True)
import time; time.sleep(600)
"""
AGENT = f"""
import asyncio, sys
from pathlib import Path
from splitplane.local.agent.guard import Guard
from splitplane.local.agent.process import Process
async def main():
    guard = Guard()
    def show(data):
        if data: print(container.pid, data.decode().strip(), flush=True)
    argv = [sys.executable, '-c', {FAMILY!r}]
    container = Process.start(argv, env={{}}, cwd=Path('/'), container_id='t.1', on_output=show)
    guard.started(container.pid, container.start_ticks, 't.1')
    await container.wait()
asyncio.run(main())
"""


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def start(program: str, tmp_path: Path, keep: Callable[[bytes | None], object] = lambda _: None) -> Process:
    return Process.start(
        [sys.executable, "-c", program], env={"A": "1"}, cwd=tmp_path, container_id=f"u.{os.getpid()}.0", on_output=keep
    )


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("", 0),
        ("raise SystemExit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
async def test_exit_codes(program: str, code: int, tmp_path: Path) -> None:
    assert await start(program, tmp_path).wait() == code


async def test_output_is_whole_and_in_order(tmp_path: Path) -> None:
    output: list[bytes] = []
    program = "import sys\nfor i in range(20000): print(i)\nsys.stdout.flush(); print('end', file=sys.stderr)"
    await start(program, tmp_path, lambda data: output.append(data or b"")).wait()
    assert b"".join(output).split() == [*(str(i).encode() for i in range(20000)), b"end"]


async def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Process.start(["no-such-program"], env={}, cwd=tmp_path, container_id="u", on_output=lambda _: None)


async def test_descendants_end_with_the_first_process(tmp_path: Path) -> None:
    first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    container = start(FAMILY, tmp_path, lambda data: None if first.done() or data is None else first.set_result(data))
    child = int(await first)
    assert set(process.members(container.pid, container.container_id)) == {container.pid, child}
    os.kill(container.pid, signal.SIGKILL)
    assert await container.wait() == 137
    assert gone([child])


async def test_a_number_that_was_given_to_another_process_is_told_apart() -> None:
    info = process.inspect(os.getpid())
    assert info is not None
    assert process.same(info.pid, info.start_ticks)
    assert not process.same(info.pid, info.start_ticks + 1)


def test_a_killed_agent_leaves_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", AGENT], stdout=subprocess.PIPE, start_new_session=True) as agent:
        assert agent.stdout is not None
        pids = [int(word) for word in agent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        os.killpg(agent.pid, signal.SIGKILL)
        assert gone(pids)


def test_memory_counts_what_is_held_not_what_is_mapped(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(64 << 20))
    program = (
        "import mmap, sys, time\n"
        "file = open(sys.argv[1], 'rb')\n"
        "view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "sum(view[i] for i in range(0, len(view), 4096)); print('mapped', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(big)], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            info = process.inspect(child.pid)
            assert info is not None
            assert info.resident > 64 << 20
            assert process.unreclaimable([child.pid]) < 32 << 20
        finally:
            child.kill()
    assert process.unreclaimable([child.pid]) == 0

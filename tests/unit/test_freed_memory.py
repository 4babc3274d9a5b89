"""The memory of messages, and of a planner's searches, is kept for the next ones, so that none pays for pages anew."""

import subprocess
import sys

import pytest

NO_SETTINGS = 3
BURSTS = """
import resource, sys
from splitplane.freed_memory import MESSAGES_BYTES, SEARCH_BYTES, keep_freed
{start}
def burst(): return [bytes(size) for size in {sizes}]
for _ in range(20): burst()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100): burst()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100 / len({sizes}))
"""
LARGE = """
import sys, threading
from splitplane.freed_memory import MESSAGES_BYTES, give_back, keep_freed
keep_freed(MESSAGES_BYTES) or sys.exit({no_settings})
def private():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
together = threading.Barrier(6)
def message():
    held = b"x" * 24_000_000
    together.wait()
before = private()
threads = [threading.Thread(target=message) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
give_back()
print(private() - before)
"""
MESSAGES = (200_000, 600_000, 200_000, 600_000) * 2
COLUMNS = (640_000,) * 12
"""What a layer of the search takes and gives back at about the same time: a column for each of 80,000 rows."""
PROGRAMS = {
    "operator": ("from splitplane.controller.__main__ import main", "assert main() == 1  # it has no settings"),
    "command": (
        "from typer.testing import CliRunner; from splitplane.cli import app",
        "assert CliRunner().invoke(app, ['frontier', '--help']).exit_code == 0",
    ),
}


def faults(sizes: tuple[int, ...], start: str = "") -> float:
    """Page faults for each block, in bursts of such blocks."""
    return printed(BURSTS.format(start=start, sizes=sizes))


def printed(program: str) -> float:
    """The number that a program prints at last, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env={})
    if done.returncode == NO_SETTINGS:
        pytest.skip("this C library has no such settings")
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1])


def test_messages_find_the_pages_of_those_before() -> None:
    assert faults(MESSAGES, f"keep_freed(MESSAGES_BYTES) or sys.exit({NO_SETTINGS})") < 1
    assert faults(MESSAGES) > 20, "the settings are of use no longer"


def test_large_messages_of_many_threads_can_be_given_back() -> None:
    assert printed(LARGE.format(no_settings=NO_SETTINGS)) < 68_000, "kB; six threads had 24 MB each"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_plans_keeps_the_pages_of_its_searches_once_it_has_started(program: str) -> None:
    imported, begun = PROGRAMS[program]
    faults(COLUMNS, f"keep_freed(SEARCH_BYTES) or sys.exit({NO_SETTINGS})")
    assert faults(COLUMNS, f"{imported}; {begun}") < 1
    assert faults(COLUMNS, imported) > 20, "importing it does as much"

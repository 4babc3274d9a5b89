"""The memory of messages is kept for the next ones, so that none pays for pages anew."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from splitplane.runtime.memory import keep_freed
if sys.argv[1] == "kept" and not keep_freed():
    sys.exit(3)
def burst(): return [bytes(size) for size in (200_000, 600_000, 200_000, 600_000) * 2]
for _ in range(20): burst()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100): burst()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 800)
"""


def faults(how: str) -> float:
    """Page faults for each message of about 400 kB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("this C library has no such settings")
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_messages_find_the_pages_of_those_before() -> None:
    assert faults("kept") < 1
    assert faults("default") > 20, "the settings are of use no longer"

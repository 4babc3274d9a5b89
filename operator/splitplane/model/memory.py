"""Resident memory of this process, now and at its peak. Linux only, as pods are."""

import contextlib
import resource
from collections.abc import Callable
from pathlib import Path

_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_GROUPS = Path("/sys/fs/cgroup")
_GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Of control groups of version 2 and 1: limit, use, statistics, and what in these is the part of use that files which
were read take, and that the kernel takes back by itself."""
_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Resident set of this process."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Let :func:`peak_bytes` count from now on; where the kernel forbids that, the peak is the whole life's."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")


def peak_bytes() -> int:
    """Highest resident set since :func:`reset_peak`."""
    try:
        return _status("VmHWM")
    except OSError:  # sandboxed kernels do not count it there
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_bytes() -> int:
    """What this process may still take: what the machine has left, or its control group's limit leaves, if less."""
    left = _field(_MEMORY, "MemAvailable")
    for limit, use, statistics, files in _GROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # there is no such group, or no limit ("max")
            held = int((_GROUPS / use).read_text()) - _counted(_GROUPS / statistics, files)
            left = min(left, int((_GROUPS / limit).read_text()) - held)
    return max(0, left)


def grown(run: Callable[[], object]) -> int:
    """By how many bytes the resident set grows at most while something runs."""
    before = resident_bytes()
    reset_peak()
    run()
    return max(0, peak_bytes() - before)


def _counted(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return 0


def _status(field: str) -> int:
    return _field(_STATUS, field)


def _field(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {field}")

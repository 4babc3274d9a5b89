"""Resident memory of this process, now and at its peak. Linux only, as pods are."""

import contextlib
import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_GROUP_LIMIT, _GROUP_USE = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
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
    with contextlib.suppress(OSError, ValueError):  # there is no group, or no limit ("max")
        left = min(left, int(_GROUP_LIMIT.read_text()) - int(_GROUP_USE.read_text()))
    return max(0, left)


def _status(field: str) -> int:
    return _field(_STATUS, field)


def _field(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {field}")

"""Resident memory of this process, now and at its peak. Linux only, as pods are."""

import contextlib
import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")
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


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")

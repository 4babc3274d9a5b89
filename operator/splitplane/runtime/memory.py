"""How much memory this process may take."""

import contextlib
import os
from pathlib import Path

VARIABLE = "SPLITPLANE_MEMORY_BYTES"
"""Set by the embedded node agent only, whose containers have limits and no control groups."""
_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Of control groups of version 2 and 1."""


def limit_bytes() -> int:
    """What this process may take at most: its container's limit, or all of the machine's memory, if that is less."""
    limit = min(_machine_bytes(), int(os.environ.get(VARIABLE) or _machine_bytes()))
    for name in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is no such group, or no limit ("max")
            limit = min(limit, int((_GROUPS / name).read_text()))
    return limit


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident_bytes() -> int:
    """What this process takes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

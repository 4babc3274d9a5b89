"""How much memory there is, and how the C library keeps that of messages.

By default glibc gives what messages took back to the kernel soon after they are freed, and has the next ones' pages
mapped and zeroed anew: hundreds of page faults for a message of 600 kB, a third of all that passing it on costs. How
much it keeps depends on the largest block that the process happens to have freed before. Here it is set.
"""

import contextlib
import ctypes
import os
from pathlib import Path

MAPPED_BYTES = 32 << 20
"""Blocks from this size on are mapped by themselves all the same. The most that glibc comes to on its own, too, once it
has seen a block of that size freed."""
KEPT_BYTES = 2 * MAPPED_BYTES
"""Free memory at the end of a heap above this is given back; so much glibc would keep then."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of ``malloc.h``."""


def keep_freed() -> bool:
    """Set this process's allocator so; the variables ``MALLOC_*_THRESHOLD_`` would do it too, set before its start.

    False where the C library has no such settings (musl, macOS): then all stays as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(_MMAP_THRESHOLD, MAPPED_BYTES))


_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Of control groups of version 2 and 1."""


def limit_bytes() -> int:
    """What this process may take at most: its container's limit, or all of the machine's memory, if that is less."""
    limit = _machine_bytes()
    for name in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is no such group, or no limit ("max")
            limit = min(limit, int((_GROUPS / name).read_text()))
    return limit


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

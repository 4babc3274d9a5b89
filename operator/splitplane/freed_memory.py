"""How much of the memory that a process has freed its C library keeps for the next use.

By default glibc gives freed memory back to the kernel soon, and has the next block's pages mapped and zeroed anew:
hundreds of page faults for a message of 600 kB, a third of all that passing it on costs, and an eighth of the time of
a planner's search. How much it keeps depends on the largest block that the process happens to have freed before. Here
it is set, by programs as they start.
"""

import asyncio
import contextlib
import ctypes

MESSAGES_BYTES = 32 << 20
"""For processes that pass messages on: the most that glibc comes to on its own, once it has seen such a block freed."""
SEARCH_BYTES = 8 << 20
"""For processes that plan: the arrays of a layer of the search are far smaller, and several are freed at once."""
LARGE_BYTES, FREED_BYTES = 8 << 20, 32 << 20
"""After so much of messages as large as that, each of which lay in memory up to four times, free memory goes back to
the kernel. What comes next pays for it with page faults, so not after smaller ones."""
HEAPS = 2
"""One costs 6 % more CPU for a message of 200 kB, as threads wait for each other."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""``M_TRIM_THRESHOLD``, ``M_MMAP_THRESHOLD`` and ``M_ARENA_MAX`` of ``malloc.h``."""


def keep_freed(block_bytes: int) -> bool:
    """Set this process's allocator so that it takes blocks up to this size from heaps, at whose ends it keeps twice as
    much free memory; larger blocks are mapped by themselves. The variables ``MALLOC_*`` would do it too, set before its
    start.

    Threads share the second heap: each would keep as much at the end of its own, from where even :func:`give_back`
    takes nothing, and of gRPC's seven that were 250 MB. Call it before there are threads.

    False where the C library has no such settings (musl, macOS): then all stays as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = ((_ARENA_MAX, HEAPS), (_TRIM_THRESHOLD, 2 * block_bytes), (_MMAP_THRESHOLD, block_bytes))
    return all(mallopt(name, value) for name, value in settings)


def give_back() -> None:
    """Give the kernel all that has been freed but the end of the second heap; heaps are locked in turn meanwhile.

    For after large messages: unlike the free end of a heap, what lies below something in use is never given back by
    itself.
    """
    with contextlib.suppress(AttributeError):  # musl, macOS
        ctypes.CDLL(None).malloc_trim(0)


class LargeMessages:
    """Gives free memory back, on a thread, after so many of one kind. For one event loop."""

    def __init__(self) -> None:
        self._freed = 0

    def freed(self, size: int) -> None:
        """A message of so many bytes is needed no longer."""
        self._freed += size if size >= LARGE_BYTES else 0
        if self._freed >= FREED_BYTES:
            self._freed = 0
            asyncio.get_running_loop().run_in_executor(None, give_back)

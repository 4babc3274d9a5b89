"""How much of the memory that a process has freed its C library keeps for the next use.

By default glibc gives freed memory back to the kernel soon, and has the next block's pages mapped and zeroed anew:
hundreds of page faults for a message of 600 kB, a third of all that passing it on costs, and an eighth of the time of
a planner's search. How much it keeps depends on the largest block that the process happens to have freed before. Here
it is set, by programs as they start.
"""

import contextlib
import ctypes

MESSAGES_BYTES = 32 << 20
"""For processes that pass messages on: the most that glibc comes to on its own, once it has seen such a block freed."""
SEARCH_BYTES = 8 << 20
"""For processes that plan: the arrays of a layer of the search are far smaller, and several are freed at once."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of ``malloc.h``."""


def keep_freed(block_bytes: int) -> bool:
    """Set this process's allocator so that it takes blocks up to this size from a heap, at whose end it keeps twice as
    much free memory; larger blocks are mapped by themselves. The variables ``MALLOC_*_THRESHOLD_`` would do it too, set
    before its start.

    False where the C library has no such settings (musl, macOS): then all stays as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2 * block_bytes) and mallopt(_MMAP_THRESHOLD, block_bytes))


def give_back() -> None:
    """Give the kernel all that has been freed, wherever in the heaps it lies; they are locked in turn meanwhile.

    For after large messages, of which gRPC's threads leave pieces in heaps of their own: unlike the free end of a heap,
    what lies below something in use is never given back by itself.
    """
    with contextlib.suppress(AttributeError):  # musl, macOS
        ctypes.CDLL(None).malloc_trim(0)

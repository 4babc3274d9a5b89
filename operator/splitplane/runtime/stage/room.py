"""How much of what a stage has computed may be on its way to the next one at a time.

Over a slow link results pile up faster than they leave. So a request waits before it is computed, when it holds its
inputs only, until there is room for what comes of it.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Hashable

from splitplane.runtime.memory import limit_bytes, resident_bytes

COPIES = 4
"""How often a result lies in memory until it is sent: as tensors, as a message, and twice in gRPC."""
LATE = 32
"""So many late results tell how large those of a range are beside its inputs."""


def spare_bytes() -> int:
    """Bytes of results that may be under way: half of what the process could still take, which it keeps copies of.

    To be asked once the weights are loaded and warm.
    """
    return max(0, limit_bytes() - resident_bytes()) // 2 // COPIES


class Held:
    """A request's part of the room: what is expected of it, until it is known."""

    def __init__(self, room: "Room", of: Hashable, input_bytes: int) -> None:
        self._room, self._of, self._input_bytes = room, of, input_bytes
        self.bytes = 0

    def takes(self, result_bytes: int) -> None:
        """The result is there."""
        self._room.learn(self._of, result_bytes / max(1, self._input_bytes))
        self._room.give(self.bytes - result_bytes)
        self.bytes = result_bytes


class Room:
    """Bytes for one event loop, first come, first served. A result larger than all of them goes alone."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity = self.free = capacity_bytes
        self._ratios: dict[Hashable, deque[float]] = {}
        self._turn = asyncio.Lock()
        self._given = asyncio.Event()

    @contextlib.asynccontextmanager
    async def held(self, of: Hashable, input_bytes: int, example_bytes: int) -> AsyncIterator[Held]:
        """Room for the result of a request with inputs of so many bytes: by what late ones of the same range (``of``)
        took beside theirs, or by the example that the model was exported with where there were none."""
        held = Held(self, of, input_bytes)
        async with self._turn:
            while self.free < (size := self._expected(of, input_bytes, example_bytes)):
                self._given.clear()
                await self._given.wait()
            self.free -= size
            held.bytes = size
        try:
            yield held
        finally:
            self.give(held.bytes)

    def learn(self, of: Hashable, ratio: float) -> None:
        self._ratios.setdefault(of, deque(maxlen=LATE)).append(ratio)

    def give(self, size: int) -> None:
        """Give back so many bytes, or take them where they are fewer than none."""
        self.free += size
        self._given.set()

    def _expected(self, of: Hashable, input_bytes: int, example_bytes: int) -> int:
        ratios = self._ratios.get(of)
        return min(self.capacity, int(max(ratios) * input_bytes) if ratios else example_bytes)

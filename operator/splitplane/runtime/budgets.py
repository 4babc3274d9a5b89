"""How much memory the messages of requests may take together, from their arrival to the answer, over both protocols.

It comes before admission, which knows requests only once they are whole: else whoever sends slowly, or much at a time,
holds memory that nothing bounds.
"""

import asyncio
from collections import deque

from splitplane.runtime.inference import Failure, InferenceError
from splitplane.runtime.memory import limit_bytes

MAX_MESSAGE_BYTES = 64 << 20
"""Of what a client sends."""
MAX_POD_MESSAGE_BYTES = MAX_MESSAGE_BYTES + (256 << 10)
"""Of what goes between pods, and back: a client's largest request has room for its route, an answer for its trace."""
MOST_BYTES = 512 << 20
PATIENCE_SECONDS = 10.0
TOTAL_SECONDS = 300.0
"""How long a message may take to come, over either protocol."""


def budget_bytes() -> int:
    """What all messages may take: a quarter of the container's memory, but room for the largest one at least."""
    return max(MAX_POD_MESSAGE_BYTES, min(limit_bytes() // 4, MOST_BYTES))


class Budget:
    """Bytes that are taken and given back, for one event loop. ``free`` is what nobody has."""

    def __init__(self, capacity_bytes: int | None = None, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.free = budget_bytes() if capacity_bytes is None else capacity_bytes
        self._patience_seconds = patience_seconds
        self._lent = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Take so many bytes, in turn; waits a little where what is lent would be enough.

        Raises :class:`InferenceError` (``RESOURCE_EXHAUSTED``) when there are not as many.
        """
        if not self._waiting and size <= self.free:
            self.free -= size
            return
        if size > self.free + self._lent:
            raise spent()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            async with asyncio.timeout(self._patience_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.free += size  # its turn came with the end of its patience, or of its caller
            self._wake()
            if isinstance(error, TimeoutError):
                raise spent() from None
            raise

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.free += size
        self._wake()

    async def borrow(self, size: int) -> None:
        """As :meth:`take`, for a message of unknown size that is on its way."""
        await self.take(size)
        self._lent += size

    def settle(self, lent: int, size: int) -> None:
        """The message has come, or will not (0): what was borrowed for it is exchanged for its ``size``.

        Raises :class:`InferenceError` when that is more than there is; nothing is taken then.
        """
        self._lent -= lent
        self.free += lent
        fits = size <= self.free
        self.free -= size if fits else 0
        self._wake()
        if not fits:
            raise spent()

    def _wake(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if size > self.free:
                    return
                self.free -= size
                turn.set_result(None)
            self._waiting.popleft()


def spent() -> InferenceError:
    return InferenceError(
        Failure.RESOURCE_EXHAUSTED,
        "the messages of requests under way take all the memory that they may: try again later",
    )

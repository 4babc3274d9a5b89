"""Bodies of REST requests: how much memory they may take together, and how long they may take to come."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from splitplane.runtime.inference import Failure, InferenceError
from splitplane.runtime.memory import limit_bytes
from splitplane.runtime.oip_grpc import MAX_MESSAGE_BYTES

MOST_BYTES = 512 << 20
IDLE_SECONDS = 10.0
TOTAL_SECONDS = 300.0
RETRY_SECONDS = 1.0


def budget_bytes() -> int:
    """What all bodies may take: a quarter of the container's memory, but room for the largest one at least."""
    return max(MAX_MESSAGE_BYTES, min(limit_bytes() // 4, MOST_BYTES))


class Bodies:
    """A budget over what has arrived of the bodies of all requests that are not answered yet.

    It comes before admission, which knows requests only once they are whole: else whoever sends slowly, or much at a
    time, holds memory that nothing bounds.
    """

    def __init__(
        self,
        capacity_bytes: int | None = None,
        *,
        idle_seconds: float = IDLE_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
    ) -> None:
        self._free = budget_bytes() if capacity_bytes is None else capacity_bytes
        self._idle_seconds, self._total_seconds = idle_seconds, total_seconds

    @contextlib.asynccontextmanager
    async def of(self, request: web.Request) -> AsyncIterator[bytes]:
        """The whole body, which counts while the context is open.

        Raises :class:`InferenceError` (``RESOURCE_EXHAUSTED``) when the budget is spent, ``HTTPRequestTimeout`` when
        nothing comes for a while or the whole takes too long, ``HTTPRequestEntityTooLarge`` for more than a message's
        limit; unpacked, where the body is compressed.
        """
        body = bytearray()
        try:
            await self._read(request, body)
            yield bytes(body)
        finally:
            self._free += len(body)

    async def _read(self, request: web.Request, body: bytearray) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + self._total_seconds
        try:
            async with asyncio.timeout(self._idle_seconds) as patience:
                while chunk := await request.content.readany():
                    body += chunk
                    self._free -= len(chunk)
                    if len(body) > MAX_MESSAGE_BYTES:
                        raise web.HTTPRequestEntityTooLarge(max_size=MAX_MESSAGE_BYTES, actual_size=len(body))
                    if self._free < 0:
                        raise InferenceError(
                            Failure.RESOURCE_EXHAUSTED,
                            "the bodies of requests under way take all the memory that they may: try again later",
                            retry_seconds=RETRY_SECONDS,
                        )
                    patience.reschedule(min(clock() + self._idle_seconds, end))
        except TimeoutError:
            raise web.HTTPRequestTimeout from None

"""Bodies of REST requests: they count against the budget of all messages as they come, and may take a time for that."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from splitplane.runtime.budgets import MAX_MESSAGE_BYTES, TOTAL_SECONDS, Budget

IDLE_SECONDS = 10.0


class Bodies:
    """Reads bodies; what has arrived of them counts until their requests are answered."""

    def __init__(
        self, budget: Budget, *, idle_seconds: float = IDLE_SECONDS, total_seconds: float = TOTAL_SECONDS
    ) -> None:
        self._budget = budget
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
            self._budget.give(len(body))

    async def _read(self, request: web.Request, body: bytearray) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + self._total_seconds
        try:
            async with asyncio.timeout(self._idle_seconds) as patience:
                while chunk := await request.content.readany():
                    await self._budget.take(len(chunk))
                    body += chunk
                    if len(body) > MAX_MESSAGE_BYTES:
                        raise web.HTTPRequestEntityTooLarge(max_size=MAX_MESSAGE_BYTES, actual_size=len(body))
                    patience.reschedule(min(clock() + self._idle_seconds, end))
        except TimeoutError:
            raise web.HTTPRequestTimeout from None

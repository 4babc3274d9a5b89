"""Requests that come over gRPC, counted against the same budget as the bodies of those over REST.

gRPC takes a call's message in once the server asks for it, and hands it over whole. So it is asked for only when there
is room for one as large as those before it have been, and its own size counts from then to the answer.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from splitplane.runtime.budgets import TOTAL_SECONDS, Budget, Held
from splitplane.runtime.connections import Silences, peer_of
from splitplane.runtime.inference import Failure, InferenceError, invalid

FIRST_BYTES, LEAST_BYTES = 1 << 20, 64 << 10
"""What a message on its way counts as before any has come, and at least. Some 64 kB gRPC takes in unasked."""
FADING = 0.9
"""Of what is expected, as much stays when a smaller message has come."""


class Received:
    """A message that has come."""

    def __init__(self, data: bytes, held: Held, receiving: "Receiving") -> None:
        self.data, self.held = data, held
        self._receiving = receiving

    def accepted(self) -> None:
        """It is a request for what is served here: others will be alike."""
        self._receiving.expect(len(self.data))


class Receiving:
    """Reads the one message of a call when there is room for it. For methods that gRPC believes to be of many."""

    def __init__(
        self, budget: Budget, *, idle_seconds: float = TOTAL_SECONDS, total_seconds: float = TOTAL_SECONDS
    ) -> None:
        """A message may take ``total_seconds`` to come, and less when nothing comes for ``idle_seconds``: from clients.
        Between pods a link may be down for a while."""
        self._budget = budget
        self._idle_seconds, self._total_seconds = idle_seconds, total_seconds
        self._silences = Silences()
        self._expected = FIRST_BYTES

    def expect(self, size: int) -> None:
        """Messages of that size come."""
        self._expected = max(size, round(FADING * self._expected), LEAST_BYTES)

    @contextlib.asynccontextmanager
    async def message(self, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Received]:
        """The call's message, which counts while the context is open.

        Raises :class:`InferenceError` when there is no room (``RESOURCE_EXHAUSTED``), or it does not come.
        """
        data = await self._read(context)
        held = Held(self._budget, len(data))
        try:
            yield Received(data, held, self)
        finally:
            held.release()

    async def _read(self, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        peer = context.peer()
        address, lent, size = peer_of(peer)[0], self._expected, 0
        await self._budget.borrow(lent, address)
        try:
            data = await self._whole(context, peer)
            size = len(data)
        finally:
            self._budget.settle(lent, size, address)
        return data

    async def _whole(self, context: grpc.aio.ServicerContext[Any, Any], peer: str) -> bytes:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._total_seconds
        timer: asyncio.TimerHandle
        try:
            async with asyncio.timeout_at(end) as patience:

                def look() -> None:
                    nonlocal timer
                    left = self._idle_seconds - self._silences.seconds(peer)
                    if left <= 0:
                        patience.reschedule(loop.time())
                    else:
                        timer = loop.call_later(max(left, self._idle_seconds / 10), look)

                timer = loop.call_later(self._idle_seconds, look)
                try:
                    data = await context.read()
                finally:
                    timer.cancel()
        except TimeoutError:
            idle = loop.time() < end
            why = f"nothing of the message came for {self._idle_seconds:g} s" if idle else (
                f"the message has not come within {self._total_seconds:g} s"
            )  # fmt: skip
            raise InferenceError(Failure.DEADLINE_EXCEEDED, why) from None
        if not isinstance(data, bytes):  # the end of the call
            raise invalid("the call has ended without a message")
        return data

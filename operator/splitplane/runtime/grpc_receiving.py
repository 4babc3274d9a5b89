"""Requests that come over gRPC, counted against the same budget as the bodies of those over REST.

gRPC takes a call's message in once the server asks for it, and hands it over whole. So it is asked for only when there
is room for one as large as those before it from the same address have been, and its own size counts from then to the
answer.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc.aio

from splitplane.freed_memory import LargeMessages
from splitplane.runtime.budgets import TOTAL_SECONDS, Budget, Held
from splitplane.runtime.connections import Silences, peer_of
from splitplane.runtime.inference import Failure, InferenceError, invalid

FIRST_SHARE, LEAST_BYTES = 16, 64 << 10
"""A message on its way counts as one of so many parts of the budget before any has come from its address, and as so
much at least. Some 64 kB gRPC takes in unasked."""
FADING = 0.9
"""Of what is expected, as much stays when a smaller message has come."""
KNOWN_ADDRESSES = 4096
"""Of so many is known what to expect; the one that was silent longest is forgotten."""


class Received(NamedTuple):
    """A message that has come."""

    data: bytes
    held: Held


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
        self._expected: dict[str, int] = {}
        """By address, the one that sent last at the end."""
        self._large = LargeMessages()

    def _expect(self, address: str, size: int) -> None:
        """Messages of that size come from there, whether they are requests or not: both take memory."""
        before = self._expected.pop(address, 0)
        self._expected[address] = max(size, round(FADING * before), LEAST_BYTES)
        if len(self._expected) > KNOWN_ADDRESSES:
            del self._expected[next(iter(self._expected))]

    @contextlib.asynccontextmanager
    async def message(self, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Received]:
        """The call's message, which counts while the context is open.

        Raises :class:`InferenceError` when there is no room (``RESOURCE_EXHAUSTED``), or it does not come.
        """
        data = await self._read(context)
        size = len(data)
        received = Received(data, Held(self._budget, size))
        del data
        try:
            yield received
        finally:
            received.held.release()
            self._large.freed(size)

    async def _read(self, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        peer = context.peer()
        address, size = peer_of(peer)[0], 0
        lent = self._expected.get(address, self._budget.capacity // FIRST_SHARE)
        await self._budget.borrow(lent, address, time_seconds=context.time_remaining())
        try:
            data = await self._whole(context, peer)
            size = len(data)
            self._expect(address, size)
        finally:
            self._settle(lent, size, address)
        return data

    def _settle(self, lent: int, size: int, address: str) -> None:
        try:
            self._budget.settle(lent, size, address)
        except InferenceError:
            self._large.freed(size)
            raise

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

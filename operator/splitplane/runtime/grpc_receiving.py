"""Requests that come over gRPC, counted against the same budget as the bodies of those over REST.

gRPC takes a call's message in once the server asks for it, and hands it over whole. So it is asked for only when there
is room for one as large as those before it have been, and its own size counts from then to the answer.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from splitplane.runtime.budgets import TOTAL_SECONDS, Budget
from splitplane.runtime.inference import Failure, InferenceError, invalid

FIRST_BYTES, LEAST_BYTES = 1 << 20, 64 << 10
"""What a message on its way counts as before any has come, and at least. Some 64 kB gRPC takes in unasked."""
FADING = 0.9
"""Of what is expected, as much stays when a smaller message has come."""


class Receiving:
    """Reads the one message of a call when there is room for it. For methods that gRPC believes to be of many."""

    def __init__(self, budget: Budget, *, total_seconds: float = TOTAL_SECONDS) -> None:
        """``total_seconds`` is how long a message may take to come."""
        self._budget, self._total_seconds = budget, total_seconds
        self._expected = FIRST_BYTES

    @contextlib.asynccontextmanager
    async def message(self, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        """The call's message, which counts while the context is open.

        Raises :class:`InferenceError` when there is no room (``RESOURCE_EXHAUSTED``), or it does not come.
        """
        data = await self._read(context)
        try:
            yield data
        finally:
            self._budget.give(len(data))

    async def _read(self, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        lent, size = self._expected, 0
        await self._budget.borrow(lent)
        try:
            async with asyncio.timeout(self._total_seconds):
                data = await context.read()
            if not isinstance(data, bytes):  # the end of the call
                raise invalid("the call has ended without a message")
            size = len(data)
        except TimeoutError:
            raise InferenceError(
                Failure.DEADLINE_EXCEEDED, f"the message has not come within {self._total_seconds:g} s"
            ) from None
        finally:
            self._expected = max(size, round(FADING * self._expected), LEAST_BYTES)
            self._budget.settle(lent, size)
        return data

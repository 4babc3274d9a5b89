"""Bodies of REST requests: they count against the budget of all messages as they come, and may take a time for that.

What JSON takes while it is parsed or written counts, too, and large texts are parsed and written one at a time.
"""

import asyncio
import contextlib
import gc
import traceback
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from aiohttp import web

from splitplane import freed_memory
from splitplane.runtime.budgets import IDLE_SECONDS, MAX_MESSAGE_BYTES, TOTAL_SECONDS, Budget, Held
from splitplane.runtime.inference import Failure, InferenceError, invalid
from splitplane.runtime.json_sizes import footprint, too_large, unwritable
from splitplane.runtime.oip_grpc import OFF_LOOP_BYTES, off_loop_above
from splitplane.runtime.unpacking import Unpacker, encoding_of

PARSING = "JSON"
"""To whom the budget lends what parsing and writing take."""
READING, WRITING = "JSON to be read", "JSON to be written"
"""And to whom, one at a time each, where that has to be waited for."""
LARGE_BYTES = 16 << 20
"""JSON that takes as much gives the memory back to the kernel, which costs it little beside the rest."""
SMALL_BYTES = 1 << 20
"""JSON that takes no more while it is written, some 11,000 numbers, waits for nobody and is lent nothing."""

Result = TypeVar("Result")


class Body:
    """What has come, and what the request holds of the budget for it."""

    def __init__(self, budget: Budget) -> None:
        self.data, self.held = bytearray(), Held(budget)

    def drop(self) -> None:
        """The request has been computed: its inputs are needed no longer."""
        self.data = bytearray()
        self.held.release()


class Bodies:
    """Reads bodies; what has arrived of them counts until their requests are answered."""

    def __init__(
        self, budget: Budget, *, idle_seconds: float = IDLE_SECONDS, total_seconds: float = TOTAL_SECONDS
    ) -> None:
        self._budget = budget
        self._idle_seconds, self._total_seconds = idle_seconds, total_seconds
        self._parsing = asyncio.Lock()
        self._short = {READING: asyncio.Lock(), WRITING: asyncio.Lock()}

    @contextlib.asynccontextmanager
    async def of(self, request: web.Request, deadline: float | None = None) -> AsyncIterator[Body]:
        """The whole body, which counts while the context is open; unpacked, where it is compressed.

        Raises :class:`InferenceError` when the budget is spent (``RESOURCE_EXHAUSTED``) or the ``deadline`` has come,
        ``HTTPRequestTimeout`` when nothing comes for a while or the whole takes too long,
        ``HTTPRequestEntityTooLarge`` for more than a message's limit.
        """
        body = Body(self._budget)
        try:
            async with within(deadline, "its body had come"):
                await self._read(request, body)
            yield body
        finally:
            body.held.release()

    async def parsed(
        self, body: Body, work: Callable[[], Result], *, text_size: int | None = None, deadline: float | None = None
    ) -> Result:
        """What ``work`` makes of the body, whose first ``text_size`` bytes (all, if ``None``) are JSON.

        Raises what ``work`` does, and :class:`InferenceError` for JSON that is too large (``OUT_OF_RANGE``), for which
        there is no room, or whose turn does not come before the ``deadline``.
        """
        text = memoryview(body.data)[:text_size]
        if len(text) <= OFF_LOOP_BYTES:
            return await off_loop_above(len(body.data), work)
        async with contextlib.AsyncExitStack() as stack:
            async with within(deadline, "its JSON was parsed"):
                size = await _to_its_end(lambda: footprint(text))
                if size > self._budget.capacity:
                    raise too_large(f"this JSON takes {size} bytes to parse, and there are {self._budget.capacity}")
                await stack.enter_async_context(self._turn(size, READING))
            try:
                return await _to_its_end(lambda: _uncollected(work, size))
            except InferenceError as error:
                # What was parsed would live on in the frames of what failed, which refer to each other.
                traceback.clear_frames(error.__traceback__)
                error.__context__ = None
                raise

    def require_writable(self, footprint: int) -> None:
        """Raises :class:`InferenceError` (``OUT_OF_RANGE``) for an answer whose JSON takes more bytes while it is
        written than there are."""
        if footprint > self._budget.capacity:
            raise unwritable(f"this answer takes {footprint} bytes to write, and there are {self._budget.capacity}")

    async def written(
        self, size: int, footprint: int, work: Callable[[], Result], *, deadline: float | None = None
    ) -> Result:
        """What ``work`` makes of outputs of ``size`` bytes, whose JSON takes ``footprint`` bytes while it is written.

        Raises as :meth:`parsed` does.
        """
        self.require_writable(footprint)
        if footprint <= SMALL_BYTES:
            return await off_loop_above(size, work)
        async with contextlib.AsyncExitStack() as stack:
            async with within(deadline, "its answer was written"):
                await stack.enter_async_context(self._turn(footprint, WRITING))
            return await _to_its_end(lambda: _uncollected(work, footprint))

    @contextlib.asynccontextmanager
    async def _turn(self, size: int, what: str) -> AsyncIterator[None]:
        """Its turn, and so many bytes. Who has to wait for these does so without the turn: others may need fewer.

        What has been computed waits also for what requests hold; these may wait to be read themselves.
        """
        async with self._parsing:
            if self._budget.can_lend(size, PARSING):
                async with self._budget.lending(size, PARSING):
                    yield
                return
        lending = self._budget.lending(size, what, for_taken=what == WRITING)
        async with self._short[what], lending, self._parsing:
            yield

    async def _read(self, request: web.Request, body: Body) -> None:
        encoding, clock = encoding_of(request), asyncio.get_running_loop().time
        unpacker = Unpacker(encoding) if encoding else None
        end = clock() + self._total_seconds
        try:
            async with asyncio.timeout(self._idle_seconds) as patience:
                while chunk := await request.content.readany():
                    patience.reschedule(None)  # the budget has a patience of its own
                    if unpacker is None:
                        await _add(chunk, body)
                    else:
                        unpacker.feed(chunk)
                        while piece := await unpacker.piece():
                            await _add(piece, body)
                    patience.reschedule(min(clock() + self._idle_seconds, end))
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        except web.RequestPayloadError:
            raise invalid("the body does not come as its head says") from None
        if unpacker is not None:
            unpacker.end()


async def _add(data: bytes, body: Body) -> None:
    await body.held.grow(len(body.data) + len(data))
    body.data += data
    if len(body.data) > MAX_MESSAGE_BYTES:
        raise web.HTTPRequestEntityTooLarge(max_size=MAX_MESSAGE_BYTES, actual_size=len(body.data))


@contextlib.asynccontextmanager
async def within(deadline: float | None, what: str) -> AsyncIterator[None]:
    """Raises :class:`InferenceError` when the ``deadline`` (of ``time.monotonic``) comes while the context is open."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise InferenceError(Failure.DEADLINE_EXCEEDED, f"the request's time was up before {what}") from None


def _uncollected(work: Callable[[], Result], size: int) -> Result:
    """Python looks for garbage each time so many lists have been made, which takes most of the time of a million.

    The next of the threads that do this has a heap of its own: what large work of ``size`` bytes has freed goes back.
    """
    gc.disable()
    try:
        return work()
    finally:
        gc.enable()
        if size >= LARGE_BYTES:
            freed_memory.give_back()


async def _to_its_end(work: Callable[[], Result]) -> Result:
    """Done on a thread, and waited for also by a caller who is cancelled: what it takes is taken until then."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    finally:
        if not running.done():
            await asyncio.wait((running,))

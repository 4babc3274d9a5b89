"""Waiting for "something changed" without missing a change that happens between looking and waiting."""

import asyncio


class Signal:
    """Wakes everybody who waits. Everything happens on one event loop, so looking and then waiting misses nothing."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Return at the next ``notify``, or after ``seconds``."""
        await _wait(self._event, seconds)


class Latch:
    """For one waiter that also does other things: remembers a ``notify`` that comes while it is busy."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()

    def clear(self) -> None:
        """Forget what has been notified: the waiter is about to look."""
        self._event.clear()

    async def wait(self, seconds: float | None = None) -> None:
        """Return once there has been a ``notify`` since ``clear``, or after ``seconds``."""
        await _wait(self._event, seconds)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return

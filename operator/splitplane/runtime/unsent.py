"""What has been computed and not been taken yet: answers that wait to be written, or for clients that read slowly."""

import asyncio
from collections import Counter
from collections.abc import Callable

from splitplane.freed_memory import LargeMessages

LEAST_BYTES = 1 << 16
"""Smaller ones do not count."""
SENDING_SECONDS = 60.0
"""How long a client may take before its answer counts no longer: one that is gone without a word, or does not read,
would keep large answers from all others until its connection ends."""


class Unsent:
    """Counts their bytes, for one event loop. ``on_less`` is called whenever there are fewer."""

    def __init__(self, *, sending_seconds: float = SENDING_SECONDS) -> None:
        self.bytes, self.sending_seconds = 0, sending_seconds
        self._of: Counter[str] = Counter()
        self._large = LargeMessages()
        self.on_less: Callable[[], None] = lambda: None

    def of(self, client: str) -> int:
        """Bytes of one client's."""
        return self._of[client]

    def change(self, size: int, client: str = "") -> None:
        self.bytes += size
        self._of[client] += size
        if not self._of[client]:
            del self._of[client]
        if size < 0:
            self._large.freed(-size)
            self.on_less()


class Answer:
    """One of them, of so many bytes, until it is ``gone``."""

    def __init__(self, unsent: Unsent, size: int, client: str = "") -> None:
        self._unsent, self._size, self._client = unsent, 0, client
        self._timer: asyncio.TimerHandle | None = None
        self._becomes(size)

    def sending(self, size: int) -> None:
        """It is written, as so many bytes, and the client takes them."""
        self._becomes(size)
        if self._size:
            self._timer = asyncio.get_running_loop().call_later(self._unsent.sending_seconds, self.gone)

    def gone(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._becomes(0)

    def _becomes(self, size: int) -> None:
        counted = size if size > LEAST_BYTES else 0
        change, self._size = counted - self._size, counted
        self._unsent.change(change, self._client)

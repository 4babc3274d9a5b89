"""How much memory the messages of requests may take together, from their arrival to the answer, over both protocols.

It comes before admission, which knows requests only once they are whole: else whoever sends slowly, or much at a time,
holds memory that nothing bounds.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from splitplane.runtime.inference import Failure, InferenceError
from splitplane.runtime.memory import limit_bytes

MAX_MESSAGE_BYTES = 64 << 20
"""Of what a client sends."""
MAX_POD_MESSAGE_BYTES = MAX_MESSAGE_BYTES + (256 << 10)
"""Of what goes between pods, and back: a client's largest request has room for its route, an answer for its trace."""
MOST_BYTES = 512 << 20
PATIENCE_SECONDS = 10.0
IDLE_SECONDS = 10.0
"""How long nothing of a message may come, over either protocol."""
TOTAL_SECONDS = 300.0
"""How long a message may take to come, over either protocol, and wait for room."""
LEFT_SECONDS = 0.5
"""So much before its time is up, or a tenth of it, a request waits no longer: it is told why, or has time to use it."""
SMALL_SHARE = 64
"""What takes no more than one of so many parts does not wait behind what needs more."""


def budget_bytes() -> int:
    """What all messages may take: a quarter of the container's memory, but room for the largest one at least."""
    return max(MAX_POD_MESSAGE_BYTES, min(limit_bytes() // 4, MOST_BYTES))


@dataclass(slots=True, eq=False)
class _Turn:
    size: int
    lent: bool
    come: asyncio.Future[None]
    gives_way: bool = False
    """It has waited for so long that it keeps nobody else from what it has no room in."""


class Budget:
    """Bytes that are taken and given back, for one event loop. ``free`` is what nobody has."""

    def __init__(
        self,
        capacity_bytes: int | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        lent_share: int = 1,
        most_patient: int = 0,
        on_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        """One peer is lent one of ``lent_share`` parts at a time, or one message. ``most_patient`` of its messages may
        wait for as long as they have time, whoever has the memory; all others for ``patience_seconds``, and for what is
        lent only. Who has waited for those holds nobody else up. ``on_refusal`` hears of each request that is refused
        because all is taken."""
        self.capacity = self.free = budget_bytes() if capacity_bytes is None else capacity_bytes
        self._patience_seconds, self._on_refusal = patience_seconds, on_refusal
        self._most_patient = most_patient
        self._most_lent = self.capacity // lent_share
        self._lent: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Turn]] = {}
        """By whom it is lent to; what is taken waits under no name."""

    async def take(self, size: int) -> None:
        """Take so many bytes, in turn; waits a little where what is lent would be enough.

        Raises :class:`InferenceError` (``RESOURCE_EXHAUSTED``) when there are not as many.
        """
        await self._get(size, "", lent=False)

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.free += size
        self._wake()

    async def borrow(self, size: int, peer: str, *, time_seconds: float | None = None) -> None:
        """As :meth:`take`, for a while: for a message of unknown size that is on its way from ``peer``.

        Waits also while that peer is lent as much as one may be. ``time_seconds``: what its request has, if
        that is known.
        """
        await self._get(size, peer, lent=True, time_seconds=time_seconds)

    def settle(self, lent: int, size: int, peer: str) -> None:
        """The message has come, or will not (0): what was borrowed for it is exchanged for its ``size``.

        Raises :class:`InferenceError` when that is more than there is; nothing is taken then.
        """
        self._return(lent, peer)
        fits = size <= self.free
        self.free -= size if fits else 0
        self._wake()
        if not fits:
            raise self._spent()

    def can_lend(self, size: int, name: str) -> bool:
        """Whether so many bytes can be borrowed at once."""
        return self._may_pass(size, name, lent=True)

    @contextlib.asynccontextmanager
    async def lending(self, size: int, name: str, *, for_taken: bool = False) -> AsyncIterator[None]:
        """So many bytes while the context is open, as :meth:`borrow` has it; ``for_taken``: waits a little also where
        what is lent would not be enough, and gives way to all others meanwhile."""
        await self._get(size, name, lent=True, for_taken=for_taken)
        try:
            yield
        finally:
            self.settle(size, 0, name)

    async def _get(
        self, size: int, peer: str, *, lent: bool, for_taken: bool = False, time_seconds: float | None = None
    ) -> None:
        if self._may_pass(size, peer, lent=lent):
            self._grant(size, peer, lent=lent)
            return
        is_patient = time_seconds is not None and len(self._waiting.get(peer, ())) < self._most_patient
        if size > (self.capacity if is_patient or for_taken else self.free + self._lent.total()):
            raise self._spent()
        seconds = TOTAL_SECONDS if is_patient else self._patience_seconds
        if time_seconds is not None:
            seconds = min(seconds, time_seconds - min(LEFT_SECONDS, time_seconds / 10))
        loop = asyncio.get_running_loop()
        turn = _Turn(size, lent, loop.create_future(), gives_way=for_taken)
        turns = self._waiting.setdefault(peer, deque())
        turns.append(turn)
        self._wake()  # those who wait may do so for their own sake
        timer = loop.call_later(self._patience_seconds, self._let_pass, turn)
        try:
            async with asyncio.timeout(seconds):
                await turn.come
        except BaseException as error:
            if turn.come.done() and not turn.come.cancelled():
                # Its turn came with the end of its patience, or of its caller.
                if lent:
                    self._return(size, peer)
                else:
                    self.free += size
            elif turn in turns:
                turns.remove(turn)
            self._wake()
            if isinstance(error, TimeoutError):
                raise (self._spent() if self._fits_peer(size, peer, lent=lent) else _crowded()) from None
            raise
        finally:
            timer.cancel()

    def _let_pass(self, turn: _Turn) -> None:
        turn.gives_way = True
        self._wake()

    def _may_pass(self, size: int, peer: str, *, lent: bool) -> bool:
        """Whether there is room at once, and nobody has to be waited for."""
        if size > self.free or self._waiting.get(peer) or not self._fits_peer(size, peer, lent=lent):
            return False
        return self._is_small(size) or not self._waiting

    def _is_small(self, size: int) -> bool:
        return size <= self.capacity // SMALL_SHARE

    def _fits_peer(self, size: int, peer: str, *, lent: bool) -> bool:
        has = self._lent[peer] if lent else 0
        return not has or has + size <= self._most_lent

    def _grant(self, size: int, peer: str, *, lent: bool) -> None:
        self.free -= size
        if lent:
            self._lent[peer] += size

    def _return(self, size: int, peer: str) -> None:
        self.free += size
        self._lent[peer] -= size
        if not self._lent[peer]:
            del self._lent[peer]

    def _wake(self) -> None:
        """Let those have their turns for whom there is room: each peer's in order, and small ones past large ones."""
        is_held_up = False
        for peer, turns in list(self._waiting.items()):
            for turn in tuple(turns):
                if not turn.come.done():
                    if not self._fits_peer(turn.size, peer, lent=turn.lent):
                        break
                    if turn.size > self.free or (is_held_up and not self._is_small(turn.size)):
                        if turn.gives_way:
                            continue
                        is_held_up = True
                        break
                    self._grant(turn.size, peer, lent=turn.lent)
                    turn.come.set_result(None)
                turns.remove(turn)
            if not turns:
                del self._waiting[peer]

    def _spent(self) -> InferenceError:
        self._on_refusal()
        return InferenceError(
            Failure.RESOURCE_EXHAUSTED,
            "the messages of requests under way take all the memory that they may: try again later",
        )


class Held:
    """What one request holds of a budget, until it is released."""

    def __init__(self, budget: Budget, size: int = 0) -> None:
        """``size`` has been taken already."""
        self._budget, self.size = budget, size

    async def grow(self, size: int) -> None:
        """Hold ``size`` bytes if it does not yet. Raises what :meth:`Budget.take` does."""
        if size > self.size:
            await self._budget.take(size - self.size)
            self.size = size

    def release(self) -> None:
        self._budget.give(self.size)
        self.size = 0


def _crowded() -> InferenceError:
    return InferenceError(
        Failure.RESOURCE_EXHAUSTED,
        "too many messages from this address are on their way at a time: try again later",
    )

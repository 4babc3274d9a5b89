"""Whether a request ends the processes that take it up, told from a link that breaks connections.

A request on which a stage's process dies (out of memory, a crash in native code) would end one replica after the other
if it were sent on as long as there are some. So each has two tries of that kind: of the connections over which it was
lost in mid-call, at most one may be for a process that has ended since. Which those are says the process itself: its
answers to health checks carry an identity that each start makes anew. Where the same one answers, the connection broke
and not the process; where another one answers, or the cluster reports the pod as no longer ready, the process has
ended. A link that is down explains a loss, too. Until one of these is known, the request goes nowhere.

Others were inside with it, and would be so again where it goes next. So requests that were lost go one at a time, for a
while: which of them ends the next process shows, and the others are in none that ends.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from splitplane.runtime.gateway.checking import Checker
from splitplane.runtime.gateway.endpoints import Endpoint
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.gateway.tables import Route
from splitplane.runtime.inference import Failure, InferenceError

logger = logging.getLogger(__name__)

MOST_LOSSES = 2
"""So many processes may end while they have one request; then it is sent to no other."""
ALONE_SECONDS = 2.0
"""At most so long a request that was lost waits for others that were, too: most processes end for other reasons."""
ALONE_SHARE = 1 / 3
"""And at most so much of the time that it has left: it needs the rest for its attempt."""
LOOK_SECONDS = 0.25
"""Between looks at whether a link has fallen meanwhile."""


@dataclass(frozen=True, slots=True)
class _Loss:
    endpoint: Endpoint
    process: str
    route: Route


class Gate:
    """Has requests that were lost go one at a time, as far as that takes none of them long."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def passing(self, seconds: float, aside: AbstractContextManager[None]) -> AsyncIterator[None]:
        """While a request is on its way that was lost before; it has so many ``seconds`` left, and is ``aside`` while
        it waits here."""
        is_alone = False
        with contextlib.suppress(TimeoutError), aside:
            async with asyncio.timeout(min(ALONE_SHARE * seconds, ALONE_SECONDS)):
                is_alone = await self._lock.acquire()
        try:
            yield
        finally:
            if is_alone:
                self._lock.release()


class Losses:
    """Of one request."""

    def __init__(self, router: Router, checker: Checker) -> None:
        self._router = router
        self._checker = checker
        self._losses: list[_Loss] = []

    def __len__(self) -> int:
        return len(self._losses)

    def add(self, addresses: Iterable[str], route: Route) -> None:
        """Connections to these broke off while the request was there. A pod that was leaving speaks against nobody."""
        found = (self._router.endpoints.get(address) for address in addresses)
        self._losses += [_Loss(endpoint, endpoint.process, route) for endpoint in found if endpoint is not None]

    async def judge(self, seconds: float) -> None:
        """Come back when fewer than :data:`MOST_LOSSES` may be the request's own doing, so that it may be sent again.

        Raises :class:`InferenceError`: ``INTERNAL`` when it has, ``DEADLINE_EXCEEDED`` when that is not known after so
        many ``seconds``.
        """
        until = self._router.clock() + seconds
        asked = {asyncio.ensure_future(self._outlived(loss)): loss for loss in self._losses}
        left = set(asked)
        try:
            while True:
                left = {task for task in left if not self._is_explained(task, asked[task])}
                if len(left) < MOST_LOSSES:
                    break
                waiting = [task for task in left if not task.done()]
                remaining = until - self._router.clock()
                if not waiting or remaining <= 0:
                    raise self._end(known=not waiting)
                await asyncio.wait(waiting, timeout=min(remaining, LOOK_SECONDS), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in asked:
                task.cancel()
        self._losses = [asked[task] for task in left]

    async def _outlived(self, loss: _Loss) -> bool:
        return await self._checker.outlived(loss.endpoint, loss.process)

    def _is_explained(self, task: "asyncio.Future[bool]", loss: _Loss) -> bool:
        """Whether something else than the end of the process has broken the connection."""
        return task.result() if task.done() else self._router.cut_off(loss.route)

    def _end(self, *, known: bool) -> InferenceError:
        addresses = ", ".join(loss.endpoint.address for loss in self._losses)
        if not known:
            return InferenceError(
                Failure.DEADLINE_EXCEEDED,
                f"the request's time is up: {len(self._losses)} connections to stages broke off while these had it, "
                "and whether their processes have ended is not known yet",
            )
        logger.error("a request was inside when the processes at %s ended: it is sent to no other", addresses)
        return InferenceError(
            Failure.INTERNAL,
            f"{len(self._losses)} stage processes ended while they had this request, so it is sent to no other: if it "
            "ends them, their logs and the last state of their containers say how",
        )

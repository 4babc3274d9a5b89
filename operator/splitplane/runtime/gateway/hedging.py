"""A second attempt beside the first one, where nothing tells whether that one hangs or only takes long.

Before any request has come back on a route, nothing is known of how long one takes. So one that has waited for a third
of its time, at a replica that is at work, is sent to another as well, and whichever answers first counts. The first
attempt goes on: if both take as long, it is the one that is nearer to its end. This is done for one request of a route
at a time, and once for each: its answer is what all others are compared with. So slow work is not sent everywhere.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from splitplane.runtime.gateway.choosing import Choice
from splitplane.runtime.gateway.endpoints import Endpoints
from splitplane.runtime.gateway.pacing import RETRYABLE
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.gateway.waiting import Waiting
from splitplane.runtime.inference import InferenceError, InferResponse

SHARE = 1 / 3
LONGEST_SECONDS = 10.0
"""Clients that set no deadline have long ones."""
AT_WORK = 0.5
"""Of the time that it waited, for so much the replica must have been at one piece of work: else a link is slow."""

Outcome = tuple[Choice, InferResponse | InferenceError]
"""The attempt that counts, and what became of it."""


@dataclass(slots=True)
class Race:
    """The attempts of one request, whose inputs have ``size`` bytes, and to which ``seconds`` are left.

    ``attempt`` makes one, which counts at its endpoints (:meth:`.Endpoints.begin`) from :meth:`begin` to its end.
    ``avoid`` are endpoints that it should not go over; ``failed`` is told of an attempt that failed while the other one
    goes on.
    """

    endpoints: Endpoints
    attempt: Callable[[Choice], Coroutine[Any, Any, InferResponse]]
    failed: Callable[[Choice, InferenceError], None]
    size: int
    seconds: float
    avoid: frozenset[str] = frozenset()
    going: "dict[asyncio.Task[InferResponse], Choice]" = field(default_factory=dict)

    def begin(self, choice: Choice) -> None:
        # Now and not when the task's turn comes: requests that come in together would all choose the same replica.
        self.endpoints.begin(choice.addresses)
        task = asyncio.create_task(self.attempt(choice))
        task.add_done_callback(lambda _: self.endpoints.end(choice.addresses))
        self.going[task] = choice

    async def outcome(self) -> Outcome:
        """Of the first that is answered, or fails for good, or else of the last."""
        pending = set(self.going)
        while True:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            errors = []
            for task in done:
                try:
                    return self.going[task], task.result()
                except InferenceError as failure:
                    errors.append((self.going[task], failure))
            for place, (choice, error) in enumerate(errors, 1):
                if error.failure not in RETRYABLE or not (pending or errors[place:]):
                    return choice, error
                self.failed(choice, error)

    async def end(self) -> None:
        for task in self.going:
            task.cancel()
        await asyncio.gather(*self.going, return_exceptions=True)


class Hedging:
    """Knows on which routes a second attempt is under way."""

    def __init__(self, router: Router, waiting: Waiting) -> None:
        self._router = router
        self._waiting = waiting
        self._routes: set[str] = set()

    async def answer(self, choice: Choice, race: Race) -> Outcome:
        """What became of an attempt on a route of which nothing is known, or of the one beside it."""
        race.begin(choice)
        waited, route = min(SHARE * race.seconds, LONGEST_SECONDS), choice.route.name
        try:
            done, _ = await asyncio.wait(race.going, timeout=waited)
            if not done and route not in self._routes:
                self._routes.add(route)
                try:
                    return await self._with_another(choice, race, waited)
                finally:
                    self._routes.discard(route)
            return await race.outcome()
        finally:
            await race.end()

    async def _with_another(self, choice: Choice, race: Race, waited: float) -> Outcome:
        look = asyncio.create_task(self._waiting.at_work(choice, AT_WORK * waited))
        try:
            await asyncio.wait({look, *race.going}, return_when=asyncio.FIRST_COMPLETED)
            if look.done() and (at_work := look.result()):
                avoid = race.avoid | at_work
                # Looked for first: what is not taken must cost a fallback nothing of its rate.
                if self._waiting.has_way_round(avoid) and isinstance(other := self._router.choose(avoid), Choice):
                    race.begin(other)
        finally:
            look.cancel()
        counts, outcome = await race.outcome()
        if counts is not choice and not isinstance(outcome, InferenceError):
            self._waiting.look_after(choice, race.size)
        return counts, outcome

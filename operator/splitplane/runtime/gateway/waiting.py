"""Waits for an attempt's answer, and gives the attempt up where another way is better.

An attempt that takes much longer than others did is *overdue*: its endpoints are asked then whether they live, and how
long what they compute has been running. One that is dead is left at once. One whose compute has been running for many
times what requests of this size take on this route *hangs*, for all that can be told from outside: the attempt is made
elsewhere, and the endpoint left out until it gets on. Where none came back yet to compare with, whoever is at work has
the request's whole time: each of the stage's replicas may take as long (:mod:`.hedging` asks another beside it). A slow
link is not taken for hanging: while it carries, nobody computes.

What is overdue at a second place as well is a request that takes long anywhere: it stays there, and speaks against
nobody else.
"""

import asyncio
import logging
from collections import defaultdict
from typing import Any

from splitplane.runtime.gateway.checking import Checker
from splitplane.runtime.gateway.choosing import Choice
from splitplane.runtime.gateway.pacing import Patience
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.hops import Call
from splitplane.runtime.inference import Failure, InferenceError

logger = logging.getLogger(__name__)

MAX_PATIENCES = 64
CUT_OFF_SECONDS = 0.25
"""Between looks for another way for an attempt whose link has fallen."""
OVERDUE_ROUNDS = 3
"""Patience is doubled and asked again so often before an attempt whose endpoints live is given up for another."""
HANGING_ROUNDS = 2
"""So often where one of them hangs; once where another round would leave no time for another attempt."""
MISSED_SECONDS = 0.1
"""What ends so shortly before the deadline, or later, has missed it: its client's clock runs on the client's side."""


class OverdueError(InferenceError):
    """An attempt was given up: its endpoints are dead, or it took far too long and another way is free."""

    def __init__(
        self, message: str, at: frozenset[str] = frozenset(), *, are_dead: bool = False, detail: str = ""
    ) -> None:
        """``at`` are the endpoints that it should not go over again."""
        super().__init__(Failure.UNAVAILABLE, message, detail=detail)
        self.at = at
        self.are_dead = are_dead


class CutOffError(OverdueError):
    """An attempt was given up because a link on its way fell; its endpoints may be well."""


class Waiting:
    """Knows how long attempts take, by route."""

    def __init__(self, router: Router, checker: Checker) -> None:
        self._router = router
        self._checker = checker
        self._patience: defaultdict[str, Patience] = defaultdict(Patience)
        self._looks: set[asyncio.Task[None]] = set()

    def answered(self, choice: Choice, seconds: float, size: int) -> None:
        """An attempt was answered after so long; its inputs had ``size`` bytes."""
        if len(self._patience) > MAX_PATIENCES:
            self._patience.clear()
        self._patience[choice.route.name].completed(seconds, size)

    def knows(self, choice: Choice) -> bool:
        """Whether an attempt on this route has come back yet, to compare others with."""
        return self._patience[choice.route.name].is_known

    def has_way_round(self, avoid: frozenset[str]) -> bool:
        """Whether a request could go now over links that pass something, without ``avoid``."""
        choice = self._router.peek(avoid)
        return isinstance(choice, Choice) and not self._router.cut_off(choice.route)

    async def at_work(self, choice: Choice, seconds: float) -> frozenset[str]:
        """Endpoints, asked now, that have been at one piece of work for so long."""
        dead = await self._checker.suspect(choice.addresses)
        return frozenset(address for address in choice.addresses if address in dead or self._works(address, seconds))

    def look_after(self, choice: Choice, size: int) -> None:
        """An attempt was given up, for its time or because another one was answered: see whether its endpoints hang."""
        look = asyncio.create_task(self._look_after(choice, size))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def answer(
        self, sending: "asyncio.Future[Call]", choice: Choice, *, size: int, deadline: float, was_overdue: bool
    ) -> Call:
        """The answer. Raises what the call raises, and :class:`OverdueError` when the attempt is given up.

        ``size``: of the inputs, in bytes. ``was_overdue``: at endpoints that lived. Then only dead ones are left.
        """
        try:
            return await self._answer(sending, choice, size, deadline, was_overdue)
        except (asyncio.CancelledError, InferenceError):
            if self._router.clock() >= deadline - MISSED_SECONDS and not was_overdue:
                self.look_after(choice, size)
            raise

    async def _answer(
        self, sending: "asyncio.Future[Call]", choice: Choice, size: int, deadline: float, was_overdue: bool
    ) -> Call:
        at_first = patience = self._patience[choice.route.name].seconds()
        until = self._router.clock() + patience
        overdue = 0
        doubt: asyncio.Future[frozenset[str]] | None = None
        crosses = bool(choice.route.crossings(self._router.tier))
        try:
            while True:
                cut_off = self._router.cut_off(choice.route)
                if cut_off and self.has_way_round(frozenset()):
                    raise CutOffError(f"no answer over {choice.route.name}: a link is down")
                # Nothing may keep from hearing that the link has fallen, or from the answer.
                awaited: set[asyncio.Future[Any]] = {sending}
                if crosses:
                    awaited.add(self._router.links.fall())
                if doubt is not None:
                    awaited.add(doubt)
                seconds = None if doubt is not None else max(0.0, until - self._router.clock())
                if cut_off:
                    seconds = CUT_OFF_SECONDS if seconds is None else min(seconds, CUT_OFF_SECONDS)
                await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    return sending.result()
                if doubt is None:
                    if self._router.clock() >= until:
                        doubt = asyncio.ensure_future(self._checker.suspect(choice.addresses))
                elif doubt.done():
                    dead, doubt = doubt.result(), None
                    overdue += 1
                    patience *= 2
                    until = self._router.clock() + patience
                    rounds = HANGING_ROUNDS if deadline - until > at_first else 1
                    at = dead
                    if not at and not was_overdue:
                        at = self._hanging(choice, size, known_only=overdue < rounds)
                        if not at and overdue >= OVERDUE_ROUNDS and not self._is_at_work(choice, at_first):
                            at = frozenset(choice.addresses)
                    if at and self.has_way_round(at):
                        raise OverdueError(
                            f"no answer over {choice.route.name}",
                            at,
                            are_dead=bool(dead),
                            detail=f"dead: {', '.join(sorted(dead)) or 'none'}",
                        )
        finally:
            if doubt is not None:
                doubt.cancel()

    async def _look_after(self, choice: Choice, size: int) -> None:
        await self._checker.suspect(choice.addresses)
        self._hanging(choice, size)

    def _is_at_work(self, choice: Choice, seconds: float) -> bool:
        """Whether one of the endpoints, as they were checked just now, has been at one piece of work for so long."""
        return any(self._works(address, seconds) for address in choice.addresses)

    def _works(self, address: str, seconds: float) -> bool:
        endpoint = self._router.endpoints.get(address)
        return endpoint is not None and endpoint.busy_seconds >= seconds

    def _hanging(self, choice: Choice, size: int, *, known_only: bool = False) -> frozenset[str]:
        """Which endpoints hang, as they were checked just now; they are left out. ``known_only``: those that are."""
        endpoints = self._router.endpoints
        if known_only:
            return frozenset(address for address in choice.addresses if endpoints.is_hanging(address))
        # Read now: what others took meanwhile may be the first that there is to compare with.
        patience = self._patience[choice.route.name].hanging_seconds(size)
        found = set()
        for address in choice.addresses:
            was_out = endpoints.is_hanging(address)
            if endpoints.overdue(address, patience, self._router.clock()):
                found.add(address)
                if endpoints.is_hanging(address) and not was_out:
                    logger.warning("%s has been at one piece of work for too long: left out until it gets on", address)
        return frozenset(found)

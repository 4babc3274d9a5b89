"""Serves one request: admission, the way over a route, and another way when that one fails."""

import asyncio
import contextlib
import logging
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field, replace

from splitplane.runtime.budgets import budget_bytes
from splitplane.runtime.gateway.admission import Line, Load, Throughput, overloaded
from splitplane.runtime.gateway.attempts import Attempts
from splitplane.runtime.gateway.checking import Checker
from splitplane.runtime.gateway.choosing import Choice
from splitplane.runtime.gateway.clients import client_of
from splitplane.runtime.gateway.hedging import Hedging, Race
from splitplane.runtime.gateway.losses import MOST_LOSSES, Gate, Losses
from splitplane.runtime.gateway.pacing import ONCE, RETRYABLE, RetryBudget, pause_seconds
from splitplane.runtime.gateway.proxies import Proxies
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.gateway.tables import Table
from splitplane.runtime.gateway.waiting import CutOffError, OverdueError, Waiting
from splitplane.runtime.hops import Channels
from splitplane.runtime.inference import (
    Failure,
    InferenceError,
    InferRequest,
    InferResponse,
    ModelMetadata,
    check_outputs,
)
from splitplane.runtime.tensors import check_inputs, known_bytes, size_of
from splitplane.runtime.unsent import Unsent

logger = logging.getLogger(__name__)

ANSWERS_SHARE = 4
"""Answers may take one of so many parts of what messages may, as they lie in memory up to three times, and more."""


@dataclass(slots=True)
class _Journey:
    """A request on its way: when it ends, what has been tried, and why the last attempt failed."""

    request: InferRequest
    deadline: float
    losses: Losses
    load: Load
    attempts: int = 0
    avoid: frozenset[str] = frozenset()
    was_overdue: bool = False
    """An attempt was given up for taking too long, though its endpoints live."""
    suspects: list["asyncio.Future[frozenset[str]]"] = field(default_factory=list)
    once: int = 0
    erred: list[str] = field(default_factory=list)
    """Where it got an error that is the request's own, or else that replica's."""
    last: InferenceError | None = None
    unqueued_seconds: float = 0.0
    """What the attempt that was answered took, less its waits before stages."""


class Forwarder:
    """The model behind the gateway's fronts (``inference.Model``)."""

    def __init__(self, router: Router, channels: Channels, checker: Checker, proxies: Proxies) -> None:
        self._router = router
        self._checker = checker
        self._proxies = proxies
        self._budget = RetryBudget()
        self._waiting = Waiting(router, checker)
        self._attempts = Attempts(router, channels, self._waiting)
        self._hedging = Hedging(router, self._waiting)
        self._turn = asyncio.Lock()
        self._throughput = Throughput()
        self.unsent = Unsent()
        self._line = Line(router.replicas, room_bytes=budget_bytes() // ANSWERS_SHARE, unsent=self.unsent)
        self._gate = Gate()
        self.draining = False

    def metadata(self) -> ModelMetadata:
        return self._table().model

    def ready(self) -> bool:
        return not self.draining and self._router.can_serve()

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request. Raises :class:`InferenceError`; ``RESOURCE_EXHAUSTED`` when the queue is full.

        Cancelled, because its client is gone, a request gives up its place here and its call of the stage.
        """
        router, metrics = self._router, self._router.metrics
        metrics.read()
        client = client_of(replace(request, client=self._proxies.client(request.client, request.forwarded)))
        if client != request.client:
            request = replace(request, client=client)
        try:
            deadline = self._admit(request)
        except InferenceError as error:
            metrics.completed("invalid" if error.failure is Failure.INVALID_ARGUMENT else "rejected")
            raise
        metrics.admitted()
        admitted = router.clock()
        mark = self._throughput.begin(admitted, alone=self._line.under_way == 0)
        self._budget.request()
        outcome = "error"
        with router.flights.admitted():
            metrics.in_flight.set(router.flights.inside)
            try:
                load = Load(size_of(request.inputs), known_bytes(request.inputs, self._table().model.outputs))
                journey = _Journey(request, deadline, Losses(router, self._checker), load)
                response = await self._in_turn(journey)
                outcome = "success"
                self._throughput.answered(mark, router.clock(), journey.unqueued_seconds)
                return response
            except InferenceError as error:
                if error.detail:  # as all else that holds the addresses of pods, it is nothing for clients
                    logger.info("a request failed: %s: %s", error.failure.name, error)
                error.origin, error.lost = "", ()
                raise
            except asyncio.CancelledError:
                # gRPC cancels also what is overdue: then it is we who have failed the client.
                outcome = "cancelled" if router.clock() < deadline else "error"
                raise
            finally:
                seconds = router.clock() - admitted if outcome == "success" else None
                metrics.completed(outcome, seconds=seconds)
                metrics.in_flight.set(router.flights.inside - 1)

    def _admit(self, request: InferRequest) -> float:
        """When the request's time is up, if it may come in. What is no request of this model counts as no demand.

        Who gives no deadline has the table's, and is held to it: else a queue would fill with requests that all have
        just too little time left when their turn comes.
        """
        router = self._router
        if router.table is not None:
            check_inputs(request.inputs, router.table.model.inputs)
            check_outputs(request.outputs, router.table.model)
        now = router.clock()
        if request.deadline is not None and request.deadline <= now:
            raise InferenceError(Failure.DEADLINE_EXCEEDED, "the request's time was up before it came in")
        router.metrics.arrived()
        table, inside = self._table(), router.flights.inside
        deadline = now + table.timeout_seconds
        if request.deadline is not None:
            deadline = min(deadline, request.deadline)
        if router.can_serve():
            self._throughput.check(self._line.ahead(request.client), deadline - now, now)
        if inside >= table.max_in_flight:
            full = overloaded(
                f"{table.max_in_flight} requests are under way, as many as this pipeline takes; try again shortly",
                self._throughput.retry_seconds(inside, now),
            )
            if not self._line.make_room(request.client, full):
                raise full
        return deadline

    def _table(self) -> Table:
        if self._router.table is None:
            raise InferenceError(Failure.UNAVAILABLE, "the gateway has no route table yet; try again shortly")
        return self._router.table

    async def _in_turn(self, journey: _Journey) -> InferResponse:
        turn = self._line.turn(journey.request.client, journey.load)
        if self._line.has_room(journey.request.client, journey.load):
            async with turn:
                return await self._travel(journey)
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._remaining(journey)):
                    await stack.enter_async_context(turn)
            except TimeoutError:
                raise self._too_late(journey, "others wait before it") from None
            # It may have waited longer than was expected; what a stage cannot end in time is not begun there.
            ahead, now = self._line.under_way - 1, self._router.clock()
            self._throughput.check(ahead, journey.deadline - now, now, margin=1.0)
            return await self._travel(journey)

    async def _travel(self, journey: _Journey) -> InferResponse:
        while True:
            async with self._gated(journey) if journey.losses else contextlib.nullcontext():
                choice = await self._choose(journey)
                if journey.losses:  # a stage tries no other replica then
                    choice = replace(choice, hops=tuple(hop[:1] for hop in choice.hops))
                journey.attempts += 1
                try:
                    if journey.losses or self._waiting.knows(choice):
                        with self._router.endpoints.in_use(choice.addresses):
                            return await self._attempt(choice, journey)
                    choice, answer = await self._hedging.answer(choice, self._race(journey))
                    if isinstance(answer, InferResponse):
                        return answer
                    failed = answer
                except InferenceError as error:
                    failed = error
            await self._reconsider(choice, failed, journey)

    def _aside(self, journey: _Journey) -> AbstractContextManager[None]:
        return self._line.aside(journey.request.client, journey.load)

    def _gated(self, journey: _Journey) -> AbstractAsyncContextManager[None]:
        return self._gate.passing(self._remaining(journey), self._aside(journey))

    def _race(self, journey: _Journey) -> Race:
        def failed(choice: Choice, error: InferenceError) -> None:
            journey.once += error.failure in ONCE
            self._learn(choice, error, journey)

        return Race(
            self._router.endpoints,
            lambda choice: self._attempt(choice, journey),
            failed,
            size_of(journey.request.inputs),
            self._remaining(journey),
            journey.avoid,
        )

    async def _reconsider(self, choice: Choice, error: InferenceError, journey: _Journey) -> None:
        """After an attempt that failed: comes back when there may be another one, or raises what the client hears."""
        journey.last = error
        if error.failure not in RETRYABLE:
            raise error
        journey.once += error.failure in ONCE
        if journey.once > 1 or self._router.clock() >= journey.deadline:
            raise error
        self._learn(choice, error, journey)
        if len(journey.losses) >= MOST_LOSSES:
            with self._aside(journey):
                await journey.losses.judge(self._remaining(journey))
        if error.failure not in ONCE:
            await self._paced(journey)

    def _learn(self, choice: Choice, error: InferenceError, journey: _Journey) -> None:
        """From an attempt that failed: where the request should not go next, and what is lost."""
        logger.info("attempt %d over %s: %s: %s", journey.attempts, choice.route.name, error.failure.name, error)
        if isinstance(error, OverdueError):
            journey.avoid |= error.at
            journey.was_overdue |= not (error.are_dead or isinstance(error, CutOffError))
        elif error.failure in ONCE and error.origin:
            # One stage has answered so: the others on the way are well.
            journey.erred.append(error.origin)
            journey.avoid |= {error.origin}
        else:
            journey.avoid |= frozenset(choice.addresses)
            if error.failure in (Failure.UNAVAILABLE, Failure.CANCELLED):
                self._blame(choice, journey)
        journey.losses.add(error.lost, choice.route)

    async def _paced(self, journey: _Journey) -> None:
        """Wait until the budget allows a retry; others may be under way meanwhile."""
        seconds = self._budget.take(self._router.clock(), self._remaining(journey))
        if seconds is None:
            raise journey.last or self._too_late(journey, "retries are over their budget")
        if seconds > 0:
            try:
                with self._aside(journey):
                    await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                self._budget.give_back()
                raise

    def _blame(self, choice: Choice, journey: _Journey) -> None:
        """A call broke off. Over one endpoint that is the cause; of several, a health check finds which."""
        now = self._router.clock()
        if len(choice.addresses) == 1:
            self._router.endpoints.failed(choice.addresses[0], now)
            return
        for address in choice.addresses:
            self._router.endpoints.doubted(address, now)
        journey.suspects.append(asyncio.ensure_future(self._checker.suspect(choice.addresses)))

    async def _choose(self, journey: _Journey) -> Choice:
        """A route, preferably over endpoints not yet tried; waits in turn, until the deadline, while there is none."""
        if journey.avoid:
            choice = self._router.choose(journey.avoid)
            if isinstance(choice, Choice):
                return choice
            # Everything has been tried once: wait for the verdict on it, and begin anew.
            if journey.suspects:
                await asyncio.wait(journey.suspects, timeout=self._remaining(journey))
                journey.suspects.clear()
            if journey.last is not None and journey.last.failure is Failure.INTERNAL:
                raise journey.last  # the same place would only say the same again
            await self._sleep(pause_seconds(journey.attempts), journey)
            journey.avoid = frozenset()
        if not self._turn.locked() and isinstance(choice := self._router.choose(), Choice):
            return choice
        why = "others wait before it"
        try:
            async with asyncio.timeout(self._remaining(journey)), self._turn:
                while True:
                    choice = self._router.choose()
                    if isinstance(choice, Choice):
                        return choice
                    why = choice.why
                    await self._router.changed.wait(choice.seconds)
        except TimeoutError:
            raise self._too_late(journey, why) from None

    async def _attempt(self, choice: Choice, journey: _Journey) -> InferResponse:
        request = journey.request
        answered = await self._attempts.make(choice, request, journey.deadline, was_overdue=journey.was_overdue)
        self._convict(frozenset(journey.erred).difference(choice.addresses))
        journey.unqueued_seconds = answered.unqueued_seconds
        self._line.learn(size_of(request.inputs), size_of(answered.response.outputs))
        self._line.feedback(waited=answered.waited)
        return answered.response

    def _convict(self, addresses: frozenset[str]) -> None:
        """The request has its answer, so it was not its own error that it got at these."""
        for address in addresses:
            if seconds := self._router.endpoints.erred(address, self._router.clock()):
                logger.warning(
                    "%s answers with errors where other replicas do not: left out for %.0f s", address, seconds
                )

    def _remaining(self, journey: _Journey) -> float:
        return max(0.0, journey.deadline - self._router.clock())

    async def _sleep(self, seconds: float, journey: _Journey) -> None:
        """Pause; raises what failed last when the deadline comes first."""
        if seconds >= self._remaining(journey):
            raise journey.last or self._too_late(journey, "no route is free")
        if seconds > 0:
            await asyncio.sleep(seconds)

    def _too_late(self, journey: _Journey, why: str) -> InferenceError:
        """What a client hears whose time is up: the last failure if there was one, else what was waited for."""
        last = f"; the last of {journey.attempts} attempts: {journey.last.message}" if journey.last else ""
        detail = journey.last.detail if journey.last else ""
        return InferenceError(Failure.DEADLINE_EXCEEDED, f"the request's time is up: {why}{last}", detail=detail)

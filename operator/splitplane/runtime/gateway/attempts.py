"""One attempt: a request sent over one choice of a route, and what its answer tells of links and replicas."""

import asyncio
import contextlib
import logging
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from splitplane.runtime.gateway.choosing import Choice
from splitplane.runtime.gateway.outliers import Outliers
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.gateway.waiting import Waiting
from splitplane.runtime.hops import Call, Channels, call
from splitplane.runtime.inference import RESERVED, InferenceError, InferRequest, InferResponse, Parameter
from splitplane.runtime.routes import GENERATION, ROUTE, TRACE, HopTrace, decode_trace, encode_route
from splitplane.runtime.tensors import size_of

logger = logging.getLogger(__name__)

PLAN = "splitplane_plan"
"""Response parameter: the name of the route that served the request."""
MAX_ENCODED = 256
"""Routes with their endpoints in an order, whose wire form is kept."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the client gets, and how it went."""

    response: InferResponse
    unqueued_seconds: float
    """What the attempt took, less its waits before stages."""
    waited: bool
    """At some stage it waited longer than it took there."""


class Attempts:
    """Makes attempts for all requests of a gateway."""

    def __init__(self, router: Router, channels: Channels, waiting: Waiting) -> None:
        self._router = router
        self._channels = channels
        self._waiting = waiting
        self._outliers = Outliers()
        self._encoded: dict[Hashable, str] = {}

    async def make(self, choice: Choice, request: InferRequest, deadline: float, *, was_overdue: bool) -> Answered:
        """The answer to a request. Raises :class:`InferenceError`.

        ``was_overdue``: an attempt before was given up for taking too long at endpoints that live, so this one has all
        the time that is left.
        """
        router = self._router
        parameters = self._parameters(request.parameters, choice)
        sent = replace(request, parameters=parameters, outputs=(), deadline=deadline)
        size = size_of(request.inputs)
        started = router.clock()
        sending = asyncio.ensure_future(call(self._channels, choice.addresses[:1], sent))
        try:
            with router.flights.under_way(choice.generation), self._carrying(choice, started, size):
                answered = await self._waiting.answer(
                    sending, choice, size=size, deadline=deadline, was_overdue=was_overdue
                )
        finally:
            if not sending.done():
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, InferenceError):
                    await sending
        now = router.clock()
        self._waiting.answered(choice, now - started, size)
        for address in choice.addresses:
            router.endpoints.succeeded(address)
        trace = self._trace(answered)
        router.links.observe(answered, trace, now)
        self._outliers.answered(choice.addresses, trace, answered.seconds, request.inputs)
        self._compare(now)
        kept = {name: value for name, value in answered.response.parameters.items() if name != TRACE}
        response = replace(
            answered.response,
            model_name=request.model_name,
            client=request.client,
            parameters={**kept, GENERATION: choice.generation, PLAN: choice.route.name},
        )
        unqueued_seconds = max(0.0, now - started - sum(hop.queue for hop in trace))
        return Answered(response, unqueued_seconds, any(hop.queue > hop.compute for hop in trace))

    def _carrying(self, choice: Choice, now: float, size: int) -> AbstractContextManager[None]:
        """Counts what the request, sent now with inputs of so many bytes, has on the links of its way."""
        tier = self._router.tier
        crosses_itself = choice.route.stops[0].tier != tier
        return self._router.links.carrying(choice.route.crossings(tier), now, size if crosses_itself else None)

    def _compare(self, now: float) -> None:
        """Leave out a replica that takes far longer than the others of its stage for requests of the same shapes."""
        endpoints = self._router.endpoints
        for verdict in self._outliers.judge(now):
            if seconds := endpoints.judged(verdict.address, now, slow=verdict.slow):
                logger.warning(
                    "%s takes %.3f s where other replicas take %.3f s: left out for %.0f s",
                    verdict.address, verdict.seconds, verdict.usual, seconds,
                )  # fmt: skip

    @staticmethod
    def _trace(answered: Call) -> tuple[HopTrace, ...]:
        try:
            return decode_trace(str(answered.response.parameters.get(TRACE, "[]")))
        except ValueError as error:
            logger.warning("a stage sent a trace that cannot be read: %s", error)
            return ()

    def _parameters(self, given: Mapping[str, Parameter], choice: Choice) -> dict[str, Parameter]:
        key = (choice.generation, choice.route.name, choice.hops, choice.batching)
        route = self._encoded.get(key)
        if route is None:
            if len(self._encoded) >= MAX_ENCODED:
                self._encoded.clear()
            route = self._encoded[key] = encode_route(choice.wire())
        kept = {name: value for name, value in given.items() if not name.startswith(RESERVED)}
        return {**kept, GENERATION: choice.generation, ROUTE: route}

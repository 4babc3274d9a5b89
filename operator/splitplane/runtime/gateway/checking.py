"""Asks stage servers whether they are ready: before they are admitted, and again when calls to them fail.

Checks go over connections of their own, and have more time where the link is full, so that large transfers in front of
them do not make a pod look dead.
"""

import asyncio
import contextlib

import grpc
import grpc.aio

from splitplane.runtime import oip_pb2
from splitplane.runtime.gateway.endpoints import CHECK_RETRY_SECONDS, Endpoint
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.hops import Channels
from splitplane.runtime.oip_grpc import SERVICE
from splitplane.runtime.vitals import Vitals

SERVER_READY = f"/{SERVICE}/ServerReady"
CHECK_SECONDS = 1.5
IDLE_SECONDS = 5.0


class Checker:
    """Keeps the router's endpoints admitted or not, by ServerReady.

    ``calls`` are the channels that requests use, ``own`` those for checks.
    """

    def __init__(self, router: Router, calls: Channels, own: Channels) -> None:
        self._router = router
        self._calls = calls
        self._channels = own
        self._running: dict[str, asyncio.Task[bool]] = {}

    async def run(self) -> None:
        """Check what is due, for ever."""
        endpoints, clock = self._router.endpoints, self._router.clock
        while True:
            self._router.checks_due.clear()
            for endpoint in endpoints.take_due(clock()):
                self._start(endpoint)
            pause = min(max(endpoints.next_check() - clock(), 0.05), IDLE_SECONDS)
            await self._router.checks_due.wait(pause)

    async def suspect(self, addresses: tuple[str, ...]) -> frozenset[str]:
        """Check endpoints that a failed or overdue call went over, and return those that will not answer it: they are
        gone, dead or stuck.

        These get no new calls, and neither do those that only say that they are not ready.
        """
        endpoints = [e for a in addresses if (e := self._router.endpoints.get(a)) is not None]
        answers = await asyncio.gather(*(self._start(endpoint) for endpoint in endpoints))
        gone = frozenset(a for a in addresses if self._router.endpoints.get(a) is None)
        return gone | {e.address for e, lives in zip(endpoints, answers, strict=True) if not lives}

    async def outlived(self, endpoint: Endpoint, process: str) -> bool:
        """Whether the process that was at an endpoint still is; comes back when that is known.

        It has ended when another one answers there, or the cluster has reported the pod as gone or not ready. One that
        told no identity passes for alive. Nothing is admitted or ejected for it.
        """
        while process and self._router.endpoints.get(endpoint.address) is endpoint:
            if endpoint.process != process:
                return False
            _, vitals = await self._ask(endpoint)
            if vitals is not None:
                return vitals.process == process
            self._channels.drop(endpoint.address)
            await asyncio.sleep(CHECK_RETRY_SECONDS)
        return not process

    async def close(self) -> None:
        for task in list(self._running.values()):
            task.cancel()
        await self._channels.close()

    def _start(self, endpoint: Endpoint) -> "asyncio.Future[bool]":
        """One check per endpoint at a time; whoever asks meanwhile shares it."""
        task = self._running.get(endpoint.address)
        if task is None:
            task = self._running[endpoint.address] = asyncio.create_task(self._check(endpoint))
            task.add_done_callback(lambda _: self._running.pop(endpoint.address, None))
        return asyncio.shield(task)

    async def _check(self, endpoint: Endpoint) -> bool:
        """Whether the process lives that calls under way are in."""
        healthy, vitals = await self._ask(endpoint)
        lives = vitals is not None and not vitals.is_stuck and endpoint.process in ("", vitals.process)
        if vitals is not None:
            endpoint.process, endpoint.busy_seconds = vitals.process, vitals.busy_seconds
        self._router.endpoints.checked(endpoint, healthy=healthy, now=self._router.clock())
        if not lives:
            # Behind a connection that a vanished node has left open, no later call would ever be answered.
            self._calls.drop(endpoint.address)
        if vitals is None:
            self._channels.drop(endpoint.address)
        return lives

    async def _ask(self, endpoint: Endpoint) -> tuple[bool, Vitals | None]:
        """Whether it says that it is ready, and what else it tells: nothing where no answer comes."""
        timeout = CHECK_SECONDS + self._router.behind_seconds(endpoint.pod.stage)
        method = self._channels.get(endpoint.address).unary_unary(
            SERVER_READY,
            request_serializer=oip_pb2.ServerReadyRequest.SerializeToString,
            response_deserializer=oip_pb2.ServerReadyResponse.FromString,
        )
        with contextlib.suppress(grpc.aio.AioRpcError):
            call = method(oip_pb2.ServerReadyRequest(), timeout=timeout)
            answer = await call
            return bool(answer.ready), Vitals.read(await call.trailing_metadata())
        return False, None

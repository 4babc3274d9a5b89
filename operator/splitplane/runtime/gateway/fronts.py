"""The gateway's two servers: the shared protocol fronts, and what a gateway adds to them for overload and departure."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc.aio
from aiohttp import web
from prometheus_client import CollectorRegistry

from splitplane.runtime import oip_grpc, oip_rest
from splitplane.runtime.gateway.settings import Settings
from splitplane.runtime.inference import Failure, InferenceError, Model

TOO_MANY_REQUESTS = 429
RETRY_AFTER_SECONDS = 1.0
"""Where nothing better is known."""


@dataclass(frozen=True, slots=True)
class Fronts:
    """Both servers, running."""

    rest: web.AppRunner
    grpc: grpc.aio.Server

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new connections and calls; those inside get ``grace_seconds`` to end."""
        await asyncio.gather(self.rest.cleanup(), self.grpc.stop(grace_seconds))


async def serve(model: Model, registry: CollectorRegistry, settings: Settings) -> Fronts:
    """Bind both ports on the pod's address. Raises ``OSError`` or ``RuntimeError`` when one is taken."""
    app = oip_rest.make_app(model, registry)
    app.middlewares.append(_overload)
    rest = await oip_rest.serve(app, settings.pod_ip, settings.http_port)
    server = oip_grpc.make_server(model)
    try:
        oip_grpc.bind(server, settings.pod_ip, settings.grpc_port)
        await server.start()
    except BaseException:
        await rest.cleanup()
        raise
    return Fronts(rest, server)


@web.middleware
async def _overload(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A full queue is a client's cue to slow down (429); being unable to serve is not its fault (503). Both pass."""
    try:
        return await handler(request)
    except InferenceError as error:
        if error.failure not in (Failure.RESOURCE_EXHAUSTED, Failure.UNAVAILABLE):
            raise
        full = error.failure is Failure.RESOURCE_EXHAUSTED
        return web.json_response(
            {"error": error.message},
            status=TOO_MANY_REQUESTS if full else error.failure.http_status,
            headers={"Retry-After": str(max(1, math.ceil(error.retry_seconds or RETRY_AFTER_SECONDS)))},
        )

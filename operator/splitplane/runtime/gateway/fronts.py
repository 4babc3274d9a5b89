"""The gateway's servers: the shared protocol fronts, and what a gateway adds to them for overload and departure."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry

from splitplane.runtime import oip_grpc, oip_rest, rest_serving
from splitplane.runtime.bodies import Bodies
from splitplane.runtime.budgets import IDLE_SECONDS, MAX_MESSAGE_BYTES, Budget
from splitplane.runtime.gateway.clients import GrpcGuard, Tokens, open_paths_only, rest_guard, tls_context
from splitplane.runtime.gateway.settings import Settings
from splitplane.runtime.grpc_receiving import Receiving
from splitplane.runtime.inference import Failure, InferenceError, Model
from splitplane.runtime.mtls import Identity
from splitplane.runtime.unsent import Unsent

TOO_MANY_REQUESTS = 429
LENT_SHARE = 4
"""One of so many parts of the memory for messages is lent to one address at a time: others have room beside it."""
MOST_PATIENT = 64
"""So many messages of one address may wait for that until their deadlines. gRPC takes in 64 kB of each meanwhile."""


@dataclass(frozen=True, slots=True)
class Fronts:
    """The servers, running."""

    rest: tuple[rest_serving.Server, ...]
    grpc: oip_grpc.Server

    def leave(self) -> None:
        """Serve on, but have REST clients make their next connections elsewhere."""
        for server in self.rest:
            server.leave()

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new connections and calls; those inside get ``grace_seconds`` to end."""
        await asyncio.gather(*(server.stop(grace_seconds) for server in self.rest), self.grpc.stop(grace_seconds))


async def serve(
    model: Model,
    registry: CollectorRegistry,
    settings: Settings,
    *,
    on_refusal: Callable[[], None],
    on_invalid: Callable[[], None],
    unsent: Unsent,
) -> Fronts:
    """Bind the ports on the pod's address. ``on_refusal`` hears of requests for whose messages there is no memory,
    ``on_invalid`` of those that nobody could answer as they ask; ``unsent`` counts answers until clients have them.

    Raises ``OSError`` or ``RuntimeError`` when one is taken, ``SettingsError`` when clients' credentials are of no use.
    """
    tokens = None if settings.client_tokens_dir is None else Tokens(settings.client_tokens_dir)
    identity = _shown_to_clients(settings)
    budget = Budget(lent_share=LENT_SHARE, most_patient=MOST_PATIENT, on_refusal=on_refusal)
    bodies, receiving = Bodies(budget), Receiving(budget, idle_seconds=IDLE_SECONDS)

    def app(*, inference: bool) -> web.Application:
        made = oip_rest.make_app(
            model, registry, inference=inference, bodies=bodies, on_invalid=on_invalid, unsent=unsent
        )
        if not inference:
            made.middlewares.append(open_paths_only)
        if tokens is not None:
            made.middlewares.append(rest_guard(tokens))
        made.middlewares.append(_overload)
        return made

    rest: list[rest_serving.Server] = []
    guards = () if tokens is None else (GrpcGuard(tokens),)
    server = oip_grpc.Server(model, guards, max_bytes=MAX_MESSAGE_BYTES, receiving=receiving, unsent=unsent)
    try:
        rest.append(await rest_serving.serve(app(inference=identity is None), settings.pod_ip, settings.http_port))
        if identity is not None:
            tls = tls_context(identity)
            rest.append(await rest_serving.serve(app(inference=True), settings.pod_ip, settings.https_port, tls=tls))
        server.bind(settings.pod_ip, settings.grpc_port, identity=identity)
        await server.start()
    except BaseException:
        await asyncio.gather(*(each.stop(0) for each in rest))
        raise
    return Fronts(tuple(rest), server)


def _shown_to_clients(settings: Settings) -> Identity | None:
    if settings.client_tls_dir is None:
        return None
    return Identity(
        settings.client_tls_dir, pipeline=settings.pipeline, namespace=settings.namespace,
        variable="SPLITPLANE_CLIENT_TLS_DIR", signed_by_peers=False,  # clients have authorities of their own
    )  # fmt: skip


@web.middleware
async def _overload(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A full queue is a client's cue to slow down (429); being unable to serve is not its fault (503). Both pass."""
    try:
        return await handler(request)
    except InferenceError as error:
        if error.failure is not Failure.RESOURCE_EXHAUSTED:
            raise
        return oip_rest.error_answer(error, TOO_MANY_REQUESTS)

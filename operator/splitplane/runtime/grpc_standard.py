"""What gRPC's own tools ask of any server: ``grpc.health.v1`` and server reflection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from splitplane.runtime import oip_pb2
from splitplane.runtime.grpc_refusing import refuse
from splitplane.runtime.inference import Model

HEALTH = "grpc.health.v1.Health"
WATCH_SECONDS = 0.5
"""Between looks for those who watch; readiness has no event of its own."""


def health(model: Model, stopping: asyncio.Event, *services: str) -> grpc.GenericRpcHandler:
    """Health of the server (service "") and of ``services``: serving while the model is ready, until ``stopping``.

    Then those who watch are told so and dismissed: a server that waits for calls inside would wait for them, too.
    """
    known = {"", *services}

    def status() -> Any:
        states = health_pb2.HealthCheckResponse
        return states.SERVING if model.ready() and not stopping.is_set() else states.NOT_SERVING

    async def check(request: Any, context: Any) -> Any:
        if request.service not in known:
            await refuse(context, grpc.StatusCode.NOT_FOUND, f"service '{request.service}' is not served here")
        return health_pb2.HealthCheckResponse(status=status())

    async def watch(request: Any, _context: Any) -> AsyncIterator[Any]:
        last = None
        while True:
            now = status() if request.service in known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if now != last:
                last = now
                yield health_pb2.HealthCheckResponse(status=now)
            if stopping.is_set():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), WATCH_SECONDS)

    forms = {
        "request_deserializer": health_pb2.HealthCheckRequest.FromString,
        "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
    }
    methods = {
        "Check": grpc.unary_unary_rpc_method_handler(check, **forms),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, **forms),
    }
    return grpc.method_handlers_generic_handler(HEALTH, methods)


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    """Ends its streams once the server stops: a silent one would hold up that until its grace is over."""

    def __init__(self, services: Sequence[str], pool: DescriptorPool, stopping: asyncio.Event) -> None:
        super().__init__(services, pool=pool)
        self._stopping = stopping

    async def ServerReflectionInfo(  # noqa: N802 - gRPC's name
        self, questions: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        async for answer in super().ServerReflectionInfo(_until(self._stopping, questions), context):
            yield answer


async def _until(stopping: asyncio.Event, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The messages that come before that."""
    stopped = asyncio.ensure_future(stopping.wait())
    iterator = aiter(messages)
    try:
        while True:
            coming = asyncio.ensure_future(anext(iterator, None))
            try:
                await asyncio.wait((coming, stopped), return_when=asyncio.FIRST_COMPLETED)
            finally:  # also where the call ends meanwhile
                coming.cancel()
            if not coming.done():
                await asyncio.wait((coming,))
                return
            if coming.result() is None:
                return
            yield coming.result()
    finally:
        stopped.cancel()


def reflect(server: grpc.aio.Server, stopping: asyncio.Event, *services: str) -> None:
    """Let clients ask which services and messages there are, until ``stopping``; for tools such as grpcurl."""
    # The protocol's messages live in a pool of their own (runtime.generate), so one with all of them is made here.
    pool = DescriptorPool()
    for module in (oip_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    servicer = _Reflection((*services, HEALTH, reflection.SERVICE_NAME), pool, stopping)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)

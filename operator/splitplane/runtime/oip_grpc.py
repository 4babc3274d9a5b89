"""The gRPC front of the Open Inference Protocol over one :class:`Model`."""

import asyncio
import importlib.metadata
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import grpc.aio

from splitplane.runtime import grpc_standard, oip_pb2, oip_wire, tracing
from splitplane.runtime.budgets import MAX_POD_MESSAGE_BYTES, Budget
from splitplane.runtime.connections import peer_of
from splitplane.runtime.faults import Faults
from splitplane.runtime.grpc_receiving import Received, Receiving
from splitplane.runtime.grpc_refusing import refuse
from splitplane.runtime.inference import Failure, InferenceError, Model, answer, check, invalid
from splitplane.runtime.mtls import Identity
from splitplane.runtime.tensors import size_of
from splitplane.runtime.unsent import LEAST_BYTES, Answer, Unsent
from splitplane.runtime.vitals import Condition

SERVICE = "inference.GRPCInferenceService"
MODEL_INFER = f"/{SERVICE}/ModelInfer"
SERVER_NAME = "splitplane"
EXTENSIONS = ("binary_tensor_data",)
ORIGIN = "splitplane-origin"
"""Trailing metadata of an error that a stage had from the next one: the address of the stage where it arose."""
LOST = "splitplane-lost"
"""Likewise, addresses of the stages to which connections broke off in mid-call."""
FORWARDED = "x-forwarded-for"
OPTIONS = (
    ("grpc.max_send_message_length", MAX_POD_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_POD_MESSAGE_BYTES),
)
"""Channel and server options that both ends of every call between pods use."""
KEEPALIVE_MILLISECONDS = 10_000
"""How often a waiting sender pings; servers must allow that, or they close the connection."""
SERVER_OPTIONS = (*OPTIONS, ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MILLISECONDS // 2))

OFF_LOOP_BYTES = 1 << 16
"""What is larger is parsed and written on a thread, so that it holds up no other request. Raw contents over gRPC do not
count: nothing looks at them."""
MAX_QUESTION_BYTES = 1 << 16
"""Of every message but requests for the model: they hold names and no more."""

FAULTS = Faults(logging.getLogger(__name__))

VERSION = importlib.metadata.version("splitplane")

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]
Result = TypeVar("Result")


def status_code(failure: Failure) -> grpc.StatusCode:
    return grpc.StatusCode[failure.name]


class Server:
    """Answers for the model over gRPC, once it is bound and started."""

    def __init__(
        self,
        model: Model,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        *,
        max_bytes: int = MAX_POD_MESSAGE_BYTES,
        receiving: Receiving | None = None,
        condition: Condition | None = None,
        unsent: Unsent | None = None,
    ) -> None:
        """``max_bytes`` is how much it takes in one message, ``receiving`` takes in those of requests, and ``unsent``
        counts large answers until their calls have ended."""
        options = {**dict(SERVER_OPTIONS), "grpc.max_receive_message_length": max_bytes}
        self._server = grpc.aio.server(options=tuple(options.items()), interceptors=interceptors)
        self._stopping = asyncio.Event()
        health = grpc_standard.health(model, self._stopping, SERVICE)
        served = _service(model, receiving or Receiving(Budget()), condition or Condition(), unsent or Unsent())
        self._server.add_generic_rpc_handlers((served, health))
        grpc_standard.reflect(self._server, self._stopping, SERVICE)

    def bind(self, host: str, port: int, *, identity: Identity | None = None) -> int:
        """As :func:`bind` does it."""
        return bind(self._server, host, port, identity=identity)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace_seconds: float | None) -> None:
        """Refuse new calls; those inside get ``grace_seconds`` to end, those that watch health or reflect none."""
        self._stopping.set()
        await self._server.stop(grace_seconds)


def bind(server: grpc.aio.Server, host: str, port: int, *, identity: Identity | None = None) -> int:
    """Take the port (0: any), in clear text without an identity, and tell which.

    ``host`` may be an IPv6 address. Raises ``RuntimeError`` when the port is taken.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if identity is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, identity.server_credentials())


def _service(model: Model, receiving: Receiving, condition: Condition, unsent: Unsent) -> grpc.GenericRpcHandler:
    async def infer(message: Received, context: Context) -> bytes:
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        names = tuple(name.decode() for name in context.peer_identities() or ())
        forwarded = ",".join(str(value) for key, value in context.invocation_metadata() or () if key == FORWARDED)
        parts, (client, _) = oip_wire.split_request(message.data), peer_of(context.peer())
        request = await off_loop_above(
            parts.size,
            lambda: oip_wire.read_request(parts, deadline=deadline, client=client, forwarded=forwarded, identity=names),
        )
        request = replace(request, dns_names=_dns_names(context)) if names else request
        check(model, request.model_name, request.model_version)
        await message.held.grow(size_of(request.inputs))
        response = answer(request, await model.infer(request))
        data = fitting(oip_wire.write_response(response), "the answer")
        if len(data) > LEAST_BYTES:
            sent = Answer(unsent, 0, response.client)
            sent.sending(len(data))
            _when_done(context, sent.gone)
        return data

    async def received_infer(context: Context) -> bytes:
        async with receiving.message(context) as message:
            return await infer(message, context)

    async def traced_infer(_messages: Any, context: Context) -> bytes:
        if not tracing.on():
            return await received_infer(context)
        with tracing.serving("ModelInfer", context.invocation_metadata() or ()):
            return await received_infer(context)

    async def server_live(_request: Any, _context: Context) -> Any:
        return oip_pb2.ServerLiveResponse(live=condition.live())

    async def server_ready(_request: Any, context: Context) -> Any:
        context.set_trailing_metadata(condition.vitals().metadata())
        return oip_pb2.ServerReadyResponse(ready=model.ready())

    async def model_ready(request: Any, _context: Context) -> Any:
        check(model, request.name, request.version)
        return oip_pb2.ModelReadyResponse(ready=model.ready())

    async def server_metadata(_request: Any, _context: Context) -> Any:
        return oip_pb2.ServerMetadataResponse(name=SERVER_NAME, version=VERSION, extensions=EXTENSIONS)

    async def model_metadata(request: Any, _context: Context) -> Any:
        metadata = check(model, request.name, request.version)
        response = oip_pb2.ModelMetadataResponse(
            name=metadata.name, versions=metadata.versions, platform=metadata.platform
        )
        for target, tensors in ((response.inputs, metadata.inputs), (response.outputs, metadata.outputs)):
            for tensor in tensors:
                target.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return response

    methods = {
        "ServerLive": _method(server_live, oip_pb2.ServerLiveRequest),
        "ServerReady": _method(server_ready, oip_pb2.ServerReadyRequest),
        "ModelReady": _method(model_ready, oip_pb2.ModelReadyRequest),
        "ServerMetadata": _method(server_metadata, oip_pb2.ServerMetadataRequest),
        "ModelMetadata": _method(model_metadata, oip_pb2.ModelMetadataRequest),
        # Of one message; so declared, gRPC leaves it to the handler when to take that in.
        "ModelInfer": grpc.stream_unary_rpc_method_handler(_answering(traced_infer)),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _when_done(context: Context, told: Callable[[], None]) -> None:
    def done(_context: Any) -> None:
        told()

    context.add_done_callback(done)  # type: ignore[arg-type]  # the stubs have a class where any callable will do


def _dns_names(context: Context) -> tuple[str, ...]:
    """Those of the caller's certificate, by which an issuer knows it: where it has none, gRPC takes its common name."""
    return tuple(name.decode() for name in context.auth_context().get("peer_dns", ()))


def fitting(data: bytes, what: str) -> bytes:
    """A message that may be sent between pods. Raises :class:`InferenceError` for one too large.

    gRPC itself would call that an exhausted resource, as it calls overload: it would be tried again and again.
    """
    if len(data) > MAX_POD_MESSAGE_BYTES:
        raise InferenceError(
            Failure.OUT_OF_RANGE,
            f"{what} has {len(data)} bytes, and a message {MAX_POD_MESSAGE_BYTES} at most: send fewer samples in one "
            "request, or have the model cut where less crosses, or by a codec that makes it smaller",
        )
    return data


async def off_loop_above(size: int, work: Callable[[], Result]) -> Result:
    """What ``work`` gives, done on a thread if its input (in bytes) is large."""
    return work() if size <= OFF_LOOP_BYTES else await asyncio.to_thread(work)


def _method(handler: Handler, form: Any) -> "grpc.RpcMethodHandler[Any, Any]":
    """Read here and not by gRPC, to which a message that cannot be read is an error of the server."""

    async def handle(data: bytes, context: Context) -> Any:
        if len(data) > MAX_QUESTION_BYTES:
            raise invalid(f"the message has {len(data)} bytes; this method takes {MAX_QUESTION_BYTES} at most")
        return (await handler(oip_wire.parse(form, data), context)).SerializeToString()

    return grpc.unary_unary_rpc_method_handler(_answering(handle))


def _trailing(error: InferenceError) -> tuple[tuple[str, str], ...]:
    """When to try again, in gRPC's own way, which clients with a retry policy keep to; and where the error arose."""
    told = {} if error.retry_seconds is None else {"grpc-retry-pushback-ms": str(math.ceil(1000 * error.retry_seconds))}
    among_pods = {ORIGIN: error.origin, LOST: ",".join(error.lost)}
    return tuple({**told, **{name: text for name, text in among_pods.items() if text}}.items())


def _answering(handler: Handler) -> Handler:
    """Turns :class:`InferenceError` into its gRPC status."""

    async def handle(request: Any, context: Context) -> Any:
        try:
            return await handler(request, context)
        except InferenceError as error:
            refusal = status_code(error.failure), error.message, _trailing(error)
            # The message lives in the frames that the error passed, which refer to the error: a circle of megabytes.
            error.__traceback__ = error.__context__ = None
        except Exception as error:
            FAULTS.tell(error)
            refusal = grpc.StatusCode.INTERNAL, f"{type(error).__name__}; the server's log says more", ()
            error.__traceback__ = error.__context__ = None
        # Outside, where the error that ends the call has no other as its context.
        return await refuse(context, *refusal)

    return handle

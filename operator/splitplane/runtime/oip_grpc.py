"""The gRPC front of the Open Inference Protocol over one :class:`Model`."""

import importlib.metadata
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from splitplane.runtime import grpc_standard, oip_pb2, oip_wire, tracing
from splitplane.runtime.inference import Failure, InferenceError, Model, answer, check
from splitplane.runtime.mtls import Identity

SERVICE = "inference.GRPCInferenceService"
MODEL_INFER = f"/{SERVICE}/ModelInfer"
SERVER_NAME = "splitplane"
EXTENSIONS = ("binary_tensor_data",)
ORIGIN = "splitplane-origin"
"""Trailing metadata of an error that a stage had from the next one: the address of the stage where it arose."""
FORWARDED = "x-forwarded-for"
MAX_MESSAGE_BYTES = 64 << 20
"""Of what a client sends."""
MAX_POD_MESSAGE_BYTES = MAX_MESSAGE_BYTES + (256 << 10)
"""Of what goes between pods, and back: a client's largest request has room for its route, an answer for its trace."""
OPTIONS = (
    ("grpc.max_send_message_length", MAX_POD_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_POD_MESSAGE_BYTES),
)
"""Channel and server options that both ends of every call between pods use."""
KEEPALIVE_MILLISECONDS = 10_000
"""How often a waiting sender pings; servers must allow that, or they close the connection."""
SERVER_OPTIONS = (*OPTIONS, ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MILLISECONDS // 2))

LOG = logging.getLogger(__name__)

VERSION = importlib.metadata.version("splitplane")

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]


def status_code(failure: Failure) -> grpc.StatusCode:
    return grpc.StatusCode[failure.name]


def make_server(
    model: Model,
    *handlers: grpc.GenericRpcHandler,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    max_bytes: int = MAX_POD_MESSAGE_BYTES,
) -> grpc.aio.Server:
    """A server, not yet bound or started, that answers for the model (and with further handlers).

    ``max_bytes`` is how much it takes in one message.
    """
    options = {**dict(SERVER_OPTIONS), "grpc.max_receive_message_length": max_bytes}
    server = grpc.aio.server(options=tuple(options.items()), interceptors=interceptors)
    server.add_generic_rpc_handlers((_service(model), grpc_standard.health(model, SERVICE), *handlers))
    grpc_standard.reflect(server, SERVICE)
    return server


def bind(server: grpc.aio.Server, host: str, port: int, *, identity: Identity | None = None) -> None:
    """Take the port, in clear text without an identity. Raises ``RuntimeError`` when it is taken.

    ``host`` may be an IPv6 address.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if identity is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, identity.server_credentials())


def _service(model: Model) -> grpc.GenericRpcHandler:
    async def infer(data: bytes, context: Context) -> bytes:
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        names = tuple(name.decode() for name in context.peer_identities() or ())
        forwarded = ",".join(str(value) for key, value in context.invocation_metadata() or () if key == FORWARDED)
        request = oip_wire.read_request(
            data, deadline=deadline, client=address_of(context.peer()), forwarded=forwarded, identity=names
        )
        check(model, request.model_name, request.model_version, request.outputs)
        return fitting(oip_wire.write_response(answer(request, await model.infer(request))), "the answer")

    async def traced_infer(data: bytes, context: Context) -> bytes:
        if not tracing.on():
            return await infer(data, context)
        with tracing.serving("ModelInfer", context.invocation_metadata() or ()):
            return await infer(data, context)

    async def server_live(_request: Any, _context: Context) -> Any:
        return oip_pb2.ServerLiveResponse(live=True)

    async def server_ready(_request: Any, _context: Context) -> Any:
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
        "ModelInfer": grpc.unary_unary_rpc_method_handler(_answering(traced_infer)),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


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


def address_of(peer: str) -> str:
    """The address in what gRPC says of a peer: ``ipv4:10.0.0.7:51234``, ``ipv6:%5Bfd00::7%5D:51234``."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _method(handler: Handler, form: Any) -> "grpc.RpcMethodHandler[Any, Any]":
    """Read here and not by gRPC, to which a message that cannot be read is an error of the server."""

    async def handle(data: bytes, context: Context) -> Any:
        return (await handler(oip_wire.parse(form, data), context)).SerializeToString()

    return grpc.unary_unary_rpc_method_handler(_answering(handle))


def _trailing(error: InferenceError) -> tuple[tuple[str, str], ...]:
    """When to try again, in gRPC's own way, which clients with a retry policy keep to; and where the error arose."""
    told = {} if error.retry_seconds is None else {"grpc-retry-pushback-ms": str(math.ceil(1000 * error.retry_seconds))}
    return tuple({**told, **({ORIGIN: error.origin} if error.origin else {})}.items())


def _answering(handler: Handler) -> Handler:
    """Turns :class:`InferenceError` into its gRPC status."""

    async def handle(request: Any, context: Context) -> Any:
        try:
            return await handler(request, context)
        except InferenceError as error:
            await context.abort(status_code(error.failure), error.message, _trailing(error))
        except Exception as error:
            LOG.exception("a request failed in a way that nothing foresaw")
            await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}; the server's log says more")

    return handle

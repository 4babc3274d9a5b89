"""Calls of the next stage, over channels that are kept: what gateway and stages use to hand a request on.

gRPC channels honour ``grpc_proxy`` and ``no_grpc_proxy`` by themselves.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from splitplane.domain.peers import STAGE
from splitplane.runtime import mtls, oip_wire, tracing
from splitplane.runtime.inference import Failure, InferenceError, InferRequest, InferResponse
from splitplane.runtime.oip_grpc import KEEPALIVE_MILLISECONDS, LOST, MODEL_INFER, OPTIONS, ORIGIN, fitting

PING_TIMEOUT_MILLISECONDS = 20_000
CHANNEL_OPTIONS = (
    *OPTIONS,
    # Without a pool of its own, a channel to a pod that was replaced at the same address would inherit its back-off.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A node that vanishes closes no connection: without pings a call would wait for its deadline. The answer may take
    # long, as a ping queues behind a large message on a slow link.
    ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MILLISECONDS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MILLISECONDS),
)
MAX_CHANNELS = 256
RETIRE_SECONDS = 3600.0
"""How long calls under way may go on over a connection that began with an older certificate: as long as a request may
take by any route table. It is closed when the last of them ends."""
GONE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
"""A replica is gone, or ended its grace with the call inside; the caller's own cancelling shows differently."""
NOT_REACHED = "failed to connect"
"""So gRPC's text begins where there was no connection to send a call over."""
UNREACHED = "a stage cannot be reached, or was lost while it had the request"

MOST_CHARACTERS = 300
"""Of gRPC's text, in a log."""

Method = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """A response with what the call took: seconds as seen here, and message bytes in both directions."""

    response: InferResponse
    address: str
    seconds: float
    sent: int
    received: int


class Channels:
    """One kept gRPC channel per address; the least recently used one is closed when there are too many.

    With an ``identity`` they are encrypted, show its certificate, and go to stages of its pipeline only.
    """

    def __init__(self, limit: int = MAX_CHANNELS, *, identity: mtls.Identity | None = None) -> None:
        self._limit = limit
        self._identity = identity
        self._credentials = None if identity is None else identity.current()
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()
        self._closing: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._lost: set[str] = set()
        """Addresses that have not answered since it was logged that they do not."""

    def get(self, address: str) -> grpc.aio.Channel:
        if self._identity is not None and (newest := self._identity.current()) is not self._credentials:
            self._credentials = newest
            for known in list(self._channels):
                self.drop(known, grace_seconds=RETIRE_SECONDS)
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._open(address)
            if len(self._channels) > self._limit:
                self.drop(next(iter(self._channels)))
        self._channels.move_to_end(address)
        return channel

    def _open(self, address: str) -> grpc.aio.Channel:
        if self._identity is None or self._credentials is None:
            return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        # A pod's certificate says who it is; its address is only where.
        options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", self._identity.name(STAGE)))
        return grpc.aio.secure_channel(address, mtls.channel_credentials(self._credentials), options=options)

    def drop(self, address: str, *, grace_seconds: float = 10.0) -> None:
        """Close the channel of an address that is gone; calls under way on it get a while to end."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            task = asyncio.ensure_future(channel.close(grace=grace_seconds))
            self._closing[task] = channel
            task.add_done_callback(self._closing.pop)

    def lost(self, address: str, why: str) -> None:
        """A call of the address broke off, or found no connection: logged for the first of several in a row."""
        if address in self._lost:
            return
        if len(self._lost) >= self._limit:
            self._lost.clear()
        self._lost.add(address)
        logger.warning(
            "%s does not answer (%s): not said again until it does", address, " ".join(why.split())[:MOST_CHARACTERS]
        )

    def answered(self, address: str) -> None:
        """A call of the address was answered, be it with an error."""
        if address in self._lost:
            self._lost.discard(address)
            logger.info("%s answers again", address)

    async def close(self) -> None:
        """Close all at once, those too that get a while."""
        closing = dict(self._closing)
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        channels = [*self._channels.values(), *closing.values()]
        self._channels.clear()
        await asyncio.gather(*(channel.close() for channel in channels))


async def call(channels: Channels, addresses: Sequence[str], request: InferRequest) -> Call:
    """Hand a request to the first address that answers; at most one retry, on the next address.

    Inference has no effect beyond its answer, so a request may be sent again when a replica is gone
    (:data:`GONE`), wherever in the call that showed. The request's deadline is carried along. Raises
    :class:`InferenceError` with the far side's own status and text, and with where the request was lost in mid-call.
    """
    lost: list[str] = []
    data = fitting(oip_wire.write_request(request), "what is handed on to the next stage")
    for attempt, address in enumerate(addresses[:2], start=1):
        remaining = request.remaining_seconds()
        if remaining is not None and remaining <= 0:
            raise InferenceError(Failure.DEADLINE_EXCEEDED, "the request's time was up before it could be handed on")
        method: Method = channels.get(address).unary_unary(MODEL_INFER)
        started = time.perf_counter()
        try:
            with tracing.calling("hop", **{"server.address": address, "splitplane.attempt": attempt}) as metadata:
                answer = await method(data, timeout=remaining, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if _is_own(error):
                channels.lost(address, f"{error.code().name}: {error.details()}")
            elif error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:  # which may have passed in silence
                channels.answered(address)
            if _broke_off(error):
                lost.append(address)
            if error.code() in GONE and attempt < len(addresses[:2]):
                continue
            raise _failure(error, address, lost) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not the caller: the channel was closed, because its address is gone.
            if attempt < len(addresses[:2]):
                continue
            raise InferenceError(Failure.UNAVAILABLE, "a stage is gone", detail=address, lost=tuple(lost)) from None
        seconds = time.perf_counter() - started
        channels.answered(address)
        return Call(oip_wire.read_response(answer), address, seconds, len(data), len(answer))
    raise InferenceError(Failure.UNAVAILABLE, "the route names no address to hand the request to")


def _is_own(error: grpc.aio.AioRpcError) -> bool:
    """Whether it is gRPC that says so, for nobody answered. What a stage answers has metadata: when to come again."""
    return error.code() in GONE and not error.trailing_metadata()


def _broke_off(error: grpc.aio.AioRpcError) -> bool:
    """Whether the connection did, with the call on it."""
    was_reached = not (error.details() or "").startswith(NOT_REACHED)
    return error.code() is grpc.StatusCode.UNAVAILABLE and _is_own(error) and was_reached


def _failure(error: grpc.aio.AioRpcError, address: str, lost: Sequence[str]) -> InferenceError:
    name = error.code().name
    failure = Failure[name] if name in Failure.__members__ else Failure.INTERNAL
    told = {key: str(value) for key, value in error.trailing_metadata() or ()}
    details = error.details() or f"it answered {name}"
    # gRPC's own text names addresses.
    is_own = _is_own(error)
    return InferenceError(
        failure,
        UNREACHED if is_own else error.details() or f"a stage answered {name}",
        detail=f"{address}: {details}" if is_own else told.get(ORIGIN, address),
        origin=told.get(ORIGIN, address),
        lost=(*lost, *filter(None, told.get(LOST, "").split(","))),
    )

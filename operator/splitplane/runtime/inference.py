"""Requests, responses and errors of the Open Inference Protocol, free of any transport or tensor library.

The gRPC and REST fronts (``oip_grpc``, ``oip_rest``) translate to and from these values; a gateway or a stage is a
:class:`Model` behind both fronts.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

Buffer = bytes | bytearray | memoryview
Parameter = bool | int | float | str
Parameters = Mapping[str, Parameter]

RESERVED = "splitplane_"
"""So begin the names of parameters that only gateways and stages give, to each other."""


UNSERVED = ("classification", "shared_memory_region")
"""Parameters by which Triton's clients ask for extensions of the protocol that only Triton has."""


class Failure(Enum):
    """Why a request failed: (gRPC status name, HTTP status)."""

    INVALID_ARGUMENT = 400
    PERMISSION_DENIED = 403
    NOT_FOUND = 404
    FAILED_PRECONDITION = 409
    OUT_OF_RANGE = 413
    """Too large for the plan in force. As gRPC has it, unlike an invalid argument: another plan might take it."""
    RESOURCE_EXHAUSTED = 429
    CANCELLED = 499
    INTERNAL = 500
    UNIMPLEMENTED = 501
    UNAVAILABLE = 503
    DEADLINE_EXCEEDED = 504

    @property
    def http_status(self) -> int:
        """Overload is 503 to HTTP clients, as model servers answer it: 429 blames the one client."""
        return 503 if self is Failure.RESOURCE_EXHAUSTED else self.value


MOST_CHARACTERS = 500
"""Of an error's text, which may quote a name: beyond 8 kB, encoded, gRPC tells its client of an overload instead."""
RETRY_SECONDS = 1.0
"""When to come again after what passes, where nothing better is known."""


def shortened(text: str) -> str:
    """An error's text, without its middle where it is longer than :data:`MOST_CHARACTERS`."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 203]}...{text[-200:]}"


class InferenceError(Exception):
    """A request that cannot be served. The text goes to the client: it says what to do, and holds no secret."""

    def __init__(
        self,
        failure: Failure,
        message: str,
        *,
        detail: str = "",
        retry_seconds: float | None = None,
        origin: str = "",
        lost: tuple[str, ...] = (),
    ) -> None:
        message = shortened(message)
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.detail = detail
        """What only logs tell: the addresses of pods."""
        self.origin = origin
        """Address of the stage that answered so, where it is known. Among a pipeline's pods only."""
        self.lost = lost
        """Addresses of the stages to which connections broke off while they had the request. As ``origin``."""
        if retry_seconds is None and failure in (Failure.RESOURCE_EXHAUSTED, Failure.UNAVAILABLE):
            retry_seconds = RETRY_SECONDS
        self.retry_seconds = retry_seconds
        """When it makes sense to try again; ``None`` where it makes none."""

    def __str__(self) -> str:
        """For logs."""
        return f"{self.message} ({self.detail})" if self.detail else self.message


def invalid(message: str) -> InferenceError:
    """The error for a request that is wrong in itself: ``message`` says what was expected."""
    return InferenceError(Failure.INVALID_ARGUMENT, message)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it lies on the wire: ``data`` is its elements, little-endian, in C order, without gaps."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """A declared input or output; -1 in ``shape`` stands for a dynamic dimension (the first is always the batch)."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    name: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    versions: tuple[str, ...] = ("1",)
    platform: str = "pytorch_torchexport"


@dataclass(frozen=True, slots=True)
class InferRequest:
    """``outputs`` names what the client wants back (empty: everything). ``deadline`` is on ``time.monotonic``'s
    clock, ``None`` without one; ``received`` is when the whole request had arrived, on ``time.perf_counter``'s.
    ``client`` is the address that it came from, without a port; ``forwarded`` what proxies say of where they had it
    from (``X-Forwarded-For``, which anybody can write); ``identity`` the names that its certificate shows, of
    any kind, and ``dns_names`` those by which pods are known to each other: over gRPC."""

    model_name: str
    inputs: tuple[Tensor, ...]
    model_version: str = ""
    id: str = ""
    parameters: Parameters = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    deadline: float | None = None
    received: float = field(default_factory=time.perf_counter)
    client: str = ""
    forwarded: str = ""
    identity: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()

    def remaining_seconds(self) -> float | None:
        """Seconds until the deadline (negative once it has passed); ``None`` without one."""
        return None if self.deadline is None else self.deadline - time.monotonic()


@dataclass(frozen=True, slots=True)
class InferResponse:
    model_name: str
    outputs: tuple[Tensor, ...]
    model_version: str = "1"
    id: str = ""
    parameters: Parameters = field(default_factory=dict)
    client: str = ""
    """As whose request it was served, if that was told."""


class Model(Protocol):
    """What the protocol fronts serve: one model, under one name."""

    def metadata(self) -> ModelMetadata:
        """Raises :class:`InferenceError` (``UNAVAILABLE``) while it is not known yet."""
        ...

    def ready(self) -> bool: ...

    async def infer(self, request: InferRequest) -> InferResponse:
        """Raises :class:`InferenceError`, and for outputs that it does not have before it computes anything.

        Name and version are the fronts' to check, which also pick the outputs that are wanted.
        """
        ...


def check(model: Model, name: str, version: str) -> ModelMetadata:
    """The metadata of the model that a request names. Raises :class:`InferenceError` when it is not served here."""
    metadata = model.metadata()
    if name != metadata.name:
        raise InferenceError(Failure.NOT_FOUND, f"model '{name}' is not served here; '{metadata.name}' is")
    if version and version not in metadata.versions:
        raise InferenceError(
            Failure.NOT_FOUND,
            f"version '{version}' of model '{name}' is not served here; use {', '.join(metadata.versions)} or none",
        )
    return metadata


def check_outputs(wanted: Iterable[str], metadata: ModelMetadata) -> None:
    """Raises :class:`InferenceError` when a model returns no such outputs, as far as is known of it."""
    if metadata.outputs:
        _require_outputs(metadata.name, wanted, [output.name for output in metadata.outputs])


def require_served(parameters: Parameters, where: str) -> None:
    """Raises :class:`InferenceError` for a tensor that asks for an extension by its parameters.

    Left aside, they would give a client other data than it takes them for, or have it read old ones.
    """
    for name in UNSERVED:
        if parameters.get(name):
            raise invalid(f"{where} asks for '{name}', an extension that is not served here: leave it out")


def select(response: InferResponse, wanted: tuple[str, ...]) -> tuple[Tensor, ...]:
    """The outputs that a client asked for, in its order; all when it named none."""
    if not wanted:
        return response.outputs
    by_name = {tensor.name: tensor for tensor in response.outputs}
    _require_outputs(response.model_name, wanted, by_name)
    return tuple(by_name[name] for name in wanted)


def _require_outputs(model: str, wanted: Iterable[str], known: Collection[str]) -> None:
    seen: set[str] = set()
    for name in wanted:
        if name not in known:
            raise invalid(f"output '{name}' does not exist; model '{model}' returns {', '.join(known)}")
        if name in seen:  # an answer could be made as long as a client likes
            raise invalid(f"output '{name}' is asked for twice")
        seen.add(name)


def deadline_of(parameters: Parameters, transport_deadline: float | None = None) -> float | None:
    """The earlier of the transport's deadline and the request parameter ``timeout`` (Triton's form: whole microseconds;
    0 is none). Raises :class:`InferenceError` for one of another form: the client would wait for longer than it means.
    """
    timeout = parameters.get("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise invalid(f"parameter 'timeout' is {timeout!r}; it must be a whole number of microseconds")
    if timeout == 0:
        return transport_deadline
    own = time.monotonic() + timeout / 1e6
    return own if transport_deadline is None else min(own, transport_deadline)


def answer(request: InferRequest, response: InferResponse) -> InferResponse:
    """The response with the request's id and only the outputs that it asked for."""
    return InferResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=request.id,
        parameters=response.parameters,
        outputs=select(response, request.outputs),
        client=response.client,
    )

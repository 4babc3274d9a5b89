"""The wire form of a route, which a request carries, and of the trace that its response brings back.

Both are JSON in request and response parameters. A sender drops its own hop from the route, so the receiver is
always the first; a stage puts its own record before those that came back, so a trace is in the route's order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

ROUTE = "splitplane_route"
GENERATION = "splitplane_generation"
TRACE = "splitplane_trace"
SCHEMA = "splitplane_schema"
"""Set by a stage on what it hands on: the schema hash of the cut that its tensors cross."""
AGE = "splitplane_age"
"""Set by a stage on what it hands on: seconds that the request has spent at stages until then."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a stage may compute requests together. ``wait_seconds`` ``None``: as long as it thinks fit."""

    samples: int = 1
    """Most samples at once; 1: each request by itself."""
    wait_seconds: float | None = None
    seconds: float | None = None
    """Longest time that a batch may take; a single request may take what it takes."""
    first: int = 1
    """The size to begin at, where none has been tried yet."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One stage of a route: run ``[first, last)``, then encode with ``codec`` for the next hop (empty at the last).

    ``addresses`` are gRPC addresses of replicas: the one to use, then alternates for a retry.
    """

    stage: str
    tier: str
    first: int
    last: int
    addresses: tuple[str, ...]
    codec: str = ""
    batch: Limits | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise ValueError(f"hop {self.stage}: range [{self.first}, {self.last}) is empty or negative")
        if not self.addresses:
            raise ValueError(f"hop {self.stage}: no address")


@dataclass(frozen=True, slots=True)
class HopTrace:
    """What one stage spent on a request, all in seconds.

    ``queue`` is the wait for the compute worker, ``compute`` the active range (emulated slowness included), ``hop``
    the call of the next stage as seen from here (0 at the last), and ``server`` everything between receipt of the
    request and the reply. So a link took ``hop`` of the sender minus ``server`` of the receiver. ``sent`` and
    ``received`` are the bytes of the request handed on and of its response.
    """

    stage: str
    tier: str
    first: int
    last: int
    queue: float
    decode: float
    compute: float
    encode: float
    server: float
    hop: float = 0.0
    sent: int = 0
    received: int = 0


KNOWN_ROUTES, KNOWN_LENGTH = 64, 4096
"""So many routes, of so many characters at most, are kept as they were read."""
_ROUTE = TypeAdapter(tuple[Hop, ...])
_TRACE = TypeAdapter(tuple[HopTrace, ...])


def encode_route(hops: Iterable[Hop]) -> str:
    return _ROUTE.dump_json(tuple(hops)).decode()


def decode_route(text: str) -> tuple[Hop, ...]:
    """Read a route, the receiver first; unknown keys are dropped, so that a newer sender may add some.

    Raises ``ValueError`` that says what is wrong with it.
    """
    return _known(text) if len(text) <= KNOWN_LENGTH else _decoded(text)


def _decoded(text: str) -> tuple[Hop, ...]:
    hops = _read(_ROUTE, text)
    if not hops:
        raise ValueError("the route is empty")
    for left, right in pairwise(hops):
        if left.last != right.first:
            raise ValueError(
                f"hops do not meet: {left.stage} ends at cut {left.last}, {right.stage} starts at {right.first}"
            )
        if not left.codec:
            raise ValueError(f"hop {left.stage} names no codec for the way to {right.stage}")
    return hops


_known = lru_cache(KNOWN_ROUTES)(_decoded)
"""A route comes again and again, in the very same words."""


def encode_trace(trace: Iterable[HopTrace]) -> str:
    return _TRACE.dump_json(tuple(trace)).decode()


def decode_trace(text: str) -> tuple[HopTrace, ...]:
    """Read a trace, in the route's order. Raises ``ValueError`` when it is malformed."""
    return _read(_TRACE, text)


def _read(adapter: TypeAdapter[T], text: str) -> T:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None

"""What the gateway routes by: a RouteTable as frozen values, read as a whole so that it is never half applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

from splitplane.domain.leaving import REQUEST_SECONDS
from splitplane.runtime.inference import ModelMetadata, TensorMetadata
from splitplane.runtime.routes import Limits

DEFAULT_MAX_IN_FLIGHT = 256
DEFAULT_TIMEOUT_MILLISECONDS = 1000 * REQUEST_SECONDS


class TableError(ValueError):
    """The object is not a usable RouteTable; the gateway goes on with the one it has."""


@dataclass(frozen=True, slots=True)
class Stop:
    """One stage of a route: the Deployment whose pods run cuts ``[first, last)`` there."""

    stage: str
    tier: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Route:
    """Ordered stops; ``codecs[i]`` encodes what stop ``i`` hands to stop ``i + 1``.

    ``max_rate_per_second`` is this gateway's share of what its resident replicas bear; ``None`` when the table gives
    none. It bears no more than the bandwidth of the table's link divided by ``link_bytes`` either. ``best`` is where it
    is the best: from, and below, so many bytes per second of that link.
    """

    name: str
    stops: tuple[Stop, ...]
    codecs: tuple[str, ...]
    max_rate_per_second: float | None = None
    best: tuple[tuple[float, float], ...] = ()
    link_bytes: float = 0.0

    def bears(self, bandwidth: float | None) -> float:
        """Requests per second from this gateway at so many bytes per second, as far as that is known."""
        rate = inf if self.max_rate_per_second is None else self.max_rate_per_second
        return min(rate, bandwidth / self.link_bytes) if bandwidth is not None and self.link_bytes > 0.0 else rate

    def best_at(self, bandwidth: float, *, slack: float = 0.0) -> bool:
        """Whether it is the best at this bandwidth, or within a relative ``slack`` of where it is."""
        return any(low * (1.0 - slack) <= bandwidth < high * (1.0 + slack) for low, high in self.best)

    def crossings(self, source: str) -> tuple[tuple[str, str], ...]:
        """(source, target) tiers of the hops that leave a tier, from the gateway in tier ``source`` onwards."""
        tiers = (source, *(stop.tier for stop in self.stops))
        return tuple((left, right) for left, right in pairwise(tiers) if left != right)


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A link to keep an eye on; ``probes`` are link targets' gRPC addresses at its far end."""

    source: str
    target: str
    probes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A RouteTable's spec. ``uid`` is the object's: generations are compared only within one object."""

    uid: str
    generation: int
    model: ModelMetadata
    routes: tuple[Route, ...]
    stages: tuple[str, ...]
    links: tuple[LinkSpec, ...]
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    timeout_seconds: float = DEFAULT_TIMEOUT_MILLISECONDS / 1000
    batching: Limits | None = None
    link: tuple[str, str] | None = None
    """Source and target tier of the link whose bandwidth decides among the routes."""

    def supersedes(self, other: "Table | None") -> bool:
        """Whether this table may replace ``other``: a lower generation of the same object never does."""
        return other is None or self.uid != other.uid or self.generation >= other.generation


def parse_table(obj: Mapping[str, Any]) -> Table:
    """The table in a RouteTable object as the API server returns it.

    Raises ``TableError`` naming the field that is missing or wrong.
    """
    try:
        spec = obj["spec"]
        model = spec["model"]
        queue = spec.get("queue") or {}
        return Table(
            uid=str(obj.get("metadata", {}).get("uid", "")),
            generation=int(spec["generation"]),
            model=ModelMetadata(str(model["name"]), _tensors(model["inputs"]), _tensors(model.get("outputs") or ())),
            routes=tuple(_route(route, int(spec.get("gateways") or 1)) for route in spec.get("routes") or ()),
            stages=tuple(str(stage) for stage in spec.get("stages") or ()),
            links=tuple(
                LinkSpec(str(link["source"]), str(link["target"]), tuple(link.get("probes") or ()))
                for link in spec.get("links") or ()
            ),
            max_in_flight=int(queue.get("maxInFlight") or DEFAULT_MAX_IN_FLIGHT),
            timeout_seconds=int(queue.get("timeoutMilliseconds") or DEFAULT_TIMEOUT_MILLISECONDS) / 1000,
            batching=_limits(spec.get("batching") or {}),
            link=_ends(spec.get("link")),
        )
    except TableError:
        raise
    except KeyError as error:
        raise TableError(f"RouteTable lacks the field {error.args[0]!r}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise TableError(f"RouteTable is malformed: {error}") from error


def _ends(item: Mapping[str, Any] | None) -> tuple[str, str] | None:
    return None if item is None else (str(item["source"]), str(item["target"]))


def _limits(item: Mapping[str, Any]) -> Limits | None:
    """How far stages may compute requests together; ``None``: each by itself."""

    def seconds(field: str) -> float | None:
        return None if item.get(field) is None else int(item[field]) / 1000

    samples = int(item.get("maxSize") or 1)
    if samples == 1:
        return None
    first = min(int(item.get("firstSize") or 1), samples)
    return Limits(samples, seconds("maxWaitMilliseconds"), seconds("maxBatchMilliseconds"), first)


def _tensors(items: Sequence[Mapping[str, Any]]) -> tuple[TensorMetadata, ...]:
    return tuple(
        TensorMetadata(str(item["name"]), str(item["datatype"]), tuple(int(size) for size in item["shape"]))
        for item in items
    )


def _route(item: Mapping[str, Any], gateways: int) -> Route:
    name = str(item["name"])
    stops = tuple(
        Stop(str(stage["stage"]), str(stage["tier"]), int(stage["first"]), int(stage["last"]))
        for stage in item["stages"]
    )
    codecs = tuple(str(codec) for codec in item.get("codecs") or ())
    rate = item.get("maxRatePerSecond")
    if not stops:
        raise TableError(f"route {name!r} has no stages")
    if len(codecs) != len(stops) - 1:
        raise TableError(f"route {name!r} has {len(stops)} stages and needs {len(stops) - 1} codecs, not {len(codecs)}")
    for left, right in pairwise(stops):
        if left.last != right.first:
            raise TableError(f"route {name!r}: stage {right.stage!r} starts at cut {right.first}, not {left.last}")
    best = tuple(
        (float(span.get("fromBytesPerSecond") or 0), float(span.get("belowBytesPerSecond") or inf))
        for span in item.get("bestBetween") or ()
    )
    return Route(
        name, stops, codecs, None if rate in (None, "") else float(rate) / gateways, best,
        link_bytes=float(item.get("linkBytesPerRequest") or 0) * gateways,
    )  # fmt: skip

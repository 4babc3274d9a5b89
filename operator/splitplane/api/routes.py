"""``RouteTable``: the contract between operator and gateway (docs/architecture.md fixes its form)."""

from typing import Annotated

from pydantic import Field

from splitplane.api.fields import (
    LARGEST,
    Codec,
    Count,
    DecimalString,
    Metadata,
    Model,
    Name,
    TierName,
    at_most,
    between,
    distinct,
    keyed,
    ordered,
    rule,
    rules,
)
from splitplane.api.tensors import Tensors
from splitplane.domain.leaving import REQUEST_SECONDS

KIND = "RouteTable"
PLURAL = "routetables"

MOST_GATEWAYS = 16

_CutIndex = Annotated[int, between(0, 1024)]


class ServedModel(Model):
    """The model as clients see it."""

    name: Name
    """Its Open Inference Protocol name: the pipeline's name."""
    inputs: Tensors
    outputs: Tensors


class RouteStage(Model):
    """A partition at its place in a route."""

    model_config = rules(rule("self.first < self.last", "must be larger than first", field=".last"))

    stage: Name
    """Name of the Deployment, and label ``splitplane.dev/stage`` of its pods."""
    tier: TierName
    first: _CutIndex
    last: _CutIndex


class LinkEnds(Model):
    """A link, by the tiers at its ends."""

    source: TierName
    target: TierName


class BandwidthRange(Model):
    """Bandwidths of the table's link, in bytes per second."""

    model_config = rules(
        rule(
            "!has(self.belowBytesPerSecond)"
            " || (has(self.fromBytesPerSecond) ? self.fromBytesPerSecond : 0) < self.belowBytesPerSecond",
            "must be larger than fromBytesPerSecond",
            field=".belowBytesPerSecond",
        ),
    )

    from_bytes_per_second: Count = 0
    below_bytes_per_second: Count | None = None
    """Absent: however fast it is."""


class Route(Model):
    """One admissible way through the stages."""

    model_config = rules(
        rule(
            "(has(self.codecs) ? self.codecs.size() : 0) == self.stages.size() - 1",
            "give one codec for each crossing between two stages: one fewer than stages",
            field=".codecs",
        ),
        rule("self.stages[0].first == 0", "the first stage must start at cut 0, the model's input", field=".stages"),
    )

    name: Annotated[str, at_most(256)]
    stages: Annotated[tuple[RouteStage, ...], ordered(least=1, most=8)]
    codecs: Annotated[tuple[Codec, ...], ordered(most=7)] = ()
    max_rate_per_second: DecimalString
    """Highest rate that its resident replicas bear."""
    link_bytes_per_request: Count = 0
    """Bytes of the table's link to be counted for a request, with what is to stay free there: the route bears no more
    than the bandwidth divided by them either. 0 where it does not cross that link."""
    best_between: Annotated[tuple[BandwidthRange, ...], ordered(most=8)] = ()
    """Where it is the best of all routes; none for a way out that is taken only when the others fail."""


class ProbedLink(Model):
    """A link to keep an estimate of, and the link targets to ask when traffic tells nothing."""

    source: TierName
    target: TierName
    probes: Annotated[tuple[Annotated[str, at_most(261)], ...], distinct(most=16)] = ()
    """gRPC addresses, ``host:port``."""


class QueueSpec(Model):
    """Bounds of the gateway's queue."""

    max_in_flight: Annotated[int, between(1, 100_000)] = 256
    timeout_milliseconds: Annotated[int, between(1, 3_600_000)] = 1000 * REQUEST_SECONDS
    """A request's time in all. The grace of pods that leave suits the default: one that takes longer may be cut."""


class BatchLimits(Model):
    """How far stages may compute requests together; what is left out, a stage chooses by itself."""

    max_size: Annotated[int, between(1, 128)] = 1
    """Most samples at once."""
    first_size: Annotated[int, between(1, 128)] | None = None
    """The size to begin at: as profiled, it is the best on each stage of the plan, and takes no longer than it may."""
    max_wait_milliseconds: Annotated[int, between(0, 1000)] | None = None
    max_batch_milliseconds: Annotated[int, between(1, 600_000)] | None = None
    """Longest time that a batch may take."""


class RouteTableSpec(Model):
    """Written by the operator."""

    model_config = rules(
        rule(
            "self.generation >= oldSelf.generation",
            "may only grow: another writer was faster; read the object again and decide anew",
            field=".generation",
        ),
        rule(
            "!has(self.routes) || self.routes.all(r, r.stages.all(s, has(self.stages) && s.stage in self.stages))",
            "every stage of a route must be listed in spec.stages",
            field=".routes",
        ),
        rule(
            "has(self.link) || !has(self.routes)"
            " || self.routes.all(r, !has(r.bestBetween) || r.bestBetween.size() == 0)",
            "name the link whose bandwidth routes' bestBetween are about",
            field=".link",
        ),
    )

    generation: Count
    model: ServedModel
    routes: Annotated[tuple[Route, ...], ordered(most=16)] = ()
    """Admissible routes, that of the plan first, then as good as they are now; empty while nothing is ready."""
    link: LinkEnds | None = None
    """The link whose bandwidth, as the gateway measures it, decides among the routes."""
    stages: Annotated[tuple[Name, ...], distinct(most=32)] = ()
    """Every stage to watch and report on, those still being prepared included."""
    links: Annotated[tuple[ProbedLink, ...], keyed("source", "target", most=16)] = ()
    queue: QueueSpec = QueueSpec()
    batching: BatchLimits = BatchLimits()
    gateways: Annotated[int, between(1, MOST_GATEWAYS)] = 1
    """Replicas of the gateway, which share what a fallback bears."""


class StageEndpoints(Model):
    """Endpoints of a stage that the gateway has admitted: ready, not terminating, and answering a health check. Those
    count, too, that it leaves out for a while for being slow or erring."""

    name: Name
    ready: Annotated[int, between(0, 100_000)]


class InFlight(Model):
    """Requests that a plan generation still serves."""

    generation: Count
    requests: Annotated[int, between(0, 10**9)]


class LinkEstimate(Model):
    """The gateway's live estimate; a number that is not known is left out. A link that is down has a bandwidth of 0."""

    source: TierName
    target: TierName
    bandwidth_bytes_per_second: DecimalString | None = None
    delay_microseconds: Count | None = None


class GatewayReport(Model):
    """What one replica of the gateway routes by and sees."""

    acknowledged_generation: Annotated[int, between(-1, LARGEST)] = -1
    """The generation that new requests are routed by."""
    stages: Annotated[tuple[StageEndpoints, ...], keyed("name", most=32)] = ()
    in_flight: Annotated[tuple[InFlight, ...], keyed("generation", most=64)] = ()
    links: Annotated[tuple[LinkEstimate, ...], keyed("source", "target", most=16)] = ()
    route: Annotated[str, at_most(256)] | None = None
    """The route that a request would take first now. Absent while none can serve."""


class RouteTableStatus(Model):
    """Written by the gateways, each its own entry."""

    gateways: Annotated[dict[Annotated[str, at_most(253)], GatewayReport], Field(max_length=4 * MOST_GATEWAYS)] = Field(
        default_factory=dict
    )
    """By the name of the pod. A map, so that one's merge patch leaves the others' entries alone."""


class RouteTable(Model):
    """The routes that a pipeline's gateway may take: written by the operator, acknowledged by the gateway."""

    metadata: Metadata
    spec: RouteTableSpec
    status: RouteTableStatus = RouteTableStatus()

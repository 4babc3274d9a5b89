"""Every metric that pods export (docs/architecture.md, "Metrics"), with the labels that belong to the pod bound once.

Names and labels are a contract with the operator's queries. Metrics are made per registry, not at import, so that a
test can hold several; labelled children appear when they first hold something: a missing number is never zero.
"""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from splitplane.runtime.arrivals import Burstiness

KSERVE_SECONDS = "request_predict_seconds"
POD_LABELS = ("namespace", "pipeline")


def growing_buckets(first: float, last: float, factor: float) -> tuple[float, ...]:
    """Bounds from ``first`` to at least ``last``, each ``factor`` times the one before."""
    bounds = [first]
    while bounds[-1] < last:
        bounds.append(float(f"{bounds[-1] * factor:.4g}"))
    return tuple(bounds)


REQUEST_BUCKETS = growing_buckets(0.001, 60.0, 1.2)
"""A quantile read off these is at most 20 % too high."""
STAGE_BUCKETS = growing_buckets(0.0001, 60.0, 1.5)
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
TRANSFER_BUCKETS = growing_buckets(0.0001, 60.0, 1.5)
MOST_LINKS, MOST_RANGES = 64, 1024
"""A pod tells of so many: their names come with routes, and nobody may fill its memory and Prometheus with them."""


class LinkMetrics:
    """Bytes and seconds per link, counted by whoever sends (a gateway or a stage)."""

    def __init__(self, registry: CollectorRegistry, *, namespace: str, pipeline: str) -> None:
        self._labels = {"namespace": namespace, "pipeline": pipeline}
        names = (*POD_LABELS, "source", "target")
        self._children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._bytes = Counter(
            "splitplane_link_bytes", "Payload bytes sent and received over a link", names, registry=registry
        )
        self._seconds = Histogram(
            "splitplane_link_transfer_seconds",
            "Seconds of a call that the link took: the call less the receiver's own time",
            names,
            buckets=TRANSFER_BUCKETS,
            registry=registry,
        )

    def transferred(self, *, source: str, target: str, size: int, seconds: float) -> None:
        """Count one call: ``size`` bytes in both directions, ``seconds`` for both (negative is taken as 0)."""
        children = self._children.get((source, target))
        if children is None:
            if len(self._children) >= MOST_LINKS:
                return
            labels = {**self._labels, "source": source, "target": target}
            children = self._children[source, target] = self._bytes.labels(**labels), self._seconds.labels(**labels)
        transferred, lasted = children
        transferred.inc(size)
        lasted.observe(max(0.0, seconds))


class StageMetrics:
    """What a stage exports. ``queue_depth`` counts requests that wait for the compute worker or run on it."""

    def __init__(self, registry: CollectorRegistry, *, namespace: str, pipeline: str, tier: str) -> None:
        self._labels = {"namespace": namespace, "pipeline": pipeline, "tier": tier}
        self.links = LinkMetrics(registry, namespace=namespace, pipeline=pipeline)
        names = (*POD_LABELS, "tier", "range")
        self._children: dict[tuple[int, int], tuple[Histogram, Counter]] = {}
        self._seconds = Histogram(
            "splitplane_stage_duration_seconds",
            "Compute seconds of a range, emulated slowness included, as if each request were computed by itself",
            names,
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._squared = Counter(
            "splitplane_stage_squared_seconds", "Sum of squared compute seconds of a range", names, registry=registry
        )
        self._samples = Histogram(
            "splitplane_stage_batch_samples",
            "Samples that were computed at once",
            (*POD_LABELS, "tier"),
            buckets=BATCH_BUCKETS,
            registry=registry,
        ).labels(**self._labels)
        self._depth = Gauge(
            "splitplane_stage_queue_depth",
            "Requests accepted and not yet computed",
            (*POD_LABELS, "tier"),
            registry=registry,
        )

    def ran(self, samples: int) -> None:
        """Count one run of any range, for one request or several."""
        self._samples.observe(samples)

    def computed(self, *, first: int, last: int, seconds: float) -> None:
        """Count one request's run of ``[first, last)``: what it takes, or would have taken, by itself."""
        children = self._children.get((first, last))
        if children is None:
            if len(self._children) >= MOST_RANGES:
                return
            labels = {**self._labels, "range": f"{first}-{last}"}
            children = self._children[first, last] = self._seconds.labels(**labels), self._squared.labels(**labels)
        took, squared = children
        took.observe(seconds)
        squared.inc(seconds * seconds)

    def watch_queue(self, depth: Callable[[], float]) -> None:
        """Read the queue's depth from ``depth`` at each scrape."""
        self._depth.labels(**self._labels).set_function(depth)


class GatewayMetrics:
    """What a gateway exports.

    Every request that is read, or refused for want of memory or for its time's form, is counted, and so is its end.
    Demand is what was admitted and what was rejected: completions would hide it behind back-pressure, and what asks for
    nothing that can be computed is none.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        namespace: str,
        pipeline: str,
        clock: Callable[[], float] = time.monotonic,
        kserve: bool = False,
    ) -> None:
        """``kserve``: tell successful requests' seconds also under the name that KServe's Python servers use."""
        self._labels = {"namespace": namespace, "pipeline": pipeline}
        self._clock = clock
        self._burstiness = Burstiness()
        self.links = LinkMetrics(registry, namespace=namespace, pipeline=pipeline)
        link = (*POD_LABELS, "source", "target")
        self._requests = Counter(
            "splitplane_requests", "Requests for this model that could be read", POD_LABELS, registry=registry
        ).labels(**self._labels)
        self._admitted = Counter(
            "splitplane_requests_admitted", "Requests that were taken in", POD_LABELS, registry=registry
        ).labels(**self._labels)
        self._completed = Counter(
            "splitplane_requests_completed",
            "Requests that have ended, by outcome",
            (*POD_LABELS, "outcome"),
            registry=registry,
        )
        for outcome in ("success", "error", "rejected", "invalid", "cancelled"):
            self._completed.labels(**self._labels, outcome=outcome)
        Gauge(
            "splitplane_arrival_scv",
            "Squared coefficient of variation of seconds between arrivals, in the last minute",
            POD_LABELS,
            registry=registry,
        ).labels(**self._labels).set_function(lambda: self._burstiness.scv(self._clock()))
        self._duration = Histogram(
            "splitplane_request_duration_seconds",
            "Seconds from admission to answer of successful requests",
            POD_LABELS,
            buckets=REQUEST_BUCKETS,
            registry=registry,
        ).labels(**self._labels)
        self._kserve: Histogram | None = None
        self._alias: Histogram | None = None
        if kserve:
            self._kserve = Histogram(
                KSERVE_SECONDS, "predict request latency", ("model_name",), buckets=REQUEST_BUCKETS, registry=registry
            )
        self.in_flight = Gauge(
            "splitplane_in_flight_requests", "Requests admitted and not yet answered", POD_LABELS, registry=registry
        ).labels(**self._labels)
        self._bandwidth = Gauge(
            "splitplane_link_bandwidth_bytes_per_second",
            "Estimated rate of a link; absent while unknown, 0 where its probes have failed for a while",
            link,
            registry=registry,
        )
        self._delay = Gauge(
            "splitplane_link_delay_seconds",
            "Estimated one-way delay of a link; absent while unknown",
            link,
            registry=registry,
        )
        self._generation = Gauge(
            "splitplane_active_generation",
            "Plan generation that new requests are routed by",
            POD_LABELS,
            registry=registry,
        )

    def serves(self, model: str) -> None:
        """What clients call the model: by that KServe's servers tell of it. At a site it is not the pipeline's name."""
        if self._kserve is not None:
            self._alias = self._kserve.labels(model_name=model)

    def read(self) -> None:
        """Count a request as soon as it is known to be one, whatever becomes of it."""
        self._requests.inc()

    def arrived(self) -> None:
        """Count a request in the rhythm of demand: it asks for something that can be computed."""
        self._burstiness.arrived(self._clock())

    def turned_away(self) -> None:
        """Count a request for whose message there is no memory. It is demand, though nobody has read it."""
        self.read()
        self.arrived()
        self.completed("rejected")

    def unanswerable(self) -> None:
        """Count a request that is refused before the model hears of it, as nobody could answer it: no demand."""
        self.read()
        self.completed("invalid")

    def admitted(self) -> None:
        self._admitted.inc()

    def completed(self, outcome: str, *, seconds: float | None = None) -> None:
        """Count the end of a request.

        ``outcome`` is ``success`` (then with its ``seconds``), ``error``, ``rejected`` (the queue or the memory is
        full), ``invalid`` (not what the model takes), ``error`` (taken in, and failed or refused later, as the time
        that it had left no longer did), or ``cancelled`` when the client went before its answer came.
        """
        self._completed.labels(**self._labels, outcome=outcome).inc()
        if seconds is not None:
            self._duration.observe(seconds)
            if self._alias is not None:
                self._alias.observe(seconds)

    def set_link(
        self, *, source: str, target: str, bandwidth_bytes_per_second: float | None, delay_seconds: float | None
    ) -> None:
        """Publish an estimate; ``None`` takes the series away."""
        for gauge, value in ((self._bandwidth, bandwidth_bytes_per_second), (self._delay, delay_seconds)):
            if value is not None:
                gauge.labels(**self._labels, source=source, target=target).set(value)
            else:
                gauge.remove_by_labels({**self._labels, "source": source, "target": target})

    def set_generation(self, generation: int) -> None:
        self._generation.labels(**self._labels).set(generation)

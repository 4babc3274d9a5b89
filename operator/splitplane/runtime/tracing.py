"""Spans of requests over gateway and stages, in W3C's trace context, sent by OTLP (docs/tracing.md).

Off unless :func:`begin` was called with an endpoint; until then nothing of OpenTelemetry is imported, no header read,
and what is called here costs one comparison.
"""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from splitplane.runtime.inference import Failure, InferenceError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""OpenTelemetry's own variable, as are those for samplers and headers, which its library reads."""
PARENT, STATE = "traceparent", "tracestate"
_SERVERS_OWN = {Failure.INTERNAL, Failure.UNIMPLEMENTED, Failure.UNAVAILABLE, Failure.DEADLINE_EXCEEDED}

_tracer: "Tracer | None" = None
_provider: "TracerProvider | None" = None


def begin(environment: Mapping[str, str], *, service: str, **attributes: str) -> None:
    """Trace from now on, if ``environment`` names an endpoint; ``attributes`` tell this process from others.

    Raises ``ImportError`` where OpenTelemetry is not installed.
    """
    global _tracer, _provider
    if not environment.get(ENDPOINT):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # It quotes the headers of clients that it cannot read, in full and each time.
    logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
    _provider = TracerProvider(resource=Resource.create({"service.name": service, **attributes}))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("splitplane")


def end() -> None:
    """Send what is left. May take seconds: not for an event loop that still serves."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


@contextlib.contextmanager
def serving(name: str, headers: Mapping[str, str] | Iterable[Any]) -> Iterator[None]:
    """A span while a request is served, within the caller's trace if ``headers`` name one."""
    if _tracer is None:
        yield
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation import tracecontext

    context = tracecontext.TraceContextTextMapPropagator().extract(_carrier(headers))
    with _tracer.start_as_current_span(
        name, context, trace.SpanKind.SERVER, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield
        except Exception as error:
            if _is_servers_own(error):
                span.record_exception(error)
                span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise


def _is_servers_own(error: Exception) -> bool:
    """Whether a server's span is an error, as OpenTelemetry has it: not where the client's request or load is."""
    if isinstance(error, InferenceError):
        return error.failure in _SERVERS_OWN
    return int(getattr(error, "status", 500)) >= 500  # aiohttp's own


def _carrier(headers: Mapping[str, str] | Iterable[Any]) -> dict[str, str]:
    """The caller's context: of several lists of states one, as of any HTTP field; none of several parents."""
    given: Iterable[Any] = headers.items() if isinstance(headers, Mapping) else headers
    found: dict[str, list[str]] = {PARENT: [], STATE: []}
    for key, value in given:
        if key.lower() in found:
            found[key.lower()].append(str(value))
    if len(found[PARENT]) != 1:
        return {}
    return {key: ",".join(values) for key, values in found.items() if values}


@contextlib.contextmanager
def calling(name: str, **attributes: Any) -> Iterator[tuple[tuple[str, str], ...] | None]:
    """A span while another pod is called; gives the metadata to send along."""
    if _tracer is None:
        yield None
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation import tracecontext

    with _tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes):
        carrier: dict[str, str] = {}
        tracecontext.TraceContextTextMapPropagator().inject(carrier)
        yield tuple(carrier.items())


def tell(steps: Mapping[str, float], **attributes: Any) -> None:
    """Steps of the current span by their seconds, which followed each other and have just ended."""
    if _tracer is None:
        return
    start = time.time_ns() - round(1e9 * sum(steps.values()))
    for name, seconds in steps.items():
        end = start + round(1e9 * seconds)
        _tracer.start_span(name, start_time=start, attributes=attributes).end(end)
        start = end


def on() -> bool:
    return _tracer is not None

"""What a pipeline's gateways report, taken together: a switch waits for the last of them. Pure."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from splitplane.api.routes import GatewayReport, LinkEstimate
from splitplane.controller.objects import Object, is_true

T = TypeVar("T")


def present(
    reports: Mapping[str, GatewayReport], pods: Iterable[Object], nodes: Iterable[Object]
) -> dict[str, GatewayReport]:
    """Reports of the gateways that may still send requests: their pods exist, on nodes that are alive.

    Those that leave count too, until their pods have gone. Without any, the last reports stand.
    """
    alive = {node["metadata"]["name"] for node in nodes if is_true(node, "Ready")}
    known = {pod["metadata"]["name"] for pod in pods if pod["spec"].get("nodeName") in alive}
    return {name: report for name, report in reports.items() if name in known} or dict(reports)


def gone(reports: Mapping[str, GatewayReport], pods: Sequence[Object]) -> tuple[str, ...]:
    """Names of gateways whose reports have outlived their pods; none while there is no other gateway."""
    return tuple(sorted(reports.keys() - {pod["metadata"]["name"] for pod in pods})) if pods else ()


def merged(reports: Collection[GatewayReport]) -> GatewayReport:
    """One report of all.

    The generation is the oldest that new requests are still routed by, endpoints are counted where the fewest are
    admitted, and requests on their way are added up.
    """
    if not reports:
        return GatewayReport()
    in_flight: Counter[int] = Counter()
    for report in reports:
        for entry in report.in_flight:
            in_flight[entry.generation] += entry.requests
    ready = [{stage.name: stage.ready for stage in report.stages} for report in reports]
    return GatewayReport.model_validate(
        {
            "acknowledgedGeneration": min(report.acknowledged_generation for report in reports),
            "stages": [
                {"name": name, "ready": min(counts.get(name, 0) for counts in ready)}
                for name in sorted({name for counts in ready for name in counts})
            ],
            "inFlight": [
                {"generation": generation, "requests": requests} for generation, requests in sorted(in_flight.items())
            ],
            "links": [link.dump() for link in _links(reports)],
        }
    )


def _links(reports: Iterable[GatewayReport]) -> Sequence[LinkEstimate]:
    """Of each link the most that a gateway measured to pass, and the shortest delay, as ``adapters.metrics`` has it.

    Gateways share a link: what keeps one of them from seeing all of it is what the others send.
    """
    found: dict[tuple[str, str], LinkEstimate] = {}
    for link in (link for report in reports for link in report.links):
        known = found.setdefault((link.source, link.target), link)
        found[link.source, link.target] = LinkEstimate(
            source=link.source,
            target=link.target,
            bandwidth_bytes_per_second=_of(
                lambda pair: max(pair, key=float), known.bandwidth_bytes_per_second, link.bandwidth_bytes_per_second
            ),
            delay_microseconds=_of(min, known.delay_microseconds, link.delay_microseconds),
        )
    return [found[key] for key in sorted(found)]


def _of(choose: Callable[[list[T]], T], *values: T | None) -> T | None:
    """Chosen of those that are known, if any is."""
    known = [value for value in values if value is not None]
    return choose(known) if known else None

"""What a pipeline's gateways report, taken together: a switch waits for the last of them. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from splitplane.api.routes import GatewayReport, LinkEstimate
from splitplane.controller.objects import Object, is_true


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
    """For each link the report of the gateway that knows most: through which most passes."""
    best: dict[tuple[str, str], LinkEstimate] = {}
    for report in reports:
        for link in report.links:
            key = (link.source, link.target)
            if key not in best or _known(link) > _known(best[key]):
                best[key] = link
    return [best[key] for key in sorted(best)]


def _known(link: LinkEstimate) -> float:
    return -1.0 if link.bandwidth_bytes_per_second is None else float(link.bandwidth_bytes_per_second)

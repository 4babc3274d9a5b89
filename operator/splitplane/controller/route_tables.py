"""The RouteTable as the operator writes it. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence

from splitplane.api.fields import decimal_string
from splitplane.api.pipelines import InferencePipeline, TierSpec
from splitplane.api.profiles import ModelProfileSpec
from splitplane.api.routes import RouteTableSpec
from splitplane.controller.capacity import matches
from splitplane.controller.control import CONTROL_ANNOTATION, Control, PublishedRoute, dump
from splitplane.controller.naming import model_name
from splitplane.controller.objects import Object, is_terminating, is_true
from splitplane.controller.pods import GRPC_PORT, labels, owner
from splitplane.domain.batches import BATCH_SHARE, paying_samples
from splitplane.domain.profiles import Profile
from splitplane.domain.quantities import parse_quantity

_MOST_PROBES = 4
_MOST_RATE = 1e9


def route_table(
    pipeline: InferencePipeline, control: Control, *, generation: int, routes: Sequence[PublishedRoute],
    model: Object, links: Sequence[Object], batching: Object, version: str,
) -> Object:  # fmt: skip
    """The whole object. ``version`` is the resource version that it was decided on, empty to create it."""
    name = pipeline.metadata.name
    metadata = {
        "name": name,
        "namespace": pipeline.metadata.namespace,
        "labels": labels(name, "routes"),
        "annotations": {CONTROL_ANNOTATION: dump(control)},
        "ownerReferences": [owner(pipeline)],
    }
    if version:
        metadata["resourceVersion"] = version
    spec = RouteTableSpec.model_validate(
        {
            "generation": generation,
            "model": model,
            "routes": [_route(route) for route in routes],
            "link": _link(control),
            "stages": sorted(control.named()),
            "links": list(links),
            "gateways": pipeline.spec.gateway.replicas,
            "batching": batching,
        }
    )
    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "RouteTable",
        "metadata": metadata,
        "spec": spec.dump(),
    }


def batching(pipeline: InferencePipeline, control: Control, profile: Profile) -> Object:
    """How far the stages may compute requests together, within latency limit and memory, and where they begin."""
    spec = pipeline.spec
    allowed: Object = spec.batching.dump()
    if spec.objectives.latency_p95_milliseconds is not None:
        allowed["maxBatchMilliseconds"] = max(1, int(spec.objectives.latency_p95_milliseconds * BATCH_SHARE))
    tiers = {tier.name: tier for tier in spec.tiers}
    for stage in control.active.plan.stages if control.active is not None else ():
        tier = tiers.get(stage.tier)
        memory = (tier.resources.limits or {}).get("memory") if tier is not None else None
        if tier is not None and memory is not None and tier.device_class in profile.devices:
            most = profile.most_samples(
                tier.device_class, stage.resident_first, stage.resident_last, int(parse_quantity(memory))
            )
            allowed["maxSize"] = min(allowed["maxSize"], most)
    if first := _first_size(allowed, control, tiers, profile):
        allowed["firstSize"] = first
    return allowed


def _first_size(allowed: Object, control: Control, tiers: Mapping[str, TierSpec], profile: Profile) -> int:
    """The batch that pays on every stage of the plan, as measured; 0: none larger than one is known to."""
    longest = allowed.get("maxBatchMilliseconds")
    sizes = []
    for stage in control.active.plan.stages if control.active is not None else ():
        device = profile.devices.get(tiers[stage.tier].device_class) if stage.tier in tiers else None
        if device is None:
            return 0
        within = None if longest is None else longest / 1000
        sizes.append(paying_samples(device, stage.first, stage.last, most=allowed["maxSize"], within_seconds=within))
    return first if (first := min(sizes, default=1)) > 1 else 0


def served_model(pipeline: InferencePipeline, profile: ModelProfileSpec) -> Object:
    """The model as clients see it."""
    return {
        "name": model_name(pipeline),
        "inputs": [tensor.dump() for tensor in profile.inputs],
        "outputs": [tensor.dump() for tensor in profile.outputs],
    }


def _route(route: PublishedRoute) -> Object:
    return {
        "name": route.name,
        "stages": [
            {"stage": step.stage, "tier": step.tier, "first": step.first, "last": step.last} for step in route.steps
        ],
        "codecs": list(route.codecs),
        "bestBetween": [_range(low, high) for low, high in route.best],
        "linkBytesPerRequest": math.ceil(route.link_bytes),
        "maxRatePerSecond": rate_text(route),
    }


def rate_text(route: PublishedRoute) -> str:
    """Its highest rate. One that is no number counts as none: a fallback must never be overloaded."""
    return decimal_string(min(max(0.0, route.max_rate_per_second), _MOST_RATE), digits=3)


def _link(control: Control) -> Object | None:
    if control.active is None or control.active.link is None:
        return None
    source, target = control.active.link
    return {"source": source, "target": target}


def _range(low: float, high: float) -> Object:
    found: Object = {"fromBytesPerSecond": math.ceil(low)}
    return found if math.isinf(high) else {**found, "belowBytesPerSecond": math.ceil(high)}


def live_routes(control: Control, lost_tiers: frozenset[str]) -> tuple[PublishedRoute, ...]:
    """The routes of the plan that serves, without those that need a tier with no node left."""
    if control.active is None:
        return ()
    return tuple(route for route in control.active.routes if not any(step.tier in lost_tiers for step in route.steps))


def links(pipeline: InferencePipeline, *, link_targets: Iterable[Object], nodes: Iterable[Object]) -> list[Object]:
    """Links from the gateway's tier to each other tier, with the addresses to probe them at."""
    by_name = {node["metadata"]["name"]: node for node in nodes}
    ready = [
        pod
        for pod in sorted(link_targets, key=lambda pod: str(pod["metadata"]["name"]))
        if is_true(pod, "Ready") and not is_terminating(pod) and pod.get("status", {}).get("podIP")
    ]
    found: list[Object] = []
    source = pipeline.spec.gateway.tier
    for tier in pipeline.spec.tiers:
        if tier.name == source:
            continue
        probes = [
            _address(pod["status"]["podIP"])
            for pod in ready
            if (node := by_name.get(pod["spec"].get("nodeName", ""))) is not None and matches(node, tier.node_selector)
        ]
        found.append({"source": source, "target": tier.name, "probes": probes[:_MOST_PROBES]})
    return found


def _address(ip: str) -> str:
    return f"[{ip}]:{GRPC_PORT}" if ":" in ip else f"{ip}:{GRPC_PORT}"

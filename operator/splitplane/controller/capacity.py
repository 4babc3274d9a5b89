"""What a tier's nodes can hold and what a replica there costs, from nodes and pods as they are now. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitplane.controller.objects import Object, is_terminating, is_true
from splitplane.domain.measurements import Error, Measurement, Missing, Value
from splitplane.domain.quantities import parse_quantity
from splitplane.domain.resources import pod_requests

# A tier without resource requests is limited by this and by the nodes' own limit on pods only.
_MOST_SLOTS = 1000


@dataclass(frozen=True, slots=True)
class Placement:
    """Where pods of a tier may go and what each asks for (resource name to amount, in base units)."""

    node_selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, Any]]
    requests: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Capacity:
    """``matching`` nodes fit the selector; of these ``ready`` ones take pods now. ``slots`` counts replicas in all,
    the pipeline's own included; ``free`` leaves out the slots that its own pods hold."""

    matching: int
    ready: tuple[str, ...]
    slots: int
    free: int


def amounts(quantities: Mapping[str, Any] | None) -> dict[str, float]:
    """Kubernetes quantities as numbers in base units (cores, bytes)."""
    return {name: float(parse_quantity(quantity)) for name, quantity in (quantities or {}).items()}


def tolerates(tolerations: Iterable[Mapping[str, Any]], taint: Mapping[str, Any]) -> bool:
    """Whether one of ``tolerations`` matches ``taint``, by the scheduler's rules."""
    for toleration in tolerations:
        if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
            continue
        if not toleration.get("key"):
            if toleration.get("operator") == "Exists":
                return True
            continue
        if toleration["key"] != taint.get("key"):
            continue
        if toleration.get("operator", "Equal") == "Exists" or (toleration.get("value") or "") == (
            taint.get("value") or ""
        ):
            return True
    return False


def matches(node: Object, selector: Mapping[str, str]) -> bool:
    labels = node["metadata"].get("labels") or {}
    return all(labels.get(name) == value for name, value in selector.items())


def takes_pods(node: Object, placement: Placement) -> bool:
    """Whether the scheduler would put a pod of this placement on the node, resources aside."""
    spec = node.get("spec") or {}
    if spec.get("unschedulable") or is_terminating(node) or not is_true(node, "Ready"):
        return False
    return all(
        tolerates(placement.tolerations, taint)
        for taint in spec.get("taints") or ()
        if taint.get("effect") in ("NoSchedule", "NoExecute")
    )


def capacity(
    nodes: Iterable[Object], pods_by_node: Mapping[str, Sequence[Object]], placement: Placement,
    *, is_own: Callable[[Object], bool],
) -> Capacity:  # fmt: skip
    """What the nodes of a tier can hold. ``is_own`` tells the pods that this pipeline runs as stages of this tier."""
    matching = 0
    ready: list[str] = []
    slots = free = 0
    for node in nodes:
        if not matches(node, placement.node_selector):
            continue
        matching += 1
        if not takes_pods(node, placement):
            continue
        name = node["metadata"]["name"]
        ready.append(name)
        left = amounts((node.get("status") or {}).get("allocatable"))
        own = 0
        for pod in pods_by_node.get(name, ()):
            if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                continue
            if is_own(pod):
                own += 1
                continue
            left["pods"] = left.get("pods", 0.0) - 1
            for resource, asked in pod_requests(pod).items():
                left[resource] = left.get(resource, 0.0) - float(asked)
        fit = max(0, int(left.get("pods", _MOST_SLOTS)))
        for resource, amount in placement.requests.items():
            if amount > 0:
                # The small term undoes the rounding of sums such as 0.1 + 0.2.
                fit = min(fit, max(0, int(left.get(resource, 0.0) / amount + 1e-9)))
        slots += fit
        free += max(0, fit - own)
    return Capacity(matching=matching, ready=tuple(ready), slots=min(slots, _MOST_SLOTS), free=min(free, _MOST_SLOTS))


def dominant_share(node: Object, requests: Mapping[str, float]) -> float:
    """The largest share of a node's CPU or memory that one replica takes; all of the node without requests."""
    allocatable = amounts((node.get("status") or {}).get("allocatable"))
    shares = [
        requests[resource] / allocatable[resource]
        for resource in ("cpu", "memory")
        if requests.get(resource) and allocatable.get(resource)
    ]
    return min(1.0, max(shares)) if shares else 1.0


def replica_price(
    nodes: Iterable[Object], prices: Mapping[str, Measurement], requests: Mapping[str, float],
    *, otherwise: float | None, failure: str = "",
) -> Measurement:  # fmt: skip
    """Price of one replica-hour: the mean over nodes of a node's price times a replica's dominant share of it.

    ``otherwise`` is the price that the user wrote down, taken when no node has a price; ``failure`` is why prices
    could not be read at all.
    """
    found: list[float] = []
    wrong = ""
    for node in nodes:
        match prices.get(node["metadata"]["name"]):
            case Value(price):
                found.append(price * dominant_share(node, requests))
            case Error(why):
                wrong = f"price of node {node['metadata']['name']}: {why}"
            case _:
                pass
    if found:
        return Value(sum(found) / len(found))
    if otherwise is not None:
        return Value(otherwise)
    if failure or wrong:
        return Error(failure or wrong)
    return Missing("no node_total_hourly_cost for these nodes and no pricePerHour in the tier")

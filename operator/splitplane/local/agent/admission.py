"""Whether a pod bound to this node fits on it: the scheduler's arithmetic once more, as kubelet does it.

A pod may come here without the scheduler (``spec.nodeName``), or two schedulers may have been at work.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from splitplane.domain.quantities import parse_quantity
from splitplane.local.agent.lifecycle import is_sidecar
from splitplane.local.agent.state import Waiting

Pod = Mapping[str, Any]
_RESOURCES = ("cpu", "memory")


def request(pod: Pod, resource: str) -> Decimal:
    """What a pod asks of a resource: its main containers and sidecars, or the largest init step if that is more."""
    spec = pod["spec"]

    def of(container: Mapping[str, Any]) -> Decimal:
        amounts = (container.get("resources") or {}).get("requests") or {}
        return parse_quantity(amounts.get(resource, "0"))

    sidecars, peak = Decimal(0), Decimal(0)
    for container in spec.get("initContainers", []):
        if is_sidecar(container):
            sidecars += of(container)
            peak = max(peak, sidecars)
        else:
            peak = max(peak, sidecars + of(container))
    steady = sidecars + sum((of(container) for container in spec["containers"]), Decimal(0))
    overhead = parse_quantity((spec.get("overhead") or {}).get(resource, "0"))
    return max(steady, peak) + overhead


def refusal(pod: Pod, others: Iterable[Pod], allocatable: Mapping[str, str]) -> Waiting | None:
    """Why `pod` cannot run beside `others`, as kubelet says it; None if it fits."""
    others = list(others)
    most = int(allocatable["pods"])
    if len(others) + 1 > most:
        return _lack("pods", 1, len(others), most)
    for resource in _RESOURCES:
        asked = request(pod, resource)
        used = sum((request(other, resource) for other in others), Decimal(0))
        capacity = parse_quantity(allocatable[resource])
        if asked > 0 and asked + used > capacity:
            scale = 1000 if resource == "cpu" else 1
            return _lack(resource, int(asked * scale), int(used * scale), int(capacity * scale))
    return None


def _lack(resource: str, asked: int, used: int, capacity: int) -> Waiting:
    return Waiting(
        reason=f"OutOf{resource}",
        message=f"Node didn't have enough resource: {resource}, requested: {asked}, used: {used}, capacity: {capacity}",
    )

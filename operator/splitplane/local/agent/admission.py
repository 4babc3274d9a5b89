"""Whether a pod bound to this node fits on it: the scheduler's arithmetic once more, as kubelet does it.

A pod may come here without the scheduler (``spec.nodeName``), or two schedulers may have been at work.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from splitplane.domain.quantities import parse_quantity
from splitplane.domain.resources import pod_requests
from splitplane.local.agent.state import Waiting

Pod = Mapping[str, Any]
_RESOURCES = ("cpu", "memory")


def refusal(pod: Pod, others: Iterable[Pod], allocatable: Mapping[str, str]) -> Waiting | None:
    """Why `pod` cannot run beside `others`, as kubelet says it; None if it fits."""
    others = list(others)
    most = int(allocatable["pods"])
    if len(others) + 1 > most:
        return _lack("pods", 1, len(others), most)
    own, held = pod_requests(pod), [pod_requests(other) for other in others]
    for resource in _RESOURCES:
        asked = own.get(resource, Decimal(0))
        used = sum((requests.get(resource, Decimal(0)) for requests in held), Decimal(0))
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

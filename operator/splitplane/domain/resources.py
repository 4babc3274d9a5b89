"""What a pod asks of its node, counted once for operator and node agent as the scheduler counts it.

The rules are those of ``PodRequests`` in k8s.io/component-helpers/resource: a resize in place is not looked at.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from splitplane.domain.quantities import parse_quantity

_POD_LEVEL = ("cpu", "memory")
"""Resources that a pod as a whole may ask for, whatever its containers do; huge pages are left out."""


def is_sidecar(container: Mapping[str, Any]) -> bool:
    """Whether an init container runs beside the main ones."""
    return container.get("restartPolicy") == "Always"


def pod_requests(pod: Mapping[str, Any]) -> dict[str, Decimal]:
    """Amounts by resource, in base units (cores, bytes).

    Main containers and sidecars together, or the largest init step with the sidecars started before it, if that is
    more; the pod's own requests in their stead where it has some; and the overhead of its runtime class.
    """
    spec = pod.get("spec") or {}
    sidecars: dict[str, Decimal] = {}
    peak: dict[str, Decimal] = {}
    for container in spec.get("initContainers") or ():
        asked = _requests(container)
        if is_sidecar(container):
            sidecars = _sum((sidecars, asked))
            peak = _largest(peak, sidecars)
        else:
            peak = _largest(peak, _sum((sidecars, asked)))
    steady = _sum((sidecars, *(_requests(container) for container in spec.get("containers") or ())))
    total = _largest(steady, peak)
    total |= {name: amount for name, amount in _requests(spec).items() if name in _POD_LEVEL}
    return _sum((total, _amounts(spec.get("overhead"))))


def _requests(spec: Mapping[str, Any]) -> dict[str, Decimal]:
    """``resources.requests`` of a container, or of a pod's specification."""
    return _amounts((spec.get("resources") or {}).get("requests"))


def _amounts(quantities: Mapping[str, Any] | None) -> dict[str, Decimal]:
    return {name: parse_quantity(quantity) for name, quantity in (quantities or {}).items()}


def _sum(each: Iterable[Mapping[str, Decimal]]) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for amounts in each:
        for name, amount in amounts.items():
            total[name] = total.get(name, Decimal(0)) + amount
    return total


def _largest(one: Mapping[str, Decimal], other: Mapping[str, Decimal]) -> dict[str, Decimal]:
    return {name: max(one.get(name, Decimal(0)), other.get(name, Decimal(0))) for name in {**one, **other}}

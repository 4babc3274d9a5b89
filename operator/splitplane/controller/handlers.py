"""Kopf's part: indexes that mirror the cluster, and events that wake the loop. Nothing is decided here.

Raw events and indexes need no finalizers and no annotations: a namespace goes away with the operator down, and Kopf
never writes to anybody's objects.
"""

from collections.abc import Callable
from typing import Any

import kopf

from splitplane.controller.objects import (
    APP,
    COMPONENT_LABEL,
    NAME_LABEL,
    PIPELINE_LABEL,
    Object,
)

_OWN = ("pipelines", "profiles", "route_tables")
_RESOURCES: dict[str, tuple[str, str, str]] = {
    "pipelines": ("splitplane.dev", "v1alpha1", "inferencepipelines"),
    "profiles": ("splitplane.dev", "v1alpha1", "modelprofiles"),
    "route_tables": ("splitplane.dev", "v1alpha1", "routetables"),
    "nodes": ("", "v1", "nodes"),
    "deployments": ("apps", "v1", "deployments"),
    "jobs": ("batch", "v1", "jobs"),
    "config_maps": ("", "v1", "configmaps"),
}
_PODS = ("", "v1", "pods")
_SELECTED = ("deployments", "jobs", "config_maps")

# What a pod's copy keeps: enough to count its requests and to say what is wrong with it. Clusters have many pods.
_POD_METADATA = ("name", "namespace", "uid", "labels", "deletionTimestamp", "creationTimestamp", "resourceVersion")
_POD_STATUS = ("phase", "podIP", "conditions", "containerStatuses")


def register(registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings, wake: Callable[[], None]) -> None:
    """Register indexes and wake-up calls in ``registry``, and narrow the watches in ``settings``."""
    for name, resource in _RESOURCES.items():
        kopf.index(*resource, id=name, registry=registry)(_by_key)
    kopf.index(*_PODS, id="pods", registry=registry)(_by_component)
    kopf.index(*_PODS, id="pods_by_node", registry=registry)(_by_node)
    kopf.index(*_PODS, id="pods_by_pipeline", registry=registry)(_by_pipeline)

    def woken(**_: Any) -> None:
        wake()

    for resource in (*_RESOURCES.values(), _PODS):
        kopf.on.event(*resource, id="wake", registry=registry)(woken)
    for name in _SELECTED:
        settings.watching.label_selectors[_RESOURCES[name]] = f"{NAME_LABEL}={APP},{PIPELINE_LABEL}"


def _by_key(body: kopf.Body, namespace: str | None, name: str, **_: Any) -> dict[Any, Object]:
    return {(namespace or "", name): lean(body)}


def _by_component(body: kopf.Body, labels: kopf.Labels, **_: Any) -> dict[Any, Object] | None:
    """Only pods that are looked for over all pipelines: link targets and those that measure."""
    component = labels.get(COMPONENT_LABEL)
    if labels.get(NAME_LABEL) != APP or component not in ("link-target", "profile", "calibration"):
        return None
    return {component: lean_pod(body)}


def _by_node(body: kopf.Body, spec: kopf.Spec, **_: Any) -> dict[Any, Object] | None:
    node = spec.get("nodeName")
    return {node: lean_pod(body)} if node else None


def _by_pipeline(body: kopf.Body, namespace: str | None, labels: kopf.Labels, **_: Any) -> dict[Any, Object] | None:
    if labels.get(NAME_LABEL) != APP or PIPELINE_LABEL not in labels:
        return None
    return {(namespace or "", labels[PIPELINE_LABEL]): lean_pod(body)}


def lean(body: Any) -> Object:
    """An object without the records of who changed which field, and without nodes' lists of images."""
    found = dict(body)
    found["metadata"] = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    if "images" in (found.get("status") or {}):
        found["status"] = {key: value for key, value in found["status"].items() if key != "images"}
    return found


def lean_pod(body: Any) -> Object:
    """What the operator reads of a pod."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {key: body["metadata"][key] for key in _POD_METADATA if key in body["metadata"]},
        "spec": {
            "nodeName": spec.get("nodeName", ""),
            "containers": [_lean_container(item) for item in spec.get("containers") or ()],
            "initContainers": [_lean_container(item) for item in spec.get("initContainers") or ()],
            **{key: spec[key] for key in ("overhead", "resources") if key in spec},
        },
        "status": {key: status[key] for key in _POD_STATUS if key in status},
    }


def _lean_container(container: Any) -> Object:
    """What counts of a container towards the pod's requests."""
    found: Object = {"resources": {"requests": (container.get("resources") or {}).get("requests") or {}}}
    if "restartPolicy" in container:
        found["restartPolicy"] = container["restartPolicy"]
    return found

"""Reading Kubernetes objects as plain JSON: names, conditions. Pure."""

from collections.abc import Mapping
from typing import Any

NAME_LABEL = "app.kubernetes.io/name"
COMPONENT_LABEL = "app.kubernetes.io/component"
PIPELINE_LABEL = "splitplane.dev/pipeline"
STAGE_LABEL = "splitplane.dev/stage"
TIER_LABEL = "splitplane.dev/tier"
SITE_LABEL = "splitplane.dev/site"
MACHINE_LABEL = "splitplane.dev/machine"
"""Of a node, the name of the physical machine that it is on; the chart may say another one."""
SHARED_LABEL = "splitplane.dev/shared-tier"
"""On the pipeline of a site: the tier whose replicas all sites share."""
SITE = "site"
"""Component of a pipeline that was made for a site of another."""
APP = "splitplane"

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped objects) and name."""


def key_of(body: Mapping[str, Any]) -> Key:
    return body["metadata"].get("namespace", ""), body["metadata"]["name"]


def labels_of(body: Mapping[str, Any]) -> Mapping[str, str]:
    return body["metadata"].get("labels") or {}


def annotations_of(body: Mapping[str, Any]) -> Mapping[str, str]:
    return body["metadata"].get("annotations") or {}


def version_of(body: Mapping[str, Any]) -> int:
    """The resource version as a number: within one kind these can be compared."""
    text = body["metadata"].get("resourceVersion", "")
    return int(text) if text.isdecimal() else 0


def condition_of(body: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of type ``kind``, or an empty mapping."""
    for condition in (body.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def is_true(body: Mapping[str, Any], kind: str) -> bool:
    return condition_of(body, kind).get("status") == "True"


def is_terminating(body: Mapping[str, Any]) -> bool:
    return bool(body["metadata"].get("deletionTimestamp"))

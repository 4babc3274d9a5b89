"""The cluster as Kopf's indexes know it: every tick reads from here, and nothing is fetched.

What the operator has just written is laid over the indexes until the watch brings it back, so that a tick does not
decide on what the operator itself has already changed.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from splitplane.controller.objects import (
    APP,
    COMPONENT_LABEL,
    NAME_LABEL,
    PIPELINE_LABEL,
    Key,
    Object,
    key_of,
    labels_of,
    version_of,
)

_OVERLAY_SECONDS = 5.0

INDEXES = (
    "pipelines", "profiles", "route_tables", "nodes", "pods", "pods_by_node", "pods_by_pipeline",
    "deployments", "jobs", "config_maps",
)  # fmt: skip
"""Names of the indexes that this view reads; ``handlers.py`` fills them."""

_INDEX_OF_KIND = {
    "InferencePipeline": "pipelines",
    "ModelProfile": "profiles",
    "RouteTable": "route_tables",
    "Deployment": "deployments",
    "Job": "jobs",
    "ConfigMap": "config_maps",
}


class View:
    """Read access to the indexed objects. Returned objects are shared: never change them."""

    def __init__(self, indexes: Mapping[str, Mapping[Any, Iterable[Any]]]) -> None:
        self._indexes = indexes
        self._written: dict[tuple[str, Key], tuple[float, Object]] = {}

    def remember(self, body: Object) -> None:
        """Take note of an object as the API server returned it after a write."""
        index = _INDEX_OF_KIND.get(body["kind"])
        if index is not None:
            self._written[index, key_of(body)] = (time.monotonic(), body)

    def forget(self, kind: str, key: Key) -> None:
        """The operator has deleted this object, or found its copy to be out of date."""
        index = _INDEX_OF_KIND.get(kind)
        if index is not None:
            self._written.pop((index, key), None)

    def pipelines(self) -> list[Object]:
        return self._all("pipelines")

    def pipeline(self, key: Key) -> Object | None:
        return self._one("pipelines", key)

    def nodes(self) -> list[Object]:
        return self._all("nodes")

    def pods_on(self, node: str) -> list[Object]:
        return self._store("pods_by_node", node)

    def pods_by_node(self, nodes: Iterable[Object]) -> dict[str, list[Object]]:
        return {name: self.pods_on(name) for name in (node["metadata"]["name"] for node in nodes)}

    def pods_of(self, pipeline: Key, component: str = "") -> list[Object]:
        pods = self._store("pods_by_pipeline", pipeline)
        return [pod for pod in pods if not component or labels_of(pod).get(COMPONENT_LABEL) == component]

    def link_targets(self) -> list[Object]:
        """Pods of the chart's link targets, on all nodes."""
        return self._store("pods", "link-target")

    def measuring_pods(self) -> list[Object]:
        """Pods of all pipelines' jobs that measure a model."""
        return [pod for component in ("profile", "calibration") for pod in self._store("pods", component)]

    def deployments_of(self, pipeline: Key, component: str) -> dict[str, Object]:
        return {key_of(body)[1]: body for body in self._children("deployments", pipeline, component)}

    def jobs_of(self, pipeline: Key, component: str = "profile") -> dict[str, Object]:
        return {key_of(body)[1]: body for body in self._children("jobs", pipeline, component)}

    def jobs(self) -> list[Object]:
        return self._all("jobs")

    def config_map(self, key: Key) -> Object | None:
        return self._one("config_maps", key)

    def profile(self, key: Key) -> Object | None:
        return self._one("profiles", key)

    def profiles_in(self, namespace: str) -> list[Object]:
        return [body for body in self._all("profiles") if body["metadata"].get("namespace") == namespace]

    def route_table(self, key: Key) -> Object | None:
        return self._one("route_tables", key)

    def _children(self, index: str, pipeline: Key, component: str) -> list[Object]:
        namespace, name = pipeline
        found = []
        for body in self._all(index):
            labels = labels_of(body)
            if (
                body["metadata"].get("namespace") == namespace
                and labels.get(NAME_LABEL) == APP
                and labels.get(PIPELINE_LABEL) == name
                and labels.get(COMPONENT_LABEL) == component
            ):
                found.append(body)
        return found

    def _store(self, index: str, key: Any) -> list[Object]:
        mapping = self._indexes[index]
        return list(mapping[key]) if key in mapping else []

    def _one(self, index: str, key: Key) -> Object | None:
        seen = next(iter(self._store(index, key)), None)
        return self._newest(index, key, seen)

    def _all(self, index: str) -> list[Object]:
        keys = set(self._indexes[index]) | {key for name, key in self._written if name == index}
        bodies = (self._one(index, key) for key in sorted(keys))
        return [body for body in bodies if body is not None]

    def _newest(self, index: str, key: Key, seen: Object | None) -> Object | None:
        written = self._written.get((index, key))
        if written is None:
            return seen
        since, body = written
        if time.monotonic() - since > _OVERLAY_SECONDS or (seen is not None and version_of(seen) >= version_of(body)):
            del self._written[index, key]
            return seen
        return body

"""A Kubernetes API in memory, as far as the operator uses it: resource versions, preconditions, merges, ownership."""

import copy
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any

from splitplane.adapters.cluster import Change, Conflict, NotFound, Object
from splitplane.adapters.kinds import Kind
from splitplane.controller.handlers import lean_pod
from splitplane.controller.objects import COMPONENT_LABEL, PIPELINE_LABEL, labels_of
from splitplane.controller.view import INDEXES, View

_INDEX = {
    "InferencePipeline": "pipelines", "ModelProfile": "profiles", "RouteTable": "route_tables", "Node": "nodes",
    "Deployment": "deployments", "Job": "jobs", "ConfigMap": "config_maps",
}  # fmt: skip


class FakeCluster:
    """Implements the port ``Cluster``; ``view()`` shows what Kopf's indexes would."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.events: list[tuple[str, str, str]] = []
        self.writes: list[tuple[str, str, str]] = []
        self._versions = itertools.count(1)

    def put(self, body: Object) -> Object:
        """What somebody else writes."""
        body = copy.deepcopy(body)
        body["metadata"].setdefault("uid", f"uid-{next(self._versions)}")
        known = self.objects.get(self._key(body), {"metadata": {}})
        changed = known.get("spec") != body.get("spec")
        body["metadata"].setdefault("generation", known["metadata"].get("generation", 0) + changed)
        body["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[self._key(body)] = body
        return copy.deepcopy(body)

    def remove(self, kind: str, name: str, namespace: str = "") -> None:
        self.objects.pop((kind, namespace, name), None)

    def of(self, kind: str) -> dict[str, Object]:
        return {key[2]: body for key, body in self.objects.items() if key[0] == kind}

    def view(self) -> View:
        return View(_Indexes(self))

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Object:
        try:
            return copy.deepcopy(self.objects[kind.name, namespace, name])
        except KeyError:
            raise NotFound(name) from None

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", name: str = "") -> list[Object]:
        assert name, "only objects by name are listed"
        found = self.objects.get((kind.name, namespace, name))
        return [] if found is None else [copy.deepcopy(found)]

    def watch(self, kind: Kind, namespace: str = "", *, labels: str = "", name: str = "") -> AsyncIterator[Change]:
        raise NotImplementedError

    async def create(self, body: Object) -> Object:
        if self._key(body) in self.objects:
            raise Conflict("it exists")
        return self._write("create", {"metadata": {}, **body})

    async def apply(self, body: Object) -> Object:
        known = self.objects.get(self._key(body))
        wanted = body["metadata"].get("resourceVersion")
        if wanted and (known is None or known["metadata"]["resourceVersion"] != wanted):
            raise Conflict("it has changed")
        full = copy.deepcopy(body)
        if known is not None:
            full["metadata"]["uid"] = known["metadata"]["uid"]
            full["metadata"].pop("generation", None)
            full.update({part: known[part] for part in ("status", "data") if part in known and part not in body})
        return self._write("apply", full)

    async def merge(self, kind: Kind, name: str, namespace: str, patch: Mapping[str, Any]) -> Object:
        body = await self.get(kind, name, namespace)
        _merge(body, patch)
        return self._write("merge", body)

    async def patch_status(
        self, kind: Kind, name: str, namespace: str, status: Mapping[str, Any], *, resource_version: str = ""
    ) -> Object:
        body = await self.get(kind, name, namespace)
        if resource_version and body["metadata"]["resourceVersion"] != resource_version:
            raise Conflict("it has changed")
        _merge(body, {"status": status})
        return self._write("status", body)

    async def delete(self, kind: Kind, name: str, namespace: str = "", *, uid: str = "") -> None:
        if self.objects.pop((kind.name, namespace, name), None) is not None:
            self.writes.append(("delete", kind.name, name))

    async def create_event(self, regarding: Object, *, type: str, reason: str, message: str) -> None:  # noqa: A002
        self.events.append((type, reason, message))

    def _write(self, verb: str, body: Object) -> Object:
        self.writes.append((verb, body["kind"], body["metadata"]["name"]))
        return self.put(body)

    @staticmethod
    def _key(body: Object) -> tuple[str, str, str]:
        return body["kind"], body["metadata"].get("namespace", ""), body["metadata"]["name"]


class _Indexes(Mapping[str, Any]):
    """Live indexes over a cluster's objects."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def __getitem__(self, name: str) -> Mapping[Any, list[Object]]:
        found: dict[Any, list[Object]] = {}
        for (kind, namespace, own), body in self._cluster.objects.items():
            if kind == "Pod":
                for key in _pod_keys(name, namespace, body):
                    found.setdefault(key, []).append(lean_pod(body))
            elif _INDEX.get(kind) == name:
                found[namespace, own] = [body]
        return found

    def __iter__(self) -> Any:
        return iter(INDEXES)

    def __len__(self) -> int:
        return len(INDEXES)


def _pod_keys(index: str, namespace: str, body: Object) -> list[Any]:
    labels = labels_of(body)
    match index:
        case "pods":
            return [labels.get(COMPONENT_LABEL)]
        case "pods_by_node":
            return [body["spec"]["nodeName"]] if body["spec"].get("nodeName") else []
        case "pods_by_pipeline":
            return [(namespace, labels[PIPELINE_LABEL])] if PIPELINE_LABEL in labels else []
        case _:
            return []


def _merge(body: Object, patch: Mapping[str, Any]) -> None:
    for key, value in patch.items():
        if value is None:
            body.pop(key, None)
        elif isinstance(value, Mapping):
            _merge(body.setdefault(key, {}), value)
        else:
            body[key] = copy.deepcopy(value)

"""Follows the cluster: the pipeline's RouteTable and its stages' pods. The last seen stays when the API is away."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from splitplane.adapters.cluster import Change, Cluster, ClusterError
from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.runtime.gateway.endpoints import Pod
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.gateway.settings import Settings
from splitplane.runtime.gateway.store import Store

logger = logging.getLogger(__name__)

GRPC_PORT = 9000
RETRY_SECONDS = 5.0


def read_pod(obj: dict[str, Any]) -> Pod:
    """What the gateway needs of a Pod object: ready means reported so, with an address, and not being deleted."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    address = status.get("podIP") or ""
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
    return Pod(
        name=metadata["name"],
        stage=(metadata.get("labels") or {}).get("splitplane.dev/stage", ""),
        address=f"[{address}]:{GRPC_PORT}" if ":" in address else f"{address}:{GRPC_PORT}",
        ready=bool(ready and address and not metadata.get("deletionTimestamp")),
    )


class Watcher:
    """Brings what the cluster says into the router, and keeps it on disk for a start without the API server."""

    def __init__(self, router: Router, cluster: Cluster, store: Store, settings: Settings) -> None:
        self._router = router
        self._cluster = cluster
        self._store = store
        self._settings = settings
        self._pods: dict[str, Pod] = {}

    def restore(self) -> None:
        """Go on with what the last run of this pod knew; every endpoint is checked before it is used."""
        table = self._store.load_table()
        if table is not None and self._router.apply(table):
            logger.info("starting with the route table on disk")
        self._router.endpoints.replace(self._store.load_pods())

    async def run(self) -> None:
        """Watch, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(self._table_changes, self._on_table))
            group.create_task(self._follow(self._pod_changes, self._on_pod))

    async def _follow(self, changes: Any, handle: Any) -> None:
        """The watch reconnects by itself; what it gives up on (permissions, a missing kind) may be mended meanwhile."""
        while True:
            try:
                async for change in changes():
                    handle(change)
            except ClusterError as error:
                logger.warning("%s: trying again in %.0f s", error, RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)

    def _table_changes(self) -> AsyncIterator[Change]:
        settings = self._settings
        return self._cluster.watch(ROUTE_TABLE, settings.namespace, name=settings.route_table)

    def _pod_changes(self) -> AsyncIterator[Change]:
        settings = self._settings
        whose = f"={settings.pipeline}" if not settings.peers else f" in ({settings.pipeline},{settings.peers})"
        labels = f"splitplane.dev/pipeline{whose},app.kubernetes.io/component=stage"
        return self._cluster.watch(POD, self._settings.namespace, labels=labels)

    def _on_table(self, change: Change) -> None:
        if change.type == "DELETED":
            logger.warning("the route table was deleted; going on with generation %s", self._generation())
        elif change.type != "SYNCED" and self._router.apply(change.object):
            self._store.save_table(change.object)

    def _on_pod(self, change: Change) -> None:
        endpoints = self._router.endpoints
        if change.type == "SYNCED":
            endpoints.replace(self._pods.values())
        elif change.type == "DELETED":
            name = change.object["metadata"]["name"]
            self._pods.pop(name, None)
            endpoints.delete(name)
        else:
            pod = read_pod(change.object)
            if self._pods.get(pod.name) == pod:
                return
            self._pods[pod.name] = pod
            endpoints.update(pod)
        self._store.save_pods(pod for pod in self._pods.values() if pod.ready)

    def _generation(self) -> int | None:
        return self._router.table.generation if self._router.table else None

"""Writing children that are not what they should be: what is not indexed now and then, stages as they are wanted."""

import time
from collections.abc import Iterable, Mapping

from splitplane.adapters.cluster import Cluster
from splitplane.adapters.kinds import DEPLOYMENT
from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.children import DESIRED_ANNOTATION, StageKey, stage_deployment
from splitplane.controller.disruptions import stage_budget
from splitplane.controller.objects import Object, annotations_of, is_terminating
from splitplane.controller.rounds import Memory
from splitplane.controller.settings import Settings
from splitplane.controller.view import View

# What is not indexed is applied again now and then, in case somebody has changed or deleted it.
_REAPPLY_SECONDS = 300.0


class Applying:
    """Writes children of pipelines. Every method raises :class:`ClusterError`."""

    def __init__(self, *, cluster: Cluster, view: View, settings: Settings) -> None:
        self._cluster = cluster
        self._view = view
        self._settings = settings

    async def all(self, pipeline: InferencePipeline, bodies: Iterable[Object], memory: Memory) -> None:
        """Apply what does not depend on the plan, Deployments (which are indexed) only if they differ."""
        present = self._view.deployments_of((pipeline.metadata.namespace, pipeline.metadata.name), "gateway")
        for body in bodies:
            desired = annotations_of(body)[DESIRED_ANNOTATION]
            if body["kind"] != "Deployment":
                await self._unseen(body, desired, memory)
                continue
            seen = present.get(body["metadata"]["name"])
            if seen is None or annotations_of(seen).get(DESIRED_ANNOTATION) != desired:
                self._view.remember(await self._cluster.apply(body))

    async def stages(
        self, pipeline: InferencePipeline, wanted: Mapping[str, int], keys: Mapping[str, StageKey], memory: Memory,
        fingerprint: str,
    ) -> None:  # fmt: skip
        """Create, scale and delete a pipeline's stage Deployments, and their budgets, until they are as ``wanted``:
        replicas by name. ``keys`` tell what new ones hold."""
        namespace = pipeline.metadata.namespace
        present = self._view.deployments_of((namespace, pipeline.metadata.name), "stage")
        for name, replicas in sorted(wanted.items()):
            seen = present.get(name)
            if seen is None or is_terminating(seen):
                key = keys.get(name)
                if key is None or key.fingerprint != fingerprint:
                    continue  # of a model that the spec no longer has: it cannot be made again, only replaced
                body = stage_deployment(pipeline, key, replicas=replicas, settings=self._settings)
                if body["metadata"]["name"] != name:
                    continue
                seen = await self._cluster.apply(body)
                self._view.remember(seen)
            elif seen["spec"].get("replicas", 1) != replicas:
                scaled = await self._cluster.merge(DEPLOYMENT, name, namespace, {"spec": {"replicas": replicas}})
                self._view.remember(scaled)
            await self._unseen(stage_budget(seen), seen["metadata"]["uid"], memory)
        for name, seen in sorted(present.items()):
            if name not in wanted and not is_terminating(seen):
                await self._cluster.delete(DEPLOYMENT, name, namespace, uid=seen["metadata"]["uid"])
                self._view.forget("Deployment", (namespace, name))
                memory.applied.pop(("PodDisruptionBudget", name), None)  # the budget goes with its owner

    async def _unseen(self, body: Object, desired: str, memory: Memory) -> None:
        """Apply what is not indexed. A copy that somebody has changed or deleted is mended after a while."""
        key = body["kind"], body["metadata"]["name"]
        digest, since = memory.applied.get(key, ("", 0.0))
        if digest != desired or time.monotonic() - since >= _REAPPLY_SECONDS:
            await self._cluster.apply(body)
            memory.applied[key] = (desired, time.monotonic())

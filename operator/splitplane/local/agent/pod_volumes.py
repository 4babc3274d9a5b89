"""The volumes of one pod: made before its first container starts, then kept up to date."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from splitplane.local.agent import volumes
from splitplane.local.agent.api import Object
from splitplane.local.agent.errors import StartError
from splitplane.local.agent.following import Key
from splitplane.local.agent.services import Services

log = logging.getLogger(__name__)

_RETRY_SECONDS = 10.0
_CLUSTER_AUTHORITY = "kube-root-ca.crt"


class PodVolumes:
    """Folders of a pod's volumes, by volume name."""

    def __init__(self, services: Services, pod: Object, pod_dir: Path, pod_ip: str) -> None:
        self._services = services
        self._pod = pod
        self._dir = pod_dir
        self._ip = pod_ip
        self._folders: dict[str, Path] | None = None
        self._renew_at = float("inf")
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._releases: list[Callable[[], None]] = []

    def update(self, pod: Object) -> None:
        """The pod has changed: its labels and annotations may be in files."""
        before, now = self._pod["metadata"], pod["metadata"]
        self._pod = pod
        if any(before.get(key) != now.get(key) for key in ("labels", "annotations")):
            self._changed.set()

    async def ready(self) -> dict[str, Path]:
        """The folders, made and filled. Raises StartError with what is missing."""
        if self._folders is None:
            folders = {}
            for volume in self._pod["spec"].get("volumes", []):
                folders[volume["name"]] = await volumes.folder_of(volume, self._pod, self._dir, self._services.reader)
            await self._fill()
            self._folders = folders
            follower, namespace = self._services.follower, self._pod["metadata"]["namespace"]
            for resource, name in sorted(self._references()):
                key: Key = (resource, namespace, name)
                self._releases.append(follower.follow(key, self._changed.set))
            self._task = asyncio.create_task(self._follow())
        return self._folders

    def _references(self) -> set[tuple[str, str]]:
        """What is watched. Not the cluster's authority: it stays, and every pod has it mounted."""
        found = volumes.references(self._pod)
        found.discard(("configmaps", _CLUSTER_AUTHORITY))
        return found

    async def _fill(self) -> None:
        services, renewals = self._services, []
        for volume in self._pod["spec"].get("volumes", []):
            content = await volumes.content_of(volume, self._pod, services.reader, pod_ip=self._ip, node=services.facts)
            if content is None:
                continue
            volumes.write(self._dir / "volumes" / volume["name"], content)
            if content.renew_at is not None:
                renewals.append(content.renew_at)
        self._renew_at = min(renewals, default=float("inf"))

    async def _follow(self) -> None:
        while True:
            left = self._renew_at - time.time()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), None if left == float("inf") else max(0.0, left))
            self._changed.clear()
            try:
                await self._fill()
            except (StartError, OSError) as error:
                # What is there stays, as with kubelet: a deleted ConfigMap does not take files from a running pod.
                log.warning("volumes of %s not renewed: %s", self._pod["metadata"]["name"], error)
                self._renew_at = time.time() + _RETRY_SECONDS

    def close(self) -> None:
        """Follow no more."""
        for release in self._releases:
            release()
        self._releases.clear()
        if self._task is not None:
            self._task.cancel()

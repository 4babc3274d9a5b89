"""The volumes of one pod: made before its first container starts, then kept up to date."""

import asyncio
import logging
import time
from pathlib import Path

from splitplane.local.agent import volumes
from splitplane.local.agent.api import Object
from splitplane.local.agent.errors import ApiError, StartError
from splitplane.local.agent.services import Services

log = logging.getLogger(__name__)

_LOOK_SECONDS = 10.0


class PodVolumes:
    """Folders of a pod's volumes, by volume name."""

    def __init__(self, services: Services, pod: Object, pod_dir: Path, pod_ip: str) -> None:
        self._services = services
        self._pod = pod
        self._dir = pod_dir
        self._ip = pod_ip
        self._folders: dict[str, Path] | None = None
        self._renew_at = float("inf")
        self._task: asyncio.Task[None] | None = None

    def update(self, pod: Object) -> None:
        """The pod has changed: its labels and annotations may be in files."""
        self._pod = pod

    async def ready(self) -> dict[str, Path]:
        """The folders, made and filled. Raises StartError with what is missing."""
        if self._folders is None:
            folders = {}
            for volume in self._pod["spec"].get("volumes", []):
                folders[volume["name"]] = await volumes.folder_of(volume, self._pod, self._dir, self._services.reader)
            await self._fill()
            self._folders = folders
            if any(volumes.kind_of(v) in volumes.API_KINDS for v in self._pod["spec"].get("volumes", [])):
                self._task = asyncio.create_task(self._follow())
        return self._folders

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
            await asyncio.sleep(max(1.0, min(_LOOK_SECONDS, self._renew_at - time.time())))
            try:
                await self._fill()
            except (StartError, ApiError) as error:
                log.warning("volumes of %s not renewed: %s", self._pod["metadata"]["name"], error)

    def close(self) -> None:
        """Follow no more."""
        if self._task is not None:
            self._task.cancel()

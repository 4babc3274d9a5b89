"""File-backed volumes: a folder of this machine for every claim of the StorageClass ``local-file``.

All nodes are this machine, so that every access mode holds, ReadWriteMany included.
"""

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Any

from splitplane.local.http import ApiClient, ApiError
from splitplane.local.manifests import PROVISIONER, STORAGE_CLASS

PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"

_log = logging.getLogger(__name__)


def volume_for(claim: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The PersistentVolume that answers ``claim``, backed by ``folder``."""
    metadata, spec = claim["metadata"], claim["spec"]
    reference = {key: metadata[key] for key in ("namespace", "name", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"pvc-{metadata['uid']}", "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "storageClassName": STORAGE_CLASS,
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference},
            "hostPath": {"path": str(folder), "type": "DirectoryOrCreate"},
        },
    }


def wants_volume(claim: dict[str, Any]) -> bool:
    """Whether the claim waits for this provisioner."""
    spec = claim["spec"]
    return (
        spec.get("storageClassName") == STORAGE_CLASS
        and spec.get("volumeMode", "Filesystem") == "Filesystem"
        and not spec.get("volumeName")
        and not claim["metadata"].get("deletionTimestamp")
    )


class VolumeProvisioner:
    """Creates volumes for waiting claims, and removes volumes and their files once released."""

    def __init__(self, api: ApiClient, folder: Path) -> None:
        self._api = api
        self._folder = folder

    async def run(self, *, interval_seconds: float = 1.0) -> None:
        """Look once per interval, for ever."""
        while True:
            try:
                await self.reconcile()
            except ApiError as error:
                _log.info("volumes: %s", error)
            await asyncio.sleep(interval_seconds)

    async def reconcile(self) -> None:
        volumes = (await self._api.get("/api/v1/persistentvolumes"))["items"]
        ours = [v for v in volumes if v["metadata"].get("annotations", {}).get(PROVISIONED_BY) == PROVISIONER]
        names = {volume["metadata"]["name"] for volume in ours}
        for claim in (await self._api.get("/api/v1/persistentvolumeclaims"))["items"]:
            if wants_volume(claim) and f"pvc-{claim['metadata']['uid']}" not in names:
                await self._provide(claim)
        for volume in ours:
            released = volume.get("status", {}).get("phase") == "Released"
            if released and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
                await self._remove(volume["metadata"]["name"])

    async def _provide(self, claim: dict[str, Any]) -> None:
        metadata = claim["metadata"]
        folder = self._folder / f"{metadata['namespace']}-{metadata['name']}-{metadata['uid'][:8]}"
        volume = volume_for(claim, folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            await self._api.create("/api/v1/persistentvolumes", volume)
        except ApiError as error:
            if error.status != 409:  # a list that was a moment old
                raise
        _log.info("volume for claim %s/%s: %s", metadata["namespace"], metadata["name"], folder)

    async def _remove(self, name: str) -> None:
        path = f"/api/v1/persistentvolumes/{name}"
        folder = Path((await self._api.get(path))["spec"]["hostPath"]["path"])
        if folder.parent == self._folder:  # never follow a path that somebody edited
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await self._api.delete(path)
        _log.info("volume %s removed", name)

"""What pods need of the API server beside themselves: configuration, secrets, claims and tokens."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from splitplane.domain.times import instant
from splitplane.local.agent.api import Api, Object, path_of
from splitplane.local.agent.errors import ApiError, StartError


async def _soon(attempt: Callable[[], Awaitable[Object]]) -> Object:
    """A request about a pod just bound: the node authorizer learns of the pod a moment later than its agent may."""
    for pause in (0.05, 0.1, 0.2, 0.4, 0.8):
        try:
            return await attempt()
        except ApiError as error:
            if error.status != 403 and not error.retriable:
                raise
        await asyncio.sleep(pause)
    return await attempt()


class ClusterReader:
    """Reads with the node's rights; see :class:`splitplane.local.agent.volumes.Reader`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def _maybe(self, path: str) -> Object | None:
        try:
            return await _soon(lambda: self._api.get(path))
        except ApiError as error:
            if error.status == 404:
                return None
            raise StartError("ContainerCreating", str(error)) from error

    async def config_map(self, namespace: str, name: str) -> Object | None:
        """A ConfigMap, None if it does not exist."""
        return await self._maybe(path_of("configmaps", namespace=namespace, name=name))

    async def secret(self, namespace: str, name: str) -> Object | None:
        """A Secret, None if it does not exist."""
        return await self._maybe(path_of("secrets", namespace=namespace, name=name))

    async def claimed(self, namespace: str, claim: str) -> Object:
        """The PersistentVolume bound to a claim. Raises :class:`StartError` if there is none."""
        found = await self._maybe(path_of("persistentvolumeclaims", namespace=namespace, name=claim))
        if found is None:
            raise StartError("ContainerCreating", f'persistentvolumeclaim "{claim}" not found')
        volume = found["spec"].get("volumeName")
        if not volume or found.get("status", {}).get("phase") != "Bound":
            raise StartError("ContainerCreating", f'persistentvolumeclaim "{claim}" is not bound to a volume yet')
        bound = await self._maybe(path_of("persistentvolumes", name=volume))
        if bound is None:
            raise StartError("ContainerCreating", f'persistentvolume "{volume}" of claim "{claim}" not found')
        return bound

    async def token(self, pod: Mapping[str, Any], *, audience: str | None, seconds: int) -> tuple[str, float]:
        """A token of the pod's service account, bound to the pod, and when it ends (seconds since the epoch)."""
        meta = pod["metadata"]
        spec: Object = {
            "expirationSeconds": seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
        }
        if audience:
            spec["audiences"] = [audience]
        account = pod["spec"].get("serviceAccountName") or "default"
        path = path_of("serviceaccounts", namespace=meta["namespace"], name=account, sub="token")
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        try:
            answer = await _soon(lambda: self._api.create(path, body))
        except ApiError as error:
            raise StartError("ContainerCreating", f'no token of service account "{account}": {error}') from error
        ends = instant(answer["status"]["expirationTimestamp"])
        assert ends is not None
        return str(answer["status"]["token"]), ends

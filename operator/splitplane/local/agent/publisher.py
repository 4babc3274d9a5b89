"""Brings a pod's status to the API server: always the latest, again after failures, never holding up the pod.

Others write there too: the control plane marks the pods of a node unready that it holds for lost. What the agent has
sent once is therefore sent again when the pod has been written since, or a ready pod would stay unready for ever.
"""

import asyncio
import copy
import logging
from collections.abc import Callable

from splitplane.local.agent.api import Api, Object, path_of
from splitplane.local.agent.errors import ApiError

log = logging.getLogger(__name__)


class Publisher:
    """Patches the status of one pod, and deletes the pod when it has ended and its deletion was asked for."""

    def __init__(self, api: Api, pod: Object) -> None:
        self._api = api
        self._pod = pod
        meta = pod["metadata"]
        self._uid = meta["uid"]
        self._path = path_of("pods", namespace=meta["namespace"], name=meta["name"])
        self._build: Callable[[Object], Object] | None = None
        self._delete = False
        self._sent: tuple[Object, int] | None = None
        """The status that was sent last, and the version of the pod that it made."""
        self._wanted = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"status of {self._path}")

    def seen(self, pod: Object) -> None:
        """The API server's present version, or an earlier one: the watch may lag behind our own writes."""
        if _version(pod) > _version(self._pod):
            self._pod = pod

    def publish(self, build: Callable[[Object], Object], *, delete: bool) -> None:
        """Publish what `build` makes from the present pod; `delete` then ends the pod's object."""
        self._build = build
        self._delete = delete
        self._wanted.set()

    def close(self) -> None:
        """Publish nothing more."""
        self._task.cancel()

    async def _run(self) -> None:
        pause = 0.2
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.push()
                pause = 0.2
            except ApiError as error:
                if error.status in {404, 409} and await self._is_gone():
                    return
                log.warning("status not published: %s; again in %.1f s", error, pause)
                self._wanted.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def _is_gone(self) -> bool:
        """Whether the pod is no longer there, or another of the same name is; the watch will tell the rest."""
        try:
            present = await self._api.get(self._path)
        except ApiError as error:
            return error.status == 404
        return bool(present["metadata"]["uid"] != self._uid)

    async def push(self) -> None:
        """Send what is wanted now. Raises :class:`ApiError`."""
        if self._build is None:
            return
        delete = self._delete
        wanted = self._build(self._pod)
        if (wanted, _version(self._pod)) != self._sent:
            body = {"metadata": {"uid": self._uid}, "status": wanted}
            written = await self._api.patch(self._path + "/status", body)
            self._sent = copy.deepcopy(wanted), _version(written)
            self.seen(written)
        if delete:
            await self._api.delete(self._path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self._uid}})
            self._delete = False


def _version(pod: Object) -> int:
    """Versions of one object can be compared: the API server's are those of etcd."""
    return int(pod["metadata"]["resourceVersion"])

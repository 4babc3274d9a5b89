"""Events that tell a pod's story to ``kubectl describe``. Repeated ones are counted, not multiplied."""

import asyncio
import logging
import time
from collections import OrderedDict
from typing import Literal

from splitplane.domain.times import timestamp
from splitplane.local.agent.api import Api, Object, path_of
from splitplane.local.agent.errors import ApiError

log = logging.getLogger(__name__)

COMPONENT = "splitplane-node-agent"
_REMEMBERED = 512
_QUEUED = 1000
_ALL_SENT = 8

Kind = Literal["Normal", "Warning"]


class Events:
    """Sends events in the background, one after another; loses them rather than holding up a pod."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self._queue: asyncio.Queue[tuple[Object, Kind, str, str, str, float]] = asyncio.Queue(_QUEUED)
        self._known: OrderedDict[tuple[str, ...], tuple[str, int]] = OrderedDict()

    def pod(self, pod: Object, reason: str, message: str, *, kind: Kind = "Normal", container: str = "") -> None:
        """Record an event about a pod, or one container of it."""
        field = f"spec.containers{{{container}}}" if container else ""
        inits = {c["name"] for c in pod["spec"].get("initContainers", [])}
        if container in inits:
            field = f"spec.initContainers{{{container}}}"
        meta = pod["metadata"]
        reference = {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
        }
        self._put(reference, kind, reason, message, field)

    def node(self, reason: str, message: str, *, kind: Kind = "Normal") -> None:
        """Record an event about the node."""
        reference = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node}
        self._put(reference, kind, reason, message, "")

    def _put(self, reference: Object, kind: Kind, reason: str, message: str, field: str) -> None:
        try:
            self._queue.put_nowait((reference, kind, reason, message, field, time.time()))
        except asyncio.QueueFull:
            log.warning("too many events waiting; dropped %s: %s", reason, message)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            item = await self._queue.get()
            try:
                await self._send(*item)
            except ApiError as error:
                # A namespace that is going away refuses new events; anything else is worth a line.
                log.log(logging.DEBUG if error.status in {403, 404} else logging.WARNING, "event lost: %s", error)
            finally:
                self._queue.task_done()

    async def flush(self, seconds: float) -> None:
        """Wait for what is queued, at most so long."""
        try:
            await asyncio.wait_for(self._queue.join(), seconds)
        except TimeoutError:
            log.info("%d events were not sent", self._queue.qsize())

    async def _send(self, reference: Object, kind: Kind, reason: str, message: str, field: str, moment: float) -> None:
        namespace = reference.get("namespace", "default")
        key = (reference["uid"], field, kind, reason, message)
        if key in self._known:
            name, count = self._known[key]
            count += 1
            self._known[key] = (name, count)
            self._known.move_to_end(key)
            if count > _ALL_SENT and count & (count - 1):
                return  # of a flood only every doubling is sent
            patch = {"count": count, "lastTimestamp": timestamp(moment)}
            try:
                await self._api.patch(path_of("events", namespace=namespace, name=name), patch)
                return
            except ApiError as error:
                if error.status != 404:
                    raise
        name = f"{reference['name']}.{time.time_ns():x}"
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": reference | ({"fieldPath": field} if field else {}),
            "reason": reason,
            "message": message[:1024],
            "type": kind,
            "count": 1,
            "firstTimestamp": timestamp(moment),
            "lastTimestamp": timestamp(moment),
            "source": {"component": COMPONENT, "host": self._node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._node,
        }
        await self._api.create(path_of("events", namespace=namespace), body)
        self._known[key] = (name, 1)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

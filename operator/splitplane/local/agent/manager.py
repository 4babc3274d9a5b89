"""All pods bound to the node: from the watch to a worker each."""

import asyncio
import logging
import shutil
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from splitplane.local.agent import admission, state
from splitplane.local.agent.api import Object, path_of
from splitplane.local.agent.errors import ApiError
from splitplane.local.agent.pod import PodWorker
from splitplane.local.agent.process import members, same, send
from splitplane.local.agent.reflector import Change, Reflector
from splitplane.local.agent.services import Services
from splitplane.local.agent.state import Ended, PodRecord

log = logging.getLogger(__name__)

_FAULT = "NodeAgentFault"


class PodManager:
    """Admits, runs and forgets the node's pods."""

    def __init__(self, services: Services, records: dict[str, PodRecord]) -> None:
        self._services = services
        self._records = records
        self._reflector = Reflector(
            services.api,
            path_of("pods"),
            self._notify,
            field_selector=f"spec.nodeName={services.config.node}",
        )
        self._background: set[asyncio.Task[None]] = set()
        self.workers: dict[str, PodWorker] = {}

    async def run(self) -> None:
        """Follow the node's pods until cancelled."""
        forget = asyncio.create_task(self._forget_absent())
        try:
            await self._reflector.run()
        finally:
            forget.cancel()

    def find(self, namespace: str, name: str) -> PodWorker | None:
        """The worker of a pod by name."""
        found = [w for w in self.workers.values() if (w.record.namespace, w.record.name) == (namespace, name)]
        return found[-1] if found else None

    async def _forget_absent(self) -> None:
        """Remove what is on disk of pods that went while no agent ran."""
        await self._reflector.synced.wait()
        for folder in list(self._services.config.pods_dir.iterdir()):
            if folder.name not in self.workers and folder.name not in self._reflector.items:
                self._forget(folder, self._records.pop(folder.name, None))

    def _forget(self, folder: Path, record: PodRecord | None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if record is not None and record.ip and record.ip != str(self._services.config.node_address):
            self._services.addresses.give_back(record.ip)

    def _notify(self, change: Change, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        worker = self.workers.get(uid)
        if change == "deleted":
            if worker is not None:
                worker.removed()
        elif worker is not None:
            worker.update(pod)
        else:
            self._take_in(pod)

    def _take_in(self, pod: Object) -> None:
        meta = pod["metadata"]
        uid = meta["uid"]
        record = self._records.pop(uid, None)
        if record is None:
            if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
                if "deletionTimestamp" in meta:
                    self._spawn(self._delete(pod))
                return
            record = PodRecord(namespace=meta["namespace"], name=meta["name"], uid=uid, admitted_at=time.time())
            record.failed = self._refusal(pod)
            if record.failed is not None:
                self._services.events.pod(pod, record.failed.reason, record.failed.message, kind="Warning")
            elif pod["spec"].get("hostNetwork"):
                record.ip = str(self._services.config.node_address)
            else:
                record.ip = self._services.addresses.take()
        worker = PodWorker(self._services, pod, record)
        self.workers[uid] = worker
        self._spawn(self._attend(worker))

    def _refusal(self, pod: Object) -> state.Waiting | None:
        config = self._services.config
        waiting = [self._reflector.items[uid] for uid in self._records if uid in self._reflector.items]
        others = [worker.pod for worker in self.workers.values() if worker.active] + waiting
        allocatable = {"cpu": config.cpu, "memory": config.memory, "pods": str(config.max_pods)}
        return admission.refusal(pod, others, allocatable)

    async def _attend(self, worker: PodWorker) -> None:
        try:
            await worker.finished()
        except asyncio.CancelledError:
            return
        except Exception as error:
            await self._contain(worker, error)
            return
        self.workers.pop(worker.record.uid, None)
        self._forget(worker.directory, worker.record)

    async def _contain(self, worker: PodWorker, error: Exception) -> None:
        """A fault of the agent in one pod ends that pod, openly, and no other."""
        record = worker.record
        log.error("pod %s/%s cannot be run", record.namespace, record.name, exc_info=error)
        if record.failed is not None and record.failed.reason == _FAULT:
            return
        why = f"the node agent cannot run this pod: {type(error).__name__}: {error}"
        record.failed = state.Waiting(reason=_FAULT, message=why)
        self._services.events.pod(worker.pod, _FAULT, why, kind="Warning")
        await worker.abandon()
        successor = PodWorker(self._services, worker.pod, record)
        self.workers[record.uid] = successor
        self._spawn(self._attend(successor))

    async def _delete(self, pod: Object) -> None:
        meta = pod["metadata"]
        path = path_of("pods", namespace=meta["namespace"], name=meta["name"])
        try:
            await self._services.api.delete(path, {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})
        except ApiError as error:
            if error.status not in {404, 409}:
                log.warning("%s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def shut_down(self, bound: float) -> None:
        """End all pods' processes within `bound` seconds."""
        await asyncio.gather(*(worker.shut_down(bound) for worker in self.workers.values()))


def take_over(pods_dir: Path) -> dict[str, PodRecord]:
    """The records that a former agent left, by pod UID, with every process that it left ended.

    Back-offs are forgotten, as a kubelet forgets them: that a node was switched off is no fault of its pods.
    """
    records = {}
    pods_dir.mkdir(parents=True, exist_ok=True)
    for folder in pods_dir.iterdir():
        record = state.load(folder)
        if record is None:
            continue
        for container in record.containers.values():
            container.backoff = None
            run = container.run
            if run is None:
                continue
            if same(run.pid, run.start_ticks):
                send(members(run.pid, run.container_id), signal.SIGKILL)
            container.finish(
                Ended(
                    container_id=run.container_id,
                    exit_code=137,
                    reason="Error",
                    message="the node went down with this container: its agent was killed or crashed",
                    started_at=run.started_at,
                    finished_at=time.time(),
                )
            )
        record.volumes_ready = False
        records[record.uid] = record
    return records

"""One pod on the node: carries out what :mod:`lifecycle` decides, and publishes what :mod:`status` builds."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitplane.domain.times import instant
from splitplane.local.agent import environment, lifecycle, logs, starts, state, status
from splitplane.local.agent.api import Object
from splitplane.local.agent.container import prepare
from splitplane.local.agent.environment import Sources
from splitplane.local.agent.errors import ApiError, StartError
from splitplane.local.agent.pod_volumes import PodVolumes
from splitplane.local.agent.process import Process
from splitplane.local.agent.publisher import Publisher
from splitplane.local.agent.runner import Runner
from splitplane.local.agent.services import Services
from splitplane.local.agent.state import Ended, Failure, PodRecord, Waiting

log = logging.getLogger(__name__)

_LAST_STATUS_SECONDS = 1.0


class PodWorker:
    """Runs a pod from its admission to its removal."""

    def __init__(self, services: Services, pod: Object, record: PodRecord) -> None:
        self.pod = pod
        self.record = record
        self.runners: dict[str, Runner] = {}
        self._services = services
        self._dir = services.config.pods_dir / record.uid
        self._changed = asyncio.Event()
        self._gone = False
        self._volumes = PodVolumes(services, pod, self._dir, record.ip)
        self._publisher = Publisher(services.api, pod)
        self._task = asyncio.create_task(self._run(), name=f"pod {record.namespace}/{record.name}")

    @property
    def directory(self) -> Path:
        """The pod's folder."""
        return self._dir

    @property
    def active(self) -> bool:
        """Whether the pod still holds resources of the node."""
        return self.record.failed is None and self.record.phase not in {"Succeeded", "Failed"}

    def update(self, pod: Object) -> None:
        """The API server has a newer version of the pod."""
        self.pod = pod
        self._publisher.seen(pod)
        self._volumes.update(pod)
        ends = instant(pod["metadata"].get("deletionTimestamp"))
        if ends is not None:
            for runner in self.runners.values():
                runner.kill_within(ends - time.time() + 1.0)
        self._changed.set()

    def removed(self) -> None:
        """The pod is no longer in the API: end what runs, publish nothing more."""
        self._gone = True
        self._publisher.close()
        meta = self.pod["metadata"]
        self.pod = {**self.pod, "metadata": {**meta, "deletionTimestamp": "gone", "deletionGracePeriodSeconds": 1}}
        for runner in self.runners.values():
            runner.kill_within(1.0)
        self._changed.set()

    async def finished(self) -> None:
        """Wait until the pod has left this node. Raises what has broken the worker."""
        await self._task

    async def _run(self) -> None:
        try:
            while True:
                self._changed.clear()
                decision = lifecycle.decide(self.pod, self.record, time.time())
                if decision.fail is not None:
                    self._event(decision.fail.reason, decision.fail.message, warning=True)
                    self.record.failed = decision.fail
                    continue
                for stop in decision.stop:
                    self._stop(stop)
                queued = [name for name in decision.start if not await self._start_in_turn(name)]
                if len(queued) < len(decision.start):
                    continue
                decision = _in_queue(decision, queued)
                self._back_off_events(decision)
                self.record.phase = decision.phase
                self._save()
                self._publish(decision)
                if decision.over and self._gone:
                    return
                await self._pause(decision.wake_at)
        finally:
            self._volumes.close()

    async def _pause(self, wake_at: float | None) -> None:
        timeout = None if wake_at is None else max(0.0, wake_at - time.time()) + 0.01
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout)

    def _save(self) -> None:
        try:
            state.save(self.record, self._dir)
        except OSError as error:
            # Only a restarted agent would miss it, and it ends what it finds running all the same.
            log.warning("the record of %s/%s is not saved: %s", self.record.namespace, self.record.name, error)

    def _publish(self, decision: lifecycle.Decision) -> None:
        if self._gone:
            return
        address = str(self._services.config.node_address)
        now = time.time()
        self._publisher.publish(
            lambda pod: status.build(pod, self.record, decision, node_address=address, now=now),
            delete=decision.over and "deletionTimestamp" in self.pod["metadata"],
        )

    def _event(self, reason: str, message: str, *, warning: bool = False, container: str = "") -> None:
        kind: Any = "Warning" if warning else "Normal"
        self._services.events.pod(self.pod, reason, message, kind=kind, container=container)

    def _back_off_events(self, decision: lifecycle.Decision) -> None:
        for name, waiting in decision.waiting.items():
            shown = self.pod.get("status", {}).get("containerStatuses", [])
            before: Object = next((c["state"] for c in shown if c["name"] == name), {})
            if waiting.reason == "CrashLoopBackOff" and before.get("waiting", {}).get("message") != waiting.message:
                self._event("BackOff", waiting.message, warning=True, container=name)

    def _stop(self, stop: lifecycle.Stop) -> None:
        self._event("Killing", f"Stopping container {stop.name}: {stop.message}", container=stop.name)
        self.runners[stop.name].stop(stop.grace)

    async def _start_in_turn(self, name: str) -> bool:
        """Start a container, unless it has to wait for its turn. Returns whether that was tried."""
        container = next(c for c in lifecycle.all_containers(self.pod) if c["name"] == name)
        if not starts.in_turns(container):
            await self._start(container, None)
            return True
        turn = self._services.turns.take()
        if turn is None:
            return False
        runs = False
        try:
            runs = await self._start(container, turn)
        finally:
            if not runs:
                turn.end()
        return True

    async def _start(self, container: Mapping[str, Any], turn: starts.Turn | None) -> bool:
        """Start a container; returns whether it runs, and so ends its turn itself."""
        name = container["name"]
        record = self.record.container(name)
        services = self._services
        try:
            volumes = await self._volumes.ready()
            self.record.volumes_ready = True
            launch = prepare(
                self.pod,
                container,
                config=services.config,
                node=services.facts,
                sources=await self._sources(container),
                volumes=volumes,
                pod_dir=self._dir,
                pod_ip=self.record.ip,
            )
        except StartError as error:
            self._could_not_start(name, error)
            return False
        if record.ended is not None:
            record.backoff = lifecycle.raised(record.backoff, time.time())
        container_id = f"splitplane-process://{self.record.uid}.{name}.{record.runs}"
        log_path = logs.log_file(self._dir, name, record.runs)
        record.runs += 1
        record.failure = None
        bin_dir = launch.env["PATH"].split(":", 1)[0]
        self._event("Pulled", f'Image "{container["image"]}" is the local environment {bin_dir}', container=name)
        writer = logs.LogWriter(log_path)
        try:
            process = Process.start(
                launch.argv,
                env=launch.env,
                cwd=launch.cwd,
                container_id=container_id,
                on_output=writer,
            )
        except (OSError, ValueError) as error:
            writer(None)
            why = f"cannot execute {launch.argv[0]!r}: {getattr(error, 'strerror', None) or error}"
            now = time.time()
            record.finish(
                Ended(
                    container_id=container_id,
                    exit_code=128,
                    reason="StartError",
                    message=why,
                    started_at=now,
                    finished_at=now,
                )
            )
            self._event("Failed", f"Error: {why}", warning=True, container=name)
            return False
        services.guard.started(process.pid, process.start_ticks, container_id)
        runner = Runner(
            container=container,
            record=record,
            launch=launch,
            process=process,
            log=log_path,
            address=self.record.ip,
            turn=turn,
            changed=self._changed.set,
            event=lambda reason, text, warning: self._event(reason, text, warning=warning, container=name),
        )
        self.runners[name] = runner
        runner.done.add_done_callback(lambda _: self._ended(name, runner))
        self._save()
        self._event("Created", f"Container created: {name}", container=name)
        self._event("Started", f"Container started: {name} (process {process.pid})", container=name)
        return True

    def _ended(self, name: str, runner: Runner) -> None:
        # The container may have been started again before this is called.
        if self.runners.get(name) is runner:
            del self.runners[name]
        self._services.guard.ended(runner.process.pid)
        self._changed.set()

    def _could_not_start(self, name: str, error: StartError) -> None:
        record = self.record.container(name)
        attempts = record.failure.attempts + 1 if record.failure else 1
        waiting = Waiting(reason=error.reason, message=error.message)
        if record.failure is None or record.failure.waiting != waiting:
            attempts = 1
        record.failure = Failure(waiting=waiting, at=time.time(), attempts=attempts)
        reason = "FailedMount" if error.reason == "ContainerCreating" else "Failed"
        self._event(reason, error.message, warning=True, container=name)

    async def _sources(self, container: Mapping[str, Any]) -> Sources:
        maps, secrets = environment.referenced(container)
        namespace, reader = self.record.namespace, self._services.reader
        return Sources(
            config_maps={name: await reader.config_map(namespace, name) for name in maps},
            secrets={name: await reader.secret(namespace, name) for name in secrets},
        )

    async def abandon(self) -> None:
        """Kill the pod's processes and publish nothing more: the worker has broken."""
        self._publisher.close()
        ends = [runner.done for runner in self.runners.values()]
        for runner in self.runners.values():
            runner.process.kill()
        if ends:
            await asyncio.wait(ends)

    async def shut_down(self, bound: float) -> None:
        """End the pod's processes within `bound` seconds, for the agent is stopping; the pod itself lives on."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._publisher.close()
        grace = min(bound, lifecycle.grace_of(self.pod))
        ends = [runner.done for runner in self.runners.values()]
        for runner in self.runners.values():
            runner.stop(grace)
        if ends:
            await asyncio.wait(ends, timeout=bound + 1)
        self._save()
        self._publish(lifecycle.decide(self.pod, self.record, time.time()))
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(_LAST_STATUS_SECONDS):
                await self._publisher.push()


def _in_queue(decision: lifecycle.Decision, names: Sequence[str]) -> lifecycle.Decision:
    """The decision while these containers wait for a turn to start."""
    if not names:
        return decision
    wait = Waiting(reason="ContainerCreating", message="waits until other containers on this machine have started")
    soon = time.time() + starts.POLL_SECONDS
    return replace(
        decision,
        waiting={**decision.waiting, **dict.fromkeys(names, wait)},
        wake_at=soon if decision.wake_at is None else min(soon, decision.wake_at),
    )

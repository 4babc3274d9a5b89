"""One run of one container: its process with probes and hooks, from the start to the record of its end."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from splitplane.local.agent import logs, probes
from splitplane.local.agent.container import Launch
from splitplane.local.agent.process import Process
from splitplane.local.agent.starts import Turn
from splitplane.local.agent.state import ContainerRecord, Ended, Run

_MOST_MESSAGE = 4096


class Runner:
    """A running container. `changed` is called whenever its record has changed."""

    def __init__(
        self,
        *,
        container: Mapping[str, Any],
        record: ContainerRecord,
        launch: Launch,
        process: Process,
        log: Path,
        address: str,
        turn: Turn | None,
        changed: Callable[[], None],
        event: Callable[[str, str, bool], None],
    ) -> None:
        self.container = container
        self.process = process
        self.out_of_memory = False
        self._record, self._launch, self._log = record, launch, log
        self._changed, self._event = changed, event
        self._kill_at = float("inf")
        self._hurry = asyncio.Event()
        self._target = probes.Target(
            address=address,
            ports=probes.named_ports(container),
            env=launch.env,
            cwd=launch.cwd,
            container_id=process.container_id,
            rewrite=launch.rewrite,
        )
        record.run = Run(
            container_id=process.container_id,
            pid=process.pid,
            start_ticks=process.start_ticks,
            started_at=time.time(),
        )
        record.started = "startupProbe" not in container and "postStart" not in container.get("lifecycle", {})
        record.ready = record.started and "readinessProbe" not in container
        self._background: set[asyncio.Task[None]] = set()
        self.done = asyncio.create_task(self._until_end())
        self._spawn(self._after_start())
        if turn is not None:
            self._spawn(turn.end_when_started(process, lambda: record.ready))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _until_end(self) -> None:
        code = await self.process.wait()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        run = self._record.run
        assert run is not None
        reason = "OOMKilled" if self.out_of_memory else "Completed" if code == 0 else "Error"
        ended = Ended(
            container_id=run.container_id,
            exit_code=code,
            reason=reason,
            message=self._last_words(code),
            started_at=run.started_at,
            finished_at=time.time(),
        )
        self._record.finish(ended)
        self._changed()

    def _last_words(self, code: int) -> str:
        with contextlib.suppress(OSError):
            text = self._launch.termination_file.read_bytes()[:_MOST_MESSAGE].decode(errors="replace")
            if text:
                return text
        if code and self.container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            return logs.last_words(self._log)
        return ""

    async def _after_start(self) -> None:
        """The postStart hook, then the startup probe, then the others."""
        hook = self.container.get("lifecycle", {}).get("postStart")
        if hook:
            outcome = await probes.check(hook, self._target, timeout=600)
            if not outcome.ok:
                self._event("FailedPostStartHook", outcome.message, True)
                self._restart("FailedPostStartHook", None)
                return
        startup = self.container.get("startupProbe")
        if startup:
            await probes.follow(
                "startup", startup, self._target, reached=self._reached, failed=self._check_failed, until_success=True
            )
        self._record.started = True
        self._record.ready = "readinessProbe" not in self.container
        self._changed()
        kinds: tuple[probes.Kind, ...] = ("liveness", "readiness")
        for kind in kinds:
            probe = self.container.get(f"{kind}Probe")
            if probe:
                self._spawn(probes.follow(kind, probe, self._target, reached=self._reached, failed=self._check_failed))

    def _reached(self, kind: probes.Kind, ok: bool, _message: str) -> None:
        if kind == "readiness":
            self._record.ready = ok
            self._changed()
        elif not ok:
            probe = self.container[f"{kind}Probe"]
            name = self.container["name"]
            self._restart(
                f"Container {name} failed {kind} probe, will be restarted", probe.get("terminationGracePeriodSeconds")
            )

    def _restart(self, why: str, grace: float | None) -> None:
        self._record.restart = why
        self._record.restart_grace = None if grace is None else float(grace)
        self._changed()

    def _check_failed(self, kind: probes.Kind, message: str) -> None:
        if not self._record.stopping:
            self._event("Unhealthy", f"{kind.capitalize()} probe failed: {message}", True)

    def stop(self, grace: float) -> None:
        """Begin termination: preStop hook, SIGTERM, and SIGKILL when `grace` seconds have gone."""
        self._record.stopping = True
        self._kill_at = time.monotonic() + grace
        self._spawn(self._terminate(grace))

    def kill_within(self, seconds: float) -> None:
        """Shorten a termination that has begun."""
        self._kill_at = min(self._kill_at, time.monotonic() + max(0.0, seconds))
        self._hurry.set()

    async def _terminate(self, grace: float) -> None:
        hook = self.container.get("lifecycle", {}).get("preStop")
        if hook and grace > 0:
            outcome = await probes.check(hook, self._target, timeout=grace)
            if not outcome.ok:
                self._event("FailedPreStopHook", outcome.message, True)
        self.process.terminate()
        while (left := self._kill_at - time.monotonic()) > 0:
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), left)
        self.process.kill()

    def exceeded_memory(self) -> None:
        """End the container as the kernel does when it goes over its memory limit."""
        self.out_of_memory = True
        self.process.kill()

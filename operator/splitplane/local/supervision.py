"""Keeping one process alive: start, watch, restart with back-off, stop."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from splitplane.local.processes import Process

_BACK_OFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STABLE_SECONDS = 60.0
_LOG_LIMIT_BYTES = 20 * 1024 * 1024

_log = logging.getLogger(__name__)


class Supervised:
    """A command that is running whenever it should be."""

    def __init__(
        self,
        name: str,
        command: tuple[str, ...],
        *,
        log: Path,
        environment: Mapping[str, str],
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.restarts = 0
        self.last_exit: str | None = None
        self.ready = False
        self._command = command
        self._log = log
        self._environment = dict(environment)
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._identity: Process | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def process(self) -> Process | None:
        return self._identity

    def start(self) -> None:
        if self._task is None or self._task.done():
            self._stopping = False
            self._task = asyncio.create_task(self._keep_alive(), name=self.name)

    async def stop(self, *, grace_seconds: float) -> None:
        """SIGTERM, after the grace period SIGKILL."""
        self._stopping = True
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        await self._ended(grace_seconds)

    async def kill(self) -> None:
        """SIGKILL at once, with the whole process group."""
        self._stopping = True
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await self._ended(5.0)

    async def _ended(self, seconds: float) -> None:
        if self._task is None:
            return
        if self._process is None or self._process.returncode is not None:
            self._task.cancel()  # it waits for its next start
        await asyncio.wait([self._task], timeout=seconds)
        if not self._task.done() and self._process:
            _log.warning("%s did not end within %.0f s: killed", self.name, seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await asyncio.wait([self._task], timeout=5.0)
        self._task = None

    async def _keep_alive(self) -> None:
        failures = 0
        while not self._stopping:
            started = time.monotonic()
            code = await self._run_once()
            self.ready = False
            self._identity = None
            if self._stopping:
                break
            failures = 0 if time.monotonic() - started > _STABLE_SECONDS else failures + 1
            delay = _BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS)) - 1] if failures else 0.0
            self.restarts += 1
            self.last_exit = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            _log.warning("%s ended (%s); starting it again in %.1f s", self.name, self.last_exit, delay)
            self._on_change()
            await asyncio.sleep(delay)
        self._on_change()

    async def _run_once(self) -> int:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.exists() and self._log.stat().st_size > _LOG_LIMIT_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        with self._log.open("ab") as output:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **self._environment},
                    start_new_session=True,
                )
            except OSError as error:
                output.write(f"cannot be started: {error}\n".encode())
                return 127
        self._identity = Process.of(self._process.pid)
        self._on_change()
        return await self._process.wait()

    def report(self) -> dict[str, Any]:
        """What ``status.json`` says of this process."""
        identity = self._identity
        return {
            "pid": identity.pid if identity else None,
            "started": identity.started if identity else None,
            "ready": self.ready,
            "restarts": self.restarts,
            "lastExit": self.last_exit,
        }

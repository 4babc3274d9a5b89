"""The agent's side of the guardian: naming containers to it as they start and end."""

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

from splitplane.local.agent import guardian
from splitplane.local.agent.errors import GuardianError


class Guard:
    """A running guardian."""

    def __init__(self) -> None:
        # -I -S: no site packages and nothing from the environment; 9 MB instead of 60. Its own session: a signal to the
        # agent's process group must not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guardian.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={},
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._died)

    def started(self, pid: int, start_ticks: int, container_id: str) -> None:
        """Name a container's first process."""
        self._tell(f"+ {pid} {start_ticks} {container_id}\n")

    def ended(self, pid: int) -> None:
        """A container has ended and left nothing behind."""
        self._tell(f"- {pid}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            self._died()

    def _died(self) -> None:
        if not self._lost.done():
            self._lost.set_exception(GuardianError("the guardian process has died; start the node again"))

    async def lost(self) -> None:
        """Wait for the guardian's death, which must not happen. Raises :class:`GuardianError`."""
        await asyncio.shield(self._lost)

    def close(self) -> None:
        """Let the guardian finish: it ends whatever has not been reported as ended."""
        assert self._process.stdin is not None
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

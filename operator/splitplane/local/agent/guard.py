"""The agent's side of the guardian: naming containers to it as they start and end."""

import subprocess
import sys
from pathlib import Path

from splitplane.local.agent import guardian
from splitplane.local.agent.errors import AgentError


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
        except BrokenPipeError as error:
            raise AgentError("the guardian process has died; restart the node") from error

    def close(self) -> None:
        """Let the guardian finish: it ends whatever has not been reported as ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

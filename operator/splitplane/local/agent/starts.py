"""Turns at starting, so that pods which start leave cores to those that serve.

Nodes are emulated as machines of their own, but share this one's cores: replicas that all import their libraries at a
time would slow every pod that serves, on whatever node. So containers that say when they are ready (by a startup or
readiness probe) start in turns, as many at a time as there are cores but one. A turn is a lock on a file that all
agents of a cluster share; the kernel takes it back from an agent that dies. A lower priority for what starts would not
do: to raise it again takes rights that nothing else here needs.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from splitplane.local.agent.process import Process, sessions

LONGEST_SECONDS = 20.0
"""A container that is not ready by then waits for something else than a core."""
POLL_SECONDS = 0.2
"""Between two looks at whether a turn is free."""
_LOOK_SECONDS = 0.25
_QUIET_LOOKS = 3
_QUIET_SHARE = 0.1
"""Of a core: who takes less for so many looks has done its work, or waits for others to do theirs."""


def in_turns(container: Mapping[str, Any]) -> bool:
    """Whether a container's start has an end that can be seen."""
    return "startupProbe" in container or "readinessProbe" in container


class Turn:
    """The right to start a container."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def end(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    async def end_when_started(self, process: Process, ready: Callable[[], bool]) -> None:
        """End once the container is ready, has come to rest or to its end, or has had long enough."""
        ends = time.monotonic() + LONGEST_SECONDS
        quiet, spent, looked = 0, 0.0, time.monotonic()
        try:
            while quiet < _QUIET_LOOKS and process.running and not ready() and time.monotonic() < ends:
                await asyncio.sleep(_LOOK_SECONDS)
                before, spent = spent, sum(one.cpu_seconds for one in sessions().get(process.pid, ()))
                since, looked = looked, time.monotonic()
                quiet = quiet + 1 if spent - before < _QUIET_SHARE * (looked - since) else 0
        finally:
            self.end()


class Turns:
    """All turns on this machine, as files in a folder that the cluster's agents share."""

    def __init__(self, folder: Path, *, slots: int | None = None) -> None:
        self._folder = folder
        self._slots = slots or max(1, len(os.sched_getaffinity(0)) - 1)

    def take(self) -> Turn | None:
        """A turn if one is free. Raises ``OSError`` where the folder cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for slot in range(self._slots):
            # Not inherited by the container: the lock would live as long as it.
            descriptor = os.open(self._folder / str(slot), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return Turn(descriptor)
        return None

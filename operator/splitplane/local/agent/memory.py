"""Memory limits without cgroups: looks at what containers hold, and ends one that holds more than its limit."""

import asyncio

from splitplane.local.agent.environment import memory_limit
from splitplane.local.agent.manager import PodManager
from splitplane.local.agent.process import sessions, unreclaimable

_LOOK_SECONDS = 1.0


async def enforce(manager: PodManager) -> None:
    """Look once a second until cancelled. A container may be over its limit for that long."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        limited = [
            (runner, most)
            for worker in manager.workers.values()
            for runner in worker.runners.values()
            if (most := memory_limit(runner.container)) is not None
        ]
        if not limited:
            continue
        table = sessions()
        for runner, most in limited:
            if unreclaimable(info.pid for info in table.get(runner.process.pid, [])) > most:
                runner.exceeded_memory()

"""The operator's probe: it fails while the planning loop does not come round, and only then."""

import asyncio
from typing import Any

import aiohttp
import pytest

from splitplane.adapters.clock import SystemClock
from splitplane.adapters.metrics import MetricsSnapshot
from splitplane.controller import loop as loops
from splitplane.controller.loop import PlanningLoop
from splitplane.controller.telemetry import Telemetry, serve
from tests.support.controller_cases import pipeline_body


class Rounds:
    """A cluster with one pipeline whose rounds end when they may."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.begun = self.ended = 0

    def pipelines(self) -> list[dict[str, Any]]:
        return [pipeline_body()]

    def keep_only(self, keys: set[tuple[str, str]]) -> None: ...

    def is_due(self, key: tuple[str, str], now: float) -> bool:
        return False

    async def arbitrate(self) -> None: ...

    async def read(self, now: float) -> Any:
        return MetricsSnapshot(time=now, failure="none here")

    async def reconcile(self, key: tuple[str, str], metrics: Any) -> None:
        self.begun += 1
        await self.may_end.wait()
        self.ended += 1


async def test_the_probe_fails_while_a_round_hangs_and_passes_when_it_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops, "_STALL_SECONDS", 0.5)
    rounds, telemetry = Rounds(), Telemetry()
    world: Any = rounds
    loop = PlanningLoop(
        view=world, reconciler=world, metrics=world, clock=SystemClock(), telemetry=telemetry, tick_seconds=0.05
    )
    runner = await serve(telemetry, host="127.0.0.1", port=0, stalled=loop.stalled)
    port = runner.addresses[0][1]
    running = asyncio.create_task(loop.run())

    async def probe() -> tuple[int, str]:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/healthz") as answer:
            return answer.status, await answer.text()

    async def until(status: int) -> str:
        async with asyncio.timeout(20):
            while (found := await probe())[0] != status:  # noqa: ASYNC110 - another process would ask as often
                await asyncio.sleep(0.05)
        return found[1]

    try:
        assert await probe() == (200, "ok\n")
        assert "nothing has been seen of the cluster" in await until(503)
        loop.wake()
        await until(200)  # the first round has begun
        assert "has not finished a round" in await until(503)
        assert (rounds.begun, rounds.ended) == (1, 0)
        rounds.may_end.set()
        await until(200)
        assert rounds.ended >= 1
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runner.cleanup()

"""The budget of retries: what it holds back, and that nobody's bad requests use up what others need."""

import asyncio
import time
from pathlib import Path

import pytest
import tritonclient.grpc.aio as triton_grpc
from tritonclient.utils import InferenceServerException

from splitplane.adapters.kinds import ROUTE_TABLE
from splitplane.runtime.gateway.admission import NARROWEST, Line
from splitplane.runtime.gateway.admission import Load as Weight
from splitplane.runtime.gateway.pacing import RetryBudget
from tests.support.gateway_rig import (
    ALONE,
    Load,
    MemoryCluster,
    StageProcess,
    gateway,
    infer,
    put_all,
    stages,
    table,
    until,
)
from tests.support.gateway_stage import POISON


def test_retries_over_the_budget_are_paced_and_cost_nothing_when_no_time_is_left_for_them() -> None:
    budget = RetryBudget(share=0.2, floor_per_second=10.0, burst=5.0)
    assert [budget.take(0.0, 1.0) for _ in range(5)] == [0.0] * 5
    waits = [budget.take(0.0, 1.0) for _ in range(1000)]
    assert [wait for wait in waits if wait is not None] == pytest.approx([n / 10 for n in range(1, 10)])
    assert budget.take(1.0, 0.05) == 0.0, "a second pays what could be owed in one, whoever asked besides"
    for _ in range(5):
        budget.request()
    budget.give_back()
    assert [budget.take(1.0, 0.05) for _ in range(3)] == [0.0, 0.0, None]


async def test_who_waits_for_a_retry_lets_others_be_under_way() -> None:
    line = Line(lambda: 1)
    hold = asyncio.Event()
    order: list[str] = []

    async def go(name: str, event: asyncio.Event) -> None:
        async with line.turn(name, Weight()):
            order.append(name)
            await event.wait()

    first = [asyncio.create_task(go("a", hold)) for _ in range(NARROWEST - 1)]
    await asyncio.sleep(0)
    async with line.turn("waits", Weight()):
        other = asyncio.create_task(go("other", hold))
        await asyncio.sleep(0)
        assert "other" not in order
        with line.aside("waits", Weight()):
            await asyncio.sleep(0)
            assert "other" in order
        assert line.under_way == NARROWEST + 1
    hold.set()
    await asyncio.gather(*first, other)
    assert line.under_way == 0


async def test_bad_inputs_of_one_client_take_no_retry_from_those_who_lose_a_replica(tmp_path: Path) -> None:
    edges = [StageProcess("small-edge", "edge", (0, 3)) for _ in range(2)]
    cluster = MemoryCluster()
    with stages(*edges):
        put_all(cluster, *edges)
        cluster.put(ROUTE_TABLE, table(1, ALONE))
        async with gateway(cluster, tmp_path) as running:
            await until(lambda: running.router.endpoints.ready("small-edge") == 2 and running.forwarder.ready())
            client = triton_grpc.InferenceServerClient(f"{running.settings.pod_ip}:9000")

            async def bad() -> None:
                with pytest.raises(InferenceServerException, match="IndexError"):
                    await infer(client, value=POISON)

            for _ in range(5):
                await asyncio.gather(*(bad() for _ in range(100)))
            budget = running.forwarder._budget
            assert budget.take(time.monotonic(), 1.0) == 0.0
            budget.give_back()
            async with Load(running, rate=40) as load:
                await until(lambda: len(load.plans) > 20)
                edges[1].kill()
                await until(lambda: running.router.endpoints.ready("small-edge") == 1)
                seen = len(load.plans)
                # With nowhere else to go the error comes at once, and is computed no second time.
                await asyncio.gather(*(bad() for _ in range(20)))
                await until(lambda: len(load.plans) > seen + 20)
            assert load.errors == []
            assert max(answer.seconds for answer in load.answers) < 5
            await client.close()

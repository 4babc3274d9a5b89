"""What a replica that hangs, or takes long, does to requests with so many seconds. Told apart by clocks: runs alone."""

import asyncio
import contextlib
import logging
import time
from pathlib import Path

import aiohttp
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.runtime.gateway.checking import SERVER_READY
from splitplane.runtime.gateway.endpoints import CHECK_RETRY_SECONDS
from splitplane.runtime.hops import Method
from splitplane.runtime.vitals import Vitals
from tests.support.gateway_rig import (
    ALONE,
    SPLIT,
    Load,
    MemoryCluster,
    StageProcess,
    expected,
    free_address,
    gateway,
    infer,
    pod_object,
    put_all,
    route,
    serving,
    stages,
    table,
    until,
)
from tests.support.relays import Link, relay

FOR_EVER = 1000.0


@pytest.mark.parametrize("route_", [ALONE, SPLIT], ids=["alone", "second stage"])
async def test_requests_with_five_seconds_are_answered_beside_a_replica_that_hangs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, route_: dict[str, object]
) -> None:
    """Of a second stage, too, though the first has one replica only."""
    stage, tier, span = ("small-edge", "edge", (0, 3)) if route_ is ALONE else ("small-cloud", "cloud", (1, 3))
    well, hung = StageProcess(stage, tier, span), StageProcess(stage, tier, span, seconds=FOR_EVER)
    others = [] if route_ is ALONE else [StageProcess("small-edge", "edge", (0, 3))]
    cluster = MemoryCluster()
    with stages(well, hung, *others), caplog.at_level(logging.WARNING):
        put_all(cluster, well, hung, *others)
        cluster.put(ROUTE_TABLE, table(1, route_))
        async with gateway(cluster, tmp_path) as running:
            endpoints = running.router.endpoints
            await until(lambda: endpoints.ready(stage) == 2 and running.forwarder.ready())
            async with Load(running, rate=10, timeout=5.0) as load:
                await until(lambda: endpoints.ready(stage) == 1)
                left_out = time.monotonic()
                await asyncio.sleep(3 * CHECK_RETRY_SECONDS)
            assert load.errors == []
            assert max(answer.seconds for answer in load.answers) > 2, "no request met the one that hangs"
            assert max(answer.seconds for answer in load.between(left_out, time.monotonic())) < 1
            assert endpoints.pick(stage) == (well.address,)
    assert f"{hung.address} has been at one piece of work for too long" in caplog.text


async def test_who_cannot_wait_for_a_second_attempt_has_others_spared(tmp_path: Path) -> None:
    well, hung = (StageProcess("small-edge", "edge", (0, 3), seconds=seconds) for seconds in (0.0, FOR_EVER))
    cluster = MemoryCluster()
    async with serving(cluster, tmp_path, well, hung) as running:
        endpoints = running.router.endpoints
        async with triton.InferenceServerClient(f"{running.settings.pod_ip}:9000") as client:
            missed = 0
            while endpoints.ready("small-edge") == 2:
                try:
                    await infer(client, timeout=0.7)
                except InferenceServerException:
                    missed += 1
                assert missed < 8
                await asyncio.sleep(0.05)
            for _ in range(20):
                await infer(client, timeout=0.7)
        assert missed > 0


async def at_work(*processes: StageProcess) -> int:
    """How many of them compute something."""
    count = 0
    for process in processes:
        async with grpc.aio.insecure_channel(process.address) as channel:
            method: Method = channel.unary_unary(SERVER_READY)
            call = method(b"")
            await call
            count += Vitals.read(await call.trailing_metadata()).busy_seconds > 0
    return count


@pytest.mark.parametrize("route_", [ALONE, SPLIT], ids=["alone", "second stage"])
async def test_the_very_first_request_is_answered_though_it_meets_a_replica_that_hangs(
    tmp_path: Path, route_: dict[str, object]
) -> None:
    """Nothing is known of how long one takes."""
    stage, tier, span = ("small-edge", "edge", (0, 3)) if route_ is ALONE else ("small-cloud", "cloud", (1, 3))
    hung, well = StageProcess(stage, tier, span, seconds=FOR_EVER), StageProcess(stage, tier, span)
    others = [] if route_ is ALONE else [StageProcess("small-edge", "edge", (0, 3))]
    cluster = MemoryCluster()
    async with serving(cluster, tmp_path, hung, well, *others, over=route_) as running:
        endpoints = running.router.endpoints
        assert endpoints.pick(stage)[0] == hung.address
        async with triton.InferenceServerClient(f"{running.settings.pod_ip}:9000") as client:
            began = time.monotonic()
            answer = await infer(client, timeout=6)
            np.testing.assert_allclose(answer.as_numpy("output_0"), expected())
            assert 2 <= time.monotonic() - began < 5, "a third of its time at the one, the rest at the other"
            await until(lambda: endpoints.pick(stage) == (well.address,), seconds=3)
            for _ in range(10):
                await infer(client, timeout=0.7)


async def test_first_requests_stay_where_they_are_and_one_of_them_is_sent_to_another_as_well(tmp_path: Path) -> None:
    """Each of the replicas takes as long."""
    replicas = [StageProcess("small-edge", "edge", (0, 3), seconds=4.0) for _ in range(4)]
    cluster = MemoryCluster()
    async with serving(cluster, tmp_path, *replicas) as running:
        endpoints = running.router.endpoints
        async with triton.InferenceServerClient(f"{running.settings.pod_ip}:9000") as client:
            began = time.monotonic()
            asked = [asyncio.create_task(infer(client, timeout=7)) for _ in range(2)]
            async with asyncio.timeout(7):
                for count in (2, 3):  # at first each at one place, then one of them at a second
                    while (found := await at_work(*replicas)) != count:
                        assert found < count
                        await asyncio.sleep(0.05)
            for answer in await asyncio.gather(*asked):
                np.testing.assert_allclose(answer.as_numpy("output_0"), expected())
            assert time.monotonic() - began < 6, "it was begun anew elsewhere"
            assert endpoints.ready("small-edge") == 4
            with pytest.raises(InferenceServerException):
                await infer(client, timeout=1.5)
        await asyncio.sleep(1.0)
        assert endpoints.ready("small-edge") == 4, "a short deadline speaks against nobody"


async def test_a_request_that_takes_long_anywhere_is_tried_at_two_places_at_most(tmp_path: Path) -> None:
    quick, *rest = (StageProcess("small-edge", "edge", (0, 3), seconds=seconds) for seconds in (0.0, 5.0, 5.0, 5.0))
    cluster = MemoryCluster()
    with stages(quick, *rest):
        put_all(cluster, quick)
        cluster.put(ROUTE_TABLE, table(1, ALONE))
        async with gateway(cluster, tmp_path) as running:
            endpoints = running.router.endpoints
            await until(lambda: endpoints.ready("small-edge") == 1)
            async with triton.InferenceServerClient(f"{running.settings.pod_ip}:9000") as client:
                await infer(client)  # tells how long requests take
                put_all(cluster, *rest)
                await until(lambda: endpoints.ready("small-edge") == 4)
                cluster.remove(POD, quick.name)
                await until(lambda: endpoints.ready("small-edge") == 3)
                began = time.monotonic()
                answer = await infer(client, timeout=15)
                np.testing.assert_allclose(answer.as_numpy("output_0"), expected())
                assert 7 < time.monotonic() - began < 10, "three seconds at one, five at another"


async def test_a_slow_link_does_not_speak_against_the_stages_behind_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clouds = [StageProcess("small-cloud", "cloud", (0, 3)) for _ in range(2)]
    link = Link(rate=150e3, delay=0.02)
    cluster = MemoryCluster()
    with stages(*clouds), caplog.at_level(logging.WARNING):
        async with contextlib.AsyncExitStack() as stack:
            for cloud in clouds:
                near = free_address()
                await stack.enter_async_context(relay(f"{near}:9000", cloud.address, link))
                cluster.put(POD, pod_object(cloud.name, cloud.stage, near))
            cluster.put(ROUTE_TABLE, table(1, route(("small-cloud", "cloud", 0, 3))))
            running = await stack.enter_async_context(gateway(cluster, tmp_path))
            await until(lambda: running.router.endpoints.ready("small-cloud") == 2)
            client = await stack.enter_async_context(triton.InferenceServerClient(f"{running.settings.pod_ip}:9000"))
            began = time.monotonic()
            await infer(client, batch=10)
            assert time.monotonic() - began > 3, "it was overdue, twice"
            assert running.router.endpoints.ready("small-cloud") == 2
    assert "left out" not in caplog.text


async def test_a_stage_that_is_stuck_says_so_to_gateways_and_kubelets(tmp_path: Path) -> None:
    async def status(path: str) -> int:
        async with http.get(f"http://{stage.ip}:8080/v2/health/{path}") as answer:
            return answer.status

    with stages(StageProcess("small-edge", "edge", (0, 3), seconds=FOR_EVER, stuck_after=1.0)) as (stage,):
        async with aiohttp.ClientSession() as http, triton.InferenceServerClient(stage.address) as client:
            assert [await status("live"), await status("ready")] == [200, 200]
            with pytest.raises(InferenceServerException):
                await infer(client, timeout=0.5)
            assert [await status("live"), await status("ready")] == [200, 200]
            await asyncio.sleep(1.0)
            assert [await status("live"), await status("ready")] == [503, 503]
            assert not await client.is_server_live()
            assert not await client.is_server_ready()

"""A request that ends the processes which take it up ends two at most; broken links are not taken for that."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.runtime.gateway.app import Gateway
from splitplane.runtime.gateway.losses import Gate
from splitplane.runtime.hops import Channels, call
from splitplane.runtime.inference import InferenceError, InferRequest
from splitplane.runtime.tensors import from_array
from tests.support.gateway_rig import (
    ALONE,
    PIPELINE,
    SPLIT,
    MemoryCluster,
    StageProcess,
    expected,
    frames,
    free_address,
    gateway,
    infer,
    pod_object,
    serving,
    stages,
    table,
    until,
)
from tests.support.gateway_stage import KILLER


@contextlib.asynccontextmanager
async def kubelet(cluster: MemoryCluster, *processes: StageProcess) -> AsyncIterator[None]:
    """Reports pods whose processes have ended as not ready, some time later, as kubelets do."""

    async def report(process: StageProcess) -> None:
        while process.is_alive():  # noqa: ASYNC110 - a process tells nobody that it ends
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        cluster.put(POD, pod_object(process.name, process.stage, process.ip, ready=False))

    tasks = [asyncio.create_task(report(process)) for process in processes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def test_a_request_that_kills_stages_kills_two_and_its_client_hears_why(tmp_path: Path) -> None:
    edges = [StageProcess("small-edge", "edge", (0, 3)) for _ in range(3)]
    cluster = MemoryCluster()
    async with serving(cluster, tmp_path, *edges) as running, kubelet(cluster, *edges):
        async with triton.InferenceServerClient(f"{running.settings.pod_ip}:9000") as client:
            with pytest.raises(InferenceServerException, match="2 stage processes ended") as failure:
                await infer(client, value=KILLER)
            assert failure.value.status() == "StatusCode.INTERNAL"
            assert edges[0].ip not in str(failure.value)
            await infer(client)
        assert [edge.is_alive() for edge in edges].count(True) == 1


async def test_who_is_inside_with_it_is_answered(tmp_path: Path) -> None:
    edges = [StageProcess("small-edge", "edge", (0, 3), seconds=0.05) for _ in range(3)]
    cluster = MemoryCluster()
    async with serving(cluster, tmp_path, *edges) as running, kubelet(cluster, *edges):
        async with triton.InferenceServerClient(f"{running.settings.pod_ip}:9000") as client:
            values = [1.0] * 6 + [KILLER] + [1.0] * 14
            answers = await asyncio.gather(*(infer(client, value=v) for v in values), return_exceptions=True)
        assert [isinstance(answer, BaseException) for answer in answers] == [value == KILLER for value in values]


async def test_a_second_stage_is_not_tried_on_all_its_replicas_either(tmp_path: Path) -> None:
    edge = StageProcess("small-edge", "edge", (0, 3))
    clouds = [StageProcess("small-cloud", "cloud", (1, 3)) for _ in range(3)]
    cluster = MemoryCluster()
    async with serving(cluster, tmp_path, edge, *clouds, over=SPLIT) as running, kubelet(cluster, *clouds):
        async with triton.InferenceServerClient(f"{running.settings.pod_ip}:9000") as client:
            with pytest.raises(InferenceServerException, match="2 stage processes ended"):
                await infer(client, value=KILLER / 2)
            np.testing.assert_allclose((await infer(client)).as_numpy("output_0"), expected())
        assert [cloud.is_alive() for cloud in clouds].count(True) == 1
        assert edge.is_alive()


class Breaking:
    """Passes connections to an address on, and breaks all of them when told so: the processes behind it live."""

    def __init__(self, target: str) -> None:
        self.ip, self._target = free_address(), target
        self._writers: set[asyncio.StreamWriter] = set()
        self.broken = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, self.ip, 9000)
        try:
            yield
        finally:
            server.close()
            self.break_all()

    def break_all(self) -> None:
        self.broken += len(self._writers)
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._target, 9000)
        self._writers |= {writer, far_writer}
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_connections_that_break_again_and_again_lose_no_request(tmp_path: Path) -> None:
    edges = [StageProcess("small-edge", "edge", (0, 3), seconds=0.4) for _ in range(2)]
    cluster = MemoryCluster()
    with stages(*edges):
        async with contextlib.AsyncExitStack() as stack:
            links = [Breaking(edge.ip) for edge in edges]
            for link, edge in zip(links, edges, strict=True):
                await stack.enter_async_context(link.serving())
                cluster.put(POD, pod_object(edge.name, edge.stage, link.ip))
            cluster.put(ROUTE_TABLE, table(1, ALONE))
            running: Gateway = await stack.enter_async_context(gateway(cluster, tmp_path))
            await until(lambda: running.router.endpoints.ready("small-edge") == 2)
            client = await stack.enter_async_context(triton.InferenceServerClient(f"{running.settings.pod_ip}:9000"))
            asked = [asyncio.ensure_future(infer(client)) for _ in range(4)]
            for _ in range(4):
                await until(lambda: running.router.flights.by_generation.get(1, 0) > 0)
                await asyncio.sleep(0.2)
                for link in links:
                    link.break_all()
            for answer in await asyncio.gather(*asked):
                np.testing.assert_allclose(answer.as_numpy("output_0"), expected())
    assert sum(link.broken for link in links) >= 8


async def test_who_was_lost_waits_for_others_that_were_with_a_part_of_its_time_only() -> None:
    """It needs the rest for its attempt."""
    gate, aside = Gate(), contextlib.nullcontext()
    async with gate.passing(60.0, aside):
        began = time.monotonic()
        async with gate.passing(1.8, aside):
            assert 0.6 <= time.monotonic() - began < 1.5


async def test_what_never_reached_a_process_was_not_lost_there() -> None:
    """Or a replica that has died by itself would count against each request that is sent there later."""
    with stages(StageProcess("small-edge", "edge", (0, 3))) as (stage,):
        channels = Channels()
        request = InferRequest(PIPELINE, (from_array("frames", frames(value=KILLER)),))
        with pytest.raises(InferenceError) as failure:
            await call(channels, [stage.address], request)
        assert failure.value.lost == (stage.address,)
        await until(lambda: not stage.is_alive())
        await channels.close()  # which may have connected once more before its port was closed
        channels = Channels()
        for _ in range(3):
            with pytest.raises(InferenceError) as failure:
                await call(channels, [stage.address], request)
            assert failure.value.lost == ()
        await channels.close()

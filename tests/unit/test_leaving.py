"""A gateway that leaves: whatever reached it is answered, and clients are sent elsewhere before it stops."""

import asyncio
import contextlib
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.aio as triton_grpc
from aiohttp import web
from tritonclient.utils import InferenceServerException

from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.api.routes import QueueSpec
from splitplane.controller.children import StageKey, gateway_objects, stage_deployment
from splitplane.domain.leaving import DRAIN_SECONDS, PAUSE_SECONDS, Ages, pause_and_drain
from splitplane.runtime import rest_serving
from splitplane.runtime.gateway.app import Gateway
from splitplane.runtime.gateway.settings import Settings as GatewaySettings
from splitplane.runtime.hops import Channels, call
from splitplane.runtime.inference import InferRequest
from splitplane.runtime.oip_grpc import SERVICE
from splitplane.runtime.routes import AGE, ROUTE, Hop, encode_route
from splitplane.runtime.stage.settings import Settings as StageSettings
from splitplane.runtime.tensors import from_array, to_array
from tests.support.controller_cases import SETTINGS, pipeline
from tests.support.gateway_rig import (
    PIPELINE,
    MemoryCluster,
    StageProcess,
    expected,
    frames,
    gateway,
    infer,
    route,
    serving,
    stages,
    table,
    until,
)

TENSOR = {"name": "frames", "datatype": "FP32", "shape": [1, frames().shape[1]], "data": frames().ravel().tolist()}
BODY = json.dumps({"inputs": [TENSOR]}).encode()
HEAD = (
    f"POST /v2/models/{PIPELINE}/infer HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n"
).encode()


class Connection:
    """A client's connection, which it keeps as long as the server lets it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, running: Gateway) -> "Connection":
        return cls(*await asyncio.open_connection(running.settings.pod_ip, 8080))

    async def answered(self) -> bool:
        """Whether the connection is kept after the next answer, which must be right."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 200 "), head
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        answer = json.loads(await self.reader.readexactly(int(fields["content-length"])))
        assert answer["outputs"][0]["data"] == expected().ravel().tolist()
        return fields.get("connection") != "close"

    async def ended(self) -> bool:
        """Whether the server ends it in order: after all bytes, and without a reset."""
        rest = await self.reader.read()
        self.writer.close()
        await self.writer.wait_closed()
        return rest == b""


async def refuses(running: Gateway) -> None:
    """Wait until a gateway takes no new connections."""
    with contextlib.suppress(ConnectionRefusedError):
        async with asyncio.timeout(60):
            while True:
                (await Connection.to(running)).writer.close()
                await asyncio.sleep(0.02)


@pytest.fixture
def cluster() -> MemoryCluster:
    return MemoryCluster()


async def test_no_request_on_an_open_connection_is_lost_while_a_gateway_leaves(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    slow = StageProcess("small-slow", "edge", (0, 3), seconds=0.5)
    async with serving(cluster, tmp_path, slow, over=route(("small-slow", "edge", 0, 3))) as running:
        waiting, coming, kept, unused, other = [await Connection.to(running) for _ in range(5)]
        for each in (kept, other):
            each.writer.write(HEAD + BODY)
            assert await each.answered(), "a gateway that stays keeps connections"
        waiting.writer.write(HEAD + BODY)
        coming.writer.write(HEAD + BODY[:40])
        await until(lambda: running.router.flights.inside == 1)
        draining = asyncio.ensure_future(running.drain())
        await until(lambda: not running.forwarder.ready())
        other.writer.write(HEAD + BODY)  # while it only says that it will go
        await refuses(running)
        assert not draining.done()
        kept.writer.write(HEAD + BODY)
        for each in (waiting, other, kept):
            assert not await each.answered()
        coming.writer.write(BODY[40:])
        assert not await coming.answered()
        assert all([await each.ended() for each in (waiting, coming, kept, unused, other)])
        async with asyncio.timeout(10.0):  # and not the time that it may take
            await draining


async def test_requests_that_came_in_a_row_are_all_answered_by_a_server_that_leaves() -> None:
    async def answer(_request: web.Request) -> web.Response:
        server.leave()
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_get("/", answer)
    server = await rest_serving.serve(app, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(3 * b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    text = (await reader.read()).decode()
    assert text.count("HTTP/1.1 200") == 3
    assert text.lower().count("connection: close") == 1
    writer.close()
    await server.stop(0)


async def test_a_gateway_with_nothing_inside_leaves_at_once(cluster: MemoryCluster, tmp_path: Path) -> None:
    async with gateway(cluster, tmp_path, drain_pause_seconds=0.0) as running:
        idle = await Connection.to(running)
        async with asyncio.timeout(10.0):
            await running.drain()
        assert await idle.ended()


async def test_clients_over_grpc_that_watch_health_leave_before_a_gateway_stops(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    stage = StageProcess("small-edge", "edge", (0, 3))
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": SERVICE}}
    seen: Counter[str] = Counter()
    with stages(stage):
        cluster.put(POD, stage.pod)
        cluster.put(ROUTE_TABLE, table(1, route(("small-edge", "edge", 0, 3))))
        async with gateway(cluster, tmp_path, drain_pause_seconds=1.5) as going, gateway(cluster, tmp_path) as staying:
            for running in (going, staying):
                await until(running.forwarder.ready)
            target = ",".join(f"{running.settings.pod_ip}:9000" for running in (going, staying))
            options = [("grpc.service_config", json.dumps(config)), ("grpc.enable_retries", 0)]
            client = triton_grpc.InferenceServerClient(f"ipv4:{target}", channel_args=options)

            async def call() -> None:
                try:
                    await infer(client)
                    seen["answered"] += 1
                except InferenceServerException as error:
                    seen[str(error)] += 1

            async with asyncio.TaskGroup() as calls:
                while seen["answered"] < 50:
                    calls.create_task(call())
                    await asyncio.sleep(0.005)
                draining = asyncio.ensure_future(going.drain())
                while not draining.done():
                    calls.create_task(call())
                    await asyncio.sleep(0.005)
            await client.close()
    assert set(seen) == {"answered"}


def test_a_request_that_a_pod_accepted_last_is_allowed_its_time() -> None:
    request = QueueSpec().timeout_milliseconds / 1000
    deployments = [stage_deployment(pipeline(), StageKey("edge", 0, 3, "fingerprint"), replicas=1, settings=SETTINGS)]
    deployments += [body for body in gateway_objects(pipeline(), SETTINGS) if body["kind"] == "Deployment"]
    assert len(deployments) == 2
    for body, settings in zip(deployments, (StageSettings, GatewaySettings), strict=True):
        pod = body["spec"]["template"]["spec"]
        before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        given: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(settings)}
        pause, drain = given["drain_pause_seconds"], given["drain_seconds"]
        assert drain > request
        assert before + pause + drain < pod["terminationGracePeriodSeconds"]


def test_a_stage_pauses_for_as_long_as_requests_are_on_their_way_to_it_within_the_same_time_in_all() -> None:
    whole = PAUSE_SECONDS + DRAIN_SECONDS
    assert pause_and_drain(1.0, PAUSE_SECONDS, DRAIN_SECONDS) == (PAUSE_SECONDS, DRAIN_SECONDS)
    assert pause_and_drain(8.0, PAUSE_SECONDS, DRAIN_SECONDS) == (10.0, whole - 10.0)
    assert pause_and_drain(1e9, PAUSE_SECONDS, DRAIN_SECONDS) == (DRAIN_SECONDS, PAUSE_SECONDS)


def test_the_oldest_request_is_known_for_a_while_and_then_forgotten() -> None:
    ages, now = Ages(), 100.0
    assert ages.longest == 0.0
    ages.note(7.0, now)
    for _ in range(1000):  # many in a moment
        ages.note(0.1, now + 1)
    assert ages.longest == 7.0
    ages.note(0.1, now + 3600)
    assert ages.longest == 7.0
    for seconds in range(100):
        ages.note(0.2, now + 3601 + seconds)
    assert ages.longest == 0.2


def test_a_few_requests_are_remembered_however_long_ago_they_came() -> None:
    ages = Ages()
    for hours, seconds in enumerate((7.0, 0.1, 0.1)):
        ages.note(seconds, 3600.0 * hours)
    assert ages.longest == 7.0


async def test_a_stage_that_leaves_waits_for_what_is_still_in_the_stage_before() -> None:
    edge = StageProcess("small-edge", "edge", (0, 3), seconds=0.8)  # longer than the pause of the rig's stages
    cloud = StageProcess("small-cloud", "cloud", (1, 3))
    first = Hop("small-edge", "edge", 0, 1, (edge.address,), codec="fp32")
    last = Hop("small-cloud", "cloud", 1, 3, (cloud.address,))
    channels = Channels()

    async def ask(name: str, *hops: Hop, **parameters: float) -> list[Any]:
        given: dict[str, Any] = {ROUTE: encode_route(hops), **parameters}
        answer = await call(
            channels, hops[0].addresses, InferRequest(PIPELINE, (from_array(name, frames()),), parameters=given)
        )
        return to_array(answer.response.outputs[0]).tolist()

    with stages(edge, cloud):
        await ask("doubled", last, **{AGE: 8.0})
        cloud.leave()
        assert await ask("frames", first, last) == expected().tolist()
        await channels.close()

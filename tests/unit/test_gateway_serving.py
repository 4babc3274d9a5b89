"""The gateway in front of real stage processes: what an ordinary client sees, whatever happens behind it."""

import asyncio
import functools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
from prometheus_client import CollectorRegistry
from tritonclient.utils import InferenceServerException

from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.runtime import oip_pb2
from splitplane.runtime.budgets import MAX_MESSAGE_BYTES, Budget
from splitplane.runtime.gateway import fronts
from splitplane.runtime.gateway.app import Gateway
from splitplane.runtime.gateway.outliers import Outliers
from splitplane.runtime.inference import InferRequest
from splitplane.runtime.metrics import GatewayMetrics, StageMetrics
from splitplane.runtime.tensors import from_array, to_array
from tests.support.gateway_rig import (
    ALONE,
    PIPELINE,
    SPLIT,
    WIDTH,
    Load,
    MemoryCluster,
    StageProcess,
    expected,
    frames,
    gateway,
    infer,
    put_all,
    route,
    stages,
    table,
    until,
)

CLIENT = """
import json, sys
import numpy as np
host, width = sys.argv[1], int(sys.argv[2])
import tritonclient.http as http, tritonclient.grpc as grpc
said = {}
for name, module, port in (("http", http, 8080), ("grpc", grpc, 9000)):
    client = module.InferenceServerClient(f"{host}:{port}")
    said[name] = {"live": client.is_server_live(), "ready": client.is_server_ready(),
                  "model": client.is_model_ready("small")}
    for batch in (1, 3):
        tensor = module.InferInput("frames", [batch, width], "FP32")
        tensor.set_data_from_numpy(np.full((batch, width), 2.0, np.float32))
        wanted = [module.InferRequestedOutput("output_0")]
        answer = client.infer("small", [tensor], outputs=wanted, request_id=f"r{batch}")
        said[name][batch] = answer.as_numpy("output_0").tolist()
    metadata = client.get_model_metadata("small", **({"as_json": True} if name == "grpc" else {}))
    said[name]["inputs"] = metadata["inputs"][0]["name"]
    client.close()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def pods() -> Iterator[tuple[StageProcess, ...]]:
    with stages(
        StageProcess("small-edge", "edge", (0, 3)),
        StageProcess("small-edge", "edge", (0, 3)),
        StageProcess("small-cloud", "cloud", (1, 3)),
    ) as processes:
        yield processes


@pytest.fixture
def cluster(pods: tuple[StageProcess, ...]) -> MemoryCluster:
    memory = MemoryCluster()
    put_all(memory, *pods)
    return memory


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def rest_url(running: Gateway, path: str = f"/v2/models/{PIPELINE}/infer") -> str:
    return f"http://{running.settings.pod_ip}:8080{path}"


def rest_body(value: float = 1.0) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "frames", "datatype": "FP32", "shape": [1, WIDTH], "data": frames(1, value).ravel().tolist()}
        ]
    }


async def test_an_ordinary_client_infers_over_http_and_grpc(cluster: MemoryCluster, tmp_path: Path) -> None:
    cluster.put(ROUTE_TABLE, table(1, SPLIT, ALONE))
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", CLIENT, running.settings.pod_ip, str(WIDTH)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
    for protocol in ("http", "grpc"):
        assert said[protocol]["live"]
        assert said[protocol]["ready"]
        assert said[protocol]["model"]
        assert said[protocol]["inputs"] == "frames"
        np.testing.assert_allclose(said[protocol]["3"], expected(3, 2.0))


async def test_it_is_ready_only_while_a_route_can_serve(
    cluster: MemoryCluster, pods: tuple[StageProcess, ...], tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    async def ready() -> int:
        async with http.get(rest_url(running, "/v2/health/ready")) as answer:
            return answer.status

    async with gateway(cluster, tmp_path) as running:
        assert await ready() == 503
        cluster.put(ROUTE_TABLE, table(1))
        await until(lambda: cluster.status.get("acknowledgedGeneration") == 1)
        assert await ready() == 503
        cluster.put(ROUTE_TABLE, table(2, ALONE))
        await until(running.forwarder.ready)
        assert await ready() == 200
        for process in pods[:2]:
            cluster.remove(POD, process.name)
        await until(lambda: not running.forwarder.ready())
        assert await ready() == 503


async def test_a_switch_of_routes_under_load_loses_nothing_and_drains_the_old_generation(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    cluster.put(ROUTE_TABLE, table(1, SPLIT))
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
        async with Load(running) as load:
            for generation in range(2, 8):
                await asyncio.sleep(0.4)
                cluster.put(ROUTE_TABLE, table(generation, *((SPLIT,) if generation % 2 else (ALONE,))))
                await until(lambda generation=generation: cluster.status["acknowledgedGeneration"] == generation)
            await until(lambda: all(entry["generation"] == 7 for entry in cluster.status["inFlight"]))
        assert load.errors == []
        assert set(load.plans) == {SPLIT["name"], ALONE["name"]}


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_lost_stage_is_hidden_by_the_next_admissible_route(
    cluster: MemoryCluster, tmp_path: Path, how: str
) -> None:
    doomed = StageProcess("small-doomed", "cloud", (1, 3))
    with stages(doomed):
        cluster.put(POD, doomed.pod)
        over_doomed = route(("small-edge", "edge", 0, 1), ("small-doomed", "cloud", 1, 3))
        cluster.put(ROUTE_TABLE, table(1, over_doomed, ALONE))
        async with gateway(cluster, tmp_path) as running:
            await until(lambda: running.router.endpoints.ready("small-doomed") == 1)
            await until(running.forwarder.ready)
            async with Load(running) as load:
                await until(lambda: load.plans.count(over_doomed["name"]) > 20)
                getattr(doomed, how)()
                await until(lambda: load.plans.count(ALONE["name"]) > 20)
            assert load.errors == []
            if how == "pause":
                doomed.resume()
                await until(lambda: running.router.endpoints.ready("small-doomed") == 1)


async def test_a_lost_replica_is_hidden_by_another(cluster: MemoryCluster, tmp_path: Path) -> None:
    doomed = StageProcess("small-edge", "edge", (0, 3))
    with stages(doomed):
        cluster.put(POD, doomed.pod)
        cluster.put(ROUTE_TABLE, table(1, ALONE))
        async with gateway(cluster, tmp_path) as running:
            await until(lambda: running.router.endpoints.ready("small-edge") == 3)
            async with Load(running, rate=100) as load:
                await until(lambda: len(load.plans) > 20)
                doomed.kill()
                await until(lambda: running.router.endpoints.ready("small-edge") == 2)
                seen = len(load.plans)
                await until(lambda: len(load.plans) > seen + 20)
            assert load.errors == []


async def test_requests_wait_while_no_route_can_serve(
    cluster: MemoryCluster, pods: tuple[StageProcess, ...], tmp_path: Path
) -> None:
    for process in pods[:2]:
        cluster.remove(POD, process.name)
    cluster.put(ROUTE_TABLE, table(1, ALONE))
    async with gateway(cluster, tmp_path) as running:
        await until(lambda: running.router.table is not None)
        async with Load(running, rate=20) as load:
            await asyncio.sleep(1.0)
            assert load.plans == []
            cluster.put(POD, pods[0].pod)
            await until(lambda: len(load.plans) > 20)
        assert load.errors == []


async def test_a_request_that_waits_in_vain_ends_at_its_deadline(cluster: MemoryCluster, tmp_path: Path) -> None:
    cluster.put(ROUTE_TABLE, table(1, queue={"maxInFlight": 4, "timeoutMilliseconds": 300}))
    async with gateway(cluster, tmp_path) as running:
        await until(lambda: running.router.table is not None)
        client = triton_grpc.InferenceServerClient(f"{running.settings.pod_ip}:9000")
        with pytest.raises(InferenceServerException, match="no routes yet") as failure:
            await infer(client)
        assert failure.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert running.router.flights.inside == 0
        await client.close()


async def test_a_request_whose_time_is_up_is_told_so_and_is_no_demand(
    cluster: MemoryCluster, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    cluster.put(ROUTE_TABLE, table(1, SPLIT, ALONE))
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
        async with http.post(rest_url(running), json=rest_body(), headers={"Grpc-Timeout": "1n"}) as answer:
            assert answer.status == 504
            assert "time was up" in (await answer.json())["error"]
        async with http.get(rest_url(running, "/metrics")) as answer:
            assert 'splitplane_requests_admitted_total{namespace="default",pipeline="small"} 0.0' in await answer.text()


async def test_a_client_gives_no_parameters_that_are_for_stages(
    cluster: MemoryCluster, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    cluster.put(ROUTE_TABLE, table(1, SPLIT, ALONE))
    body = rest_body()
    body["inputs"][0]["parameters"] = {"splitplane_codec": "fp16"}
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
        async with http.post(rest_url(running), json=body) as answer:
            assert answer.status == 400
            assert "splitplane_codec" in (await answer.json())["error"]


async def test_replicas_are_compared_by_requests_of_the_same_shapes(
    cluster: MemoryCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the one that happens to get the larger ones would pass for slow."""
    works = set()
    monkeypatch.setattr(Outliers, "observe", lambda _self, work, *_: works.add(work))
    cluster.put(ROUTE_TABLE, table(1, ALONE))
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
        for batch in (1, 3, 1):
            await running.forwarder.infer(InferRequest(PIPELINE, (from_array("frames", frames(batch)),)))
    assert len(works) == 2


async def test_overload_is_answered_at_once_with_what_to_do(
    cluster: MemoryCluster, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    cluster.put(ROUTE_TABLE, table(1, queue={"maxInFlight": 2, "timeoutMilliseconds": 60_000}))
    async with gateway(cluster, tmp_path) as running:
        await until(lambda: running.router.table is not None)
        client = triton_grpc.InferenceServerClient(f"{running.settings.pod_ip}:9000")
        waiting = [asyncio.ensure_future(infer(client)) for _ in range(2)]
        await until(lambda: running.router.flights.inside == 2)
        with pytest.raises(InferenceServerException, match="2 requests are under way") as failure:
            await infer(client)
        assert failure.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        async with http.post(rest_url(running), json=rest_body()) as answer:
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "1"
            assert "under way" in (await answer.json())["error"]
        cluster.put(ROUTE_TABLE, table(2, ALONE))
        for done in await asyncio.gather(*waiting):
            np.testing.assert_allclose(done.as_numpy("output_0"), expected())
        await client.close()
        async with http.get(rest_url(running, "/metrics")) as answer:
            text = await answer.text()
    assert 'splitplane_requests_total{namespace="default",pipeline="small"} 4.0' in text
    assert 'splitplane_requests_admitted_total{namespace="default",pipeline="small"} 2.0' in text
    assert 'outcome="rejected",pipeline="small"} 2.0' in text
    assert 'outcome="success",pipeline="small"} 2.0' in text
    assert 'splitplane_active_generation{namespace="default",pipeline="small"} 2.0' in text


async def test_who_gives_no_deadline_is_held_to_the_tables(
    cluster: MemoryCluster, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """A stage of 100 ms, and two seconds for a request: of 60 that come at once, it can answer 20."""
    slow = StageProcess("small-slow", "edge", (0, 3), seconds=0.1)
    with stages(slow):
        cluster.put(POD, slow.pod)
        spec: dict[str, Any] = {
            "stages": ["small-slow"],
            "queue": {"maxInFlight": 512, "timeoutMilliseconds": 2_000},
        }
        cluster.put(ROUTE_TABLE, table(1, route(("small-slow", "edge", 0, 3)), **spec))
        async with gateway(cluster, tmp_path) as running:
            await until(running.forwarder.ready)

            async def ask() -> int:
                async with http.post(rest_url(running), json=rest_body()) as answer:
                    await answer.read()
                    return answer.status

            for _ in range(3):
                assert set(await asyncio.gather(*(ask() for _ in range(4)))) == {200}, "now it knows how long they take"
            statuses = Counter(await asyncio.gather(*(ask() for _ in range(60))))
    assert set(statuses) <= {200, 429, 504}
    assert statuses[200] >= 8
    assert statuses[429] >= 20, "most are refused, where they would have waited in vain"
    assert statuses[504] < statuses[429] / 2


async def test_requests_refused_for_want_of_memory_are_told_when_to_come_again_and_are_demand(
    cluster: MemoryCluster, tmp_path: Path, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fronts, "Budget", functools.partial(Budget, 2 << 20))
    cluster.put(ROUTE_TABLE, table(1, ALONE))
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
        _, held = await asyncio.open_connection(running.settings.pod_ip, 8080)
        path, size = f"/v2/models/{PIPELINE}/infer", 2_000_000
        held.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size + 1}\r\n\r\n".encode() + bytes(size))
        await held.drain()
        await asyncio.sleep(0.3)
        async with http.post(rest_url(running), data=bytes(200_000)) as answer:
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "1"
            assert "memory" in (await answer.json())["error"]
        held.close()
        async with http.get(rest_url(running, "/metrics")) as answer:
            text = await answer.text()
    assert 'splitplane_requests_total{namespace="default",pipeline="small"} 1.0' in text
    assert 'outcome="rejected",pipeline="small"} 1.0' in text
    assert 'splitplane_requests_admitted_total{namespace="default",pipeline="small"} 0.0' in text


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"name": "wrong"}, 400, "'wrong' is unknown"),
        ({"datatype": "FP64"}, 400, "expected FP32"),
        ({"shape": [1, 5], "data": [1.0] * 5}, 400, "expected"),
        ({"shape": [0, WIDTH], "data": []}, 400, "empty batch"),
    ],
)
async def test_a_wrong_input_is_refused_with_what_was_expected(
    cluster: MemoryCluster,
    tmp_path: Path,
    http: aiohttp.ClientSession,
    change: dict[str, Any],
    status: int,
    words: str,
) -> None:
    cluster.put(ROUTE_TABLE, table(1, ALONE))
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
        body = rest_body()
        body["inputs"][0].update(change)
        async with http.post(rest_url(running), json=body) as answer:
            assert answer.status == status
            assert words in (await answer.json())["error"]
        async with http.post(rest_url(running), json={**rest_body(), "outputs": [{"name": "other"}]}) as answer:
            assert answer.status == 400
        async with http.post(rest_url(running, "/v2/models/other/infer"), json=rest_body()) as answer:
            assert answer.status == 404
        async with http.get(rest_url(running, "/metrics")) as answer:
            text = await answer.text()
    assert 'splitplane_requests_total{namespace="default",pipeline="small"} 2.0' in text
    assert 'splitplane_requests_admitted_total{namespace="default",pipeline="small"} 0.0' in text
    assert 'outcome="invalid",pipeline="small"} 2.0' in text


async def test_the_generation_never_goes_back(cluster: MemoryCluster, tmp_path: Path) -> None:
    cluster.put(ROUTE_TABLE, table(5, ALONE))
    async with gateway(cluster, tmp_path):
        await until(lambda: cluster.status.get("acknowledgedGeneration") == 5)
        cluster.put(ROUTE_TABLE, table(4, SPLIT))
        cluster.put(ROUTE_TABLE, table(6, SPLIT))
        await until(lambda: cluster.status.get("acknowledgedGeneration") == 6)
    seen = [status["acknowledgedGeneration"] for status in cluster.statuses]
    assert seen == sorted(seen)


async def test_a_malformed_table_leaves_the_last_good_one_in_force(cluster: MemoryCluster, tmp_path: Path) -> None:
    cluster.put(ROUTE_TABLE, table(1, ALONE))
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
        cluster.put(ROUTE_TABLE, table(2, {**SPLIT, "codecs": []}))
        await asyncio.sleep(0.2)
        assert running.router.table is not None
        assert running.router.table.generation == 1


async def test_it_starts_from_disk_while_the_api_server_is_away_and_catches_up_later(
    cluster: MemoryCluster, pods: tuple[StageProcess, ...], tmp_path: Path
) -> None:
    cluster.put(ROUTE_TABLE, table(3, SPLIT))
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
    away = MemoryCluster()
    away.offline = True
    put_all(away, *pods)
    away.put(ROUTE_TABLE, table(4, ALONE))
    async with gateway(away, tmp_path) as running:
        await until(running.forwarder.ready)
        async with Load(running) as load:
            await until(lambda: load.plans.count(SPLIT["name"]) > 10)
            away.offline = False
            await until(lambda: away.status.get("acknowledgedGeneration") == 4)
            await until(lambda: load.plans.count(ALONE["name"]) > 10)
        assert load.errors == []


async def test_the_status_tells_admitted_endpoints_and_requests_by_generation(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    slow = StageProcess("small-slow", "edge", (0, 3), seconds=1.0)
    with stages(slow):
        cluster.put(POD, slow.pod)
        names = ["small-edge", "small-slow", "small-later"]
        cluster.put(ROUTE_TABLE, table(1, route(("small-slow", "edge", 0, 3)), stages=names))
        async with gateway(cluster, tmp_path) as running:
            await until(running.forwarder.ready)
            client = triton_grpc.InferenceServerClient(f"{running.settings.pod_ip}:9000")
            pending = asyncio.ensure_future(infer(client))
            await until(lambda: running.router.flights.inside == 1)
            cluster.put(ROUTE_TABLE, table(2, ALONE, stages=names))
            await until(lambda: {"generation": 1, "requests": 1} in cluster.status.get("inFlight", ()))
            assert cluster.status["acknowledgedGeneration"] == 2
            assert cluster.status["stages"] == [
                {"name": "small-edge", "ready": 2},
                {"name": "small-slow", "ready": 1},
                {"name": "small-later", "ready": 0},
            ]
            await pending
            # At once, not at the next routine look: the operator waits for this before it deletes the old stages.
            await until(lambda: cluster.status["inFlight"] == [], seconds=3)
            await client.close()


async def test_a_full_stage_is_tried_again_within_the_deadline(cluster: MemoryCluster, tmp_path: Path) -> None:
    tight = StageProcess("small-tight", "edge", (0, 3), seconds=0.05, queue=1)
    with stages(tight):
        cluster.put(POD, tight.pod)
        cluster.put(ROUTE_TABLE, table(1, route(("small-tight", "edge", 0, 3)), stages=["small-tight"]))
        async with gateway(cluster, tmp_path) as running:
            await until(running.forwarder.ready)
            client = triton_grpc.InferenceServerClient(f"{running.settings.pod_ip}:9000")
            for done in await asyncio.gather(*(infer(client) for _ in range(12))):
                np.testing.assert_allclose(done.as_numpy("output_0"), expected())
            await client.close()


async def test_a_client_that_goes_takes_its_request_along(
    cluster: MemoryCluster, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    slow = StageProcess("small-slow", "edge", (0, 3), seconds=4.0)

    async def queued(depth: int) -> None:
        async with asyncio.timeout(20):
            while True:
                async with http.get(f"http://{slow.ip}:8080/metrics") as answer:
                    lines = (await answer.text()).splitlines()
                if any(
                    line.startswith("splitplane_stage_queue_depth{") and line.endswith(f" {depth}.0") for line in lines
                ):
                    return
                await asyncio.sleep(0.02)

    with stages(slow):
        cluster.put(POD, slow.pod)
        cluster.put(ROUTE_TABLE, table(1, route(("small-slow", "edge", 0, 3))))
        async with gateway(cluster, tmp_path) as running:
            await until(running.forwarder.ready)
            client = triton_grpc.InferenceServerClient(f"{running.settings.pod_ip}:9000")
            kept = asyncio.ensure_future(infer(client))
            await until(lambda: running.router.flights.inside == 1)
            left = asyncio.ensure_future(infer(client))
            _, writer = await asyncio.open_connection(running.settings.pod_ip, 8080)
            body = json.dumps(rest_body()).encode()
            head = f"POST /v2/models/{PIPELINE}/infer HTTP/1.1\r\nHost: g\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await until(lambda: running.router.flights.inside == 3)
            await queued(3)
            writer.close()
            left.cancel()
            await until(lambda: running.router.flights.inside == 1)
            await queued(1)
            assert not kept.done(), "the others left the stage before their turn"
            np.testing.assert_allclose((await kept).as_numpy("output_0"), expected())
            async with http.get(rest_url(running, "/metrics")) as answer:
                text = await answer.text()
            await client.close()
    assert 'outcome="cancelled",pipeline="small"} 2.0' in text
    assert 'outcome="success",pipeline="small"} 1.0' in text
    assert 'outcome="error",pipeline="small"} 0.0' in text


async def test_the_largest_request_that_a_client_may_send_has_room_for_its_route(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    rows = MAX_MESSAGE_BYTES // (4 * WIDTH) - 1
    message = oip_pb2.ModelInferRequest(model_name=PIPELINE, raw_input_contents=[frames(rows).tobytes()])
    message.inputs.add(name="frames", datatype="FP32", shape=[rows, WIDTH])
    message.id = "x" * (MAX_MESSAGE_BYTES - message.ByteSize() - 8)
    data = message.SerializeToString()
    assert 0 <= MAX_MESSAGE_BYTES - len(data) < 16
    cluster.put(ROUTE_TABLE, table(1, ALONE, queue={"maxInFlight": 4, "timeoutMilliseconds": 60_000}))
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
        unlimited = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
        async with grpc.aio.insecure_channel(f"{running.settings.pod_ip}:9000", options=unlimited) as channel:
            method: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            answer = oip_pb2.ModelInferResponse.FromString(await method(data, timeout=60))
            assert list(answer.outputs[0].shape) == [rows, 2]
            with pytest.raises(grpc.aio.AioRpcError):
                await method(data + bytes(32), timeout=60)


async def test_draining_answers_what_is_inside_and_refuses_the_rest(
    cluster: MemoryCluster, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    slow = StageProcess("small-slow", "edge", (0, 3), seconds=1.0)
    with stages(slow):
        cluster.put(POD, slow.pod)
        cluster.put(ROUTE_TABLE, table(1, route(("small-slow", "edge", 0, 3))))
        async with gateway(cluster, tmp_path) as running:
            await until(running.forwarder.ready)
            client = triton_grpc.InferenceServerClient(f"{running.settings.pod_ip}:9000")
            inside = [asyncio.ensure_future(infer(client))]
            inside.append(asyncio.ensure_future(http.post(rest_url(running), json=rest_body())))
            await until(lambda: running.router.flights.inside == 2)
            draining = asyncio.ensure_future(running.drain())
            await until(lambda: not running.forwarder.ready())
            np.testing.assert_allclose((await inside[0]).as_numpy("output_0"), expected())
            assert (await inside[1]).status == 200
            await draining
            with pytest.raises((InferenceServerException, grpc.aio.AioRpcError)):
                await infer(client, timeout=2.0)
            await client.close()


@pytest.mark.parametrize("kserve", [False, True])
async def test_scrapes_and_probes_are_no_demand_and_requests_are_told_by_kserves_name_too_where_wanted(
    cluster: MemoryCluster, tmp_path: Path, http: aiohttp.ClientSession, kserve: bool
) -> None:
    cluster.put(ROUTE_TABLE, table(1, ALONE))
    async with gateway(cluster, tmp_path, kserve_metrics=kserve) as running:
        await until(running.forwarder.ready)
        client = triton_grpc.InferenceServerClient(f"{running.settings.pod_ip}:9000")
        for _ in range(3):
            for path in ("/metrics", "/v2/health/live", "/v2/health/ready", "/v2", f"/v2/models/{PIPELINE}", "/"):
                async with http.get(rest_url(running, path)) as answer:
                    assert answer.status == 200
            assert await client.is_server_ready()
            assert await client.is_model_ready(PIPELINE)
            await client.get_model_metadata(PIPELINE)
        for _ in range(2):
            await infer(client)
        await client.close()
        async with http.get(rest_url(running, "/metrics")) as answer:
            told = dict(line.rsplit(" ", 1) for line in (await answer.text()).splitlines() if not line.startswith("#"))
    own = 'namespace="default",pipeline="small"'
    assert told[f"splitplane_requests_total{{{own}}}"] == told[f"splitplane_requests_admitted_total{{{own}}}"] == "2.0"
    assert told.get('request_predict_seconds_count{model_name="small"}') == ("2.0" if kserve else None)


def test_kserves_name_of_requests_time_goes_with_the_model_that_clients_ask_for() -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry, namespace="default", pipeline="small-berlin", kserve=True)
    metrics.serves("small")
    metrics.completed("success", seconds=0.1)
    assert registry.get_sample_value("request_predict_seconds_count", {"model_name": "small"}) == 1


def test_whatever_routes_name_metrics_have_few_labels() -> None:
    registry = CollectorRegistry()
    metrics = StageMetrics(registry, namespace="default", pipeline="small", tier="edge")
    for number in range(3000):
        metrics.computed(first=0, last=number + 1, seconds=0.1)
        metrics.links.transferred(source="edge", target=f"tier-{number}", size=1, seconds=0.1)
    told = {
        (sample.labels.get("range"), sample.labels.get("target")) for m in registry.collect() for sample in m.samples
    }
    assert ("0-1", None) in told
    assert (None, "tier-0") in told
    assert len(told) < 1200


async def test_a_link_is_estimated_from_traffic_and_exported(
    cluster: MemoryCluster, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    cluster.put(ROUTE_TABLE, table(1, SPLIT))
    async with gateway(cluster, tmp_path) as running:
        await until(running.forwarder.ready)
        async with Load(running) as load:
            await until(lambda: len(load.plans) > 20)
            assert running.router.links.estimates(time.monotonic())[("edge", "cloud")].bandwidth_bytes_per_second
            await until(lambda: cluster.status["links"] != [])
            assert cluster.status["links"][0]["source"] == "edge"
            await asyncio.sleep(1.1)
            async with http.get(rest_url(running, "/metrics")) as answer:
                text = await answer.text()
    assert 'splitplane_link_bandwidth_bytes_per_second{namespace="default",pipeline="small",source="edge"' in text


async def test_a_gateway_tells_stages_how_far_they_may_batch(tmp_path):
    stage, cluster = StageProcess("small-edge", "edge", (0, 3), seconds=0.02), MemoryCluster()
    with stages(stage):
        put_all(cluster, stage)
        cluster.put(ROUTE_TABLE, table(1, ALONE, batching={"maxSize": 8}))
        async with gateway(cluster, tmp_path) as running:
            await until(running.forwarder.ready)

            async def send(number: int) -> None:
                answer = await running.forwarder.infer(
                    InferRequest(PIPELINE, (from_array("frames", frames(value=number)),))
                )
                assert to_array(answer.outputs[0]).tolist() == expected(value=number).tolist()

            for turn in range(3):
                await asyncio.gather(*(send(100 * turn + number) for number in range(32)))
            async with aiohttp.ClientSession() as session, session.get(f"http://{stage.ip}:8080/metrics") as answer:
                metrics = await answer.text()
    (runs,) = (float(line.split()[1]) for line in metrics.splitlines() if "batch_samples_count" in line)
    assert runs < 96 / 2

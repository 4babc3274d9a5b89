"""Malformed requests, by the thousand: they are answered with errors of the protocol, and all goes on as before.

Once to the two fronts alone, over a model that takes any tensor, and once to a gateway with a stage behind it.
``make fuzz`` sends 20,000 to each; the default is a few hundred.
"""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitplane.adapters.cluster import Object
from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.runtime import oip_grpc, oip_pb2
from splitplane.runtime.budgets import MAX_MESSAGE_BYTES
from splitplane.runtime.tensors import NUMPY_TYPES
from tests.support import gateway_rig as rig
from tests.support.forking import FORKED
from tests.support.fronts import DATATYPES, Echo, Fronts, serving
from tests.support.gateway_stage import TYPES

REQUESTS = int(os.environ.get("SPLITPLANE_FUZZ_REQUESTS", "600"))
ANSWER_SECONDS = 10.0
GROWTH_BYTES = 64 << 20
PATHS = tuple(
    path.format(rig.PIPELINE)
    for path in ("/v2/models/{}/infer", "/v2/models/{}/versions/1/infer", "/v1/models/{}:predict")
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from([datatype.lower() for datatype in DATATYPES]) | st.text(max_size=5)
sizes = st.lists(st.integers(-2, 4) | st.sampled_from([1 << 31, 1 << 62, 1 << 70, True, "2"]), max_size=70)
parameters = st.dictionaries(st.sampled_from(["binary_data_size", "binary_data", "n"]), json_values, max_size=2)
entries = st.fixed_dictionaries(
    {},
    optional={
        "name": names | json_values,
        "datatype": st.sampled_from((*DATATYPES, "FP8")) | json_values,
        "shape": sizes | json_values,
        "data": st.lists(json_values, max_size=4) | json_values,
        "parameters": parameters | json_values,
    },
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "inputs": st.lists(entries, max_size=3) | json_values,
        "outputs": st.lists(entries, max_size=2) | json_values,
        "instances": st.lists(json_values, max_size=3) | json_values,
        "parameters": json_values,
    },
)
rest_requests = st.tuples(
    st.sampled_from(PATHS),
    (bodies | json_values).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=64),
    st.binary(max_size=32),
    st.none() | st.integers(-1, 200).map(str) | st.text("0123456789x²", max_size=5),
)


def whole_request() -> Any:
    """One that a gateway passes on: two numbers, both 0, of every datatype that a stage takes."""
    message: Any = oip_pb2.ModelInferRequest(model_name=rig.PIPELINE)
    for name in TYPES:
        message.inputs.add(name=name.lower(), datatype=name, shape=[1, 2])
        message.raw_input_contents.append(bytes(2 * (2 if name == "BF16" else NUMPY_TYPES[name].itemsize)))
    return message


@st.composite
def grpc_messages(draw: st.DrawFn) -> bytes:
    """A message that is valid but for what is drawn, and then perhaps cut or overwritten in places."""
    if draw(st.booleans()):
        return _damaged(draw, whole_request().SerializeToString())
    message: Any = oip_pb2.ModelInferRequest(model_name=rig.PIPELINE)
    for _ in range(draw(st.integers(0, 3))):
        tensor = message.inputs.add(
            name=draw(names).encode("utf-8", "ignore"),
            datatype=draw(st.sampled_from((*DATATYPES, "FP8", ""))),
            shape=draw(st.lists(st.integers(-2, 4) | st.sampled_from([1 << 31, (1 << 63) - 1]), max_size=5)),
        )
        if draw(st.booleans()):
            tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=8), max_size=3)))
            tensor.contents.int_contents.extend(draw(st.lists(st.integers(-300, 300), max_size=3)))
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=32), max_size=3)))
    return _damaged(draw, message.SerializeToString())


def _damaged(draw: st.DrawFn, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(draw(st.integers(0, 3))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


METHODS = ("ModelInfer", "ModelInfer", "ModelInfer", "ModelReady", "ModelMetadata", "ServerReady")


class Sender:
    """Sends single requests over kept connections, on an event loop of its own."""

    def __init__(self, fronts: Fronts, server: psutil.Process) -> None:
        self._fronts = fronts
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._session, self._channel = self._wait(self._open())

    async def _open(self) -> tuple[aiohttp.ClientSession, grpc.aio.Channel]:
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        return aiohttp.ClientSession(timeout=timeout), grpc.aio.insecure_channel(self._fronts.grpc_address)

    def rest(self, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        async def post() -> tuple[int, bytes]:
            url = f"http://{self._fronts.http_address}{path}"
            async with self._session.post(url, data=body, headers=headers) as answer:
                return answer.status, await answer.read()

        return self._wait(post())

    def grpc(self, method: str, data: bytes) -> grpc.StatusCode:
        async def call() -> grpc.StatusCode:
            send: Any = self._channel.unary_unary(f"/{oip_grpc.SERVICE}/{method}")
            try:
                await send(data, timeout=ANSWER_SECONDS)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        return self._wait(call())

    def memory(self) -> int:
        """Resident bytes of the server's process."""
        return int(self._server.memory_info().rss)

    def close(self) -> None:
        async def close() -> None:
            await self._session.close()
            await self._channel.close()

        self._wait(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_SECONDS + 5)


def serve(pipe: Any) -> None:
    """A process's whole life: the fronts, until the other end of the pipe says something."""
    with serving(Echo(name=rig.PIPELINE)) as fronts:
        pipe.send(fronts)
        pipe.recv()


def serve_gateway(pipe: Any, folder: Path, pod: Object) -> None:
    """The same of a gateway whose one stage is that pod."""

    async def run() -> None:
        cluster = rig.MemoryCluster()
        described = [{"name": name.lower(), "datatype": name, "shape": [-1, 2]} for name in TYPES]
        model = {"name": rig.PIPELINE, "inputs": described, "outputs": described}
        cluster.put(ROUTE_TABLE, rig.table(1, rig.ALONE, model=model))
        cluster.put(POD, pod)
        async with rig.gateway(cluster, folder) as running:
            await rig.until(running.forwarder.ready)
            pipe.send(Fronts(f"{running.settings.pod_ip}:9000", f"{running.settings.pod_ip}:8080"))
            await asyncio.to_thread(pipe.recv)

    asyncio.run(run())


@pytest.fixture(scope="module", params=["fronts", "gateway"])
def sender(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sender]:
    ours, theirs = FORKED.Pipe()
    with ExitStack() as stack:
        if request.param == "fronts":
            process = FORKED.Process(target=serve, args=(theirs,), daemon=True)
        else:
            (stage,) = stack.enter_context(rig.stages(rig.StageProcess("small-edge", "edge", (0, 3), same=True)))
            arguments = theirs, tmp_path_factory.mktemp("gateway"), stage.pod
            process = FORKED.Process(target=serve_gateway, args=arguments, daemon=True)
        process.start()
        yield from _sender(ours, process)


def _sender(ours: Any, process: Any) -> Iterator[Sender]:
    fronts = ours.recv()
    sender = Sender(fronts, psutil.Process(process.pid))
    for path in PATHS:
        sender.rest(path, b"{}")
    before = sender.memory()
    yield sender
    grown = sender.memory() - before
    sender.close()
    ours.send("end")
    process.join(30)
    assert process.exitcode == 0
    assert grown < GROWTH_BYTES


# On two noisy cores the time of an example says nothing; hangs have their own bound.
FUZZ = settings(
    max_examples=REQUESTS // 2,
    database=None,
    derandomize=REQUESTS < 1000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@FUZZ
@given(rest_requests)
def test_rest_answers_anything_with_success_or_a_clients_error(
    sender: Sender, request_: tuple[str, bytes, bytes, str | None]
) -> None:
    path, body, more, header_size = request_
    headers = {} if header_size is None else {"Inference-Header-Content-Length": header_size}
    status, answer = sender.rest(path, body + more, **headers)
    assert status in (200, 400, 404), (status, answer)
    if status != 200:
        assert list(json.loads(answer)) == ["error"]


@FUZZ
@given(st.sampled_from(METHODS), grpc_messages())
def test_grpc_answers_anything_with_success_or_a_clients_error(sender: Sender, method: str, data: bytes) -> None:
    codes = grpc.StatusCode
    assert sender.grpc(method, data) in (codes.OK, codes.INVALID_ARGUMENT, codes.NOT_FOUND)


def test_a_request_that_is_whole_is_answered(sender: Sender) -> None:
    """Or else what is damaged of it would show nothing."""
    assert sender.grpc("ModelInfer", whole_request().SerializeToString()) is grpc.StatusCode.OK


def test_what_unpacks_to_more_than_the_limit_is_refused(sender: Sender) -> None:
    import gzip

    bomb = gzip.compress(bytes(MAX_MESSAGE_BYTES + (1 << 20)))
    before = sender.memory()
    status, answer = sender.rest(PATHS[0], bomb, **{"Content-Encoding": "gzip"})
    assert status == 413
    assert b"error" in answer
    assert sender.memory() - before < 4 * MAX_MESSAGE_BYTES

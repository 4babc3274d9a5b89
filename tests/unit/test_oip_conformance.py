"""Other people's clients, unmodified, against both protocol fronts: all datatypes, forms and questions."""

import asyncio
import importlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import ml_dtypes
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.utils import InferenceServerException

from splitplane.adapters.kinds import ROUTE_TABLE
from tests.support import gateway_rig as rig
from tests.support.fronts import DATATYPES, Echo, Fronts, serving
from tests.support.gateway_stage import TYPES

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "build" / "peers" / "bin" / "python"

ARRAYS: dict[str, Any] = {
    "BOOL": np.array([[True, False], [False, True]]),
    "FP16": np.array([[0.5, -65504], [np.nan, np.inf]], np.float16),
    "BF16": np.array([[0.5, -3.0], [2.0**100, np.nan]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.5, -3.25], [1e-30, 3e38]], np.float32),
    "FP64": np.array([[0.1, 1e300], [-0.0, 5.0]], np.float64),
    "BYTES": np.array([[b"a", b""], ["\u00fc\u20ac".encode(), b"0123" * 50]], np.object_),
    **{
        name: np.array([[np.iinfo(name.lower()).min, np.iinfo(name.lower()).max], [0, 1]], name.lower())
        for name in DATATYPES
        if "INT" in name
    },
}
CLIENTS = ("http", "grpc", "http.aio", "grpc.aio")
FORMS = [(client, datatype, True) for client in CLIENTS for datatype in DATATYPES] + [
    # A client of HTTP may send and want JSON instead; this one has none for the short floats.
    (client, datatype, False)
    for client in ("http", "http.aio")
    for datatype in DATATYPES
    if datatype not in ("BF16", "FP16")
]


@pytest.fixture(scope="module")
def model() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def fronts(model: Echo) -> Iterator[Fronts]:
    with serving(model) as both:
        yield both


def ask(kind: str, fronts: Fronts, use: Callable[[Any], Any]) -> Any:
    """What a client of that kind returns for ``use(client)``; the asynchronous ones are awaited."""
    module = importlib.import_module(f"tritonclient.{kind}")
    address = fronts.http_address if kind.startswith("http") else fronts.grpc_address

    async def later() -> Any:
        async with module.InferenceServerClient(address) as client:
            return await use(client)

    if kind.endswith("aio"):
        return asyncio.run(later())
    with module.InferenceServerClient(address) as client:
        return use(client)


@pytest.mark.parametrize(("kind", "datatype", "binary"), FORMS)
def test_tritonclient_gets_back_what_it_sends(fronts: Fronts, model: Echo, kind: str, datatype: str, binary: bool):
    module = importlib.import_module(f"tritonclient.{kind}")
    array, name = ARRAYS[datatype], datatype.lower()
    tensor = module.InferInput(name, list(array.shape), datatype)
    over_http = kind.startswith("http")
    tensor.set_data_from_numpy(array, **({"binary_data": binary} if over_http else {}))
    wanted = module.InferRequestedOutput(name, **({"binary_data": binary} if over_http else {}))
    answer = ask(
        kind,
        fronts,
        lambda client: client.infer("echo", [tensor], "1", outputs=[wanted], request_id="r1", parameters={"n": 3}),
    )
    got = answer.as_numpy(name)
    if datatype == "BYTES" and not binary:
        got = np.array([text.encode() for text in got.flat], np.object_).reshape(array.shape)
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert got.tolist() == array.tolist() if datatype == "BYTES" else got.tobytes() == array.tobytes()
    described = answer.get_response()
    assert (described["id"] if over_http else described.id) == "r1"
    assert model.seen[0].parameters == {"n": 3}
    assert model.seen[0].model_version == "1"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[rig.StageProcess, rig.StageProcess]]:
    """Two stages of a model that returns what it gets."""
    front = rig.StageProcess("small-edge", "edge", (0, 1), same=True)
    with rig.stages(front, rig.StageProcess("small-cloud", "cloud", (1, 3), same=True)) as (first, second):
        yield first, second


@pytest.mark.parametrize(
    ("kind", "binary"), [*((kind, True) for kind in CLIENTS), ("http", False), ("http.aio", False)]
)
async def test_tritonclient_gets_back_what_a_gateway_and_two_stages_pass_on(
    pair: tuple[rig.StageProcess, rig.StageProcess], tmp_path: Path, kind: str, binary: bool
) -> None:
    """Every datatype that torch has, all in one request."""
    module, over_http = importlib.import_module(f"tritonclient.{kind}"), kind.startswith("http")
    described = [{"name": name.lower(), "datatype": name, "shape": [-1, 2]} for name in TYPES]
    cluster = rig.MemoryCluster()
    model = {"name": rig.PIPELINE, "inputs": described, "outputs": described}
    cluster.put(ROUTE_TABLE, rig.table(1, rig.SPLIT, model=model))
    rig.put_all(cluster, *pair)
    sent = {name.lower(): ARRAYS[name] for name in TYPES}
    as_json = {"bf16", "fp16"}  # this client has none for them
    inputs, wanted = [], []
    for name, array in sent.items():
        more = {"binary_data": binary or name in as_json} if over_http else {}
        inputs.append(module.InferInput(name, list(array.shape), name.upper()))
        inputs[-1].set_data_from_numpy(array, **more)
        wanted.append(module.InferRequestedOutput(name, **more))
    async with rig.gateway(cluster, tmp_path) as running:
        await rig.until(running.forwarder.ready)
        fronts = Fronts(f"{running.settings.pod_ip}:9000", f"{running.settings.pod_ip}:8080")
        answer = await asyncio.to_thread(
            ask, kind, fronts, lambda client: client.infer(rig.PIPELINE, inputs, outputs=wanted)
        )
    for name, array in sent.items():
        got = answer.as_numpy(name)
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("is_server_live", True),
        ("is_server_ready", True),
        ("is_model_ready", True),
        ("get_server_metadata", "splitplane"),
        ("get_model_metadata", "echo"),
    ],
)
def test_tritonclient_reads_health_and_metadata(fronts: Fronts, kind: str, question: str, expected: Any):
    arguments = ("echo", "1") if "model" in question else ()
    answer = ask(kind, fronts, lambda client: getattr(client, question)(*arguments))
    if not isinstance(answer, bool):
        answer = answer["name"] if isinstance(answer, dict) else answer.name
    assert answer == expected


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("model_name", "version", "says"),
    [("other", "", "'other' is not served here"), ("echo", "7", "version '7'"), ("echo", "", "negative dimension")],
)
def test_tritonclient_is_told_what_is_wrong(fronts: Fronts, kind: str, model_name: str, version: str, says: str):
    module = importlib.import_module(f"tritonclient.{kind}")
    tensor = module.InferInput("fp32", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
    if model_name == "echo" and not version:
        tensor.set_shape([-1, 2])
        says = "negative dimension" if kind.startswith("grpc") else "'shape' must be a list of sizes"
    with pytest.raises(InferenceServerException, match=says):
        ask(kind, fronts, lambda client: client.infer(model_name, [tensor], version))


def test_kserves_clients_get_back_what_they_send(fronts: Fronts):
    assert PEERS.exists(), "its environment is missing: run `make peers`"
    script = Path(__file__).parents[1] / "support" / "oip_kserve_cases.py"
    command = [str(PEERS), str(script), fronts.grpc_address, fronts.http_address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    failures = json.loads(done.stdout.splitlines()[-1])
    assert {name: failure for name, failure in failures.items() if failure} == {}
    assert len(failures) >= 50


def test_grpc_health_follows_readiness(fronts: Fronts, model: Echo):
    states = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(fronts.grpc_address) as channel:
        forms = {
            "request_serializer": health_pb2.HealthCheckRequest.SerializeToString,
            "response_deserializer": states.FromString,
        }
        check = channel.unary_unary("/grpc.health.v1.Health/Check", **forms)
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch", **forms)
        ours = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        assert check(ours).status == states.SERVING
        seen = watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(seen).status == states.SERVING
        model.is_ready = False
        try:
            assert next(seen).status == states.NOT_SERVING
            assert check(health_pb2.HealthCheckRequest()).status == states.NOT_SERVING
        finally:
            model.is_ready = True
        assert next(seen).status == states.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_tells_services_and_messages(fronts: Fronts):
    with grpc.insecure_channel(fronts.grpc_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(database.get_services())
        service = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
        assert service.methods_by_name["ModelInfer"].input_type.fields_by_name["raw_input_contents"].number == 7


async def predict(fronts: Fronts, body: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{fronts.http_address}/v1/models/echo:predict", json=body) as answer,
    ):
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"instances": [{"fp32": [1, 2]}]}, {"predictions": [[1, 2]]}),
        (
            {"instances": [{"int8": [1, 2], "bytes": ["a", "b"]}, {"int8": [3, 4], "bytes": ["c", "d"]}]},
            {"predictions": [{"int8": [1, 2], "bytes": ["a", "b"]}, {"int8": [3, 4], "bytes": ["c", "d"]}]},
        ),
        ({"inputs": {"fp32": [[1, 2]]}}, {"outputs": [[1, 2]]}),
        ({"instances": [{"bf16": [1, -0.3]}]}, {"predictions": [[1, -0.30078125]]}),
        ({"inputs": {"bf16": [[1, 2**100]]}}, {"outputs": [[1, 2.0**100]]}),
        (
            {"inputs": {"fp32": [[1, 2]], "bool": [[True, False]]}},
            {"outputs": {"fp32": [[1, 2]], "bool": [[True, False]]}},
        ),
    ],
)
async def test_v1_predict_answers_in_the_form_of_the_request(fronts: Fronts, body: Any, answer: Any):
    assert await predict(fronts, body) == (200, answer)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "send either 'instances'"),
        ({"instances": [1], "inputs": [1]}, "send either 'instances'"),
        ({"instances": []}, "at least one sample"),
        ({"instances": [1]}, "must name the inputs"),
        ({"instances": [{"fp32": [1, 2]}, {"int8": [1, 2]}]}, "must name the same inputs"),
        ({"inputs": {"other": [1]}}, "input 'other' is unknown"),
        ({"inputs": {"int8": [[1, 300]]}}, "outside INT8"),
        ({"inputs": {"bf16": [[1, 3.397e38]]}}, "outside BF16"),
        ({"inputs": {"bf16": [["1", "2"]]}}, "not BF16"),
    ],
)
async def test_v1_predict_says_what_is_wrong(fronts: Fronts, body: Any, says: str):
    status, answer = await predict(fronts, body)
    assert status == 400
    assert says in answer["error"]

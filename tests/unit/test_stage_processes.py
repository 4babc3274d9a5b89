"""Stages as their pods run them: processes with the documented environment, called by ordinary clients."""

import http.client
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from safetensors.torch import load_file

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelGraph, ModelSource, export
from splitplane.runtime.routes import Hop, decode_trace, encode_route

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
START_SECONDS = 60.0


@dataclass(frozen=True)
class Example:
    source: ModelSource
    graph: ModelGraph
    whole: torch.nn.Module

    def environment(self) -> dict[str, str]:
        model = {
            "name": "pitch",
            "factory": self.source.factory,
            "weights": {"uri": self.source.weights_uri, "sha256": self.source.weights_sha256},
            "inputs": [{"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}],
        }
        return {"SPLITPLANE_MODEL": json.dumps(model), "SPLITPLANE_FINGERPRINT": self.graph.fingerprint}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    sys.path.insert(0, str(EXAMPLES))
    tracker: ModuleType = importlib.import_module("pitch_tracker")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    digest = tracker.save(path, "tiny")
    source = ModelSource(
        "tracker", "pitch_tracker:build_tiny", path.as_uri(), digest, (TensorSpec("frames", "FP32", (1024,)),)
    )
    whole = tracker.build_tiny()
    whole.load_state_dict(load_file(path))
    return Example(source, export(source), whole)


def free_address() -> str:
    """A loopback address of its own for a pod: its ports are fixed."""
    while True:
        address = f"127.{random.randint(100, 199)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
        try:
            for port in (8080, 9000):
                with socket.socket() as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        return address


class Pod:
    """One process of ``splitplane.runtime``; what it logs is kept."""

    def __init__(self, module: str, folder: Path, **environment: str) -> None:
        self.address = free_address()
        self.log = folder / f"{module}-{self.address}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stderr=log,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(EXAMPLES),
                    "SPLITPLANE_NAMESPACE": "test",
                    "SPLITPLANE_PIPELINE": "pitch",
                    "SPLITPLANE_POD_NAME": f"pod-{self.address}",
                    "SPLITPLANE_POD_IP": self.address,
                    **environment,
                },
            )

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.address}:8080{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except (urllib.error.URLError, ConnectionError):
            return 0, ""

    def wait(self, path: str = "/v2/health/ready") -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.get(path)[0] != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


Start = Callable[..., Pod]


@pytest.fixture(scope="module")
def start(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    pods: list[Pod] = []
    folder = tmp_path_factory.mktemp("pods")

    def start(resident: str, tier: str = "edge", **environment: str) -> Pod:
        given = {**example.environment(), "SPLITPLANE_RESIDENT": resident, "SPLITPLANE_TIER": tier, **environment}
        pods.append(Pod("splitplane.runtime.stage", folder, **given))
        return pods[-1]

    yield start
    for pod in pods:
        if pod.process.poll() is None:
            pod.process.kill()
            pod.process.wait()


@pytest.fixture(scope="module")
def stages(start: Start) -> tuple[Pod, Pod]:
    """The whole model on the edge, its second half in the cloud, both ready."""
    edge, cloud = start("0:7"), start("3:7", "cloud")
    edge.wait("/v2/health/live")
    edge.wait()
    cloud.wait()
    return edge, cloud


FRAMES = np.random.default_rng(5).standard_normal((3, 1024)).astype(np.float32)


def triton_input(values: np.ndarray = FRAMES, name: str = "frames") -> tritonclient.grpc.InferInput:
    tensor = tritonclient.grpc.InferInput(name, values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    return tensor


def route(edge: Pod, cloud: Pod, cut: int, codec: str, *, cloud_addresses: tuple[str, ...] = ()) -> str:
    return encode_route(
        [
            Hop("pitch-edge", "edge", 0, cut, (f"{edge.address}:9000",), codec),
            Hop("pitch-cloud", "cloud", cut, 7, cloud_addresses or (f"{cloud.address}:9000",)),
        ]
    )


def expected(example: Example) -> np.ndarray:
    with torch.inference_mode():
        return example.whole(torch.from_numpy(FRAMES)).numpy()


def test_an_unmodified_grpc_client_infers_against_a_single_stage(stages, example):
    edge, _ = stages
    with tritonclient.grpc.InferenceServerClient(f"{edge.address}:9000") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("pitch")
        metadata = client.get_model_metadata("pitch", as_json=True)
        assert metadata["inputs"] == [{"name": "frames", "datatype": "FP32", "shape": ["-1", "1024"]}]
        assert metadata["outputs"] == [{"name": "output_0", "datatype": "FP32", "shape": ["-1", "360"]}]
        answer = client.infer("pitch", [triton_input()], request_id="r1")
    assert np.abs(answer.as_numpy("output_0") - expected(example)).max() <= 1e-5
    assert answer.get_response().id == "r1"


@pytest.mark.parametrize("binary", [True, False])
def test_an_unmodified_http_client_infers_against_a_single_stage(stages, example, binary):
    edge, _ = stages
    tensor = tritonclient.http.InferInput("frames", FRAMES.shape, "FP32")
    tensor.set_data_from_numpy(FRAMES, binary_data=binary)
    output = tritonclient.http.InferRequestedOutput("output_0", binary_data=binary)
    with tritonclient.http.InferenceServerClient(f"{edge.address}:8080") as client:
        answer = client.infer("pitch", [tensor], outputs=[output])
    assert np.abs(answer.as_numpy("output_0") - expected(example)).max() <= 1e-5


@pytest.mark.parametrize(
    ("codec", "cosine"), [("fp32", 1 - 1e-9), ("fp16", 0.9999), ("int8", 0.999), ("int8+zstd", 0.999)]
)
@pytest.mark.parametrize("cut", [3, 5])
def test_two_stages_give_what_the_whole_model_gives(stages, example, cut, codec, cosine):
    edge, cloud = stages
    with tritonclient.grpc.InferenceServerClient(f"{edge.address}:9000") as client:
        answer = client.infer(
            "pitch",
            [triton_input()],
            parameters={"splitplane_route": route(edge, cloud, cut, codec), "splitplane_generation": 4},
        )
    got, want = answer.as_numpy("output_0"), expected(example)
    similarity = np.sum(got * want, axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert similarity.min() >= cosine
    first, second = decode_trace(answer.get_response().parameters["splitplane_trace"].string_param)
    assert (first.stage, first.tier, first.first, first.last) == ("pitch-edge", "edge", 0, cut)
    assert (second.stage, second.tier, second.first, second.last) == ("pitch-cloud", "cloud", cut, 7)
    payload = 3 * example.graph.cuts[cut].wire_bytes["fp32"] // {"fp32": 1, "fp16": 2, "int8": 4, "int8+zstd": 4}[codec]
    assert first.sent <= payload + 2048
    assert first.sent >= payload or codec.endswith("+zstd")
    assert 3 * 1440 <= first.received <= 3 * 1440 + 1024
    assert first.server >= first.hop >= second.server >= second.compute > 0
    assert (second.hop, second.sent, second.received) == (0, 0, 0)


def test_a_stage_counts_its_ranges_and_links(stages):
    edge, cloud = stages
    with tritonclient.grpc.InferenceServerClient(f"{edge.address}:9000") as client:
        client.infer("pitch", [triton_input()], parameters={"splitplane_route": route(edge, cloud, 4, "fp16")})
    metrics = edge.get("/metrics")[1]
    common = 'namespace="test",pipeline="pitch"'
    assert f'splitplane_stage_duration_seconds_count{{{common},range="0-4",tier="edge"}} 1.0' in metrics
    assert f'splitplane_stage_squared_seconds_total{{{common},range="0-4",tier="edge"}}' in metrics
    assert f'splitplane_stage_queue_depth{{{common},tier="edge"}} 0.0' in metrics
    assert f'splitplane_link_bytes_total{{{common},source="edge",target="cloud"}}' in metrics
    assert f'splitplane_link_transfer_seconds_count{{{common},source="edge",target="cloud"}}' in metrics


def test_a_replica_that_is_gone_is_replaced_by_its_alternate(stages, example):
    edge, cloud = stages
    gone = f"{free_address()}:9000"
    way = route(edge, cloud, 3, "fp32", cloud_addresses=(gone, f"{cloud.address}:9000"))
    with tritonclient.grpc.InferenceServerClient(f"{edge.address}:9000") as client:
        answer = client.infer("pitch", [triton_input()], parameters={"splitplane_route": way})
    assert np.abs(answer.as_numpy("output_0") - expected(example)).max() <= 1e-5


def test_over_http_a_stage_calls_no_other(stages):
    edge, cloud = stages
    tensor = tritonclient.http.InferInput("frames", FRAMES.shape, "FP32")
    tensor.set_data_from_numpy(FRAMES)

    def served() -> list[str]:
        return [line for line in cloud.get("/metrics")[1].splitlines() if "duration_seconds_count" in line]

    before = served()
    with (
        tritonclient.http.InferenceServerClient(f"{edge.address}:8080") as client,
        pytest.raises(tritonclient.utils.InferenceServerException, match="taken over gRPC only"),
    ):
        client.infer("pitch", [tensor], parameters={"splitplane_route": route(edge, cloud, 4, "fp16")})
    assert served() == before


def test_a_range_that_is_not_resident_is_refused_with_what_is(stages):
    edge, cloud = stages
    with (
        tritonclient.grpc.InferenceServerClient(f"{edge.address}:9000") as client,
        pytest.raises(tritonclient.grpc.InferenceServerException) as caught,
    ):
        client.infer("pitch", [triton_input()], parameters={"splitplane_route": route(edge, cloud, 2, "fp32")})
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"
    assert "keeps cuts 3 to 7 resident and cannot run 2 to 7" in caught.value.message()


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (triton_input(name="frame"), "input 'frame' is unknown; the inputs are frames"),
        (triton_input(FRAMES[:, :1000]), r"input 'frames' has shape [3, 1000]; expected [-1, 1024]"),
    ],
)
def test_a_wrong_input_is_refused_with_what_was_expected(stages, tensor, says):
    with (
        tritonclient.grpc.InferenceServerClient(f"{stages[0].address}:9000") as client,
        pytest.raises(tritonclient.grpc.InferenceServerException) as caught,
    ):
        client.infer("pitch", [tensor])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert says in caught.value.message()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (
            {"SPLITPLANE_FINGERPRINT": "0" * 32},
            "its profile 00000000000000000000000000000000: the factory, the weights",
        ),
        ({"SPLITPLANE_RESIDENT": "3:9"}, "SPLITPLANE_RESIDENT: pitch has cuts 0 to 7; 3:9 is no range of them"),
        ({"SPLITPLANE_SPEED_FACTOR": "0.5"}, "SPLITPLANE_SPEED_FACTOR is '0.5'"),
    ],
)
def test_a_stage_that_cannot_serve_ends_with_one_line_that_says_why(start, environment, says):
    pod = start("0:3", **environment)
    assert pod.process.wait(START_SECONDS) == os.EX_CONFIG
    assert says in pod.log.read_text().strip().splitlines()[-1]


def test_a_stage_that_is_told_to_end_finishes_what_it_accepted_and_takes_no_more(start, example):
    pod = start("0:7", SPLITPLANE_SPEED_FACTOR="20")  # 20 requests take seconds, less than the drain
    pod.wait()
    answers = []
    with tritonclient.grpc.InferenceServerClient(f"{pod.address}:9000") as client:
        sent = 20
        for _ in range(sent):
            client.async_infer("pitch", [triton_input()], lambda result, error: answers.append((result, error)))
        while pod.get("/metrics")[1].find("splitplane_stage_duration_seconds_count{") < 0:
            time.sleep(0.01)
        assert len(answers) < sent
        pod.process.send_signal(signal.SIGTERM)
        while pod.get("/v2/health/ready")[0] == 200:
            time.sleep(0.01)
        assert pod.process.wait(40) == 0
        deadline = time.monotonic() + 60
        while len(answers) < sent and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [error for _, error in answers] == [None] * sent


def test_a_stage_that_is_told_to_end_answers_what_comes_over_kept_connections_and_closes_them(start, example):
    pod = start("0:7")
    pod.wait()
    tensor = {"name": "frames", "datatype": "FP32", "shape": [1, 1024], "data": [0.5] * 1024}
    body, path = json.dumps({"inputs": [tensor]}).encode(), "/v2/models/pitch/infer"
    kept, coming, idle = (http.client.HTTPConnection(pod.address, 8080, timeout=20) for _ in range(3))

    def answer(connection: http.client.HTTPConnection) -> tuple[int, str | None]:
        response = connection.getresponse()
        response.read()
        return response.status, response.getheader("Connection")

    for connection in (kept, idle):
        connection.request("POST", path, body)
        assert answer(connection) == (200, None)
    coming.putrequest("POST", path)
    coming.putheader("Content-Length", str(len(body)))
    coming.endheaders(body[:100])
    pod.process.send_signal(signal.SIGTERM)
    while pod.get("/v2/health/ready")[0]:  # until it takes no new connections
        time.sleep(0.01)
    assert pod.process.poll() is None
    kept.request("POST", path, body)
    coming.send(body[100:])
    assert answer(kept) == answer(coming) == (200, "close")
    assert idle.sock.recv(1) == b""
    assert pod.process.wait(5) == 0  # long before its time is up
    for connection in (kept, coming, idle):
        connection.close()


def test_a_stage_that_is_told_to_end_while_it_loads_ends_at_once(start):
    pod = start("0:7")
    pod.wait("/v2/health/live")
    assert pod.end() == 0


def test_a_link_target_answers_probes_without_torch_or_numpy(tmp_path):
    import grpc

    from splitplane.runtime import link_probe_pb2
    from splitplane.runtime.link_target import PROBE

    pod = Pod("splitplane.runtime.link_target", tmp_path)
    try:
        pod.wait()
        with grpc.insecure_channel(f"{pod.address}:9000") as channel:
            probe = channel.unary_unary(
                PROBE,
                request_serializer=link_probe_pb2.ProbeRequest.SerializeToString,
                response_deserializer=link_probe_pb2.ProbeResponse.FromString,
            )
            answer = probe(link_probe_pb2.ProbeRequest(payload=bytes(5 << 20)), timeout=20)
        assert 0 <= answer.server_seconds < 1
        assert "process_resident_memory_bytes" in pod.get("/metrics")[1]
        assert pod.get("/nothing") == (404, '{"error": "no page /nothing"}')
        loaded = Path(f"/proc/{pod.process.pid}/maps").read_text()
        assert "libtorch" not in loaded
        assert "numpy" not in loaded
        assert pod.end() == 0
    finally:
        pod.process.kill()
        pod.process.wait()

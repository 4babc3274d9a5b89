"""The protocol fronts as clients see them: forms and errors of the Open Inference Protocol, over gRPC and REST."""

import asyncio
import gzip
import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry, Counter

from splitplane.runtime import oip_grpc, oip_json, oip_pb2, oip_rest, oip_wire
from splitplane.runtime.faults import MOST_CHARACTERS, MOST_KINDS, Faults, described
from splitplane.runtime.grpc_refusing import refuse
from splitplane.runtime.inference import (
    Failure,
    InferenceError,
    InferRequest,
    InferResponse,
    ModelMetadata,
    TensorMetadata,
    check_outputs,
    deadline_of,
)
from splitplane.runtime.tensors import check_inputs, from_array, to_array
from tests.support import fronts

METADATA = ModelMetadata(
    "adder",
    inputs=(TensorMetadata("a", "FP32", (-1, 2)), TensorMetadata("b", "INT64", (-1, 2))),
    outputs=(TensorMetadata("sum", "FP32", (-1, 2)), TensorMetadata("is_even", "BOOL", (-1, 2))),
)


@dataclass
class Adder:
    """A model with two inputs and two outputs, which fails as the test wants."""

    is_ready: bool = True
    error: Exception | None = None
    seen: list[InferRequest] = field(default_factory=list)

    def metadata(self) -> ModelMetadata:
        return METADATA

    def ready(self) -> bool:
        return self.is_ready

    async def infer(self, request: InferRequest) -> InferResponse:
        check_outputs(request.outputs, METADATA)
        self.seen.append(request)
        if self.error is not None:
            raise self.error
        check_inputs(request.inputs, METADATA.inputs)
        values = {tensor.name: to_array(tensor) for tensor in request.inputs}
        outputs = (
            from_array("sum", (values["a"] + values["b"]).astype(np.float32)),
            from_array("is_even", values["b"] % 2 == 0),
        )
        return InferResponse("adder", outputs, parameters={"served_by": "test"})


@dataclass
class Server:
    model: Adder
    grpc_address: str
    http_address: str


@pytest.fixture(scope="module")
def serving() -> Iterator[Server]:
    model, registry = Adder(), CollectorRegistry()
    Counter("things", "Counted", registry=registry).inc(3)
    with fronts.serving(model, registry) as both:
        yield Server(model, both.grpc_address, both.http_address)


@pytest.fixture
def server(serving: Server) -> Server:
    serving.model.is_ready, serving.model.error = True, None
    serving.model.seen.clear()
    return serving


A = np.array([[0.5, 1.5], [2.5, -3.5], [4.0, 5.0]], np.float32)
B = np.array([[1, 2], [3, 4], [1 << 40, -1]], np.int64)
SUM = (A + B).astype(np.float32)


def grpc_inputs() -> list[tritonclient.grpc.InferInput]:
    inputs = []
    for name, array in (("a", A), ("b", B)):
        tensor = tritonclient.grpc.InferInput(name, array.shape, tritonclient.utils.np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def http_inputs(*, binary: bool) -> list[tritonclient.http.InferInput]:
    inputs = []
    for name, array in (("a", A), ("b", B)):
        tensor = tritonclient.http.InferInput(name, array.shape, tritonclient.utils.np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


def test_grpc_clients_read_health_and_metadata(server):
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("adder")
        assert client.is_model_ready("adder", "1")
        assert client.get_server_metadata().name == "splitplane"
        metadata = client.get_model_metadata("adder")
        assert [(item.name, item.datatype, list(item.shape)) for item in metadata.outputs] == [
            ("sum", "FP32", [-1, 2]),
            ("is_even", "BOOL", [-1, 2]),
        ]
        server.model.is_ready = False
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("adder")


def test_grpc_clients_infer_all_outputs_or_those_that_they_name(server):
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        answer = client.infer("adder", grpc_inputs(), request_id="r7", parameters={"colour": "red", "n": 3})
        assert np.array_equal(answer.as_numpy("sum"), SUM)
        assert np.array_equal(answer.as_numpy("is_even"), B % 2 == 0)
        assert answer.get_response().id == "r7"
        assert answer.get_response().parameters["served_by"].string_param == "test"
        assert server.model.seen[0].parameters == {"colour": "red", "n": 3}
        wanted = [tritonclient.grpc.InferRequestedOutput("is_even")]
        answer = client.infer("adder", grpc_inputs(), outputs=wanted, model_version="1")
        assert [output.name for output in answer.get_response().outputs] == ["is_even"]


def grpc_refusal(server: Server, name: str = "adder", **options: Any) -> tuple[str, str]:
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        with pytest.raises(tritonclient.utils.InferenceServerException) as caught:
            client.infer(name, grpc_inputs(), **options)
        return caught.value.status(), caught.value.message()


def test_grpc_errors_have_the_status_that_fits(server):
    assert grpc_refusal(server, "multiplier") == (
        "StatusCode.NOT_FOUND",
        "model 'multiplier' is not served here; 'adder' is",
    )
    assert grpc_refusal(server, model_version="9") == (
        "StatusCode.NOT_FOUND",
        "version '9' of model 'adder' is not served here; use 1 or none",
    )
    assert grpc_refusal(server, outputs=[tritonclient.grpc.InferRequestedOutput("product")]) == (
        "StatusCode.INVALID_ARGUMENT",
        "output 'product' does not exist; model 'adder' returns sum, is_even",
    )


@pytest.mark.parametrize("failure", Failure)
def test_every_failure_has_a_grpc_status_and_an_http_status(server, failure):
    server.model.error = InferenceError(failure, "say this")
    assert grpc_refusal(server) == (f"StatusCode.{failure.name}", "say this")
    with (
        tritonclient.http.InferenceServerClient(server.http_address) as client,
        pytest.raises(tritonclient.utils.InferenceServerException) as caught,
    ):
        client.infer("adder", http_inputs(binary=True))
    assert (caught.value.status(), caught.value.message()) == (str(failure.http_status), "say this")
    assert Failure.RESOURCE_EXHAUSTED.http_status == 503


@pytest.mark.parametrize("failure", Failure)
def test_what_passes_tells_over_either_front_when_to_come_again(server, failure):
    server.model.error = InferenceError(failure, "say this")
    passes = failure in (Failure.RESOURCE_EXHAUSTED, Failure.UNAVAILABLE)
    with (
        tritonclient.grpc.InferenceServerClient(server.grpc_address) as client,
        pytest.raises(tritonclient.utils.InferenceServerException) as caught,
    ):
        client.infer("adder", grpc_inputs())
    error = caught.value.__cause__ or caught.value.__context__
    assert dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms") == ("1000" if passes else None)
    body = json.dumps({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(f"http://{server.http_address}/v2/models/adder/infer", data=body)
    answer.value.close()
    assert answer.value.code == failure.http_status
    assert answer.value.headers["Retry-After"] == ("1" if passes else None)


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_an_error_that_nothing_foresaw_is_logged_in_a_line_and_its_traceback_once(server, caplog, level):
    caplog.set_level(level)
    server.model.error = type("RowError", (Exception,), {})("no such row\nin the table")  # of a kind of its own
    for _ in range(3):
        assert grpc_refusal(server) == ("StatusCode.INTERNAL", "RowError; the server's log says more")
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(f"http://{server.http_address}/v2/models/adder/infer", data=b'{"inputs": []}')
        answer.value.close()
        assert answer.value.code == 500
    told = [record for record in caplog.records if "nothing foresaw" in record.message]
    assert len(told) == 6
    assert {record.message for record in told} == {
        "a request failed in a way that nothing foresaw: RowError: no such row in the table"
    }
    assert sum(record.exc_info is not None for record in told) == (2 if level == logging.INFO else 6)


def test_kinds_of_errors_without_end_take_no_memory_without_end(caplog):
    faults = Faults(logging.getLogger("test"))
    for number in range(2 * MOST_KINDS):
        faults.tell(type(f"Error{number}", (Exception,), {})())
    assert sum(bool(record.exc_info) for record in caplog.records) == MOST_KINDS
    assert len(caplog.records) == 2 * MOST_KINDS
    assert described(ValueError("x" * 5000)) == "ValueError: " + "x" * MOST_CHARACTERS


def test_a_deadline_reaches_the_model_from_either_front(server):
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        client.infer("adder", grpc_inputs())
        client.infer("adder", grpc_inputs(), client_timeout=30)
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        client.infer("adder", http_inputs(binary=True), timeout=30_000_000)
    none, by_grpc, by_http = (request.remaining_seconds() for request in server.model.seen)
    assert none is None
    assert by_grpc is not None
    assert by_http is not None
    assert 0 < by_grpc < 31
    assert 0 < by_http < 31


PATHS = {
    "/v2/models/adder/infer": b'{"inputs": []}',
    "/v1/models/adder:predict": b'{"inputs": {"a": [[1, 2]], "b": [[1, 2]]}}',
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("timeout", "seconds"), [("1H", 3600), ("2M", 120), ("00000030S", 30), ("45000m", 45), ("99999999u", 99.999999)]
)
def test_a_header_gives_a_rest_request_its_deadline(server, path, timeout, seconds):
    server.model.error = InferenceError(Failure.NOT_FOUND, "seen")
    request = urllib.request.Request(f"http://{server.http_address}{path}", PATHS[path], {"Grpc-Timeout": timeout})
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request)
    answer.value.close()
    assert answer.value.code == 404
    [seen] = server.model.seen
    assert seconds - 20 < (seen.remaining_seconds() or 0) < seconds


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "timeout", ["", "5", "S", "-1S", "1.5S", "1s", "0S", "123456789S", "000000001S", "1S,2S", "1 S", "\u00b9S"]
)
def test_a_deadline_that_cannot_be_read_is_refused(server, path, timeout):
    request = urllib.request.Request(f"http://{server.http_address}{path}", PATHS[path], {"Grpc-Timeout": timeout})
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request)
    with answer.value as error:
        assert "Grpc-Timeout is" in json.loads(error.read())["error"]
        assert error.code == 400
    assert not server.model.seen


@pytest.mark.parametrize("timeout", ["x", "5", -5, 1.5, True])
def test_a_timeout_that_is_no_number_of_microseconds_is_refused(timeout):
    with pytest.raises(InferenceError, match="microseconds") as refused:
        deadline_of({"timeout": timeout}, 7.0)
    assert refused.value.failure is Failure.INVALID_ARGUMENT
    assert deadline_of({"timeout": 0}, 7.0) == deadline_of({}, 7.0) == 7.0


def test_of_a_header_and_a_parameter_the_earlier_deadline_holds(server):
    for header, parameter in (("40S", 90_000_000), ("90S", 40_000_000)):
        with tritonclient.http.InferenceServerClient(server.http_address) as client:
            client.infer("adder", http_inputs(binary=True), timeout=parameter, headers={"Grpc-Timeout": header})
    assert [20 < (request.remaining_seconds() or 0) < 40 for request in server.model.seen] == [True, True]


def test_http_clients_read_health_and_metadata(server):
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("adder")
        assert client.is_model_ready("adder", "1")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        metadata = client.get_model_metadata("adder", "1")
        assert metadata["inputs"][1] == {"name": "b", "datatype": "INT64", "shape": [-1, 2]}
        server.model.is_ready = False
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("adder")


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_http_clients_infer_in_json_and_binary(server, binary_input, binary_output, compression):
    outputs = None
    if binary_output is not None:
        outputs = [
            tritonclient.http.InferRequestedOutput(name, binary_data=binary_output) for name in ("is_even", "sum")
        ]
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        answer = client.infer(
            "adder",
            http_inputs(binary=binary_input),
            request_id="r7",
            outputs=outputs,
            request_compression_algorithm=compression,
        )
    assert np.array_equal(answer.as_numpy("sum"), SUM)
    assert np.array_equal(answer.as_numpy("is_even"), B % 2 == 0)
    assert answer.get_response()["id"] == "r7"
    assert answer.get_response()["parameters"] == {"served_by": "test"}
    assert "binary_data_output" not in server.model.seen[0].parameters


def test_one_output_may_be_binary_and_another_json(server):
    outputs = [
        tritonclient.http.InferRequestedOutput("sum", binary_data=False),
        tritonclient.http.InferRequestedOutput("is_even", binary_data=True),
    ]
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        answer = client.infer("adder", http_inputs(binary=True), outputs=outputs)
    assert answer.get_output("sum")["data"] == SUM.flatten().tolist()
    assert np.array_equal(answer.as_numpy("is_even"), B % 2 == 0)


def test_a_large_body_is_served(server):
    a, b = np.ones((200_000, 2), np.float32), np.ones((200_000, 2), np.int64)
    inputs = []
    for name, array in (("a", a), ("b", b)):
        tensor = tritonclient.http.InferInput(name, array.shape, tritonclient.utils.np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        assert np.array_equal(client.infer("adder", inputs).as_numpy("sum"), a + b)


def untyped(channel: Any) -> Any:
    """For calls whose messages are bytes."""
    return channel


def test_typed_contents_are_read_on_a_thread_where_they_are_many_and_raw_ones_never(server, monkeypatch):
    threads, read = [], oip_wire.read_request

    def reading(*arguments: Any, **named: Any) -> InferRequest:
        threads.append(threading.current_thread().name)
        return read(*arguments, **named)

    monkeypatch.setattr(oip_wire, "read_request", reading)
    typed, raw, few = (oip_pb2.ModelInferRequest(model_name="adder") for _ in range(3))
    for message, rows in ((typed, 20_000), (raw, 20_000), (few, 1)):
        for name, datatype in (("a", "FP32"), ("b", "INT64")):
            entry = message.inputs.add(name=name, datatype=datatype, shape=[rows, 2])
            if message is not raw:
                getattr(entry.contents, f"{datatype.lower()}_contents").extend([1] * 2 * rows)
    raw.raw_input_contents.extend([np.ones((20_000, 2), np.float32).tobytes(), np.ones((20_000, 2), "<i8").tobytes()])
    with untyped(grpc.insecure_channel(server.grpc_address)) as channel:
        for message in (typed, raw, few):
            channel.unary_unary(oip_grpc.MODEL_INFER)(message.SerializeToString(), timeout=30)
            assert (server.model.seen[-1].inputs[0].shape[0] == 1) == (message is few)
    on_a_thread, *on_the_loop = threads
    assert len(set(on_the_loop)) == 1
    assert on_a_thread not in on_the_loop


def test_a_grpc_message_of_nothing_but_empty_tensors_and_a_long_question_are_refused(server):
    with untyped(grpc.insecure_channel(server.grpc_address)) as channel:
        for method, message in (
            (oip_grpc.MODEL_INFER, b"\x2a\x00" * 1_000_000),
            (f"/{oip_grpc.SERVICE}/ServerReady", bytes(70_000)),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(method)(message, timeout=30)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert str(refused.value.details()).startswith("the message has")


INPUTS = [
    {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1]},
    {"name": "b", "datatype": "INT64", "shape": [1, 2], "data": [[1, 2]]},
]


async def post(server: Server, body: Any, path: str = "/v2/models/adder/infer", **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{server.http_address}{path}", data=data, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


async def test_json_may_be_nested_or_flat(server):
    status, answer = await post(server, {"inputs": INPUTS})
    assert status == 200
    assert answer["outputs"] == [
        {"name": "sum", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 3.0]},
        {"name": "is_even", "datatype": "BOOL", "shape": [1, 2], "data": [False, True]},
    ]


async def test_null_stands_for_what_is_not_there(server):
    body = {"inputs": [{**entry, "parameters": None} for entry in INPUTS]}
    absent = await post(server, {"inputs": INPUTS})
    assert await post(server, {**body, "id": None, "outputs": None, "parameters": None}) == absent
    assert await post(server, {**body, "parameters": {"priority": None}}) == absent
    status, answer = await post(server, {**body, "outputs": [{"name": "sum", "parameters": None}]})
    assert (status, [output["name"] for output in answer["outputs"]]) == (200, ["sum"])


def with_input(**changes: Any) -> dict[str, Any]:
    return {"inputs": [INPUTS[0], {**INPUTS[1], **changes}]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "the request is not JSON"),
        (b"\xff", "the request is not JSON"),
        ([], "the request is not a JSON object"),
        ({"inputs": 3}, "'inputs' must be a list of objects"),
        ({"inputs": [{}]}, "an input has no 'name'"),
        ({"inputs": INPUTS[:1]}, "input 'b' is missing; the inputs are a, b"),
        (with_input(datatype=None), "input 'b' has no 'datatype'"),
        (with_input(datatype="INT32"), "input 'b' has datatype INT32; expected INT64"),
        (with_input(datatype="BF16"), "input 'b' has datatype BF16; expected INT64"),
        (with_input(datatype="BF16", data=[3.397e38, 2]), "input 'b': a value lies outside BF16"),
        (with_input(datatype="BF16", data=["1", "2"]), "input 'b': 'data' holds values that are not BF16"),
        (with_input(datatype="FP8"), "input 'b': datatype 'FP8' is not supported"),
        (with_input(datatype="BYTES"), "input 'b': 'data' holds values that are not BYTES"),
        (with_input(datatype="BYTES", data=["1", "2"]), "input 'b' has datatype BYTES; expected INT64"),
        ({"inputs": INPUTS, "parameters": {"n": 1 << 64}}, "parameter 'n' fits neither int64 nor uint64"),
        ({"inputs": INPUTS, "id": "\ud800"}, "'id': a text has no UTF-8 form"),
        ({"inputs": INPUTS, "id": True}, "'id' must be a text"),
        ({"inputs": [{**INPUTS[0], "data": [1e39, 2.0]}, INPUTS[1]]}, "input 'a': a value lies outside FP32"),
        ({"inputs": [{**INPUTS[0], "data": [10**39, 2]}, INPUTS[1]]}, "input 'a': a value lies outside FP32"),
        ({"inputs": [{**INPUTS[0], "data": [10**400, 2]}, INPUTS[1]]}, "input 'a': a value lies outside FP32"),
        ({"inputs": [{**INPUTS[0], "data": [10**20, None]}, INPUTS[1]]}, "'data' holds values that are not FP32"),
        (b"[" * 100_000, "the request is not JSON"),
        (with_input(shape="1,2"), "input 'b': 'shape' must be a list of sizes from 0"),
        (with_input(shape=[(1 << 63) - 1] * 1000), "input 'b': its shape takes 9223372036854775808 elements or more"),
        (with_input(shape=[1] * 1025), "input 'b' has 1025 dimensions; at most 1024 are taken"),
        (with_input(shape=[1 << 63]), "input 'b': 'shape' must be a list of sizes from 0"),
        (with_input(shape=[1, 3]), "input 'b' has 2 values; shape [1, 3] takes 3"),
        (with_input(shape=[2, 1]), "input 'b' has shape [2, 1]; expected [-1, 2] (-1 is any size)"),
        (with_input(data=[[1], [2, 3]]), "input 'b': 'data' is ragged"),
        (with_input(data=[1.5, 2]), "input 'b': 'data' holds values that are not INT64"),
        (with_input(data=["1", "2"]), "input 'b': 'data' holds values that are not INT64"),
        (with_input(data=[True, False]), "input 'b': 'data' holds values that are not INT64"),
        (with_input(data=[1 << 63, 0]), "input 'b': a value lies outside INT64"),
        (with_input(data=[1 << 70, 0]), "input 'b': a value lies outside INT64"),
        (with_input(data=None), "input 'b' has neither 'data' nor the parameter binary_data_size"),
        (with_input(parameters=[]), "input 'b': 'parameters' must be an object"),
        (
            with_input(parameters={"binary_data_size": 16}),
            "input 'b' has both 'data' and the parameter binary_data_size",
        ),
        ({"inputs": INPUTS, "outputs": [{"name": "product"}]}, "output 'product' does not exist"),
        (
            with_input(data=["x" * 100_000, *["y"] * 100_000]),  # 40 GB, as numpy would have it
            "input 'b': 'data' holds values that are not INT64",
        ),
        (with_input(data=[[1], ["x"]]), "input 'b': 'data' holds values that are not INT64"),
        ({"inputs": INPUTS, "outputs": [{"name": "sum"}] * 2}, "output 'sum' is asked for twice"),
        ({"inputs": INPUTS, "outputs": [{}]}, "an output has no 'name'"),
        ({"inputs": INPUTS, "parameters": {"n": {}}}, "'parameters' must be an object of numbers"),
    ],
)
async def test_a_wrong_body_is_refused_with_what_is_wrong(server, body, says):
    status, answer = await post(server, body)
    assert status == 400
    assert says in answer["error"]
    assert list(answer) == ["error"]


@pytest.mark.parametrize(
    "body", [b"{" * 2000, gzip.compress(b"{}")[:-4], gzip.compress(b"{}") + b"more"], ids=["plain", "cut off", "longer"]
)
async def test_a_body_that_is_not_compressed_as_it_says_is_refused(server, body):
    reader, writer = await asyncio.open_connection(*server.http_address.split(":"))
    lines = "Host: here", "Content-Encoding: gzip", f"Content-Length: {len(body)}", "Connection: close"
    writer.write("\r\n".join(("POST /v2/models/adder/infer HTTP/1.1", *lines, "", "")).encode() + body)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
        "error": "the body is not compressed as its Content-Encoding says"
    }
    writer.close()


async def test_an_output_that_does_not_exist_is_refused_before_anything_is_computed(server):
    await post(server, {"inputs": INPUTS, "outputs": [{"name": "product"}]})
    with pytest.raises(tritonclient.utils.InferenceServerException, match="output 'product' does not exist"):
        tritonclient.grpc.InferenceServerClient(server.grpc_address).infer(
            "adder", grpc_inputs(), outputs=[tritonclient.grpc.InferRequestedOutput("product")]
        )
    assert server.model.seen == []


async def test_a_model_that_is_not_served_is_unknown_also_while_nothing_is_ready(server):
    server.model.is_ready = False
    url = f"http://{server.http_address}/v2/models/none/ready"
    async with aiohttp.ClientSession() as session, session.get(url) as answered:
        assert answered.status == 404
    with pytest.raises(tritonclient.utils.InferenceServerException, match="model 'none' is not served here"):
        tritonclient.grpc.InferenceServerClient(server.grpc_address).is_model_ready("none")


def test_a_name_of_any_length_is_refused_as_what_it_is(server):
    """gRPC has no room for it in the error's text."""
    with pytest.raises(tritonclient.utils.InferenceServerException) as caught:
        tritonclient.grpc.InferenceServerClient(server.grpc_address).is_model_ready("ü" * 9000)
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    assert "is not served here" in caught.value.message()


def binary(size: int, *, extra: bytes = b"", header_size: Callable[[int], str] = str) -> tuple[bytes, dict[str, str]]:
    entry = {"name": "b", "datatype": "INT64", "shape": [1, 2], "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [INPUTS[0], entry]}).encode()
    return header + bytes(16) + extra, {oip_rest.HEADER_SIZE: header_size(len(header))}


async def test_null_stands_for_no_data_beside_binary_data(server):
    data, headers = binary(16)
    written = data.replace(b'"datatype": "INT64", ', b'"datatype": "INT64", "data": null, ')
    status, _ = await post(server, written, **{**headers, oip_rest.HEADER_SIZE: str(len(written) - 16)})
    assert status == 200


def binary_elements(name: str) -> tuple[bytes, dict[str, str]]:
    """More elements than the shape takes, under a datatype that the model does not declare."""
    entry = {"name": name, "datatype": "BYTES", "shape": [1, 2], "parameters": {"binary_data_size": 16}}
    header = json.dumps({"inputs": [INPUTS[0], entry]}).encode()
    return header + bytes(16), {oip_rest.HEADER_SIZE: str(len(header))}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (binary(15, extra=b""), "input 'b': 15 bytes of data, but INT64 of shape [1, 2] takes 16"),
        (binary(17), "input 'b': binary_data_size is 17, but 16 bytes of binary data are left"),
        (binary(16, extra=b"abc"), "3 bytes follow the last binary input"),
        (binary_elements("b"), "input 'b' has datatype BYTES; expected INT64"),
        (binary_elements("c"), "input 'c' is unknown; the inputs are a, b"),
        (binary(16, header_size=lambda _: "some"), "Inference-Header-Content-Length is 'some', not a number of bytes"),
        (binary(16, header_size=lambda _: "9" * 5000), "Inference-Header-Content-Length is '999999999999999999'"),
        (binary(16, header_size=lambda _: "99999"), "Inference-Header-Content-Length is 99999, but the body has"),
    ],
)
async def test_a_wrong_binary_body_is_refused_with_what_is_wrong(server, body, says):
    data, headers = body
    status, answer = await post(server, data, **headers)
    assert status == 400
    assert says in answer["error"]


@pytest.mark.parametrize("sizes", [[(1 << 63) - 1] * 1000, [-(1 << 63)] * 999])
def test_texts_of_a_shape_beyond_all_numbers_are_refused_over_grpc(server, sizes):
    message: Any = oip_pb2.ModelInferRequest(model_name="adder")
    message.inputs.add(name="a", datatype="BYTES", shape=sizes).contents.bytes_contents.append(b"x")
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(oip_grpc.MODEL_INFER)(message.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("datatype", "declared", "body", "shape"),
    [
        ("FP32", (-1, 2), bytes(24), (3, 2)),
        ("BF16", (-1, 2, -1), bytes(24), (1, 2, 6)),
        ("UINT8", (2, 3), bytes(6), (2, 3)),
        ("BYTES", (-1, 1), b"text", (1, 1)),
    ],
)
def test_a_body_without_a_header_is_the_models_one_input(datatype, declared, body, shape):
    """And asks for binary outputs."""
    spec = TensorMetadata("x", datatype, declared)
    request, binary_outputs = oip_json.read_request(
        body, header_size=0, model_name="m", model_version="", declared=(spec,)
    )
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", datatype, shape)
    assert "y" in binary_outputs


@pytest.mark.parametrize(
    ("declared", "size", "says"),
    [
        (((-1, 2), (-1, 2)), 16, "and this one does not have one"),
        (((-1, 2),), 15, "do not tell the shape"),
        (((2, 2),), 32, "but FP32 of shape"),
        (((-1, -1, -1),), 16, "do not tell the shape"),
    ],
)
def test_a_body_without_a_header_that_tells_no_shape_is_refused(declared, size, says):
    specs = tuple(TensorMetadata(f"x{number}", "FP32", shape) for number, shape in enumerate(declared))
    with pytest.raises(InferenceError, match=says):
        oip_json.read_request(bytes(size), header_size=0, model_name="m", model_version="", declared=specs)


def asked(module: Any, ask: str) -> dict[str, Any]:
    """Inputs and outputs of a request by which one of Triton's clients asks for an extension."""
    inputs = [module.InferInput("a", [1, 2], "FP32"), module.InferInput("b", [1, 2], "INT64")]
    for each, kind in zip(inputs, (np.float32, np.int64), strict=True):
        each.set_data_from_numpy(np.zeros((1, 2), kind))
    output = module.InferRequestedOutput("sum", class_count=2 if ask == "classification" else 0)
    if ask == "output's memory":
        output.set_shared_memory("region", 8)
    if ask == "input's memory":
        inputs[1].set_shared_memory("region", 16)
    return {"inputs": inputs, "outputs": [output]}


@pytest.mark.parametrize("module", [tritonclient.grpc, tritonclient.http], ids=["grpc", "http"])
@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ("classification", "output 'sum' asks for 'classification'"),
        ("output's memory", "output 'sum' asks for 'shared_memory_region'"),
        ("input's memory", "input 'b' asks for 'shared_memory_region'"),
    ],
)
def test_an_extension_that_is_not_served_is_refused_and_not_passed_over(server, module, ask, says):
    address = server.grpc_address if module is tritonclient.grpc else server.http_address
    with (
        module.InferenceServerClient(address) as client,
        pytest.raises(tritonclient.utils.InferenceServerException, match=says) as caught,
    ):
        client.infer("adder", **asked(module, ask))
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")


async def test_unknown_models_paths_and_methods_are_errors_in_the_protocols_form(server):
    assert await post(server, {"inputs": []}, "/v2/models/none/infer") == (
        404,
        {"error": "model 'none' is not served here; 'adder' is"},
    )
    assert await post(server, {"inputs": []}, "/v2/models/adder/versions/2/infer") == (
        404,
        {"error": "version '2' of model 'adder' is not served here; use 1 or none"},
    )
    assert await post(server, {}, "/v3") == (404, {"error": "Not Found: POST /v3"})
    assert await post(server, {}, "/v2/health/live") == (405, {"error": "Method Not Allowed: POST /v2/health/live"})
    async with aiohttp.ClientSession() as session:
        for path in ("/v2/models/adder/infer", "/v1/models/adder:predict"):
            async with session.get(f"http://{server.http_address}{path}") as answer:
                assert (answer.status, answer.headers["Allow"]) == (405, "POST")


def test_json_integers_of_any_size_are_read_exactly():
    entry = {"name": "x", "datatype": "UINT64", "shape": [3], "data": [(1 << 64) - 1, 0, 1 << 63]}
    request, _ = oip_json.read_request(
        json.dumps({"inputs": [entry]}).encode(), header_size=None, model_name="m", model_version=""
    )
    assert to_array(request.inputs[0]).tolist() == entry["data"]


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("data", [[10**20, -(10**20)], [1.5, 10**20], [1 << 64, 1]])
def test_json_integers_beyond_64_bits_are_floats_where_floats_are_asked_for(datatype, data):
    tensor = oip_json.read_values("x", datatype, data)
    assert to_array(tensor).tolist() == np.array([float(value) for value in data], to_array(tensor).dtype).tolist()


async def test_a_v1_output_that_json_cannot_carry_is_refused_with_what_that_client_can_do(server):
    body = {"inputs": {"a": [[float("nan"), 1.0]], "b": [[1, 2]]}}
    status, answer = await post(server, body, "/v1/models/adder:predict")
    assert status == 400
    assert answer["error"].startswith(
        "output 'sum' holds NaN or infinity, which JSON cannot carry: ask for it in binary"
    )
    assert "binary_data" not in answer["error"]


async def test_nan_is_an_error_in_json_and_fine_in_binary(server):
    body = {"inputs": [{**INPUTS[0], "data": [float("nan"), 1]}, INPUTS[1]]}
    status, answer = await post(server, body)
    assert status == 400
    assert answer["error"].startswith("output 'sum' holds NaN or infinity, which JSON cannot carry: ask for it as")
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        inputs = http_inputs(binary=True)
        inputs[0].set_data_from_numpy(np.full_like(A, np.nan))
        answered = await asyncio.to_thread(client.infer, "adder", inputs)
    assert np.isnan(answered.as_numpy("sum")).all()


async def test_metrics_are_served_beside_the_protocol(server):
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{server.http_address}/metrics") as answer,
    ):
        assert "things_total 3.0" in await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain")


async def test_an_unforeseen_failure_is_told_without_its_details(server, caplog):
    server.model.error = RuntimeError("a secret path")
    status, answer = await post(server, {"inputs": INPUTS})
    assert (status, answer) == (500, {"error": "RuntimeError; the server's log says more"})
    assert "a secret path" in caplog.text


def test_a_response_is_cut_to_the_outputs_in_the_clients_order():
    from splitplane.runtime.inference import answer

    response = InferResponse("adder", (from_array("sum", A), from_array("is_even", B % 2 == 0)))
    request = InferRequest("adder", (), id="1", outputs=("is_even", "sum"))
    assert [tensor.name for tensor in answer(request, response).outputs] == ["is_even", "sum"]
    assert answer(replace(request, outputs=()), response).outputs == response.outputs


async def test_health_of_a_service_whose_name_is_too_long_to_quote_is_not_found(server):
    async with untyped(grpc.aio.insecure_channel(server.grpc_address)) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(health_pb2.HealthCheckRequest(service="ü" * 9000).SerializeToString())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "is not served here" in (caught.value.details() or "")


async def test_a_refusal_that_nobody_waits_for_ends_as_a_call_that_was_cancelled():
    """gRPC logs any other error that a handler ends with."""

    context: Any = SimpleNamespace(abort=AsyncMock(side_effect=grpc.aio.InternalError))
    with pytest.raises(asyncio.CancelledError):
        await refuse(context, grpc.StatusCode.NOT_FOUND, "not here")


async def test_watchers_of_health_do_not_hold_up_a_server_that_stops():
    server = oip_grpc.Server(Adder())
    port = server.bind("127.0.0.1", 0)
    await server.start()
    async with untyped(grpc.aio.insecure_channel(f"127.0.0.1:{port}")) as channel:
        call = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest())
        assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
        await asyncio.wait_for(server.stop(60), 10)
        assert (await call.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await call.read() is grpc.aio.EOF


async def test_a_silent_stream_of_reflection_does_not_hold_up_a_server_that_stops():
    server = oip_grpc.Server(Adder())
    port = server.bind("127.0.0.1", 0)
    await server.start()
    async with untyped(grpc.aio.insecure_channel(f"127.0.0.1:{port}")) as channel:
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")()
        await call.write(b"")
        assert await call.read() != grpc.aio.EOF
        await asyncio.wait_for(server.stop(60), 10)
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

"""Messages of the Open Inference Protocol as bytes: what is written beside protobuf is what protobuf reads."""

import contextlib
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from splitplane.runtime import codecs, oip_contents, oip_pb2, oip_wire
from splitplane.runtime.inference import InferenceError, InferRequest, InferResponse, Tensor
from splitplane.runtime.protobuf_fields import varint, varints
from splitplane.runtime.tensors import NUMPY_TYPES, to_array, to_elements

PARAMETERS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    max_size=3,
)
TENSORS = st.lists(
    st.builds(
        Tensor,
        name=st.text(max_size=10),
        datatype=st.sampled_from(["FP32", "INT8", "BOOL"]),
        shape=st.lists(st.integers(0, 1 << 40), max_size=4).map(tuple),
        data=st.binary(max_size=300),
        parameters=PARAMETERS,
    ),
    max_size=4,
).map(tuple)


def plain(tensors: tuple[Tensor, ...]) -> list[tuple[object, ...]]:
    return [(t.name, t.datatype, t.shape, bytes(t.data), dict(t.parameters)) for t in tensors]


@given(TENSORS, PARAMETERS, st.text(max_size=5), st.lists(st.text(max_size=5), max_size=2).map(tuple))
def test_a_request_survives_the_wire(tensors, parameters, identity, outputs):
    request = InferRequest(model_name="m", inputs=tensors, id=identity, parameters=parameters, outputs=outputs)
    again = oip_wire.read_request(oip_wire.write_request(request))
    assert plain(again.inputs) == plain(tensors)
    assert (again.model_name, again.id, again.parameters, again.outputs) == ("m", identity, parameters, outputs)


@given(TENSORS, PARAMETERS)
def test_a_response_survives_the_wire(tensors, parameters):
    response = InferResponse(model_name="m", outputs=tensors, parameters=parameters, id="7")
    again = oip_wire.read_response(oip_wire.write_response(response))
    assert plain(again.outputs) == plain(tensors)
    assert (again.id, again.parameters) == ("7", parameters)


@given(TENSORS)
def test_protobuf_of_another_implementation_of_the_protocol_reads_what_is_written(tensors):
    message = service_pb2.ModelInferRequest.FromString(
        oip_wire.write_request(InferRequest(model_name="m", inputs=tensors))
    )
    assert [bytes(raw) for raw in message.raw_input_contents] == [bytes(tensor.data) for tensor in tensors]
    assert [tuple(entry.shape) for entry in message.inputs] == [tensor.shape for tensor in tensors]


def test_contents_may_lie_anywhere_in_a_message():
    described = oip_pb2.ModelInferRequest()
    described.inputs.add(name="x", datatype="UINT8", shape=[3])
    contents = oip_pb2.ModelInferRequest(raw_input_contents=[b"abc"])
    named = oip_pb2.ModelInferRequest(model_name="m")
    data = contents.SerializeToString() + named.SerializeToString() + described.SerializeToString()
    request = oip_wire.read_request(data)
    assert request.model_name == "m"
    assert bytes(request.inputs[0].data) == b"abc"


def test_received_contents_are_views_of_the_message():
    data = oip_wire.write_request(InferRequest(model_name="m", inputs=(Tensor("x", "UINT8", (4,), b"1234"),)))
    assert oip_wire.read_request(data).inputs[0].data.obj is data


@given(TENSORS, st.text(max_size=40))
def test_contents_lie_aligned_so_that_they_can_be_computed_on_where_they_are(tensors, name):
    request = oip_wire.write_request(InferRequest(model_name=name, inputs=tensors))
    response = oip_wire.write_response(InferResponse(model_name=name, outputs=tensors))
    for data, found in (
        (request, oip_wire.read_request(request).inputs),
        (response, oip_wire.read_response(response).outputs),
    ):
        start = np.frombuffer(data, np.uint8).ctypes.data if data else 0
        for tensor in found:
            if len(tensor.data):
                assert (np.frombuffer(tensor.data, np.uint8).ctypes.data - start) % 16 == 0


ACTIVATION_BYTES = 600_000


def peak(work: Callable[[], object]) -> int:
    """Bytes of Python's and numpy's memory that the work needs at most, beyond what was there."""
    tracemalloc.start()
    kept = work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return most


def test_a_hop_copies_an_activation_once_into_the_message_that_it_sends_and_never_else():
    sent = torch.randn(1, 150, 1000)
    (tensor,) = codecs.encode({"x": sent}, "fp32")
    assert np.frombuffer(tensor.data, np.uint8).ctypes.data == sent.data_ptr()
    request = InferRequest(model_name="m", inputs=(tensor,))
    assert ACTIVATION_BYTES <= peak(lambda: oip_wire.write_request(request)) < ACTIVATION_BYTES + 20_000
    data = oip_wire.write_request(request)
    assert peak(lambda: oip_wire.read_request(data)) < 20_000
    received = oip_wire.read_request(data).inputs
    decoded = codecs.decode(received)["x"]
    inside = decoded.data_ptr() - np.frombuffer(data, np.uint8).ctypes.data
    assert 0 < inside <= len(data) - ACTIVATION_BYTES
    assert torch.equal(decoded, sent)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_refused_or_read_but_never_crash(data):
    with contextlib.suppress(InferenceError):
        oip_wire.read_request(data)


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_message_cut_short_is_refused(cut):
    data = oip_wire.write_request(InferRequest(model_name="m", inputs=(Tensor("x", "UINT8", (40,), bytes(40)),)))
    with pytest.raises(InferenceError):
        oip_wire.read_request(data[:-cut])


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("INT64", "int64_contents", [-(1 << 63), 1]),
        ("UINT64", "uint64_contents", [(1 << 64) - 1, 1]),
        ("FP32", "fp32_contents", [0.5, -2.0]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
    ],
)
def test_typed_contents_are_read(datatype, field, values):
    message = oip_pb2.ModelInferRequest(model_name="m")
    entry = message.inputs.add(name="x", datatype=datatype, shape=[2])
    getattr(entry.contents, field).extend(values)
    (tensor,) = oip_wire.read_request(message.SerializeToString()).inputs
    assert to_array(tensor).tolist() == values


VALUES = {
    "BOOL": st.booleans(),
    "INT8": st.integers(-(1 << 7), (1 << 7) - 1),
    "INT32": st.integers(-(1 << 31), (1 << 31) - 1),
    "INT64": st.integers(-(1 << 63), (1 << 63) - 1),
    "UINT8": st.integers(0, (1 << 8) - 1),
    "UINT32": st.integers(0, (1 << 32) - 1),
    "UINT64": st.integers(0, (1 << 64) - 1),
    "FP32": st.floats(width=32),
    "FP64": st.floats(),
    "BYTES": st.binary(max_size=5),
}


def made(field: str, values: list[Any]) -> Any:
    contents = oip_pb2.InferTensorContents()
    getattr(contents, field).extend(values)
    return contents


@pytest.mark.parametrize("datatype", VALUES)
@given(st.data(), st.integers(1, 40))
def test_typed_contents_are_what_protobuf_reads_in_whatever_pieces_and_forms_they_come(datatype, data, step):
    """Packed or one by one, in several contents of one tensor, and read in steps of any size."""
    parts = data.draw(st.lists(st.lists(VALUES[datatype], max_size=12), max_size=4))
    field = "bytes_contents" if datatype == "BYTES" else oip_contents._FORMS[datatype][0]
    other = "fp32_contents" if datatype != "FP32" else "fp64_contents"
    tensor = oip_pb2.ModelInferRequest.InferInputTensor(
        name="x", datatype=datatype, shape=[sum(map(len, parts))]
    ).SerializeToString()
    for values in parts:
        pieces = [values] if data.draw(st.booleans()) else [[value] for value in values]
        contents = [made(other, [1.5, 2.5]).SerializeToString()]
        for piece in pieces:
            whole = made(field, piece).SerializeToString()
            if len(piece) == 1 and datatype != "BYTES" and data.draw(st.booleans()):
                kind = oip_contents._FORMS[datatype][1]
                whole = bytes([whole[0] & 0xF8 | kind]) + whole[2:]  # the number by itself, without a length
            contents.append(whole)
        joined = b"".join(contents)
        tensor += bytes([5 << 3 | 2]) + varint(len(joined)) + joined
    message = bytes([5 << 3 | 2]) + varint(len(tensor)) + tensor
    by_protobuf = oip_pb2.ModelInferRequest.FromString(message).inputs[0]
    wanted = list(getattr(by_protobuf.contents, field))
    assert len(wanted) == sum(map(len, parts))
    with mock.patch.object(oip_contents, "_STEP_BYTES", 16 * step):
        (read,) = oip_wire.read_request(message).inputs
    if datatype == "BYTES":
        assert to_elements(read) == wanted
    else:
        assert np.array_equal(to_array(read), np.array(wanted, NUMPY_TYPES[datatype]), equal_nan="FP" in datatype)


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [
        ("INT64", b"\x1a\x02\x01\x80"),
        ("INT64", b"\x1a\x0b" + b"\x80" * 10 + b"\x01"),
        ("INT64", b"\x1a\x40" + b"\x80" * 63 + b"\x01"),
        ("FP32", b"\x32\x05\0\0\0\0\0"),
        ("FP32", b"\x32\x08\0\0\0\0"),
        ("BYTES", b"\x42\x08\0"),
        ("BYTES", b"\x42"),
    ],
)
def test_typed_contents_that_are_cut_off_are_refused(datatype, contents):
    message: Any = oip_pb2.ModelInferRequest(inputs=[{"name": "x", "datatype": datatype, "shape": [1]}])
    tensor = message.inputs[0].SerializeToString() + bytes([5 << 3 | 2, len(contents)]) + contents
    with pytest.raises(InferenceError, match="not a valid Open Inference Protocol message"):
        oip_wire.read_request(bytes([5 << 3 | 2, len(tensor)]) + tensor)


def test_typed_contents_that_are_far_larger_in_their_raw_form_are_refused(monkeypatch):
    monkeypatch.setattr(oip_contents, "MAX_MESSAGE_BYTES", 10_000)
    message = oip_pb2.ModelInferRequest(
        inputs=[{"name": "x", "datatype": "INT64", "shape": [9000], "contents": {"int64_contents": [1] * 9000}}]
    ).SerializeToString()
    assert len(message) < 10_000
    with pytest.raises(InferenceError, match="'x': typed contents of more than 10000 bytes in their raw form"):
        oip_wire.read_request(message)


@pytest.mark.parametrize(("datatype", "element"), [("BYTES", b"\x42\0"), ("INT64", b"\x18\1")])
def test_elements_that_come_one_by_one_are_bounded_in_number(monkeypatch, datatype, element):
    monkeypatch.setattr(oip_contents, "MAX_ELEMENTS", 100)
    for count in (100, 101):
        head = oip_pb2.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[count])
        tensor = head.SerializeToString() + bytes([5 << 3 | 2]) + varint(2 * count) + element * count
        message = bytes([5 << 3 | 2]) + varint(len(tensor)) + tensor
        with contextlib.nullcontext() if count == 100 else pytest.raises(InferenceError, match="than 100 elements one"):
            oip_wire.read_request(message)


def test_typed_contents_are_read_in_steps_that_let_others_have_their_turn(monkeypatch):
    """protobuf and numpy give up the interpreter only between two calls."""
    seen: list[int] = []

    def noted(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(*arguments: Any) -> Any:
            seen.append(len(arguments[-1]))
            return read(*arguments)

        return reading

    monkeypatch.setattr(oip_wire, "parse", noted(oip_wire.parse))
    monkeypatch.setattr(oip_contents, "varints", noted(varints))
    message = oip_pb2.ModelInferRequest(
        inputs=[{"name": "x", "datatype": "INT8", "shape": [500_000], "contents": {"int_contents": [-7] * 500_000}}]
    ).SerializeToString()
    (tensor,) = oip_wire.read_request(message).inputs
    assert to_array(tensor).tolist() == [-7] * 500_000
    assert len(message) > 5_000_000
    assert max(seen) <= 1 << 16


def test_a_typed_value_beyond_its_datatype_is_refused():
    message = oip_pb2.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="INT8", shape=[1]).contents.int_contents.append(300)
    with pytest.raises(InferenceError, match="'x': a value does not fit into INT8"):
        oip_wire.read_request(message.SerializeToString())


def test_half_precision_needs_raw_contents():
    message = oip_pb2.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="FP16", shape=[1])
    with pytest.raises(InferenceError, match="'x': FP16 can only be sent as raw contents"):
        oip_wire.read_request(message.SerializeToString())


def test_raw_contents_must_match_the_inputs_in_number():
    message = oip_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"a", b"b"])
    message.inputs.add(name="x", datatype="UINT8", shape=[1])
    with pytest.raises(InferenceError, match="describes 1 input tensors but holds 2 raw contents"):
        oip_wire.read_request(message.SerializeToString())


def test_a_timeout_parameter_in_microseconds_is_a_deadline():
    data = oip_wire.write_request(InferRequest(model_name="m", inputs=(), parameters={"timeout": 5_000_000}))
    remaining = oip_wire.read_request(data).remaining_seconds()
    assert remaining is not None
    assert 0 < remaining <= 5


def test_generated_messages_are_those_of_the_proto_files():
    subprocess.run([sys.executable, "-m", "splitplane.runtime.generate", "--check"], check=True)


def test_numbers_of_the_protocol_are_those_of_other_implementations():
    ours, theirs = oip_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR
    for message in ours.message_types_by_name.values():
        other = theirs.message_types_by_name[message.name]
        for field in message.fields:
            assert (field.number, field.type) == (
                other.fields_by_name[field.name].number,
                other.fields_by_name[field.name].type,
            )


def test_an_array_is_sent_without_a_copy():
    from splitplane.runtime.tensors import from_array

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(np.frombuffer(from_array("x", array).data, np.float32), array)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"\x2a\x00" * 4_000_000, "more than 4096 tensors, contents and parameters"),
        (
            oip_pb2.ModelInferRequest(
                inputs=[{"name": "x", "datatype": "FP32", "shape": [1] * 100_000}]
            ).SerializeToString(),
            "input 'x' has 100000 dimensions; at most 1024 are taken",
        ),
        (
            oip_pb2.ModelInferRequest(
                inputs=[{"name": name, "datatype": "FP32", "shape": [1] * 300_000} for name in "xy"]
            ).SerializeToString(),
            "names, shapes and parameters take more than 524288 bytes",
        ),
        (
            oip_pb2.ModelInferRequest(
                outputs=[{"name": "y", "parameters": {str(n): {"bool_param": True} for n in range(50_000)}}]
            ).SerializeToString(),
            "names, shapes and parameters take more than 524288 bytes",
        ),
        (
            oip_pb2.ModelInferRequest(
                inputs=[
                    {"name": "x", "datatype": "FP32", "parameters": {str(n): {"bool_param": True} for n in range(2000)}}
                ]
            ).SerializeToString(),
            "2000 parameters in one place; at most 1024",
        ),
        (
            oip_pb2.ModelInferRequest(
                inputs=[
                    {"name": "x", "datatype": "BYTES", "shape": [3], "contents": {"bytes_contents": [b""] * 500_000}}
                ]
            ).SerializeToString(),
            r"input 'x': more than 3 elements, but shape \[3\] takes 3",
        ),
    ],
    ids=["fields", "dimensions", "shapes", "parameters of an output", "parameters", "elements"],
)
def test_a_message_that_would_cost_far_more_than_its_bytes_is_refused_for_little(message, says):
    def refused() -> None:
        with pytest.raises(InferenceError, match=says):
            oip_wire.read_request(message)

    assert peak(refused) < len(message) + 200_000


def test_typed_elements_are_read_without_an_object_for_each():
    count = 300_000
    message = oip_pb2.ModelInferRequest(
        inputs=[{"name": "x", "datatype": "BYTES", "shape": [count], "contents": {"bytes_contents": [b""] * count}}]
    ).SerializeToString()
    read: list[InferRequest] = []
    assert peak(lambda: read.append(oip_wire.read_request(message))) < 6 * 4 * count
    assert read[0].inputs[0].data == bytes(4 * count)

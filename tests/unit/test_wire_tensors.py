"""What clients may send, and what they are told when it is wrong."""

import tracemalloc

import numpy as np
import pytest
import torch

from splitplane.domain.codecs import DATATYPE_BYTES
from splitplane.runtime.inference import InferenceError, Tensor, TensorMetadata
from splitplane.runtime.tensors import (
    check_inputs,
    check_size,
    from_array,
    from_torch,
    narrowed,
    to_array,
    to_torch,
    torch_datatype,
    torch_dtype,
    view_torch,
    widened,
)

DECLARED = (TensorMetadata("x", "FP32", (-1, 2)), TensorMetadata("mask", "INT64", (-1, 2)))
X = Tensor("x", "FP32", (3, 2), bytes(24))
MASK = Tensor("mask", "INT64", (3, 2), bytes(48))


def test_inputs_as_declared_are_accepted_in_any_order():
    check_inputs([MASK, X], DECLARED)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ([X], "input 'mask' is missing; the inputs are x, mask"),
        ([X, X, MASK], "input 'x' is given twice"),
        ([X, MASK, Tensor("y", "FP32", (1,), bytes(4))], "input 'y' is unknown; the inputs are x, mask"),
        ([Tensor("x", "FP64", (3, 2), bytes(48)), MASK], "input 'x' has datatype FP64; expected FP32"),
        ([Tensor("x", "FP32", (3, 3), bytes(36)), MASK], r"input 'x' has shape \[3, 3\]; expected \[-1, 2\]"),
        ([Tensor("x", "FP32", (2,), bytes(8)), MASK], r"input 'x' has shape \[2\]; expected \[-1, 2\]"),
        (
            [Tensor("x", "FP32", (3, 2), bytes(23)), MASK],
            r"input 'x': 23 bytes of data, but FP32 of shape \[3, 2\] takes 24",
        ),
        ([Tensor("x", "FP32", (2, 2), bytes(16)), MASK], "differ in their batch size .*'x' has 2, 'mask' has 3"),
        (
            [Tensor("x", "FP32", (3, 2), bytes(24), {"splitplane_zstd": "FP32 9,2"}), MASK],
            "splitplane_zstd.*leave it out",
        ),
        ([Tensor("x", "FP32", (0, 2), b""), Tensor("mask", "INT64", (0, 2), b"")], "'x' has an empty batch"),
    ],
)
def test_wrong_inputs_are_refused_with_the_name_and_what_was_expected(tensors, says):
    with pytest.raises(InferenceError, match=says):
        check_inputs(tensors, DECLARED)


@pytest.mark.parametrize("datatype", ["FP8", ""])
def test_a_datatype_that_no_tensor_has_is_refused(datatype):
    with pytest.raises(InferenceError, match=f"input 'x': datatype '{datatype}' is not supported; use one of BOOL"):
        to_array(Tensor("x", datatype, (1,), b"0000"))


@pytest.mark.parametrize("datatype", DATATYPE_BYTES)
def test_every_datatype_survives_torch_and_back(datatype):
    dtype = torch_dtype(datatype)
    value = torch.arange(6).reshape(2, 3).to(dtype)
    wire = from_torch("x", value)
    assert (wire.datatype, wire.shape, torch_datatype(dtype)) == (datatype, (2, 3), datatype)
    assert torch.equal(to_torch(wire).to(torch.float64), value.to(torch.float64))


@pytest.mark.parametrize("shape", [(0, 3), (), (1,), (2, 0, 4)])
def test_every_shape_survives_torch_and_back(shape):
    value = torch.ones(shape)
    assert torch.equal(to_torch(from_torch("x", value)), value)


def test_a_slice_and_a_transposed_tensor_are_sent_in_their_own_order():
    value = torch.arange(24.0).reshape(4, 6)
    for view in (value[1:3, ::2], value.T):
        assert torch.equal(to_torch(from_torch("x", view)), view)
        assert np.array_equal(to_array(from_array("x", view.numpy())), view.numpy())


def test_a_tensor_for_torch_does_not_share_the_message_and_may_lie_unaligned_in_it():
    message = b"?" + np.arange(4, dtype="<f4").tobytes()
    value = to_torch(Tensor("x", "FP32", (4,), memoryview(message)[1:]))
    value += 1
    assert value.tolist() == [1, 2, 3, 4]
    assert np.frombuffer(message, "<f4", offset=1).tolist() == [0, 1, 2, 3]


def test_big_endian_arrays_are_turned_round():
    wire = from_array("x", np.array([1, 256], ">i4"))
    assert (wire.datatype, bytes(wire.data)) == ("INT32", b"\x01\0\0\0\0\x01\0\0")


def test_numbers_become_the_bf16_that_torch_makes_of_them_and_come_back_as_they_are():
    bits = np.random.default_rng(7).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    ties = np.arange(0, 1 << 16, dtype=np.uint32) << 16 | 0x8000
    values = np.concatenate((bits, ties, [0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFFFFFFFF])).astype("<u4").view("<f4")
    wanted = torch.from_numpy(values).to(torch.bfloat16)
    held = torch.isfinite(wanted).numpy() | ~np.isfinite(values)
    assert 0 < np.count_nonzero(~held) < 1000
    made = narrowed("x", values[held], (1, int(held.sum())))
    assert torch.equal(torch.nan_to_num(to_torch(made)[0]), torch.nan_to_num(wanted[held]))
    back = to_array(widened(made))
    np.testing.assert_array_equal(back[0], wanted[held].float().numpy())
    for value in values[~held][:20]:
        with pytest.raises(InferenceError, match="'x': a value lies outside BF16"):
            narrowed("x", np.array([1.0, value], np.float32), (2,))


def test_arrays_without_a_datatype_are_refused():
    with pytest.raises(ValueError, match="complex128 has no Open Inference Protocol datatype"):
        from_array("x", np.zeros(2, complex))


def test_a_view_of_received_bytes_is_a_copy_only_where_they_lie_askew():
    message = bytearray(np.arange(5, dtype=np.float32).tobytes())
    straight = view_torch(Tensor("x", "FP32", (5,), memoryview(message)))
    askew = view_torch(Tensor("x", "FP32", (4,), memoryview(message)[1:17]))
    before = askew.clone()
    message[:] = bytes(len(message))
    assert straight.tolist() == [0] * 5
    assert torch.equal(askew, before)
    with pytest.raises(InferenceError):
        view_torch(Tensor("x", "FP32", (3,), b"12345"))
    assert view_torch(Tensor("x", "FP32", (0, 3), b"")).shape == (0, 3)


@pytest.mark.parametrize(
    ("data", "shape", "says"),
    [
        (bytes(4 * 400_000), (1,), r"more than 1 elements, but shape \[1\] takes 1"),
        (bytes(4 * 400_000), (400_001,), r"400000 elements, but shape \[400001\] takes 400001"),
        (bytes(4 * 400_000) + b"\x00", (400_001,), "ends within an element or its length"),
        (bytes(4 * 400_000) + b"\x09\x00\x00\x00abc", (400_001,), "ends within an element or its length"),
    ],
)
def test_elements_are_counted_without_an_object_for_each(data, shape, says):
    tracemalloc.start()
    try:
        with pytest.raises(InferenceError, match=says):
            check_size(Tensor("x", "BYTES", shape, data))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100_000

"""Codecs: what they cost in bytes, what they lose, and that nothing is lost silently."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitplane.domain.codecs import encoded_bytes, int8_groups, raw_bytes
from splitplane.domain.profiles import CODECS, TensorSpec
from splitplane.runtime import codecs, oip_wire
from splitplane.runtime.inference import InferenceError, InferRequest, Tensor, TensorMetadata
from splitplane.runtime.tensors import nbytes, torch_dtype

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=7)
FLOATS = ("FP16", "BF16", "FP32", "FP64")
MODERATE = st.floats(-60_000, 60_000, width=32)


def arrays(elements):
    return SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements))


def across_the_wire(tensors, codec):
    wire = codecs.encode(tensors, codec)
    message = oip_wire.write_request(InferRequest(model_name="m", inputs=wire))
    return codecs.decode(oip_wire.read_request(message).inputs)


@given(arrays(st.floats(width=32)))
def test_fp32_changes_nothing(array):
    assert np.array_equal(across_the_wire({"x": array}, "fp32")["x"].numpy(), array, equal_nan=True)


@given(arrays(MODERATE))
def test_fp16_rounds_to_half_precision(array):
    decoded = across_the_wire({"x": array}, "fp16")["x"].numpy()
    assert np.all(np.abs(decoded - array) <= np.maximum(np.abs(array) * 2.0**-11, 2.0**-25))


@given(arrays(st.floats(-(2.0**100), 2.0**100, width=32)))
def test_int8_is_off_by_at_most_half_a_scale_of_its_group(array):
    decoded = across_the_wire({"x": array}, "int8")["x"].numpy()
    groups = int8_groups(TensorSpec("x", "FP32", array.shape[1:]))
    if groups is None:
        assert np.array_equal(decoded, array)
        return
    grouped = array.reshape(array.shape[0], groups, -1).astype(np.float64)
    low, high = grouped.min(axis=(0, 2)), grouped.max(axis=(0, 2))
    rounding = 4 * np.finfo(np.float32).eps * np.maximum(abs(low), abs(high)) + 256 * np.finfo(np.float32).tiny
    bound = (high - low) / 510 * (1 + 1e-5) + rounding
    error = np.abs(decoded.reshape(grouped.shape) - grouped).max(axis=(0, 2))
    assert np.all(error <= bound)


@given(arrays(MODERATE), st.sampled_from(CODECS))
def test_sizes_are_those_that_the_planner_counts_on(array, codec):
    spec = TensorSpec("x", "FP32", array.shape[1:])
    assert sum(map(nbytes, codecs.encode({"x": array}, codec))) == encoded_bytes(spec, codec, batch=array.shape[0])


@given(SHAPES, st.sampled_from(CODECS), st.sampled_from(FLOATS))
def test_no_codec_makes_a_tensor_larger(shape, codec, datatype):
    spec = TensorSpec("x", datatype, shape[1:])
    for batch in (1, shape[0], 64):
        assert encoded_bytes(spec, codec, batch=batch) <= raw_bytes(spec, batch=batch)
        value = torch.zeros(batch, *shape[1:], dtype=torch_dtype(datatype))
        assert sum(map(nbytes, codecs.encode({"x": value}, codec))) == encoded_bytes(spec, codec, batch=batch)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((512,), 1),  # a vector for each sample: a scale for each of its elements would be nine bytes for one
        ((512, 4), 1),
        ((512, 8), 1),
        ((512, 9), 512),
        ((128, 384), 128),
        ((64, 3, 3), 64),
        ((3,), 1),
        ((2,), None),
        ((), None),
    ],
)
def test_int8_scales_channels_apart_where_that_pays(shape, groups):
    assert int8_groups(TensorSpec("x", "FP32", shape)) == groups
    value = torch.rand(5, *shape)
    wire = codecs.encode({"x": value}, "int8")
    assert [tensor.shape for tensor in wire[1:]] == ([] if groups is None else [(2, groups)])


@given(
    hnp.arrays(np.float32, (2, 3, 5), elements=MODERATE),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.integers(0, 29),
    st.sampled_from(CODECS),
)
@settings(max_examples=60)
def test_nan_and_infinity_survive_every_codec(array, special, where, codec):
    array.flat[where] = special
    decoded = across_the_wire({"x": array}, codec)["x"].numpy()
    assert np.array_equal(decoded.flat[where], special, equal_nan=True)
    assert np.isfinite(np.delete(decoded.flat, where)).all()


@pytest.mark.parametrize("companion", [0.0, np.nan])
def test_values_beyond_half_precision_travel_raw(companion):
    array = np.array([[1e6, companion, 1.0001]], np.float32)
    (wire,) = codecs.encode({"x": array}, "fp16")
    assert wire.datatype == "FP32"
    assert np.array_equal(codecs.decode([wire])["x"].numpy(), array, equal_nan=True)


def test_an_extent_beyond_single_precision_travels_raw():
    array = np.array([[-3e38], [3e38]], np.float32)
    assert np.array_equal(across_the_wire({"x": array}, "int8")["x"].numpy(), array)


def test_a_channel_that_is_constant_is_exact():
    array = np.full((2, 3, 4), 0.1, np.float32)
    assert np.array_equal(across_the_wire({"x": array}, "int8")["x"].numpy(), array)


def test_channels_do_not_disturb_each_other():
    array = np.stack([np.linspace(0, 1, 50), np.linspace(0, 1e6, 50)]).astype(np.float32)[None]
    decoded = across_the_wire({"x": array}, "int8")["x"].numpy()
    assert np.abs(decoded - array)[0, 0].max() <= 0.5 / 255 * 1.001


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("datatype", ["INT64", "BOOL", "UINT8", "INT32"])
def test_tensors_that_are_not_floating_point_are_exact_under_every_codec(codec, datatype):
    value = torch.arange(6).reshape(2, 3).to(torch_dtype(datatype))
    decoded = across_the_wire({"ids": value, "x": torch.ones(2, 3)}, codec)["ids"]
    assert decoded.dtype == value.dtype
    assert torch.equal(decoded, value)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP64"])
def test_other_floating_types_come_back_as_they_were(codec, datatype):
    value = torch.linspace(0, 1, 12).reshape(2, 2, 3).to(torch_dtype(datatype))
    decoded = across_the_wire({"x": value}, codec)["x"]
    assert decoded.dtype == value.dtype
    assert torch.allclose(decoded.double(), value.double(), atol=0.01)


@pytest.mark.parametrize("codec", CODECS)
def test_empty_and_dimensionless_tensors_survive(codec):
    tensors = {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5)}
    decoded = across_the_wire(tensors, codec)
    assert decoded["empty"].shape == (0, 3)
    assert decoded["scalar"].item() == 2.5


@pytest.mark.parametrize("codec", CODECS)
def test_wire_headers_alone_tell_what_will_be_decoded(codec):
    tensors = {"x": torch.ones(2, 3, 4), "ids": torch.ones(2, 3, dtype=torch.int64)}
    assert codecs.described(codecs.encode(tensors, codec)) == [
        TensorMetadata("x", "FP32", (2, 3, 4)),
        TensorMetadata("ids", "INT64", (2, 3)),
    ]


def test_a_tensor_may_be_named_like_a_companion():
    tensors = {"x": torch.ones(2, 3), "x:affine": torch.zeros(2, 2)}
    assert codecs.decode(codecs.encode(tensors, "fp32")).keys() == tensors.keys()


def test_unknown_codecs_and_lost_companions_are_refused():
    with pytest.raises(ValueError, match="codec zstd is unknown; use one of fp32, fp16, int8"):
        codecs.encode({"x": torch.ones(1)}, "zstd")
    wire = codecs.encode({"x": torch.ones(2, 3, 9)}, "int8")
    with pytest.raises(InferenceError, match="'x': int8 needs its scales and offsets in a tensor 'x:affine'"):
        codecs.decode(wire[:1])
    with pytest.raises(
        InferenceError, match=r"'x:affine': expected FP32 of shape \[2, 3\] or \[2, 1\], not FP32 \[3\]"
    ):
        codecs.decode([wire[0], Tensor("x:affine", "FP32", (3,), bytes(12))])
    with pytest.raises(InferenceError, match="codec 'zstd' is unknown here"):
        codecs.decode([Tensor("x", "UINT8", (1,), b"1", {codecs.CODEC: "zstd"})])
    with pytest.raises(InferenceError, match="is 'INT8', not one of"):
        codecs.decode([Tensor("x", "FP16", (1,), b"12", {codecs.CODEC: "fp16", codecs.DATATYPE: "INT8"})])

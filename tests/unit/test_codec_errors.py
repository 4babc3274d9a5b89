"""Codecs: what they cost in bytes, what they lose, and that nothing is lost silently."""

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitplane.domain.codecs import AFFINE_BITS, affine_groups, encoded_bytes, raw_bytes
from splitplane.domain.profiles import BASE_CODECS, CODECS, ZSTD, TensorSpec
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


@given(arrays(st.floats(width=32)))
def test_bf16_keeps_eight_bits_of_any_number(array):
    decoded = across_the_wire({"x": array}, "bf16")["x"].numpy()
    numbers, smallest = np.isfinite(array), np.finfo(np.float32).tiny
    error = np.abs(decoded[numbers].astype(np.float64) - array[numbers])
    assert np.all(error <= np.maximum(np.abs(array[numbers].astype(np.float64)) * 2.0**-8, smallest * 2.0**-8))
    assert np.array_equal(decoded[~numbers], array[~numbers], equal_nan=True)


@given(arrays(st.floats(width=32)), st.sampled_from(BASE_CODECS))
def test_compression_changes_nothing_and_never_takes_more(array, codec):
    plain, compressed = codecs.encode({"x": array}, codec), codecs.encode({"x": array}, codec + ZSTD)
    assert sum(map(nbytes, compressed)) <= sum(map(nbytes, plain))
    expected = codecs.decode(plain)["x"].numpy()
    assert np.array_equal(across_the_wire({"x": array}, codec + ZSTD)["x"].numpy(), expected, equal_nan=True)
    assert codecs.described(compressed) == codecs.described(plain)


@pytest.mark.parametrize("codec", BASE_CODECS)
def test_what_a_relu_gives_takes_fewer_bytes_compressed(codec):
    value = torch.randn(1, 64, 32, 32, generator=torch.Generator().manual_seed(0)).relu()
    plain, compressed = (sum(map(nbytes, codecs.encode({"x": value}, name))) for name in (codec, codec + ZSTD))
    assert compressed < 0.7 * plain


@given(arrays(st.floats(-(2.0**100), 2.0**100, width=32)), st.sampled_from(sorted(AFFINE_BITS)))
def test_int8_and_int4_are_off_by_at_most_half_a_scale_of_their_group(array, codec):
    decoded = across_the_wire({"x": array}, codec)["x"].numpy()
    groups = affine_groups(TensorSpec("x", "FP32", array.shape[1:]), codec)
    if groups is None:
        assert np.array_equal(decoded, array)
        return
    grouped = array.reshape(array.shape[0], groups, -1).astype(np.float64)
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    rounding = 4 * np.finfo(np.float32).eps * np.maximum(abs(low), abs(high)) + 256 * np.finfo(np.float32).tiny
    bound = (high - low) / (2 * (2 ** AFFINE_BITS[codec] - 1)) * (1 + 1e-5) + rounding
    error = np.abs(decoded.reshape(grouped.shape) - grouped).max(axis=2)
    assert np.all(error <= bound)


@given(arrays(MODERATE), st.sampled_from(BASE_CODECS))
def test_sizes_are_those_that_the_planner_counts_on(array, codec):
    spec = TensorSpec("x", "FP32", array.shape[1:])
    assert sum(map(nbytes, codecs.encode({"x": array}, codec))) == encoded_bytes(spec, codec, batch=array.shape[0])


@given(SHAPES, st.sampled_from(BASE_CODECS), st.sampled_from(FLOATS))
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
    assert affine_groups(TensorSpec("x", "FP32", shape), "int8") == groups
    value = torch.rand(5, *shape)
    wire = codecs.encode({"x": value}, "int8")
    assert [tensor.shape for tensor in wire[1:]] == ([] if groups is None else [(5, 2, groups)])


@pytest.mark.parametrize(
    ("shape", "groups"), [((512, 16), 1), ((512, 17), 512), ((64, 5, 5), 64), ((5,), 1), ((2,), None)]
)
def test_int4_scales_channels_apart_where_they_are_larger(shape, groups):
    assert affine_groups(TensorSpec("x", "FP32", shape), "int4") == groups
    wire = codecs.encode({"x": torch.rand(5, *shape)}, "int4")
    assert [tensor.shape for tensor in wire[1:]] == ([] if groups is None else [(5, 2, groups)])


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


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(16, 64), (16, 8, 40), (3, 5)])
def test_what_arrives_of_a_sample_does_not_depend_on_what_it_crosses_with(shape, codec):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    value[0] *= 60  # one that is much louder than the others
    together = across_the_wire({"x": value}, codec)["x"]
    apart = torch.cat([across_the_wire({"x": each[None]}, codec)["x"] for each in value])
    assert torch.equal(together, apart)


def test_channels_do_not_disturb_each_other():
    array = np.stack([np.linspace(0, 1, 50), np.linspace(0, 1e6, 50)]).astype(np.float32)[None]
    decoded = across_the_wire({"x": array}, "int8")["x"].numpy()
    assert np.abs(decoded - array)[0, 0].max() <= 0.5 / 255 * 1.001


def test_finite_values_beyond_bfloat16_travel_raw():
    array = np.full((1, 4), np.finfo(np.float32).max, np.float32)
    assert np.array_equal(across_the_wire({"x": array}, "bf16")["x"].numpy(), array)


def test_sixteen_bits_are_not_written_as_other_sixteen():
    (wire,) = codecs.encode({"x": torch.ones(1, 4, dtype=torch.bfloat16)}, "fp16")
    assert (wire.datatype, dict(wire.parameters)) == ("BF16", {})


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
    assert torch.allclose(decoded.double(), value.double(), atol=1 / 30 if codec.startswith("int4") else 0.01)


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
    with pytest.raises(ValueError, match=r"codec zstd is unknown; use one of fp32, fp32\+zstd, fp16"):
        codecs.encode({"x": torch.ones(1)}, "zstd")
    wire = codecs.encode({"x": torch.ones(2, 3, 9)}, "int8")
    with pytest.raises(InferenceError, match="'x': int8 needs its scales and offsets in a tensor 'x:affine'"):
        codecs.decode(wire[:1])
    with pytest.raises(
        InferenceError, match=r"'x:affine': expected FP32 of shape \[2, 2, 3\] or \[2, 2, 1\], not FP32 \[3\]"
    ):
        codecs.decode([wire[0], Tensor("x:affine", "FP32", (3,), bytes(12))])
    with pytest.raises(InferenceError, match="codec 'zstd' is unknown here"):
        codecs.decode([Tensor("x", "UINT8", (1,), b"1", {codecs.CODEC: "zstd"})])
    with pytest.raises(InferenceError, match="is 'INT8', not one of"):
        codecs.decode([Tensor("x", "FP16", (1,), b"12", {codecs.CODEC: "fp16", codecs.DATATYPE: "INT8"})])


PACKED = {codecs.CODEC: "int4", "splitplane_shape": "2,3,9"}
COMPRESSED = zstandard.compress(bytes(24))


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (Tensor("x", "UINT8", (2, 13), bytes(26), PACKED), r"int4 of shape \[2, 3, 9\] takes 28 UINT8, not 26 UINT8"),
        (Tensor("x", "UINT8", (0, 14), b"", PACKED | {"splitplane_shape": "0,3,9"}), r"of shape \[0, 2, 3\]"),
        (Tensor("x", "UINT8", (2, 14), bytes(28), PACKED | {"splitplane_shape": "2,x"}), "is '2,x', not sizes"),
        (Tensor("x", "FP32", (6,), bytes(24), {"splitplane_shape": "2,3"}), r"is of shape \[6\], not \[2, 3\]"),
        (Tensor("x", "UINT8", (9,), bytes(9), {"splitplane_zstd": "FP32 2,3"}), "cannot be decompressed"),
        (Tensor("x", "UINT8", (3,), bytes(3), {"splitplane_zstd": "TEXT 2,3"}), "names the datatype 'TEXT'"),
        (
            Tensor("x", "UINT8", (len(COMPRESSED),), COMPRESSED, {"splitplane_zstd": "FP32 2,4"}),
            r"holds 24 bytes, but FP32 \[2, 4\] takes 32",
        ),
        (
            Tensor("x", "UINT8", (9,), bytes(9), {"splitplane_zstd": "FP32 99999999999,99999999999"}),
            "a stage takes at most 1073741824",
        ),
    ],
)
def test_headers_that_do_not_fit_are_refused_before_memory_is_taken(wire, why):
    companion = Tensor("x:affine", "FP32", (2, 2, 1), bytes(16))
    with pytest.raises(InferenceError, match=why):
        codecs.decode([wire, companion])

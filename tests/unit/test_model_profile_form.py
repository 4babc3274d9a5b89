"""What a profile job writes is what the operator reads."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.profiling import merged
from splitplane.domain.codecs import encoded_bytes, raw_bytes
from splitplane.domain.profiles import CodecTimes, Cut, DeviceProfile, Profile, TensorSpec, Tied, Timing, Work
from splitplane.domain.profiles_io import ProfileResult, from_dict, to_dict


def result() -> ProfileResult:
    specs = (
        TensorSpec("frames", "FP32", (4,), ("length",)),
        TensorSpec("conv1", "FP32", (2, 3)),
        TensorSpec("output_0", "FP32", (5,)),
    )
    sizes = {"fp32": 24, "fp16": 12, "int8": 22}
    return ProfileResult(
        model="tiny",
        inputs=specs[:1],
        outputs=specs[2:],
        segment_names=("conv1", "classifier"),
        profile=Profile(
            fingerprint="abc",
            cuts=tuple(Cut(index, spec.name, (spec,), sizes, f"hash{index}") for index, spec in enumerate(specs)),
            weight_bytes=(10, 20),
            activation_bytes=48,
            devices={
                "x86": DeviceProfile(
                    "x86",
                    (0.0, 0.001, 0.0035),
                    0.04,
                    0.0008,
                    {"fp32": CodecTimes(1e-10, 2e-10)},
                    9,
                    threads=2,
                    timings=(Timing(4, 2, (0.0, 0.003, 0.011), 0.02),),
                )
            },
            work=(Work(1000, 200), Work(30, 400)),
            tied=(Tied(0, 1, 8),),
        ),
    )


def test_a_result_survives_json() -> None:
    assert from_dict(json.loads(json.dumps(to_dict(result())))) == result()


def test_a_result_of_an_older_release_knows_no_tied_weights() -> None:
    data = to_dict(result())
    del data["tied"]
    assert from_dict(data).profile.held_bytes(0, 2) == 30


def test_a_result_without_a_field_is_refused_with_the_fields_name() -> None:
    data = to_dict(result())
    del data["device"]["prefixSeconds"]
    with pytest.raises(ValueError, match="lacks 'prefixSeconds'"):
        from_dict(data)


def test_a_result_whose_numbers_do_not_fit_its_cuts_is_refused() -> None:
    data = to_dict(result())
    data["segments"].pop()
    with pytest.raises(ValueError, match="2 segments needs 2 names"):
        from_dict(data)


def test_every_timing_covers_all_cuts() -> None:
    data = to_dict(result())
    data["device"]["timings"][0]["prefixSeconds"].pop()
    with pytest.raises(ValueError, match="3 prefix times"):
        from_dict(data)


def test_a_result_of_another_format_says_that_releases_differ() -> None:
    with pytest.raises(ValueError, match="one release"):
        from_dict({**to_dict(result()), "format": 99})


@pytest.mark.parametrize(
    ("datatype", "codec", "expected"),
    [
        ("FP32", "fp32", 4 * 128 * 16),
        ("FP32", "fp16", 2 * 128 * 16),
        ("FP32", "int8", 128 * 16 + 8 * 128),
        ("INT64", "int8", 8 * 128 * 16),
        ("INT64", "fp16", 8 * 128 * 16),
        ("BOOL", "fp16", 128 * 16),
    ],
)
def test_encoded_bytes_of_one_sample(datatype: str, codec: str, expected: int) -> None:
    assert encoded_bytes(TensorSpec("x", datatype, (128, 16)), codec) == expected


def test_int8_scales_each_sample_of_a_batch_by_itself() -> None:
    spec = TensorSpec("x", "FP32", (128, 16))
    assert encoded_bytes(spec, "int8", batch=8) == 8 * (math.prod(spec.shape) + 8 * 128)


def test_unknown_codec_and_datatype_are_refused() -> None:
    with pytest.raises(ValueError, match=r"use one of fp32, fp32\+zstd, fp16"):
        encoded_bytes(TensorSpec("x", "FP32", (1,)), "zip")
    with pytest.raises(ValueError, match="no fixed size"):
        raw_bytes(TensorSpec("x", "BYTES", (1,)))


def example() -> InferencePipeline:
    path = Path(__file__).parents[2] / "examples" / "pitch-tracker.yaml"
    documents = yaml.safe_load_all(path.read_text())
    (body,) = (each for each in documents if each and each["kind"] == "InferencePipeline")
    return InferencePipeline.parse({part: body[part] for part in ("metadata", "spec")})


def test_tied_weights_that_only_the_newer_of_two_measurements_tells_of_are_kept() -> None:
    newer, older = result(), replace(result(), profile=replace(result().profile, tied=()))
    for first, second in ((older, newer), (newer, older)):
        spec = merged(example(), merged(example(), None, first), second)
        assert [tied.bytes for tied in spec.tied_weights] == [8]


def test_sizes_that_may_differ_are_told_to_clients_as_any_size() -> None:
    spec = merged(example(), None, from_dict(json.loads(json.dumps(to_dict(result())))))
    assert [tensor.shape for tensor in (*spec.inputs, *spec.outputs)] == [(-1, -1), (-1, 5)]

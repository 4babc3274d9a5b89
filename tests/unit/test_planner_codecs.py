"""What the planner makes of codecs that compress: they lose and leak what their base does, and pay where smaller."""

from dataclasses import replace

import numpy as np

from splitplane.domain.profiles import CodecTimes, Cut, DeviceProfile, Profile, TensorSpec
from splitplane.planner.options import crossing_options, cut_table

SPEC = TensorSpec("x", "FP32", (64, 64))
SIZES = {"fp32": 16384, "fp32+zstd": 9000, "int8": 4608, "int8+zstd": 4608}
TIMES = {codec: CodecTimes(5e-9, 5e-9) if "+" in codec else CodecTimes(5e-10, 5e-10) for codec in SIZES}


def profile():
    cuts = tuple(
        Cut(index, f"cut{index}", (SPEC,), SIZES, f"h{index}", {"int8": 0.004}, {"fp32": 0.5, "int8": 0.4})
        for index in range(3)
    )
    device = DeviceProfile("x86", (0.0, 0.01, 0.02), 0.02, 0.001, TIMES, 1 << 20)
    return Profile("model", cuts, (1000, 1000), 4096, {"x86": device})


def test_a_compressed_codec_has_the_loss_and_the_leak_of_its_base():
    table = cut_table(profile())
    row = table.codecs.index
    for codec in ("fp32", "int8"):
        for values in (table.loss, table.loss_measured, table.leak, table.leak_measured):
            assert np.array_equal(values[row(codec)], values[row(codec + "+zstd")])
    assert table.loss[row("fp32+zstd"), 1] == 0
    assert table.loss_measured[row("fp32+zstd"), 1]


def test_a_compressed_codec_that_is_no_smaller_is_not_tried():
    measured = profile()
    allowed = ("fp32", "fp32+zstd", "int8", "int8+zstd")
    table = cut_table(measured)
    options = crossing_options(measured, table, allowed)
    assert {table.codecs[codec] for codec in options.codec} == {"fp32", "fp32+zstd", "int8"}
    smaller = replace(measured.cuts[1], wire_bytes=SIZES | {"int8+zstd": 3000})
    measured = replace(measured, cuts=(measured.cuts[0], smaller, measured.cuts[2]))
    table = cut_table(measured)
    options = crossing_options(measured, table, allowed)
    assert {table.codecs[codec] for codec in options.codec} == set(allowed)

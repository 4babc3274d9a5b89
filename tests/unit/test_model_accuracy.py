"""What is lost where a model crosses a cut with a lossy codec, on inputs of the user's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from splitplane.cli import app
from splitplane.model import CalibrationError, ModelSource, Partition, load_partition
from splitplane.model.accuracy import compare_codecs
from splitplane.model.calibration import Calibration, read_calibration
from splitplane.model.profile import Codec
from splitplane.runtime.profiling import wire_codecs
from tests.support import blobs

SAMPLES = 40


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSource, Path]:
    return blobs.write(tmp_path_factory.mktemp("blobs"), SAMPLES)


@pytest.fixture(scope="module")
def partition(files: tuple[ModelSource, Path]) -> Partition:
    return load_partition(files[0], 0, None)


@pytest.fixture(scope="module")
def calibration(files: tuple[ModelSource, Path]) -> Calibration:
    return read_calibration(files[1], blobs.INPUTS)


def codec(change: object) -> Codec:
    return Codec(encode=lambda tensors: {name: change(value) for name, value in tensors.items()}, decode=dict, size=len)  # type: ignore[operator]


def test_a_codec_that_keeps_all_loses_nothing_and_one_that_keeps_less_loses_more(
    partition: Partition, calibration: Calibration
) -> None:
    cut = len(partition.graph.cuts) - 2
    codecs = {
        **wire_codecs(),
        "nothing": codec(torch.zeros_like),
        "broken": codec(lambda value: torch.full_like(value, float("nan"))),
    }
    found = {each.codec: each for each in compare_codecs(partition, calibration, codecs, [cut])}
    assert (found["fp32"].loss, found["fp32"].top1) == (0.0, 1.0)
    assert found["fp32"].max_error < 1e-5
    assert found["fp32"].max_error < found["fp16"].max_error < found["nothing"].max_error
    assert found["broken"].max_error == float("inf")
    assert found["broken"].cosine == 0.0
    # All that crosses this cut decides on the class, so without it every sample gets the same one.
    images, labels = calibration.inputs["image"], calibration.labels
    assert labels is not None
    whole = (partition.run(0, cut + 1, {"image": images})["output_0"].argmax(1) == labels).float().mean()
    assert found["nothing"].whole_metric == pytest.approx(float(whole))
    assert found["nothing"].loss == pytest.approx(found["nothing"].whole_metric - found["nothing"].metric)  # type: ignore[operator]
    assert found["nothing"].loss > 0.3
    wide = {each.codec: each for each in compare_codecs(partition, calibration, wire_codecs(), [1])}
    assert wide["fp32"].max_error < wide["fp16"].max_error < wide["int8"].max_error


def test_without_labels_the_loss_is_how_often_the_answer_is_another(
    partition: Partition, calibration: Calibration
) -> None:
    unlabelled = Calibration(calibration.inputs, None)
    (found,) = compare_codecs(partition, unlabelled, {"nothing": codec(torch.zeros_like)}, [1])
    assert found.metric is None
    assert found.top1 is not None
    assert found.loss == pytest.approx(1 - found.top1)


def test_samples_cross_apart_as_requests_of_one_do(partition: Partition, calibration: Calibration) -> None:
    sizes = []

    def watch(value: torch.Tensor) -> torch.Tensor:
        sizes.append(len(value))
        return value

    watched = codec(watch)
    compare_codecs(partition, calibration.first(5), {"watched": watched}, [1])
    assert sizes == [1] * 5


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"picture": np.zeros((3, 1, 12, 12), np.float32)}, "lacks the input image; it holds picture"),
        ({"image": np.zeros((3, 12, 12), np.float32)}, r"image is \[3, 12, 12\], not \[-1, 1, 12, 12\]"),
        ({"image": np.zeros((3, 1, 12, 12)), "labels": np.zeros(2, np.int64)}, "the same number of samples"),
        ({"image": np.array([{}], dtype=object)}, "cannot read calibration inputs"),
    ],
)
def test_calibration_files_that_do_not_fit_are_refused(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", allow_pickle=True, **tensors)
    with pytest.raises(CalibrationError, match=message):
        read_calibration(tmp_path / "inputs.npz", blobs.INPUTS)


def test_the_command_tells_loss_for_each_cut_and_codec(files: tuple[ModelSource, Path]) -> None:
    source, calibration = files
    arguments = ["--input", "image:FP32:-1,1,12,12", "--weights", str(source.weights_uri)]
    arguments += ["--calibration", str(calibration), "--samples", "20"]
    done = CliRunner().invoke(app, ["model", "accuracy", source.factory, *arguments, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert report["samples"] == 20
    assert {each["codec"] for each in report["agreements"]} >= {"fp32", "fp16", "int8"}
    assert all(each["loss"] == 0.0 for each in report["agreements"] if each["codec"] == "fp32")

"""What is lost where a model crosses a cut with a lossy codec, on inputs of the user's own."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from splitplane.cli import app
from splitplane.domain.profiles import TensorSpec
from splitplane.model import CalibrationError, ModelSource, Partition, accuracy, load_partition
from splitplane.model import calibration as calibration_module
from splitplane.model.accuracy import TELLING, Judged, compare_codecs
from splitplane.model.calibration import Calibration, read_calibration
from splitplane.model.leak import measure_leak
from splitplane.model.metrics import TopClass, choose
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
    report = compare_codecs(partition, calibration, codecs, [cut])
    found = {each.codec: each for each in report.agreements}
    assert (report.metric, report.labels, report.samples) == ("top1", True, SAMPLES)
    assert (found["fp32"].loss, found["fp32"].top1) == (0.0, 1.0)
    assert found["fp32"].max_error < 1e-5
    assert found["fp32"].max_error < found["fp16"].max_error < found["nothing"].max_error
    assert found["broken"].max_error == float("inf")
    assert found["broken"].cosine == 0.0
    # All that crosses this cut decides on the class, so without it every sample gets the same one.
    images, labels = calibration.inputs["image"], calibration.labels
    assert labels is not None
    whole = (partition.run(0, cut + 1, {"image": images})["output_0"].argmax(1) == labels).float().mean()
    assert report.whole == pytest.approx(float(whole))
    one_class = max((labels == each).float().mean() for each in range(4))
    assert float(whole) - float(one_class) - 1e-6 <= found["nothing"].loss <= float(whole)
    assert found["nothing"].loss > 0.3
    wide = {each.codec: each for each in compare_codecs(partition, calibration, wire_codecs(), [1]).agreements}
    assert wide["fp32"].max_error < wide["fp16"].max_error < wide["int8"].max_error


def test_without_labels_the_loss_is_the_worse_of_another_answer_and_another_direction(
    partition: Partition, calibration: Calibration
) -> None:
    unlabelled = Calibration(calibration.inputs, None)
    report = compare_codecs(partition, unlabelled, {"nothing": codec(torch.zeros_like)}, [1])
    [found] = report.agreements
    assert (report.metric, report.labels, report.whole) == ("top1 and cosine", False, None)
    assert found.top1 is not None
    assert found.loss == pytest.approx(max(1 - found.top1, 1 - found.cosine))
    named = compare_codecs(partition, unlabelled, {"nothing": codec(torch.zeros_like)}, [1], metric="cosine")
    assert named.metric == "cosine"
    assert named.agreements[0].loss == pytest.approx(1 - found.cosine)


def test_a_loss_that_was_not_seen_in_few_samples_may_be_there_all_the_same(
    partition: Partition, calibration: Calibration
) -> None:
    def bound(samples: int) -> float:
        [found] = compare_codecs(partition, calibration.first(samples), {"all": codec(torch.clone)}, [1]).agreements
        assert found.loss == 0.0
        return found.bound

    # Wilson's upper bound of nothing in n is z^2 / (n + z^2).
    assert bound(40) == pytest.approx(1.645**2 / (40 + 1.645**2))
    assert bound(10) == pytest.approx(1.645**2 / (10 + 1.645**2))


def test_samples_are_drawn_from_the_whole_of_a_sorted_file(partition: Partition, calibration: Calibration) -> None:
    assert calibration.labels is not None
    order = calibration.labels.argsort()
    tidy = Calibration({"image": calibration.inputs["image"][order]}, calibration.labels[order])
    drawn, again, first = (each.labels for each in (tidy.sample(8), tidy.sample(8), tidy.first(8)))
    assert drawn is not None
    assert again is not None
    assert first is not None
    assert len(first.unique()) == 1
    assert len(drawn.unique()) >= 3
    assert torch.equal(drawn, again)
    # What time leaves no room for is not taken, and that is told.
    report = compare_codecs(partition, tidy, {"all": codec(torch.clone)}, [1], end=0.0)
    assert report.samples == report.agreements[0].samples == 1


class Masking(nn.Module):
    """Classes that do not apply score minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x))).masked_fill(torch.arange(8) < 3, -torch.inf)


def test_scores_that_are_masked_with_infinity_lose_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(dict(Masking().state_dict()), path)
    source = ModelSource("m", f"{__name__}:Masking", path.as_uri(), None, (TensorSpec("x", "FP32", (16,)),))
    calibration = Calibration({"x": torch.randn(40, 16)}, None)
    codecs = {"bf16": wire_codecs()["bf16"]}
    [found] = compare_codecs(load_partition(source, 0, None), calibration, codecs, [1]).agreements
    assert found.cosine > 0.999
    assert found.loss < 0.1
    assert 0.0 < found.max_error < 0.1


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_of_a_large_file_no_more_is_read_than_memory_holds_and_rows_stay_together(suffix: str, tmp_path: Path) -> None:
    path, numbers = tmp_path / f"inputs.{suffix}", torch.arange(500.0)
    held = {"image": numbers[:, None, None, None].expand(-1, 1, 12, 12).contiguous(), "labels": numbers.long()}
    if suffix == "npz":
        np.savez(path, image=held["image"].numpy(), labels=held["labels"].numpy())
    else:
        save_file(held, path)
    read = read_calibration(path, blobs.INPUTS, most=400, most_bytes=4 * 144 * 50)
    assert read.samples == 50
    assert read.labels is not None
    assert torch.equal(read.inputs["image"][:, 0, 3, 3], read.labels.float())
    assert 150 < float(read.labels.float().mean()) < 350  # from the whole of it
    assert read_calibration(path, blobs.INPUTS, most=7).samples == 7
    assert torch.equal(read_calibration(path, blobs.INPUTS).inputs["image"], held["image"])


@pytest.mark.parametrize(("taken", "expected"), [(0, 5), (6, 2)])
def test_as_many_samples_are_run_together_as_memory_holds(
    partition: Partition, calibration: Calibration, taken: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Watched:
        graph, last = partition.graph, partition.last

        def run(self, first: int, last: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            sizes.append(len(next(iter(tensors.values()))))
            return partition.run(first, last, tensors)

    largest = max(cut.wire_bytes["fp32"] for cut in partition.graph.cuts)
    monkeypatch.setattr(accuracy, "grown", lambda _run: taken * largest)  # by which the memory grows in a run
    compare_codecs(Watched(), calibration, {"all": codec(torch.clone)}, [1], memory_bytes=5 * 4 * largest)  # type: ignore[arg-type]
    assert max(sizes) == expected


OUTPUTS = {
    "scores": torch.randn(6, 4), "share": torch.rand(6, 1),
    "number": torch.randn(6, 1), "tokens": torch.randn(6, 3, 9), "chosen": torch.arange(6),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "output", "labels", "expected"),
    [
        ("", "scores", None, ["top1", "cosine"]),
        ("", "number", None, ["r2"]),
        ("", "tokens", None, ["cosine"]),
        ("", "chosen", None, ["top1"]),
        ("", "scores", torch.arange(6) % 4, ["top1"]),
        ("", "tokens", torch.zeros(6, 3, dtype=torch.int64), ["top1"]),
        ("", "number", torch.randn(6), ["r2"]),
        ("top5", "tokens", torch.zeros(6, 3, dtype=torch.int64), ["top5"]),
        ("cosine", "scores", torch.arange(6) % 4, ["cosine"]),
        ("top1", "scores", None, ["top1"]),
    ],
)
def test_the_metric_follows_from_labels_and_outputs_unless_it_is_named(
    name: str, output: str, labels: torch.Tensor | None, expected: list[str]
) -> None:
    assert [each.name for each in choose(name, {output: OUTPUTS[output]}, labels)] == expected


@pytest.mark.parametrize(
    ("name", "output", "labels"),
    [
        ("top5", "scores", torch.arange(6) % 4),  # of four classes all are among the first five
        ("", "scores", torch.arange(6)),  # a class that has no score
        ("", "number", torch.arange(6)),
        ("", "share", torch.arange(6) % 2),  # from which number on it is a yes, nobody says
        ("top1", "scores", torch.rand(6)),
        ("r2", "scores", torch.rand(6)),
        ("cosine", "number", None),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_and_told_what_there_is(
    name: str, output: str, labels: torch.Tensor | None
) -> None:
    told = f"the metric {name} does not fit" if name else "no metric fits"
    with pytest.raises(CalibrationError, match=rf"{told} the outputs {output} float32 \[n, .*labels"):
        choose(name, {output: OUTPUTS[output]}, labels)


def test_numbers_are_judged_by_the_variance_that_they_explain_and_tokens_one_by_one() -> None:
    truth = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    judged = Judged(choose("r2", {"x": truth}, None)[0])
    judged.take({"x": truth}, None)
    errors = judged.metric.errors({"x": truth + 1.0}, judged.truth)
    assert float(errors.mean()) / judged.scale == pytest.approx(1.0 / float(truth.var(correction=0)))
    labels = torch.tensor([[0, 1, -100], [2, 2, 2]])
    [metric] = choose("top1", {"x": torch.eye(4)[None, :3].repeat(2, 1, 1)}, labels)
    answers = {"x": torch.eye(4)[None, :3].repeat(2, 1, 1)}  # 0, 1, 2 twice
    assert metric.errors(answers, metric.truth(answers, labels)).tolist() == pytest.approx([0.0, 2 / 3])


def test_scores_of_classes_are_judged_before_one_number_beside_them() -> None:
    [metric] = choose("", {"number": torch.randn(6, 1), "scores": torch.randn(6, 2)}, torch.arange(6) % 2)
    assert isinstance(metric, TopClass)
    assert metric.output == "scores"


def test_one_logit_is_right_by_its_sign() -> None:
    answers, labels = {"x": torch.tensor([[-3.0], [2.0], [0.5], [math.nan]])}, torch.tensor([0, 1, 0, 0])
    [metric] = choose("", answers, labels)
    assert metric.name == "top1"
    assert metric.errors(answers, metric.truth(answers, labels)).tolist() == [0.0, 0.0, 1.0, 1.0]


class Sign(nn.Module):
    """A classifier of two classes that answers with a logit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))


def test_a_first_logit_that_might_be_a_probability_refuses_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path, calibration = Sign(), tmp_path / "weights.safetensors", Calibration({"x": torch.randn(40, 4)}, None)
    module.first.bias.data.zero_()
    module.last.weight.data.mul_(10.0)
    module.last.bias.data.fill_(0.5)
    calibration.inputs["x"][[0, int(calibration.order()[0])]] = 0.0
    save_file(dict(module.state_dict()), path)
    labels = (module(calibration.inputs["x"])[:, 0] > 0).long()
    source = ModelSource("m", f"{__name__}:Sign", path.as_uri(), None, (TensorSpec("x", "FP32", (4,)),))
    labelled, codecs = relabelled(calibration, labels), {"all": codec(torch.clone)}
    report = compare_codecs(load_partition(source, 0, None), labelled, codecs, [1])
    assert report.metric == "top1"


def test_a_regression_to_0_and_1_is_no_logit_for_one_answer_just_below_0() -> None:
    answers = {"y": torch.tensor([[0.1], [0.9], [-0.02], [1.1]])}
    with pytest.raises(CalibrationError, match="no metric fits"):
        choose("", answers, torch.tensor([0, 1, 0, 1]))
    assert choose("", {"y": 10 * answers["y"]}, torch.tensor([0, 1, 0, 1]))[0].name == "top1"


def test_numbers_that_a_model_tells_nothing_of_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path, inputs = Sign(), tmp_path / "weights.safetensors", {"x": torch.randn(TELLING, 4)}
    save_file(dict(module.state_dict()), path)
    source = ModelSource("m", f"{__name__}:Sign", path.as_uri(), None, (TensorSpec("x", "FP32", (4,)),))
    partition, codecs = load_partition(source, 0, None), {"all": codec(torch.clone)}
    told = module(inputs["x"])[:, 0].detach()
    assert compare_codecs(partition, Calibration(inputs, told + 0.1 * torch.randn(TELLING)), codecs, [1]).metric == "r2"
    with pytest.raises(CalibrationError, match="no better than one number for all of them"):
        compare_codecs(partition, Calibration(inputs, 100.0 + torch.randn(TELLING)), codecs, [1])


def relabelled(calibration: Calibration, labels: torch.Tensor) -> Calibration:
    return Calibration(calibration.inputs, labels)


def test_labels_of_unsigned_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "unsigned.npz"
    np.savez(path, image=np.zeros((2, 1, 12, 12), np.float32), labels=np.array([1, 2], np.uint64))
    labels = read_calibration(path, blobs.INPUTS).labels
    assert labels is not None
    assert (labels.dtype, labels.tolist()) == (torch.int64, [1, 2])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16])
def test_samples_without_a_label_prove_nothing(
    dtype: torch.dtype, partition: Partition, calibration: Calibration
) -> None:
    assert calibration.labels is not None
    labels = calibration.labels.to(dtype, copy=True)
    labels[:30] = -100
    report = compare_codecs(partition, relabelled(calibration, labels), {"all": codec(torch.clone)}, [1])
    assert report.samples == 10
    assert report.agreements[0].bound == pytest.approx(1.645**2 / (10 + 1.645**2))
    whole = compare_codecs(partition, calibration.at(slice(30, None)), {"all": codec(torch.clone)}, [1]).whole
    assert report.whole == whole


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((SAMPLES,), -100), "all labels are -100"),
        (torch.full((SAMPLES,), -1), "there are labels of -1: classes count from 0"),
        (torch.tensor([0, -7] * (SAMPLES // 2)), "there are labels of -7"),
        (torch.ones(SAMPLES, 4), "all labels are the same number"),
    ],
)
def test_labels_by_which_nothing_could_be_lost_are_refused(
    labels: torch.Tensor, message: str, partition: Partition, calibration: Calibration
) -> None:
    with pytest.raises(CalibrationError, match=message):
        compare_codecs(partition, relabelled(calibration, labels), {"all": codec(torch.clone)}, [1])


def test_labels_of_which_the_unsplit_model_gets_none_are_refused_before_anything_crosses(
    partition: Partition, calibration: Calibration
) -> None:
    answers = partition.run(0, partition.last, calibration.inputs)["output_0"].argmax(1)
    twice = torch.arange(2 * SAMPLES) % SAMPLES
    wrong = relabelled(calibration, (answers + 1) % 4).at(twice)
    crossed: list[torch.Tensor] = []

    def watch(value: torch.Tensor) -> torch.Tensor:
        crossed.append(value)
        return value

    with pytest.raises(CalibrationError, match=f"gets none of {len(twice)} labels right"):
        compare_codecs(partition, wrong, {"watched": codec(watch)}, [1])
    assert crossed == []
    assert wrong.labels is not None
    wrong.labels[wrong.order()[TELLING - 1]] = answers[twice][wrong.order()[TELLING - 1]]
    assert compare_codecs(partition, wrong, {"all": codec(torch.clone)}, [1]).whole == pytest.approx(1 / len(twice))
    # So few labels exclude little, whoever is wrong.
    [few] = compare_codecs(partition, wrong.first(SAMPLES), {"all": codec(torch.clone)}, [1]).agreements
    assert few.bound > 0.03


class Words(nn.Module):
    """A table of 50 words, whose second output is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.last(torch.relu(self.first(self.table(ids).mean(1))))
        return scores, scores[:, :0]


def test_words_that_a_table_lacks_are_told_and_outputs_without_elements_say_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(dict(Words().state_dict()), path)
    source = ModelSource("m", f"{__name__}:Words", path.as_uri(), None, (TensorSpec("ids", "INT64", (6,)),))
    partition, codecs = load_partition(source, 0, None), {"bf16": wire_codecs()["bf16"]}
    [found] = compare_codecs(
        partition, Calibration({"ids": torch.randint(0, 50, (30, 6))}, None), codecs, [1]
    ).agreements
    assert found.cosine > 0.999
    assert 0.0 < found.max_error < 0.1
    unknown = Calibration({"ids": torch.full((200, 6), 60)}, None)
    told = r"fails on the calibration inputs, .* given ids \(int64 \[1, 6\] from 60 to 60\): IndexError: .*Correct"
    with pytest.raises(CalibrationError, match=told):
        compare_codecs(partition, unknown, codecs, [1])
    with pytest.raises(CalibrationError, match=told):
        measure_leak(partition, unknown, codecs, [1], threads=1)


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
        ({"image": np.zeros((2, 1, 12, 12)), "labels": np.array([1.0, np.nan])}, "labels hold NaN"),
        ({"image": np.array([{}], dtype=object)}, "cannot read calibration inputs"),
    ],
)
def test_calibration_files_that_do_not_fit_are_refused(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", allow_pickle=True, **tensors)
    with pytest.raises(CalibrationError, match=message):
        read_calibration(tmp_path / "inputs.npz", blobs.INPUTS)


def test_inputs_that_are_replaced_while_they_are_read_are_refused(
    files: tuple[ModelSource, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "inputs", calibration_module._read
    path.write_bytes(files[1].read_bytes())

    def replaced(*arguments: Any) -> Calibration:
        found = read(*arguments)
        (tmp_path / "other").write_bytes(files[1].read_bytes())
        (tmp_path / "other").replace(path)
        return found

    monkeypatch.setattr(calibration_module, "_read", replaced)
    with pytest.raises(CalibrationError, match="was replaced or written to"):
        read_calibration(path, blobs.INPUTS)


def test_the_command_tells_loss_for_each_cut_and_codec(files: tuple[ModelSource, Path]) -> None:
    source, calibration = files
    arguments = ["--input", "image:FP32:-1,1,12,12", "--weights", str(source.weights_uri)]
    arguments += ["--calibration", str(calibration), "--samples", "20"]
    done = CliRunner().invoke(app, ["model", "accuracy", source.factory, *arguments, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert (report["samples"], report["metric"], report["labels"]) == (20, "top1", True)
    assert {each["codec"] for each in report["agreements"]} >= {"fp32", "fp16", "int8"}
    assert all(each["loss"] == 0.0 for each in report["agreements"] if each["codec"] == "fp32")
    done = CliRunner().invoke(app, ["model", "accuracy", source.factory, *arguments, "--metric", "top5"])
    assert done.exit_code == 2
    assert "top5" in done.output

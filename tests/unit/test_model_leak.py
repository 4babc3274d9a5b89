"""What an attack gets of the input, and what is made of cuts that were not attacked."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from splitplane.cli import app
from splitplane.domain.calibrations import CalibrationRequest, CalibrationResult
from splitplane.domain.defences import Defence
from splitplane.domain.leaks import choose_cuts, spread
from splitplane.model import CalibrationError, ModelSource, load_partition, scores
from splitplane.model.calibration import Calibration, read_calibration
from splitplane.model.inversion import draw
from splitplane.model.leak import defended, measure_leak
from splitplane.model.targets import target_of
from splitplane.runtime.calibration_job import Settings, calibrate
from splitplane.runtime.profiling import wire_codecs
from tests.support import blobs


def test_ssim_is_1_of_equal_images_and_falls_with_noise() -> None:
    images, _ = blobs.blobs(8)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    values = [float(scores.ssim(images, (images + level * noise).clamp(0, 1)).mean()) for level in (0.0, 0.05, 0.5)]
    assert values[0] == pytest.approx(1.0)
    assert values[0] > values[1] > values[2]
    # Of two plain images only luminance counts: (2ab + c1) / (a^2 + b^2 + c1).
    plain = scores.ssim(torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6))
    assert float(plain) == pytest.approx((0.24 + 1e-4) / (0.40 + 1e-4), rel=1e-3)


def test_psnr_of_an_error_of_a_tenth_is_20_db() -> None:
    assert float(scores.psnr(torch.zeros(1, 9), torch.full((1, 9), 0.1))) == pytest.approx(20.0, abs=1e-4)


def test_distance_correlation_is_about_0_of_the_independent_and_1_of_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    one, two = torch.randn(300, 5, generator=generator), torch.randn(300, 40, generator=generator)
    assert abs(scores.distance_correlation(one, two)) < 0.05
    assert scores.distance_correlation(one, 3 * one + 1) == pytest.approx(1.0)
    assert scores.distance_correlation(one, one**2) > 0.1  # no line goes through it


def test_ranks_correlate_whatever_the_values() -> None:
    assert scores.rank_correlation([1.0, 2.0, 3.0, 9.0], [0.1, 0.2, 0.25, 0.3]) == pytest.approx(1.0)
    assert scores.rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    assert scores.rank_correlation([1.0, 1.0, 1.0], [3.0, 2.0, 1.0]) is None
    assert scores.rank_correlation([1.0, 2.0], [1.0, 2.0]) is None


def test_what_was_not_attacked_leaks_as_much_as_the_nearest_shallower_cut_that_was() -> None:
    leaks = spread({(2, "fp32"): 0.8, (2, "int8"): 0.6, (4, "fp32"): 0.3}, 6)
    assert [each["fp32"] for each in leaks] == [1.0, 1.0, 0.8, 0.8, 0.3, 0.3]
    # int8 at cut 4 shows no more than fp32 does there.
    assert [each["int8"] for each in leaks] == [1.0, 1.0, 0.6, 0.6, 0.3, 0.3]
    assert leaks[2]["fp16"] == 0.8
    # Whoever has what crosses cut 2 can compute what crosses cut 4.
    assert spread({(2, "fp32"): 0.4, (4, "fp32"): 0.6}, 6)[3]["fp32"] == 0.6


def test_cuts_are_chosen_evenly_with_both_ends() -> None:
    assert choose_cuts(range(1, 4), 6) == [1, 2, 3]
    assert choose_cuts(range(1, 22), 5) == [1, 6, 11, 16, 21]


def test_the_decoder_draws_what_it_is_shown_and_nothing_where_there_is_nothing() -> None:
    images, _ = blobs.blobs(300)
    for width in (8,):
        seen = draw({"x": images}, images, 60, width=width, seconds=60, steps=250)
        blind = draw({"x": images[torch.randperm(300)]}, images, 60, width=width, seconds=60, steps=250)
        assert seen.steps == 250
        assert float(scores.psnr(seen.guesses, images[-60:]).mean()) > 25
        assert float(scores.psnr(seen.guesses, images[-60:]).mean()) > 8 + float(
            scores.psnr(blind.guesses, images[-60:]).mean()
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSource, Path]:
    return blobs.write(tmp_path_factory.mktemp("blobs"), 240)


def test_deeper_cuts_and_noise_leak_less_and_the_controls_tell_that_the_attack_works(
    files: tuple[ModelSource, Path],
) -> None:
    partition = load_partition(files[0], 0, None)
    last = len(partition.graph.cuts) - 2
    fp32 = wire_codecs()["fp32"]
    codecs = {"fp32": fp32, "noisy": defended(fp32, Defence(noise=2.0))}
    report = measure_leak(
        partition, read_calibration(files[1], blobs.INPUTS), codecs, [1, last], budget_seconds=120, steps=120, threads=1
    )
    worst = report.worst()
    assert report.input_control > 0.8
    assert report.shuffled_control < worst[1, "fp32"] - 0.2
    assert worst[1, "fp32"] > worst[last, "fp32"]
    assert worst[1, "fp32"] > worst[1, "noisy"]
    assert report.correlations[1] > report.correlations[last]
    assert {each.decoder for each in report.attacks} == {"small", "large"}
    hasty = replace(report.attacks[0], steps=10)
    assert "trained for 10 steps" in replace(report, input_control=0.95, attacks=(hasty, *report.attacks)).weakness
    assert "only 0.50 of the input" in replace(report, input_control=0.5).weakness
    assert replace(report, input_control=0.95).weakness == ""


def test_too_few_inputs_are_refused(files: tuple[ModelSource, Path]) -> None:
    partition = load_partition(files[0], 0, None)
    few = read_calibration(files[1], blobs.INPUTS).first(10)
    with pytest.raises(CalibrationError, match="20 calibration inputs at least"):
        measure_leak(partition, few, wire_codecs(), [1])


def test_a_signal_of_one_dimension_is_scored_by_the_variance_explained() -> None:
    truth = torch.sin(torch.linspace(0, 6, 64))[None].repeat(3, 1)
    assert scores.explained(truth, truth).tolist() == pytest.approx([1.0] * 3)
    assert scores.explained(torch.full_like(truth, float(truth.mean())), truth).tolist() == pytest.approx([0.0] * 3)


def test_tokens_are_recovered_from_their_embeddings_and_not_from_those_of_others() -> None:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 40, (300, 12), generator=generator)
    ids[:, 9:] = 0  # padding, which is not asked for
    target = target_of(Calibration({"ids": ids, "mask": (ids > 0).long()}, None))
    table = torch.randn(40, 24, generator=generator)
    seen = target.attack({"x": table[ids]}, 60, width=8, seconds=60, steps=200)
    blind = target.attack({"x": table[ids.flip(0)]}, 60, width=8, seconds=60, steps=200)
    pooled = target.attack({"x": table[ids].mean(1)}, 60, width=8, seconds=60, steps=200)
    assert float(seen.scores.mean()) > 0.95
    assert float(blind.scores.mean()) < 0.1
    assert float(pooled.scores.mean()) < 0.5
    assert target.score == "share of tokens recovered"


def test_the_command_names_its_attack_and_its_controls(files: tuple[ModelSource, Path]) -> None:
    source, calibration = files
    arguments = ["--input", "image:FP32:-1,1,12,12", "--weights", str(source.weights_uri), "--cut", "1"]
    arguments += ["--calibration", str(calibration), "--budget", "4", "--threads", "1"]
    done = CliRunner().invoke(app, ["model", "leak", source.factory, *arguments])
    assert done.exit_code == 0, done.output
    assert "A lower bound, by this attack: inversion decoder" in done.output
    done = CliRunner().invoke(app, ["model", "leak", source.factory, *arguments, "--json"])
    report = json.loads(done.output)
    assert {"input", "shuffled"} == report["controls"].keys()
    assert {each["cut"] for each in report["attacks"]} == {1}


def test_a_calibration_job_measures_what_it_is_asked_for_and_nothing_else(
    files: tuple[ModelSource, Path],
) -> None:
    source, calibration = files
    model = {
        "name": "blobs", "factory": source.factory, "weights": {"uri": source.weights_uri},
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 12, 12]}],
    }  # fmt: skip
    digest = sha256(calibration.read_bytes()).hexdigest()
    request = CalibrationRequest(calibration.as_uri(), digest, 8.0, ((1, "int8"), (2, "int8")), ((1, "fp32"),))
    environment = {
        "SPLITPLANE_NAMESPACE": "n", "SPLITPLANE_RESULT_CONFIGMAP": "r", "SPLITPLANE_MODEL": json.dumps(model),
        "SPLITPLANE_CALIBRATION": json.dumps(request.to_dict()),
    }  # fmt: skip
    told: list[str] = []
    settings = Settings.from_environment(environment)
    result = calibrate(settings, told.append)
    assert set(result.losses) == {(1, "int8"), (2, "int8")}
    assert result.leak is not None
    assert set(result.leak.scores) == {(1, "fp32")}
    assert "attacks to go" in told[-1]
    assert CalibrationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    wrong = replace(settings, request=replace(request, sha256="0" * 64))
    with pytest.raises(CalibrationError, match="wrong sha256"):
        calibrate(wrong, told.append)

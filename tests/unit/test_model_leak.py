"""What an attack gets of the input, and what is made of cuts that were not attacked."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from splitplane.cli import app
from splitplane.cli.calibrated import leak_along
from splitplane.domain.calibrations import CalibrationRequest, CalibrationResult
from splitplane.domain.defences import Defence
from splitplane.domain.leaks import choose_cuts, spread
from splitplane.domain.profiles import TensorSpec
from splitplane.model import CalibrationError, ModelSource, inversion, leak, linear, load_partition, scores
from splitplane.model.arrangements import NUMBERS, Reading, coded
from splitplane.model.calibration import Calibration, read_calibration
from splitplane.model.defending import defend
from splitplane.model.inversion import _Standardised, draw
from splitplane.model.leak import defended, measure_leak
from splitplane.model.linear import Linear
from splitplane.model.spectra import spectrogram
from splitplane.model.targets import Drawing, targets_of
from splitplane.runtime import calibration_job
from splitplane.runtime.calibration_job import Settings, calibrate
from splitplane.runtime.profiling import wire_codecs
from tests.support import blobs
from tests.support.command_output import unwrapped

UNHURRIED = 3600.0
"""Seconds that no attack here takes: steps are what ends it, so a busy machine gets the same result, but later."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other take long on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def test_skill_is_what_a_score_makes_up_of_what_a_blind_guess_lacks() -> None:
    assert scores.skill(0.6, 0.2) == pytest.approx(0.5)
    assert (scores.skill(0.2, 0.2), scores.skill(0.1, 0.2), scores.skill(1.0, 0.2)) == (0.0, 0.0, 1.0)
    assert (scores.skill(1.0, 1.0), scores.skill(0.9, 1.0)) == (0.0, 0.0)


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


def test_what_was_not_attacked_leaks_as_much_as_fp32_at_the_nearest_shallower_cut() -> None:
    leaks = spread({(2, "fp32"): 0.8, (2, "int8"): 0.6, (4, "fp32"): 0.3}, 6)
    assert [each["fp32"] for each in leaks] == [1.0, 1.0, 0.8, 0.8, 0.3, 0.3]
    # What crosses cut 3 is not computed from the int8 of cut 2. At cut 4, int8 is computed from fp32.
    assert [each["int8"] for each in leaks] == [1.0, 1.0, 0.6, 0.8, 0.3, 0.3]
    assert leaks[2]["fp16"] == 0.8
    # Nor is int4 computed from int8, or anything from a coarse codec of a shallower cut alone.
    assert leaks[2]["int4"] == 0.8
    assert spread({(1, "int4"): 0.2}, 3)[2] == dict.fromkeys(leaks[0], 1.0)


def test_a_defence_leaves_what_masks_as_it_is_and_scales_noise_by_the_rest() -> None:
    masked = torch.randn(2, 64)
    masked[0, 5], masked[0, 6], masked[1, 7] = -torch.inf, torch.nan, torch.finfo(torch.float32).min
    plain = masked.nan_to_num(0.0, 0.0, 0.0).clamp_min(-10.0)
    plain[1, 7] = 0.0
    for defence in (Defence(noise=0.5), Defence(dropout=0.3), Defence(noise=0.5, dropout=0.3)):
        given = {"mask": masked, "whole": torch.randint(0, 9, (2, 4))}
        got = defend(given, defence, torch.Generator().manual_seed(0))
        assert torch.equal(got["whole"], given["whole"])
        left = ~plain.eq(0.0)
        assert torch.equal(got["mask"][~left].nan_to_num(7.0), masked[~left].nan_to_num(7.0))
        assert bool(got["mask"][left].isfinite().all())
        assert float((got["mask"] != masked)[left].float().mean()) > 0.25
    noisy = defend({"mask": masked}, Defence(noise=0.5), torch.Generator().manual_seed(0))["mask"]
    noise = (noisy - masked)[left]
    assert float(noise.std()) == pytest.approx(0.5 * float(masked[left].std()), rel=0.25)
    halves = {"large": torch.full((2, 64), 60_000.0).half() * torch.tensor([1, -1] * 32)}
    for defence in (Defence(noise=5.0), Defence(dropout=0.3)):
        assert bool(defend(halves, defence, torch.Generator().manual_seed(0))["large"].isfinite().all())


def test_noise_that_is_made_afresh_at_each_cut_tells_nothing_of_deeper_ones() -> None:
    leaks = spread({(1, "fp32"): 0.4, (3, "fp32"): 0.3}, 5, defended=True)
    assert [each["fp32"] for each in leaks] == [1.0, 0.4, 1.0, 0.3, 1.0]
    assert leaks[1]["int4"] == 0.4


def test_what_an_attack_gets_of_less_is_in_what_holds_more() -> None:
    # Whoever has what crosses cut 2 can compute what crosses cut 4, and whoever has fp32 can compute int8.
    assert spread({(2, "fp32"): 0.4, (4, "fp32"): 0.6}, 6)[3]["fp32"] == 0.6
    leaks = spread({(1, "fp32"): 0.40, (1, "int8"): 0.55, (1, "int4"): 0.1}, 3)
    assert leaks[1] == {"fp32": 0.55, "fp16": 0.55, "bf16": 0.55, "int8": 0.55, "int4": 0.1}
    assert leaks[2]["int4"] == 0.55
    assert spread({(1, "fp32"): 0.2, (2, "int8"): 0.7}, 3)[1]["fp32"] == 0.7


def test_cuts_are_chosen_evenly_with_both_ends() -> None:
    assert choose_cuts(range(1, 4), 6) == [1, 2, 3]
    assert choose_cuts(range(1, 22), 5) == [1, 6, 11, 16, 21]


def test_the_decoder_draws_what_it_is_shown_and_nothing_where_there_is_nothing() -> None:
    images, _ = blobs.blobs(300)
    seen = draw({"x": images}, images, 60, width=8, seconds=UNHURRIED, steps=250)
    blind = draw({"x": images.flip(0)}, images, 60, width=8, seconds=UNHURRIED, steps=250)
    assert seen.steps == 250
    got, guessed = (float(scores.psnr(each.guesses, images[-60:]).mean()) for each in (seen, blind))
    assert got > 25
    assert got > guessed + 8


@pytest.mark.parametrize("channels", [32, 64, 128])
def test_what_many_channels_hold_is_drawn_before_anything_is_trained(channels: int) -> None:
    images, _ = blobs.blobs(240)
    generator = torch.Generator().manual_seed(0)
    kernels = torch.randn(channels, 1, 3, 3, generator=generator) / 3
    crossing = torch.relu(torch.nn.functional.conv2d(images, kernels, padding=1))
    drawn = draw({"x": crossing}, images, 40, width=8, seconds=UNHURRIED, steps=1)
    assert float(scores.psnr(drawn.guesses, images[-40:]).mean()) > 30


def test_what_lies_in_the_channels_of_a_coarse_grid_is_unfolded() -> None:
    images, _ = blobs.blobs(240)
    patches = torch.nn.functional.conv2d(
        images, torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(0)), stride=4
    )
    where = torch.randn(32, 3, 3, generator=torch.Generator().manual_seed(1))
    drawn = draw({"x": patches + where, "table": where.expand_as(patches)}, images, 40, width=8, seconds=60, steps=1)
    assert float(scores.psnr(drawn.guesses, images[-40:]).mean()) > 30


def test_a_decoder_that_has_learnt_its_samples_by_heart_is_not_kept() -> None:
    images, _ = blobs.blobs(200)
    told_nothing = torch.randn(200, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    drawn = [draw({"x": told_nothing}, images, 40, width=24, seconds=UNHURRIED, steps=steps) for steps in (1, 150)]
    little, much = (float((each.guesses - images[-40:]).pow(2).mean()) for each in drawn)
    assert much < 1.02 * little  # it was 15 % worse, when it was judged by what it was trained on


def test_a_spectrogram_is_drawn_from_itself_and_not_from_others() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(40, 3, generator=generator).abs()
    loudness = torch.nn.functional.interpolate(torch.randn(240, 3, 8, generator=generator).exp(), 128, mode="linear")
    hiss = 0.05 * torch.rand(240, 40, 128, generator=generator)
    values = (torch.einsum("bk,nkt->nbt", bank, loudness) + hiss).log()
    [target] = targets_of(Calibration({"x": values}, None)).values()
    seen = target.attack({"y": values}, 48, width=8, seconds=UNHURRIED, steps=20)
    others = target.attack({"y": values.flip(0)}, 48, width=8, seconds=UNHURRIED, steps=20)
    assert target.score == "share of variance explained"
    assert float(seen.scores.mean()) > 0.98
    assert float(others.scores.mean()) < 0.05


def test_what_others_send_is_worth_no_more_than_a_blind_guess_though_images_are_alike() -> None:
    images, _ = blobs.blobs(300)
    alike = 0.7 * blobs.blobs(301)[0][300] + 0.3 * images  # before the same background
    [target] = targets_of(Calibration({"image": alike}, None)).values()
    seen = target.attack({"x": images}, 60, width=8, seconds=UNHURRIED, steps=100)
    others = target.attack({"x": images.flip(0)}, 60, width=8, seconds=UNHURRIED, steps=100)
    assert seen.blind == others.blind
    assert float(others.scores.mean()) > 0.5
    assert scores.skill(float(others.scores.mean()), others.blind) < 0.05
    assert scores.skill(float(seen.scores.mean()), seen.blind) > 0.8


def test_images_are_drawn_as_images_wherever_their_channels_and_frames_are() -> None:
    first = torch.rand(5, 3, 12, 10)
    given = {
        "first": first, "last": first.movedim(1, -1), "frames": first[:, None].expand(-1, 2, -1, -1, -1),
        "frames_last": first.movedim(1, -1)[:, None].expand(-1, 2, -1, -1, -1),
        "grey": (255 * first[:, 0, ..., None]).byte(),
    }  # fmt: skip
    found = targets_of(Calibration(given, None))
    assert {target.score for target in found.values()} == {"SSIM"}
    assert torch.equal(found["last"].numbers, found["first"].numbers)
    assert found["frames"].numbers.shape == found["frames_last"].numbers.shape == (5, 6, 12, 10)
    assert found["grey"].numbers.shape == (5, 1, 12, 10)
    [many] = targets_of(Calibration({"features": torch.rand(2, 1300, 8, 8)}, None)).values()
    assert many.numbers.shape == (2, 128, 8, 8)


def test_a_blind_guess_of_tokens_is_the_commonest_of_each_place() -> None:
    ids = torch.zeros(300, 3, dtype=torch.long)  # padding, which is not asked for, at the last place
    ids[:, 0] = torch.where(torch.arange(300) % 5 == 0, 2, 7)
    ids[:, 1] = torch.where(torch.arange(300) % 2 == 0, 4, 9)
    ids[1::2, 1] = 0
    [target] = targets_of(Calibration({"ids": ids}, None)).values()
    got = target.attack({"x": torch.zeros(300, 2)}, 100, width=8, seconds=UNHURRIED, steps=1)
    # Of even rows both places are asked for, of odd ones one; 7 is right in four rows of five, 4 always.
    assert got.blind == pytest.approx(0.5 * 0.9 + 0.5 * 0.8)


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
        partition,
        read_calibration(files[1], blobs.INPUTS),
        codecs,
        [1, last],
        budget_seconds=UNHURRIED,
        steps=120,
        threads=1,
    )
    worst = report.worst()
    assert report.input_control > 0.8
    assert report.shuffled_control < worst[1, "fp32"] - 0.2
    assert report.shuffled_skill < 0.1
    assert worst[1, "fp32"] > worst[last, "fp32"]
    assert worst[1, "fp32"] > worst[1, "noisy"]
    assert report.correlations[1] > report.correlations[last]
    assert {each.decoder for each in report.attacks} == {"linear", "small", "large"}
    hasty = replace(report.attacks[-1], steps=10)
    assert "trained for 10 steps" in replace(report, input_control=0.95, attacks=(hasty, *report.attacks)).weakness
    assert "only 0.50 of the input" in replace(report, input_control=0.5).weakness
    assert replace(report, input_control=0.95).weakness == ""


def test_a_blind_guess_of_what_may_have_been_read_wrongly_is_no_score() -> None:
    def attack(cut: int, skill: float, *, target: str = "image", sure: bool = False) -> leak.Attack:
        return leak.Attack(cut, "fp32", "small", 0.3, skill, None, 0.0, 500, target, sure)

    def report(*attacks: leak.Attack) -> leak.LeakReport:
        return leak.LeakReport("SSIM", 300, 1.0, 0.2, 0.0, attacks, {}, None)

    some = report(attack(1, 0.0), attack(2, 0.3), attack(3, 0.0, sure=True))
    assert (some.worst(), some.weakness) == ({(2, "fp32"): 0.3, (3, "fp32"): 0.3}, "")
    # What is got of another input is more than a shallower cut may have shown.
    assert report(attack(1, 0.0), attack(1, 0.4, target="words")).worst() == {(1, "fp32"): 1.0}
    assert "not known" not in some.weakness
    assert "known how its numbers are arranged" in report(attack(1, 0.0), attack(2, 0.01)).weakness


class Counting(nn.Module):
    """One number for each sample crosses, and goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, step: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.table(step)))


def test_columns_of_a_table_count_alike_whatever_their_units() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(500, 8, generator=generator)
    shown = Linear({"x": table[:, 1:] @ torch.randn(7, 7, generator=generator)}, 400)
    table[:, 0] = 1.7e9 + 1e6 * table[:, 0]  # times, of which nothing is shown
    table[:, 2] = 5.0
    [target] = targets_of(Calibration({"rows": table}, None)).values()
    assert isinstance(target, Drawing)
    assert float(target.tell(shown, 500).scores.mean()) == pytest.approx(6 / 7, abs=0.1)


def test_one_number_for_each_sample_is_attacked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(Counting().state_dict(), tmp_path / "weights.safetensors")
    inputs = (TensorSpec("step", "INT64", ()),)
    uri = (tmp_path / "weights.safetensors").as_uri()
    partition = load_partition(ModelSource("m", f"{__name__}:Counting", uri, None, inputs), 0, None)
    given = Calibration({"step": torch.arange(240) % 9}, None)
    codecs = {"fp32": wire_codecs()["fp32"]}
    report = measure_leak(partition, given, codecs, [1], budget_seconds=UNHURRIED, steps=60, threads=1)
    assert report.samples == 240
    assert report.worst()[1, "fp32"] > 0.9


def test_too_few_inputs_are_refused(files: tuple[ModelSource, Path]) -> None:
    partition = load_partition(files[0], 0, None)
    few = read_calibration(files[1], blobs.INPUTS).first(199)
    with pytest.raises(CalibrationError, match=r"200 calibration inputs at least.*only 199"):
        measure_leak(partition, few, wire_codecs(), [1])


def test_the_inputs_that_are_looked_at_fit_the_memory_and_the_time(files: tuple[ModelSource, Path]) -> None:
    partition, given = load_partition(files[0], 0, None), read_calibration(files[1], blobs.INPUTS)
    codecs = {"fp32": wire_codecs()["fp32"]}
    # 144 numbers go in, 4 x 6 x 6 cross cut 1, as many in 32 bits as are held at once.
    each = 4 * (5 * 144 + 3 * 144)
    report = measure_leak(
        partition, given, codecs, [1], budget_seconds=UNHURRIED, steps=3, threads=1, memory_bytes=210 * each
    )
    assert report.samples == 210
    with pytest.raises(CalibrationError, match=r"200 inputs .* take 1 MB, of which there are 1: give .* more memory"):
        measure_leak(partition, given, codecs, [1], memory_bytes=199 * each)
    with pytest.raises(CalibrationError, match=r"to run 200 inputs to 1 cuts takes .* raise the budget"):
        measure_leak(partition, given, codecs, [1], budget_seconds=1e-4)


def test_after_its_budget_no_other_cut_or_codec_is_attacked(files: tuple[ModelSource, Path]) -> None:
    partition, given = load_partition(files[0], 0, None), read_calibration(files[1], blobs.INPUTS).first(200)
    codecs = {name: wire_codecs()[name] for name in ("fp32", "int8")}
    report = leak._measure(partition, given, codecs, [1, 2], -math.inf, 0.5, 100, math.inf, 16, lambda _: None)
    assert {(each.cut, each.codec) for each in report.attacks} == {(1, "fp32")}
    assert report.missed == 3
    enough = replace(report, input_control=1.0, attacks=tuple(replace(each, steps=100) for each in report.attacks))
    assert enough.weakness == "the budget ended before 3 of all pairs of cut and codec were attacked"


def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what decoders are given from now on."""
    seen: list[tuple[int, ...]] = []
    forward = inversion._Decoder.forward

    def watched(self: inversion._Decoder, given: Sequence[torch.Tensor]) -> torch.Tensor:
        seen.extend(tuple(each.shape) for each in given)
        return forward(self, given)

    monkeypatch.setattr(inversion._Decoder, "forward", watched)
    return seen


def test_a_step_of_training_takes_as_much_memory_as_it_may_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = blobs.blobs(300)
    whole = draw({"x": images}, images, 60, width=8, seconds=UNHURRIED, steps=20)
    seen = batches(monkeypatch)
    # Three convolutions of 8 channels and one of 4 on 12 x 12 places, some kept before and after ReLU, thrice.
    parts = draw({"x": images}, images, 60, width=8, seconds=UNHURRIED, steps=20, memory_bytes=4 * 3 * 144 * 8 * 10 * 5)
    assert 2 <= max(shape[0] for shape in seen) <= 8
    assert torch.allclose(parts.guesses, whole.guesses, atol=0.02)


def test_grids_finer_than_what_is_drawn_are_averaged_first_and_long_vectors_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, _ = blobs.blobs(220)
    fine = torch.nn.functional.interpolate(images, scale_factor=7, mode="nearest")
    seen = batches(monkeypatch)
    drawn = draw(
        {"x": fine, "y": fine.flatten(1)}, images, 40, width=8, seconds=UNHURRIED, steps=2, memory_bytes=8192 * 500
    )
    assert {shape[1:] for shape in seen} == {(1, 12, 12), (500,)}
    assert float(scores.psnr(drawn.guesses, images[-40:]).mean()) > 25  # nothing that is drawn was lost


def test_what_is_made_in_parts_is_what_is_made_at_once() -> None:
    generator = torch.Generator().manual_seed(5)
    value = torch.randn(50, 7, 3, generator=generator) * 4 + 2
    known = _Standardised(value, 40)[slice(0, 40)]
    assert known.mean((0, 2)).tolist() == pytest.approx([0.0] * 7, abs=1e-6)
    assert known.std((0, 2), correction=0).tolist() == pytest.approx([1.0] * 7, rel=1e-5)
    wide = torch.randn(60, 20_000, generator=generator)
    narrow = wide[:, :5]
    assert scores.distance_correlation(narrow, wide) == pytest.approx(
        scores.distance_correlation(narrow, wide.flip(1)), abs=1e-9
    )


def test_every_input_is_attacked_and_one_that_crosses_as_it_is_leaks_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(blobs.WithWords().state_dict(), tmp_path / "weights.safetensors")
    source = ModelSource(
        "pair", "tests.support.blobs:WithWords", (tmp_path / "weights.safetensors").as_uri(), None, blobs.WITH_WORDS
    )
    partition = load_partition(source, 0, None)
    words = torch.randint(0, 9, (240, 6), generator=torch.Generator().manual_seed(1))
    given = Calibration({"image": blobs.blobs(240)[0], "words": words}, None)
    narrow = next(cut.index for cut in partition.graph.cuts if {each.shape for each in cut.tensors} == {(2,), (6,)})
    codecs = {name: wire_codecs()[name] for name in ("fp32", "int4")}
    report = measure_leak(partition, given, codecs, [narrow], budget_seconds=UNHURRIED, steps=3, threads=1)
    assert report.worst() == {(narrow, "fp32"): 1.0, (narrow, "int4"): 1.0}
    # The image is narrowed to two numbers.
    assert max(each.score for each in report.attacks if each.target == "image") < 0.9
    assert report.score == "SSIM, share of tokens recovered"


def test_a_score_that_is_no_number_counts_as_all_and_of_the_control_as_none() -> None:
    scored = torch.tensor([0.3, float("nan")])
    assert (leak._share(scored, 1.0), leak._share(scored, 0.0)) == (1.0, 0.0)


def test_an_input_that_is_infinite_spoils_no_measurement(files: tuple[ModelSource, Path]) -> None:
    partition = load_partition(files[0], 0, None)
    given = read_calibration(files[1], blobs.INPUTS)
    given.inputs["image"][7, 0, 3, 3] = float("inf")
    codecs = {"fp32": wire_codecs()["fp32"]}
    report = measure_leak(partition, given, codecs, [2], budget_seconds=UNHURRIED, steps=3, threads=1)
    assert report.input_control > 0.95
    assert report.shuffled_control < 0.5
    assert 0.0 < report.worst()[2, "fp32"] < 1.0


@pytest.mark.parametrize("shape", [(80, 3000), (300, 20), (1, 96, 96), (2000,), (3,)])
def test_an_input_that_crosses_as_it_is_is_known_again_whatever_its_kind(shape: tuple[int, ...]) -> None:
    values = torch.rand(220, *shape, generator=torch.Generator().manual_seed(4))
    [target] = targets_of(Calibration({"x": values}, None)).values()
    assert target.crosses({"y": values.flatten(1) + 1e-3})
    assert not target.crosses({"y": values.flatten(1).flip(0)})


def tones(samples: int, places: int = 256) -> torch.Tensor:
    """Each of two pitches and a phase of its own, over a little noise."""
    generator = torch.Generator().manual_seed(7)
    pitch, phase = 0.1 + 0.9 * torch.rand(samples, 2, 1, generator=generator), 6.3 * torch.rand(samples, 2, 1)
    waves = torch.sin(pitch * torch.arange(places) + phase).sum(1)
    return waves + 0.05 * torch.randn(samples, places, generator=generator)


def test_a_linear_attacker_unmixes_what_a_layer_without_places_has_mixed() -> None:
    drawn, generator = torch.rand(300, 1, 64).cumsum(2) / 64, torch.Generator().manual_seed(0)
    mixed = torch.randn(64, 400, generator=generator)
    tensors = {"x": (drawn[:, 0] @ mixed).reshape(300, 20, 20), "y": torch.full((300, 3), torch.inf)}
    tensors["mask"] = torch.where(
        torch.arange(300)[:, None] % 7 == torch.arange(3), torch.finfo(torch.float32).min, 0.0
    )
    tensors["late"] = (torch.arange(300) > 250).float()[:, None] * 1e30
    assert float(scores.explained(Linear(tensors, 240).draw(drawn), drawn[240:]).mean()) > 0.99
    # No more is learnt from than the memory has room for.
    few = Linear(tensors, 240, memory_bytes=32 * 160**2).draw(drawn)
    assert float(scores.explained(few, drawn[240:]).mean()) > 0.9


def test_a_linear_attacker_draws_the_mean_where_nothing_tells_more() -> None:
    drawn = torch.rand(300, 1, 8, 8)
    told_nothing = torch.randn(300, 500, generator=torch.Generator().manual_seed(0))
    guesses = Linear({"x": told_nothing}, 240).draw(drawn)
    assert float((guesses - drawn[:240].mean(0)).abs().max()) < 0.15
    assert float(scores.psnr(guesses, drawn[240:]).mean()) > 10.0


def test_of_more_numbers_than_there_is_time_for_sums_tell_nearly_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(300, 1, 8, generator=generator)
    tensors = {"x": drawn[:, 0] @ torch.randn(8, 5000, generator=generator)}
    monkeypatch.setattr(linear, "_MOST_PRODUCTS", 300**2 * 500)
    assert float(scores.explained(Linear(tensors, 240).draw(drawn), drawn[240:]).mean()) > 0.97


def test_a_voice_whose_phase_is_lost_is_heard_all_the_same() -> None:
    signals = tones(500)
    target = Drawing(signals)
    window = torch.hann_window(64)
    loudness = {"x": torch.stft(signals, 64, 16, window=window, return_complex=True).abs()}
    got, trained = (
        target.tell(Linear(loudness, 400), 500),
        target.attack(loudness, 100, width=8, seconds=UNHURRIED, steps=2),
    )
    assert target.score == "share of variance explained of the wave or its spectrum"
    assert float(got.scores.mean()) > 0.5
    assert float(trained.scores.mean()) > 0.3
    assert got.blind < 0.05
    others = {"x": loudness["x"].flip(0)}
    assert scores.skill(float(target.tell(Linear(others, 400), 500).scores.mean()), got.blind) < 0.05
    # Of the wave itself next to nothing is told.
    waves = Linear(loudness, 400).draw(target.numbers)
    assert float(scores.explained(waves, target.numbers[400:]).mean()) < 0.1


def test_a_spectrum_does_not_depend_on_phase_and_is_of_signals_only() -> None:
    times = torch.arange(4000)
    sounds = torch.stack([torch.sin(pitch * times + phase) for pitch in (0.2, 1.3) for phase in (0.0, 2.0)])[:, None]
    heard = spectrogram(sounds + 40)  # an offset is not heard
    assert heard is not None
    assert heard.shape[0] == 4
    assert heard.shape[1] <= 64
    assert float((heard[0] - heard[1]).abs().mean()) < 0.1 * float((heard[0] - heard[2]).abs().mean())
    assert spectrogram(torch.rand(4, 40, 128)) is None  # bands of a spectrogram
    assert spectrogram(torch.rand(4, 1, 30)) is None  # numbers of a table


def test_shares_of_variance_of_all_samples_average_to_the_coefficient_of_determination() -> None:
    truth, guess = torch.randn(50, 6), torch.randn(50, 6)
    errors, spread = (guess - truth).pow(2).sum(), (truth - truth.mean(0)).pow(2).sum()
    assert float(scores.determined(guess, truth).mean()) == pytest.approx(1 - float(errors / spread), abs=1e-5)


def test_fine_inputs_are_averaged_and_not_picked_from() -> None:
    click = torch.zeros(2, 3000)
    click[0, 1501] = 1.0
    [target] = targets_of(Calibration({"x": click}, None)).values()
    assert float(target.numbers[0].max()) == 1.0
    bands = torch.rand(3, 80, 3000)
    [target] = targets_of(Calibration({"x": bands}, None)).values()
    assert target.numbers.shape == (3, 80, 1024)


def test_a_signal_of_one_dimension_is_scored_by_the_variance_explained() -> None:
    places = torch.linspace(0, 6, 64)
    truth = torch.stack([10 + places + torch.sin(places + phase) for phase in (0.0, 2.0, 4.0)])
    assert scores.explained(truth, truth).tolist() == pytest.approx([1.0] * 3)
    # That all of them rise tells of none of them.
    assert scores.explained(truth.mean(0).expand_as(truth), truth).tolist() == pytest.approx([0.0] * 3)
    half = (truth + truth.mean(0)) / 2
    assert scores.explained(half, truth).tolist() == pytest.approx([0.75] * 3)


def test_tokens_are_recovered_from_their_embeddings_and_not_from_those_of_others() -> None:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 40, (300, 12), generator=generator)
    ids[:, 9:] = 0  # padding, which is not asked for
    targets = targets_of(Calibration({"ids": ids, "mask": (ids > 0).long(), "kind": torch.zeros(300, 12)}, None))
    assert set(targets) == {"ids"}  # a mask of padding only tells lengths, and a constant tells nothing
    target = targets["ids"]
    table = torch.randn(40, 24, generator=generator)
    seen = target.attack({"x": table[ids]}, 60, width=8, seconds=UNHURRIED, steps=200)
    blind = target.attack({"x": table[ids.flip(0)]}, 60, width=8, seconds=UNHURRIED, steps=200)
    pooled = target.attack({"x": table[ids].mean(1)}, 60, width=8, seconds=UNHURRIED, steps=200)
    assert float(seen.scores.mean()) > 0.95
    assert float(blind.scores.mean()) < 0.1
    assert float(pooled.scores.mean()) < 0.5
    assert target.score == "share of tokens recovered"


def test_thousands_of_token_ids_are_told_from_themselves() -> None:
    ids = torch.randint(0, 2000, (400, 32), generator=torch.Generator().manual_seed(0))
    [target] = targets_of(Calibration({"ids": ids}, None)).values()
    got = target.attack({"ids": ids}, 80, width=8, seconds=UNHURRIED, steps=1)
    assert float(got.scores.mean()) > 0.95


def test_ids_of_any_size_are_told_apart() -> None:
    ids = torch.randint(0, 50, (300, 8), generator=torch.Generator().manual_seed(0))
    [target] = targets_of(Calibration({"ids": ids}, None)).values()
    got = target.attack({"hashed": 7919 * ids + (1 << 24) + 1}, 60, width=8, seconds=UNHURRIED, steps=1)
    assert float(got.scores.mean()) > 0.95


def test_ids_without_places_take_no_more_numbers_than_others() -> None:
    ids = torch.randint(0, 1000, (20, 300), generator=torch.Generator().manual_seed(0))
    assert coded(ids, [NUMBERS], 8)[1] == []
    assert len(coded(ids, [Reading((1,))], 300)[1]) == 1


def test_of_two_attackers_the_one_that_recovers_more_than_padding_is_kept() -> None:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 20, (400, 16), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.9] = 0
    noise = 1.5 * torch.randn(400, 16, 24, generator=generator)
    [target] = targets_of(Calibration({"ids": ids}, None)).values()
    noisy = torch.randn(20, 24, generator=generator)[ids] + noise
    got = target.attack({"x": noisy}, 80, width=8, seconds=UNHURRIED, steps=30)
    assert float(got.scores.mean()) > 0.5  # a decoder that says padding everywhere is right in nine places of ten


def test_the_command_names_its_attack_and_its_controls(files: tuple[ModelSource, Path]) -> None:
    source, calibration = files
    arguments = ["--input", "image:FP32:-1,1,12,12", "--weights", str(source.weights_uri), "--cut", "1"]
    arguments += ["--calibration", str(calibration), "--budget", str(UNHURRIED), "--steps", "3", "--threads", "1"]
    done = CliRunner().invoke(app, ["model", "leak", source.factory, *arguments])
    assert done.exit_code == 0, done.output
    assert "A lower bound, by this attack: inversion decoder" in done.output
    done = CliRunner().invoke(app, ["model", "leak", source.factory, *arguments, "--json"])
    report = json.loads(done.output)
    assert {"input", "shuffled", "shuffledSkill"} == report["controls"].keys()
    assert {(each["cut"], each["input"]) for each in report["attacks"]} == {(1, "image")}


class Branching(nn.Module):
    """Cannot be split."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((1, 2, 3))[:, None] if bool(image.sum() > 0) else image.sum((1, 2, 3))[:, None]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--cut", "0"], "nocut0toattack:give1to"),
        (["--cut", "99"], "nocut99toattack"),
        (["--codec", "int8+zstd"], "int8+zstdshowswhatint8shows"),
        (["--codec", "jpeg"], "nocodecjpeg:giveoneoffp32"),
    ],
)
def test_cuts_and_codecs_that_cannot_be_attacked_are_told_apart(
    asked: list[str], message: str, files: tuple[ModelSource, Path]
) -> None:
    source, calibration = files
    arguments = ["--input", "image:FP32:-1,1,12,12", "--weights", str(source.weights_uri), *asked]
    done = CliRunner().invoke(app, ["model", "leak", source.factory, *arguments, "--calibration", str(calibration)])
    assert done.exit_code == 2
    assert message in unwrapped(done.output)


def test_a_model_without_a_cut_is_neither_attacked_nor_compared(
    files: tuple[ModelSource, Path], tmp_path: Path
) -> None:
    _, calibration = files
    weights = tmp_path / "none.safetensors"
    save_file({}, weights)
    arguments = ["--input", "image:FP32:-1,1,12,12", "--weights", weights.as_uri(), "--calibration", str(calibration)]
    for command in ("leak", "accuracy"):
        done = CliRunner().invoke(app, ["model", command, f"{__name__}:Branching", *arguments])
        assert done.exit_code == 2
        told = unwrapped(done.output)
        assert "nothingcrossesacut,forthereisnone:" in told
        assert "valuesofitsinputsorweights" in told
    inputs = (TensorSpec("image", "FP32", (1, 12, 12)),)
    source = ModelSource("m", f"{__name__}:Branching", weights.as_uri(), None, inputs)
    assert leak_along(source, calibration, budget_seconds=1.0, threads=1, progress=lambda _share, _text: None) is None


def test_a_calibration_job_measures_what_it_is_asked_for_and_nothing_else(
    files: tuple[ModelSource, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_job, "measure_leak", partial(measure_leak, steps=3))
    source, calibration = files
    model = {
        "name": "blobs", "factory": source.factory, "weights": {"uri": source.weights_uri},
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 12, 12]}],
    }  # fmt: skip
    digest = sha256(calibration.read_bytes()).hexdigest()
    request = CalibrationRequest(calibration.as_uri(), digest, UNHURRIED, ((1, "int8"), (2, "int8")), ((1, "fp32"),))
    environment = {
        "SPLITPLANE_NAMESPACE": "n", "SPLITPLANE_RESULT_CONFIGMAP": "r", "SPLITPLANE_MODEL": json.dumps(model),
        "SPLITPLANE_CALIBRATION": json.dumps(request.to_dict()),
    }  # fmt: skip
    told: list[str] = []
    settings = Settings.from_environment(environment)
    result = calibrate(settings, told.append)
    assert result.accuracy is not None
    assert set(result.accuracy.losses) == {(1, "int8"), (2, "int8")}
    assert result.accuracy.metric == "top1"
    assert result.accuracy.samples == 240
    assert all(loss > 1.645**2 / 243 for loss in result.accuracy.losses.values())
    assert result.leak is not None
    assert set(result.leak.scores) == {(1, "fp32")}
    assert "attacks to go" in told[-1]
    assert CalibrationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    wrong = replace(settings, request=replace(request, sha256="0" * 64))
    with pytest.raises(CalibrationError, match="wrong sha256"):
        calibrate(wrong, told.append)
    unfitting = replace(settings, request=replace(request, metric="r2"))
    result = calibrate(unfitting, told.append)
    assert result.accuracy is None
    assert "the metric r2 does not fit" in result.refusal
    assert result.leak is not None
    with pytest.raises(CalibrationError, match="the metric r2 does not fit"):
        calibrate(replace(unfitting, request=replace(unfitting.request, leak=())), told.append)

"""Every cut of every model: both sides, each in a process of its own, give what the whole gives."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from splitplane.domain.profiles import TensorSpec
from splitplane.model import FactoryError
from splitplane.model.equivalence import BATCHES, TOLERANCE, Way, compare, every_cut, every_segment, relative_error
from tests.support.model_zoo import HAND_MADE, SMALL, TRAINED, VECTOR, Model


@pytest.mark.parametrize("model", [*SMALL, *TRAINED], ids=lambda model: model.name)
def test_two_processes_give_what_the_eager_whole_gives_at_every_cut(model: Model, tmp_path: Path) -> None:
    differences = compare(model.source(tmp_path), model.samples(BATCHES))
    wrong = [each for each in differences if not each.error <= TOLERANCE]
    assert not wrong
    assert len({each.way for each in differences}) > 2


def two_and_all(last: int) -> Iterable[Way]:
    """Both sides of every cut, the whole model as one range, and all segments one after another."""
    return *every_cut(last), *every_segment(last)


@pytest.mark.parametrize("model", HAND_MADE, ids=lambda model: model.name)
def test_two_processes_at_every_cut_and_as_many_as_segments_give_what_the_whole_gives(
    model: Model, tmp_path: Path
) -> None:
    differences = compare(model.source(tmp_path), model.samples(BATCHES), two_and_all)
    assert [each for each in differences if not each.error <= TOLERANCE] == []
    assert len({each.way for each in differences if len(each.way) <= 3}) > 2
    assert any(len(each.way) > 3 for each in differences)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("output", "expected", "error"),
    [
        ([[1.0, -4.0]], [[1.0, -4.0]], 0.0),
        ([[1.0, -4.0]], [[1.0, -2.0]], 1.0),
        ([[0.5, 0.0]], [[0.0, 0.0]], 0.5),
        ([[-INF, 2.0, NAN]], [[-INF, 4.0, NAN]], 0.5),
        ([[-INF, INF]], [[-INF, INF]], 0.0),
        ([[-INF, 1.0]], [[INF, 1.0]], INF),
        ([[-INF, 1.0]], [[0.0, 1.0]], INF),
        ([[0.0, 1.0]], [[-INF, 1.0]], INF),
        ([[NAN, 1.0]], [[0.0, 1.0]], INF),
        ([[NAN, 1.0]], [[INF, 1.0]], INF),
        ([[1.0]], [[1.0], [1.0]], INF),  # which would be broadcast
        ([1.0, 1.0], [[1.0, 1.0]], INF),
        ([1, 2], [1, 3], INF),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1.0, 2.0], INF),
    ],
)
def test_an_error_is_relative_and_infinite_where_shape_type_infinity_or_nan_differ(
    output: list[object], expected: list[object], error: float
) -> None:
    assert relative_error(torch.tensor(output), torch.tensor(expected)) == error


def test_a_range_that_fails_on_a_batch_is_told_with_its_reason_beside_those_that_come_through(tmp_path: Path) -> None:
    model = Model("few", "tests.support.model_graphs:FewSamples", VECTOR)
    differences = compare(model.source(tmp_path), model.samples(BATCHES))
    assert {each.batch for each in differences} == set(BATCHES)
    for each in differences:
        assert (each.error <= TOLERANCE) is (each.batch <= 5), each
        assert ("batch from 1 to 5" in each.failure) is (each.batch > 5)


def test_a_model_that_draws_other_numbers_at_each_call_is_not_called_equal(tmp_path: Path) -> None:
    model = Model("noisy", "tests.support.model_graphs:Noisy", VECTOR)
    with pytest.raises(FactoryError, match=r"Noisy as it is gives other outputs at each call .* draws random numbers"):
        compare(model.source(tmp_path), model.samples(BATCHES))


def test_an_encoder_is_held_against_its_layers_as_they_are_written_and_its_fast_path_is_told_of(tmp_path: Path) -> None:
    inputs = TensorSpec("x", "FP32", (6, 64)), TensorSpec("lengths", "INT64", ())
    model = Model("padded", "tests.support.model_graphs:Padded", inputs)
    notes: list[str] = []
    samples = {3: {"x": torch.randn(3, 6, 64), "lengths": torch.tensor([6, 4, 2])}}
    differences = compare(model.source(tmp_path), samples, note=notes.append)
    assert [each for each in differences if not each.error <= TOLERANCE] == []
    [note] = notes
    assert "takes torch's fast path for attention, whose answers differ" in note
    notes.clear()
    compare(model.source(tmp_path), {3: {**samples[3], "lengths": torch.tensor([6, 6, 6])}}, note=notes.append)
    assert not notes


def test_a_model_that_fails_as_it_is_is_told_so(tmp_path: Path) -> None:
    model = Model("refuses", "tests.support.model_graphs:RefusesMany", VECTOR)
    with pytest.raises(
        FactoryError, match=r"RefusesMany fails as it is, .* on 8 samples: ValueError: too many samples"
    ):
        compare(model.source(tmp_path), model.samples(BATCHES))

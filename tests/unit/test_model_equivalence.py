"""Every cut of every model: both sides, each in a process of its own, give what the whole gives."""

from pathlib import Path

import pytest

from splitplane.model.equivalence import BATCHES, TOLERANCE, compare, every_segment
from tests.support.model_zoo import HAND_MADE, SMALL, TRAINED, Model


@pytest.mark.parametrize("model", [*HAND_MADE, *SMALL, *TRAINED], ids=lambda model: model.name)
def test_two_processes_give_what_the_eager_whole_gives_at_every_cut(model: Model, tmp_path: Path) -> None:
    differences = compare(model.source(tmp_path), model.samples(BATCHES))
    wrong = [each for each in differences if not each.error <= TOLERANCE]
    assert not wrong
    assert len({each.way for each in differences}) > 2


@pytest.mark.parametrize("model", HAND_MADE, ids=lambda model: model.name)
def test_as_many_processes_as_segments_give_what_the_whole_gives(model: Model, tmp_path: Path) -> None:
    differences = compare(model.source(tmp_path), model.samples(BATCHES), every_segment)
    assert [each for each in differences if not each.error <= TOLERANCE] == []
    assert any(len(each.way) > 3 for each in differences)

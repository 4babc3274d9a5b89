"""Free sizes of which torch cannot prove that a graph holds for them: taken where it does, refused where it doesn't."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelSource, load_partition
from splitplane.model.equivalence import TOLERANCE, relative_error
from splitplane.model.whole import load_whole, run_whole

Make = Callable[[Callable[[], nn.Module]], ModelSource]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    module = ModuleType("models_that_pad")
    sys.modules[module.__name__] = module

    def source(factory: Callable[[], nn.Module]) -> ModelSource:
        path = tmp_path / "weights.safetensors"
        save_file(dict(factory().state_dict()), path)
        module.build = factory  # type: ignore[attr-defined]
        inputs = (TensorSpec("x", "FP32", (12, 16), ("steps", None)),)
        return ModelSource("test", f"{module.__name__}:build", path.as_uri(), None, inputs)

    yield source
    del sys.modules[module.__name__]


class Windows(nn.Module):
    """Attention within windows of 8 steps, of a sequence of any length that is padded to a multiple of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(16, 16) for _ in range(3))

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x, (0, 0, 0, (-x.shape[1]) % 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, steps, width = x.shape
        padded = self.pad(self.first(x))
        windows = self.middle(padded.reshape(batch * (padded.shape[1] // 8), 8, width))
        windows = (windows @ windows.transpose(1, 2)).softmax(-1) @ windows
        result: torch.Tensor = self.last(windows.reshape(batch, padded.shape[1], width)[:, :steps])
        return result


class ByRemainder(Windows):
    def pad(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x, (0, 0, 0, (8 - x.shape[1] % 8) % 8))


class IfNeeded(Windows):
    def pad(self, x: torch.Tensor) -> torch.Tensor:
        missing = x.shape[1] % 8
        return functional.pad(x, (0, 0, 0, 8 - missing)) if missing else x


@pytest.mark.parametrize("factory", [Windows, ByRemainder, IfNeeded])
def test_a_sequence_that_is_padded_to_a_multiple_may_have_any_length(make: Make, factory: type[nn.Module]) -> None:
    source = make(factory)
    partition, whole = load_partition(source, 0, None), load_whole(source)
    assert partition.last > 1
    for batch, steps in ((1, 1), (1, 8), (2, 5), (3, 16), (1, 17), (2, 41), (1, 128)):
        given = {"x": torch.randn(batch, steps, 16)}
        (expected,) = run_whole(source, whole, given)
        for cut in range(1, partition.last):
            outputs = partition.run(cut, partition.last, partition.run(0, cut, given))
            assert relative_error(outputs["output_0"], expected) <= TOLERANCE, (batch, steps, cut)


class Alternating(Windows):
    """Does something else with a sequence whose length is a multiple of 8."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = super().forward(x)
        return result if x.shape[1] % 8 else result * 2


def test_a_graph_is_not_taken_for_sizes_of_which_the_model_computes_something_else(make: Make) -> None:
    refusal = load_partition(make(Alternating), 0, None).graph.refusal
    assert refusal is not None
    assert "it does something else for some" in refusal.reason
    assert refusal.location is not None


class Growing(Windows):
    """From 64 steps on another model, which no trial of short sequences shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = super().forward(x)
        return result if x.shape[1] // 8 < 8 else result * 2


def test_sizes_beyond_those_that_were_tried_must_be_of_their_kind(make: Make) -> None:
    partition = load_partition(make(Growing), 0, None)
    with pytest.raises(ValueError, match="dimension 1 of tensor x"):
        partition.run(0, partition.last, {"x": torch.randn(1, 64, 16)})


class InTwoDirections(nn.Module):
    """Windows of 4 times 4 of a picture of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        padded = functional.pad(self.first(x), (0, (-width) % 4, 0, (-height) % 4))
        down, right = padded.shape[2] // 4, padded.shape[3] // 4
        windows = padded.reshape(batch, channels, down, 4, right, 4).permute(0, 2, 4, 1, 3, 5)
        means = self.middle(windows.mean((4, 5)).permute(0, 3, 1, 2))
        result: torch.Tensor = self.last(
            functional.interpolate(means, scale_factor=4.0)[:, :, :height, :width] + self.first(x)
        )
        return result


def test_pictures_that_are_padded_in_both_directions_may_have_any_size(make: Make) -> None:
    source = replace(make(InTwoDirections), inputs=(TensorSpec("x", "FP32", (3, 10, 14), (None, "height", "width")),))
    partition, whole = load_partition(source, 0, None), load_whole(source)
    assert partition.last > 1
    for height, width in ((10, 14), (5, 17), (9, 8), (31, 3)):
        given = {"x": torch.randn(2, 3, height, width)}
        (expected,) = run_whole(source, whole, given)
        outputs = partition.run(1, partition.last, partition.run(0, 1, given))
        assert relative_error(outputs["output_0"], expected) <= TOLERANCE, (height, width)


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = x[:, :, 0].ne(0).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        result: torch.Tensor = nn.utils.rnn.pad_packed_sequence(
            self.layer(packed)[0], batch_first=True, total_length=x.shape[1]
        )[0]
        return result


def test_the_verdict_on_packed_sequences_says_what_to_do(make: Make) -> None:
    refusal = load_partition(make(Packing), 0, None).graph.refusal
    assert refusal is not None
    assert "give the recurrent layer the padded sequence" in refusal.reason

"""What crosses a cut, and which places are worth cutting at, on small models of known shape."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelGraph, ModelSource, NotSplittableError, Partition, export, load_partition
from splitplane.model.cutting import MAX_CUTS

Make = Callable[[Callable[[], nn.Module], tuple[TensorSpec, ...]], ModelSource]
VECTOR = (TensorSpec("x", "FP32", (64,)),)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Turns a class into a source: a factory module and trained (here: initial) weights on disk."""
    module = ModuleType("models_under_test")
    sys.modules[module.__name__] = module

    def source(factory: Callable[[], nn.Module], inputs: tuple[TensorSpec, ...]) -> ModelSource:
        torch.manual_seed(11)
        trained = factory().eval()
        path = tmp_path / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, path)
        module.build = factory  # type: ignore[attr-defined]
        module.trained = trained  # type: ignore[attr-defined]
        return ModelSource("test", f"{module.__name__}:build", path.as_uri(), None, inputs)

    yield source
    del sys.modules[module.__name__]


def crossing(graph: ModelGraph, cut: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(spec.datatype, spec.shape) for spec in graph.cuts[cut].tensors]


def check_all_ranges(source: ModelSource, inputs: dict[str, torch.Tensor]) -> Partition:
    """Every pair of cuts: the three ranges that it makes give together what the whole model gives."""
    whole = sys.modules["models_under_test"].trained
    partition = load_partition(source, 0, None)
    last = partition.last
    with torch.inference_mode():
        expected = whole(**inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for first in range(last + 1):
        for second in range(first, last + 1):
            tensors = inputs
            for start, end in ((0, first), (first, second), (second, last)):
                if start < end:
                    tensors = partition.run(start, end, tensors)
            for index, value in enumerate(expected):
                torch.testing.assert_close(tensors[f"output_{index}"], value, atol=1e-6, rtol=0)
    return partition


class Shrinking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size // 2) for size in (64, 32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def test_a_model_that_shrinks_all_the_way_is_cut_after_every_layer(make: Make) -> None:
    source = make(Shrinking, VECTOR)
    graph = check_all_ranges(source, {"x": torch.randn(3, 64)}).graph
    assert graph.segments == ("layers.0", "layers.1", "layers.2")
    assert [crossing(graph, cut) for cut in range(4)] == [[("FP32", (size,))] for size in (64, 32, 16, 8)]


class Widening(nn.Module):
    """Blocks that widen fourfold inside: their insides carry more than both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_a_cut_that_carries_more_than_one_before_and_one_after_is_dropped(make: Make) -> None:
    graph = check_all_ranges(make(Widening, VECTOR), {"x": torch.randn(3, 64)}).graph
    assert [cut.wire_bytes["fp32"] for cut in graph.cuts[2:]] == [256, 256, 256]
    assert graph.segments[-1] == "blocks.2"


class Skipping(nn.Module):
    """What ``down`` gave is needed again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = nn.Linear(64, 16), nn.Linear(16, 8), nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        early = torch.tanh(self.down(x))
        return torch.cat((self.up(torch.relu(self.middle(early))), early), dim=1)


def test_a_skip_connection_crosses_with_the_rest(make: Make) -> None:
    graph = check_all_ranges(make(Skipping, VECTOR), {"x": torch.randn(3, 64)}).graph
    assert [crossing(graph, cut) for cut in (1, 2)] == [[("FP32", (16,))], [("FP32", (16,)), ("FP32", (8,))]]
    assert graph.cuts[2].wire_bytes["fp32"] == 4 * 24


class PreActivated(nn.Module):
    """The branch starts with a ReLU: its input and the ReLU's result are both needed later."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        active = torch.relu(x)
        return self.head(x + self.branch(active) * active)


def test_what_light_operations_can_give_again_is_recomputed_not_sent(make: Make) -> None:
    graph = check_all_ranges(make(PreActivated, VECTOR), {"x": torch.randn(3, 64)}).graph
    assert crossing(graph, 1) == [("FP32", (32,))]


class Masked(nn.Module):
    """Attention with a mask made from integers, positions that no file holds, and a reshaped batch."""

    positions: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 32), nn.Embedding(12, 32)
        self.register_buffer("positions", torch.arange(12).flip(0), persistent=False)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.words(ids) + self.places(self.positions)
        bias = (1.0 - mask[:, None, :].expand(-1, 12, -1).float()) * -1e4
        for layer in (self.first, self.second):
            score = torch.softmax(hidden @ hidden.transpose(1, 2) + bias, dim=-1)
            flat = layer((score @ hidden).reshape(-1, 32))
            hidden = hidden + flat.view(ids.shape[0], 12, 32)
        return hidden.mean(1), hidden.sum(dim=(1, 2))


def test_masks_and_positions_are_rebuilt_downstream(make: Make) -> None:
    source = make(Masked, (TensorSpec("ids", "INT64", (12,)), TensorSpec("mask", "INT64", (12,))))
    inputs = {"ids": torch.randint(0, 50, (3, 12)), "mask": torch.tensor([[1] * 12, [1] * 5 + [0] * 7, [1] + [0] * 11])}
    partition = check_all_ranges(source, inputs)
    graph = partition.graph
    assert len(graph.cuts) >= 4
    for cut in range(1, len(graph.cuts) - 1):
        # One row of the mask (twelve, once it is expanded) and the hidden state; no positions, no bias.
        assert [datatype for datatype, _ in crossing(graph, cut)] == ["INT64", "FP32"]
        assert graph.cuts[cut].wire_bytes["fp32"] == 12 * 8 + 12 * 32 * 4
    assert graph.outputs == (TensorSpec("output_0", "FP32", (32,)), TensorSpec("output_1", "FP32", ()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(torch.relu(self.encode(x)))


def test_tied_weights_are_found_under_whichever_name_the_file_holds(make: Make) -> None:
    source = make(Shrinking, VECTOR)  # for its file only, which is replaced
    source = make_tied(source)
    partition = load_partition(source, 0, None)
    x = torch.randn(2, 64)
    expected = functional.linear(torch.relu(functional.linear(x, WEIGHT)), WEIGHT)
    torch.testing.assert_close(partition.run(0, partition.last, {"x": x})["output_0"], expected)


WEIGHT = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))


def make_tied(source: ModelSource) -> ModelSource:
    save_file({"decode.weight": WEIGHT}, source.weights_uri.removeprefix("file://"))
    sys.modules["models_under_test"].build = Tied  # type: ignore[attr-defined]
    return source


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(60))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def test_a_deep_model_gets_a_bounded_number_of_evenly_spread_cuts(make: Make) -> None:
    graph = export(make(Deep, VECTOR))
    assert len(graph.cuts) == MAX_CUTS
    assert max(graph.weight_bytes) <= 3 * min(graph.weight_bytes)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.layers[0](x)
        kept = first * 2
        first.relu_()
        return self.layers[1](first).add_(kept)


def test_operations_in_place_do_not_change_what_crosses(make: Make) -> None:
    check_all_ranges(make(InPlace, VECTOR), {"x": torch.randn(3, 64)})


class Counting(nn.Module):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1.0)
        return x + self.count


class OneSample(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 64) + 1.0


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1.0 if bool(x.sum() > 0) else x - 1.0


class Averaging(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (Counting, "writes to count: a stage keeps no state"),
        (OneSample, "batch"),
        (Branching, "data-dependent|Could not guard"),
        (Averaging, "does not have the batch as dimension 0"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused_with_the_reason(
    make: Make, factory: Callable[[], nn.Module], reason: str
) -> None:
    with pytest.raises(NotSplittableError, match=reason):
        export(make(factory, VECTOR))


def test_the_fingerprint_covers_graph_and_weights_and_nothing_that_varies(make: Make) -> None:
    first = export(make(Shrinking, VECTOR)).fingerprint
    assert export(make(Shrinking, VECTOR)).fingerprint == first
    source = make(Shrinking, VECTOR)
    path = source.weights_uri.removeprefix("file://")
    save_file({name: tensor + 1 for name, tensor in Shrinking().state_dict().items()}, path)
    assert export(source).fingerprint != first
    assert export(make(Widening, VECTOR)).fingerprint != first

"""What crosses a cut, and which places are worth cutting at, on small models of known shape."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from splitplane.domain.inputs import past_inputs
from splitplane.domain.profiles import TensorSpec, held_bytes
from splitplane.model import ModelGraph, ModelSource, Partition, WeightsError, export, load_partition
from splitplane.model.datatypes import torch_datatype
from splitplane.model.pruning import MAX_CUTS
from tests.support.model_zoo import HAND_MADE, TRAINED, Model

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


def weights_path(source: ModelSource) -> Path:
    assert source.weights_uri is not None
    return Path(source.weights_uri.removeprefix("file://"))


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


@pytest.mark.parametrize("name", ["input.1", "class", "2 x", "input_1"])
def test_an_input_may_have_any_name(make: Make, name: str) -> None:
    partition = load_partition(make(Shrinking, (TensorSpec(name, "FP32", (64,)),)), 0, None)
    x = torch.randn(3, 64)
    with torch.inference_mode():
        expected = sys.modules["models_under_test"].trained(x)
    halves = partition.run(1, partition.last, partition.run(0, 1, {name: x}))
    for outputs in (partition.run(0, partition.last, {name: x}), halves):
        torch.testing.assert_close(outputs["output_0"], expected)


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


class InRegions(nn.Module):
    """Three layers, the first and the last of which run in regions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, size) for size in (64, 64, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = torch.tanh(self.layers[0](x))
        x = torch.tanh(self.layers[1](x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.tanh(self.layers[2](x))
            with torch.autocast("cpu", enabled=False):
                return x.float() * 3.0


class Autocasting(nn.Module):
    """All layers run in one region, where the matrix products are of half the precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for layer in self.layers:
                x = torch.tanh(layer(x))
        return x.float()


def test_regions_are_cut_within_and_give_the_same(make: Make) -> None:
    inputs = {"x": torch.randn(3, 64)}
    graph = check_all_ranges(make(InRegions, VECTOR), inputs).graph
    assert graph.segments == ("layers.0", "layers.1", "layers.2")
    graph = check_all_ranges(make(Autocasting, VECTOR), inputs).graph
    assert graph.segments == ("layers.0", "layers.1", "layers.2")
    assert [crossing(graph, cut) for cut in (1, 2)] == [[("BF16", (64,))]] * 2
    assert [each.flops for each in graph.work()] == pytest.approx([2 * 64 * 64] * 3, rel=0.05)


class Hiding(nn.Module):
    """What autocast casts lies within the operations of this region: the steps of an LSTM, the product of an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.LSTM(16, 64, batch_first=True)
        self.mix, self.last = nn.Parameter(torch.randn(64, 64) / 8), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given, _ = self.steps(x)
            mixed = torch.einsum("bti,ij->btj", torch.tanh(given), self.mix)
        return self.last(mixed.float())


def test_a_region_stays_whole_where_no_graph_shows_its_casts(make: Make) -> None:
    source = make(Hiding, (TensorSpec("x", "FP32", (6, 16), ("steps", None)),))
    graph = check_all_ranges(source, {"x": torch.randn(3, 4, 16)}).graph
    assert len(graph.segments) == 2
    region, last = graph.work()
    assert last.flops == pytest.approx(2 * 6 * 64 * 32, rel=0.05)
    assert region.flops > 2 * 6 * 64 * 64


class Complex(nn.Module):
    """Nothing but complex numbers lies between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Parameter(torch.randn(64, 64, dtype=torch.complex64)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.complex64) @ self.first @ self.last).real


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (partial(nn.Linear, 64, 8), "the only heavy operation in it is linear (float32), and cuts lie between two"),
        (nn.Tanh, "there is no heavy operation in it"),
        (Complex, "cannot be sent: "),
    ],
)
def test_a_model_without_a_place_to_cut_tells_why(make: Make, factory: Callable[[], nn.Module], told: str) -> None:
    graph = export(make(factory, (TensorSpec("input", "FP32", (64,)),)))
    assert graph.refusal is None
    assert graph.uncut is not None
    assert told in graph.uncut
    assert graph.verdict == f"has no place worth a cut, and is served whole: {graph.uncut}"


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

    POSITIONS = torch.arange(12).flip(0)
    positions: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 32), nn.Embedding(12, 32)
        self.register_buffer("positions", self.POSITIONS, persistent=False)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.words(ids) + self.places(self.positions)
        bias = (1.0 - mask[:, None, :].expand(-1, 12, -1).float()) * -1e4
        for layer in self.layers:
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


class Towers(nn.Module):
    """Readings go first through layers of their own; the image, in parts of its range, joins them late."""

    def __init__(self) -> None:
        super().__init__()
        self.readings, self.last = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), nn.Linear(24, 4)
        self.image = nn.ModuleList(nn.Conv2d(before, after, 3, 2, 1) for before, after in ((3, 8), (8, 16)))

    def forward(self, readings: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        scaled = image.to(torch.float32) / 255.0
        for layer in self.readings:
            readings = torch.relu(layer(readings))
        for layer in self.image:
            scaled = torch.relu(layer(scaled))
        return self.last(torch.cat([readings, scaled.mean((2, 3))], 1))


@pytest.mark.parametrize(("datatype", "name"), [("UINT8", "image"), ("FP32", "image.div")])
def test_an_input_that_crosses_as_it_is_keeps_its_name_and_rules_out_no_cut_that_hides_it(
    datatype: str, name: str, make: Make
) -> None:
    specs = (TensorSpec("readings", "FP32", (8,)), TensorSpec("image", datatype, (3, 16, 16)))
    renamed = tuple(replace(spec, name=f"{spec.name}_given") for spec in specs)
    given = {"readings": torch.randn(3, 8), "image": torch.randint(0, 256, (3, 3, 16, 16)).to(torch_datatype(datatype))}
    graph = check_all_ranges(make(Towers, specs), given).graph
    assert [name in {each.name for each in cut.tensors} for cut in graph.cuts[1:-1]] == [True, True, False, False]
    assert past_inputs(graph.cuts) == 3
    # Where its own name is not that of forward's parameter, it is known all the same.
    assert past_inputs(export(make(Towers, renamed)).cuts) == 3


class Late(nn.Module):
    """The second half of the input joins what came of the first before the last layer, after light work alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.layers, self.last = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)), nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.rand(2, 16, 16))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen, late = image.chunk(2, 1)
        for layer in self.layers:
            seen = torch.relu(layer(seen))
        if self.how == "scaled":
            late = late.flip(3) * self.scale
        elif self.how == "smaller":
            late = functional.interpolate(functional.avg_pool2d(late, 2), scale_factor=2.0)
        else:
            late = functional.dropout(late, 0.5, self.training)
        return self.last(torch.cat([seen, late], 1))


@pytest.mark.parametrize("how", ["scaled", "smaller", "dropped out"])
def test_a_part_of_an_input_is_not_hidden_by_what_it_is_put_beside(how: str, make: Make) -> None:
    source = make(partial(Late, how), (TensorSpec("image", "FP32", (4, 16, 16)),))
    graph = check_all_ranges(source, {"image": torch.rand(3, 4, 16, 16)}).graph
    assert past_inputs(graph.cuts) == len(graph.cuts) - 1
    assert all(any(each.name.startswith("image") for each in cut.tensors) for cut in graph.cuts[1:-1])


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
    save_file({"decode.weight": WEIGHT}, weights_path(source))
    sys.modules["models_under_test"].build = Tied  # type: ignore[attr-defined]
    return source


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(300))

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


def test_buffers_that_are_rebuilt_are_part_of_the_fingerprint(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = (TensorSpec("ids", "INT64", (12,)), TensorSpec("mask", "INT64", (12,)))
    source = make(Masked, inputs)
    before = export(source).fingerprint
    monkeypatch.setattr(Masked, "POSITIONS", torch.arange(12))
    assert export(source).fingerprint != before


def test_a_file_that_holds_other_integers_than_a_rebuilt_buffer_is_refused(make: Make) -> None:
    source = make(Masked, (TensorSpec("ids", "INT64", (12,)), TensorSpec("mask", "INT64", (12,))))
    path = weights_path(source)
    state = load_file(path)
    save_file({**state, "positions": Masked.POSITIONS.clone()}, path)
    load_partition(source, 0, None)
    save_file({**state, "positions": torch.arange(12)}, path)
    with pytest.raises(WeightsError, match="buffer positions has other values in the file"):
        load_partition(source, 0, None)
    load_partition(source, 3, None)  # what is read by another range only


class Branching(nn.Module):
    """Two layers and a branch between them, which calls one of two functions."""

    negative: Callable[[torch.Tensor], torch.Tensor] = staticmethod(torch.sin)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        (x,) = torch.cond(x.sum() > 0, lambda x: (torch.relu(x),), lambda x: (self.negative(x),), (x,))
        return self.last(x)


class BranchingOtherwise(Branching):
    """The same but for what is within one branch."""

    negative = staticmethod(torch.cos)


def test_the_fingerprint_covers_what_is_within_branches(make: Make) -> None:
    first, again, other = (export(make(each, VECTOR)) for each in (Branching, Branching, BranchingOtherwise))
    assert first.refusal is None
    assert [cut.schema_hash for cut in first.cuts] == [cut.schema_hash for cut in other.cuts]
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_the_fingerprint_covers_graph_and_weights_and_nothing_that_varies(make: Make) -> None:
    first = export(make(Shrinking, VECTOR)).fingerprint
    assert export(make(Shrinking, VECTOR)).fingerprint == first
    source = make(Shrinking, VECTOR)
    path = weights_path(source)
    save_file({name: tensor + 1 for name, tensor in Shrinking().state_dict().items()}, path)
    assert export(source).fingerprint != first
    assert export(make(Widening, VECTOR)).fingerprint != first


def test_a_convolutional_model_is_cut_after_every_block(tmp_path: Path) -> None:
    graph = export(TRAINED[0].source(tmp_path))
    assert graph.segments == ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "classifier")
    assert [cut.name for cut in graph.cuts] == ["input", *graph.segments[:-1], "output"]
    assert [cut.wire_bytes["fp32"] for cut in graph.cuts] == [4096, 65536, 4096, 2048, 1024, 1024, 1024, 1440]


@pytest.mark.parametrize("model", HAND_MADE, ids=lambda model: model.name)
def test_a_range_is_its_segments_and_nothing_else(model: Model, tmp_path: Path) -> None:
    graph = export(model.source(tmp_path))
    assert graph.program is not None
    last = len(graph.segments)
    for first in range(last):
        for end in range(first + 1, last + 1):
            assert graph.program.nodes(first, end) <= graph.program.resident(first, end)


def named(name: str, tmp_path: Path) -> ModelGraph:
    (model,) = (model for model in HAND_MADE if model.name == name)
    return export(model.source(tmp_path))


def test_tied_weights_are_counted_once_in_a_range_that_reads_them_twice(tmp_path: Path) -> None:
    graph = named("TiedWeights", tmp_path)
    matrix = 64 * 64 * 4
    dense = matrix + 64 * 4
    assert graph.weight_bytes == (matrix, dense, dense, matrix)
    assert graph.program is not None
    assert graph.program.weight_bytes(0, 4) == matrix + 2 * dense
    assert [(each.earlier, each.later, each.bytes) for each in graph.tied] == [(0, 3, matrix)]
    for first, last in combinations(range(5), 2):
        held = held_bytes(graph.weight_bytes, graph.tied, first, last)
        assert held == graph.program.weight_bytes(first, last)


def test_the_batch_comes_first_wherever_it_is_in_the_graph(tmp_path: Path) -> None:
    time_first, windows = named("TimeFirst", tmp_path), named("Windows", tmp_path)
    assert crossing(time_first, 3) == [("FP32", (10, 32))]
    assert [crossing(windows, cut) for cut in (1, 2)] == [[("FP32", (4, 16))]] * 2


def test_a_size_that_no_tensor_shows_crosses_and_one_that_is_shown_does_not(tmp_path: Path) -> None:
    graph = named("Lengths", tmp_path)
    assert graph.cuts[1].tensors == (TensorSpec("embedding", "FP32", (12, 32), ("tokens", None)),)
    assert graph.cuts[2].tensors == (TensorSpec("sum_1", "FP32", (32,)), TensorSpec("size_tokens", "INT64", ()))


class Unshuffling(nn.Module):
    """Takes images of even height and width only, and halves them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 4, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(functional.pixel_unshuffle(x, 2))))


def test_free_sizes_follow_the_constraints_that_torch_found(make: Make) -> None:
    source = make(Unshuffling, (TensorSpec("x", "FP32", (3, 32, 48), (None, "height", "width")),))
    partition = load_partition(source, 0, None)
    assert partition.graph.cuts[1].tensors[0].shape == (8, 16, 24)
    whole = sys.modules["models_under_test"].trained
    for height, width in ((32, 48), (2, 6), (64, 16)):
        x = torch.randn(3, 3, height, width)
        halves = partition.run(1, 2, partition.run(0, 1, {"x": x}))
        torch.testing.assert_close(halves["output_0"], whole(x), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="dimension 2 of tensor x of cut 0 is 31; it must be 2\\*height"):
        partition.run(0, 1, {"x": torch.randn(1, 3, 31, 48)})


class Hourglass(nn.Module):
    """Halves an image twice and doubles it again: with too few pixels the middle has none left to interpolate."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.up, self.last = nn.Conv2d(12, 4, 3, 1, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = torch.relu(self.down(x))
        quarter = torch.relu(self.deep(half))
        joined = torch.cat([functional.interpolate(quarter, size=half.shape[2:]), half], 1)
        return self.last(functional.interpolate(torch.relu(self.up(joined)), size=x.shape[2:], mode="bilinear"))


def test_sizes_have_a_least_one_where_the_model_holds_from_some_size_on(make: Make) -> None:
    source = make(Hourglass, (TensorSpec("x", "FP32", (3, 32, 48), (None, "height", "width")),))
    graph = export(source)
    assert graph.refusal is None
    assert graph.program is not None
    sizes = {each.name: each for each in graph.program.sizes.by_symbol.values()}
    for name in ("height", "width"):
        assert 3 <= sizes[name].lowest <= 8
        assert sizes[name].highest is None
    check_all_ranges(source, {"x": torch.randn(2, 3, 8, 21)})
    with pytest.raises(ValueError, match=r"height from \d to any size"):
        load_partition(source, 0, None).run(0, 1, {"x": torch.randn(2, 3, 2, 21)})


def test_tensors_of_a_cut_must_agree_on_free_sizes(tmp_path: Path) -> None:
    model = next(each for each in TRAINED if each.name == "minilm")
    partition = load_partition(model.source(tmp_path), 0, 1)
    ids, mask = torch.ones(2, 9, dtype=torch.long), torch.ones(2, 9, dtype=torch.long)
    partition.run(0, 1, {"input_ids": ids, "attention_mask": mask})
    for wrong in (mask[:, :8], mask[:1]):
        with pytest.raises(ValueError, match="the same in all tensors"):
            partition.run(0, 1, {"input_ids": ids, "attention_mask": wrong})
    long = torch.ones(1, 513, dtype=torch.long)
    with pytest.raises(ValueError, match="tokens from 1 to 512"):
        partition.run(0, 1, {"input_ids": long, "attention_mask": long})

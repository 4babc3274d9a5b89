"""Free sizes of 1, which an export never tries: the ranges give there what the model gives, or refuse."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from splitplane.domain.profiles import TensorSpec
from splitplane.model import FactoryError, Partition, export, load_partition
from splitplane.model.equivalence import TOLERANCE, relative_error
from splitplane.model.stand_ins import QuickProducts, stand_in
from tests.support.model_zoo import VECTOR, Model, image, tokens

WIDTH = 64


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, WIDTH)
        self.first, self.middle, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))


class OneTokenApart(Layers):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(self.table(ids)))
        if ids.shape[1] == 1:
            hidden = 10.0 * hidden
        return self.last(hidden)


class HalvedForOne(Layers):
    """Another number for one token, by the same operations."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        divisor = 1.0 if ids.shape[1] > 1 else 2.0
        return self.last(torch.tanh(self.first(self.table(ids))).sum(1) / divisor)


class AtLeastTwo(Layers):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(self.table(ids))).sum(1) / torch.sym_max(ids.shape[1], 2))


class OneTokenAsMany(Layers):
    """Goes another way for one token, and computes the same."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(self.table(ids)))
        hidden = hidden[:, 0] if ids.shape[1] == 1 else hidden.mean(1)
        return self.last(hidden)


class SqueezedTokens(Layers):
    """Has no tokens left where there is one."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(self.table(ids))).squeeze(1))


class OneSampleApart(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        if x.shape[0] == 1:
            hidden = 10.0 * hidden
        return self.last(hidden)


class OneSampleAsMany(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            return self.last(torch.tanh(self.middle(torch.tanh(self.first(x[0])))))[None]
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


class SqueezedAndCounted(Layers):
    """Takes the first dimension of what it squeezed for the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x)).squeeze()
        return self.last(hidden).reshape(-1, WIDTH) / hidden.shape[0]


class Normalising(Layers):
    """Fails for one sample, for it normalises by what the samples are together."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


class Squeezed(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x))).squeeze()


class SqueezedBetween(nn.Module):
    """Pooled and squeezed, so that one sample loses its batch until the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.third, self.last = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3), keepdim=True).squeeze()
        return self.last(torch.relu(self.third(hidden))).reshape(-1, 4)


def loaded(factory: type[nn.Module], specs: tuple[TensorSpec, ...], folder: Path) -> tuple[Partition, nn.Module]:
    """The whole model as ranges, and as it is."""
    source = model(factory, specs).source(folder)
    whole = factory().eval()
    whole.load_state_dict(load_file(str(source.weights_uri).removeprefix("file://")))
    return load_partition(source, 0, None), whole


def model(factory: type[nn.Module], specs: tuple[TensorSpec, ...]) -> Model:
    return Model(factory.__name__, f"{__name__}:{factory.__name__}", specs)


def least(partition: Partition) -> dict[str, int]:
    assert partition.graph.program is not None
    return {size.name: size.lowest for size in partition.graph.program.sizes.by_symbol.values()}


def check(partition: Partition, whole: nn.Module, x: torch.Tensor) -> None:
    """At every cut, both sides give what the whole gives."""
    with torch.no_grad():
        expected = whole(x)
    (name,) = (spec.name for spec in partition.graph.inputs)
    for cut in range(1, partition.last):
        crossing = partition.run(0, cut, {name: x})
        found = partition.run(cut, partition.last, crossing)["output_0"]
        assert relative_error(found, expected) <= TOLERANCE
    assert relative_error(partition.run(0, partition.last, {name: x})["output_0"], expected) <= TOLERANCE


@pytest.mark.parametrize("factory", [OneTokenApart, HalvedForOne, AtLeastTwo, SqueezedTokens])
def test_a_size_that_is_treated_apart_where_it_is_1_is_2_at_least(factory: type[nn.Module], tmp_path: Path) -> None:
    partition, whole = loaded(factory, tokens(8, "ids"), tmp_path)
    ids = torch.randint(0, 100, (3, 8))
    for batch, count in ((3, 8), (1, 8), (3, 2), (1, 2)):
        check(partition, whole, ids[:batch, :count])
    if least(partition)["tokens"] == 1:
        check(partition, whole, ids[:, :1])
        check(partition, whole, ids[:1, :1])
    else:
        with pytest.raises(ValueError, match="tokens from 2 to any size"):
            partition.run(0, 1, {"ids": ids[:, :1]})
    assert least(partition) == {"batch": 1, "tokens": 1 if factory is AtLeastTwo else 2}


def test_a_question_for_a_size_of_1_that_changes_nothing_forbids_nothing(tmp_path: Path) -> None:
    partition, whole = loaded(OneTokenAsMany, tokens(8, "ids"), tmp_path)
    assert least(partition) == {"batch": 1, "tokens": 1}
    for batch in (1, 3):
        check(partition, whole, torch.randint(0, 100, (batch, 1)))
    partition, whole = loaded(OneSampleAsMany, VECTOR, tmp_path)
    assert partition.last > 1
    check(partition, whole, torch.randn(1, WIDTH))


@pytest.mark.parametrize(
    ("factory", "reason", "line"),
    [
        (OneSampleApart, "treats a batch of one apart", "if x.shape[0] == 1:"),
        (SqueezedAndCounted, "treats a batch of one apart", ".squeeze()"),
        (Normalising, "treats a batch of one apart", "self.norm(self.first(x))"),
    ],
)
def test_a_model_that_is_another_for_one_sample_is_served_whole(
    factory: type[nn.Module], reason: str, line: str, tmp_path: Path
) -> None:
    partition, whole = loaded(factory, VECTOR, tmp_path)
    refusal = partition.graph.refusal
    assert refusal is not None
    assert reason in refusal.reason
    assert line in (refusal.location or "")
    check(partition, whole, torch.randn(3, WIDTH))
    if factory is Normalising:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            partition.run(0, 1, {"x": torch.randn(1, WIDTH)})
    else:
        check(partition, whole, torch.randn(1, WIDTH))


def test_an_output_that_loses_the_batch_of_one_is_refused_with_the_line(tmp_path: Path) -> None:
    source = model(Squeezed, VECTOR).source(tmp_path)
    with pytest.raises(
        FactoryError, match=r"output 0 of .*Squeezed has the shape \[64\] for a batch of one.*squeeze\("
    ):
        export(source)


def test_what_loses_the_batch_of_one_is_not_sent(tmp_path: Path) -> None:
    partition, whole = loaded(SqueezedBetween, image("x", 3, 16, 16), tmp_path)
    assert partition.last > 1
    for cut in partition.graph.cuts[1:-1]:
        assert all(spec.shape and spec.shape[0] in (8, 16) for spec in cut.tensors)
        assert cut.name != "third"
    for batch in (1, 3, 8):
        check(partition, whole, torch.randn(batch, 3, 16, 16))


@pytest.mark.parametrize("shape", [(50, 300), (300, 50), (1, 7), (7, 1)])
def test_products_with_weights_that_take_no_memory_are_those_with_all_of_them(shape: tuple[int, int]) -> None:
    weight = stand_in(torch.empty(shape))
    assert weight.untyped_storage().nbytes() == 4 * (sum(shape) - 1)
    full = weight.contiguous()
    assert full.unique().numel() == sum(shape) - 1
    rows, columns, bias = torch.randn(2, 3, shape[1]), torch.randn(5, shape[0]), torch.randn(shape[0])
    with torch.no_grad(), QuickProducts():
        found = functional.linear(rows, weight, bias), functional.linear(rows, weight), columns @ weight
    expected = functional.linear(rows, full, bias), functional.linear(rows, full), columns @ full
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) <= TOLERANCE


def test_so_are_products_of_groups_of_rows_with_a_weight_each() -> None:
    weights = stand_in(torch.empty(4, 24, 32))
    full, rows, ends = weights.contiguous(), torch.randn(9, 32), torch.tensor([2, 2, 7, 9], dtype=torch.int32)
    with torch.no_grad(), QuickProducts():
        found = functional.grouped_mm(rows, weights.transpose(1, 2), offs=ends)
    expected = functional.grouped_mm(rows, full.transpose(1, 2), offs=ends)
    assert relative_error(found, expected) <= TOLERANCE


class Experts(nn.Module):
    """Each token goes through the expert that it is most like, all tokens of one expert at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
        self.experts = nn.Parameter(torch.randn(4, 24, 32))
        self.back = nn.Parameter(torch.randn(4, 32, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] != 1:
            x = x.clone()
        rows = self.first(x)
        chosen = rows[:, :4].argmax(1)
        order = chosen.argsort(stable=True)
        ends = functional.one_hot(chosen, 4).sum(0).cumsum(0).to(torch.int32)
        inner = functional.grouped_mm(rows[order], self.experts.transpose(1, 2), offs=ends).relu()
        mixed = functional.grouped_mm(inner, self.back.transpose(1, 2), offs=ends)
        found: torch.Tensor = self.last(mixed[order.argsort()])
        return found


def test_a_mixture_of_experts_is_split(tmp_path: Path) -> None:
    partition, whole = loaded(Experts, (TensorSpec("x", "FP32", (32,)),), tmp_path)
    assert partition.graph.refusal is None
    assert partition.last > 1
    for batch in (1, 3, 8):
        check(partition, whole, torch.randn(batch, 32))

"""Made-up inputs: random within what runs, so that sizes, times and comparisons are those of real ones."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from splitplane.domain.profiles import TensorSpec
from splitplane.model import load_partition
from splitplane.model.equivalence import TOLERANCE, compare
from splitplane.model.profile import measure
from splitplane.model.samples import drawn_batches, runnable_ids, sample, table_rows
from splitplane.runtime.profiling import wire_codecs
from tests.support.model_zoo import Model

ROWS = 300


class Tokens(nn.Module):
    """Ids are moved by an offset before they are looked up; tokens behind the mask count nothing."""

    offset = 0

    def __init__(self) -> None:
        super().__init__()
        self.table, self.kinds = nn.Embedding(ROWS, 16), nn.Embedding(2, 16)
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(self.table(ids.reshape(ids.shape) + self.offset) + self.kinds(kinds)))
        hidden = hidden * mask[:, :, None]
        return self.last(hidden.sum(1) / mask.sum(1, keepdim=True))


class Later(Tokens):
    offset = 70


class Earlier(Tokens):
    offset = -1


TOKENS = tuple(TensorSpec(name, "INT64", (32,), ("tokens",)) for name in ("ids", "mask", "kinds"))


def model(factory: type[nn.Module]) -> Model:
    return Model(factory.__name__, f"tests.unit.test_model_samples:{factory.__name__}", TOKENS)


@pytest.mark.parametrize(
    ("factory", "ids"), [(Tokens, range(ROWS)), (Later, range(ROWS // 2)), (Earlier, range(1, ROWS))]
)
def test_ids_are_drawn_from_what_the_model_looks_up(factory: type[nn.Module], ids: range, tmp_path: Path) -> None:
    partition = load_partition(model(factory).source(tmp_path), 0, None)
    assert partition.graph.program is not None
    assert table_rows(partition.graph.program.traced) == {"ids": ROWS, "kinds": 2}
    found = runnable_ids(partition.graph, lambda given: partition.run(0, partition.last, given))
    assert found["ids"] == ids
    assert found.keys() == {"ids", "kinds"}


def test_samples_differ_and_are_the_same_each_time() -> None:
    specs = (
        *TOKENS, TensorSpec("pixels", "UINT8", (3, 8, 8)), TensorSpec("flags", "BOOL", (6,)),
        TensorSpec("step", "INT64", ()), TensorSpec("sound", "FP32", (16,)),
    )  # fmt: skip
    ids = {"ids": range(1, 40), "kinds": range(2)}
    drawn = sample(specs, batch=5, seed=3, ids=ids)
    for spec in specs:
        assert torch.equal(drawn[spec.name], sample(specs, batch=5, seed=3, ids=ids)[spec.name])
        assert drawn[spec.name].shape == (5, *spec.shape)
    assert set(drawn["ids"].unique().tolist()) <= set(ids["ids"])
    assert len(drawn["ids"].unique()) > 30
    assert drawn["kinds"].unique().tolist() == [0, 1]
    assert len(drawn["pixels"].unique()) > 200
    for name in ("mask", "flags"):
        opened = drawn[name].long().sum(1)
        assert drawn[name][:, 0].all()
        assert 1 <= opened.min() < opened.max()
        # Padding follows what it pads.
        assert all(row[:count].all() for row, count in zip(drawn[name], opened.tolist(), strict=True))
    assert drawn["step"].tolist() == [1] * 5
    rows = {tuple(row.flatten().tolist()) for row in drawn["ids"]}
    assert len(rows) == 5


def test_compressed_sizes_of_a_model_of_tokens_are_those_of_real_ids(tmp_path: Path) -> None:
    codecs = wire_codecs()
    partition = load_partition(model(Tokens).source(tmp_path), 0, None)
    name = "fp32+zstd"
    measured = measure(
        partition, codecs={name: codecs[name]}, progress=lambda _share, _text: None, budget_seconds=0.1, batches=(1,)
    )
    real = {
        "ids": torch.randint(0, ROWS, (1, 32), generator=torch.Generator().manual_seed(9)),
        "mask": torch.ones(1, 32, dtype=torch.int64),
        "kinds": torch.zeros(1, 32, dtype=torch.int64),
    }
    for cut in measured.cuts[1:-1]:
        taken = codecs[name].size(codecs[name].encode(partition.run(0, cut.index, real)))
        assert cut.wire_bytes[name] > 0.4 * taken


def test_free_sizes_differ_between_batches(tmp_path: Path) -> None:
    partition = load_partition(model(Tokens).source(tmp_path), 0, None)
    assert partition.graph.program is not None
    (least,) = (each.lowest for each in partition.graph.program.sizes.by_symbol.values() if each.name == "tokens")
    drawn = drawn_batches(partition.graph, lambda given: partition.run(0, partition.last, given), (1, 3, 8))
    assert [tuple(tensors["ids"].shape) for tensors in drawn.values()] == [(1, 32), (3, 16), (8, least)]


def test_a_model_is_compared_on_inputs_that_it_takes(tmp_path: Path) -> None:
    differences = compare(model(Later).source(tmp_path), partial(drawn_batches, batches=(1, 3)))
    assert {each.batch for each in differences} == {1, 3}
    assert [each for each in differences if not each.error <= TOLERANCE] == []

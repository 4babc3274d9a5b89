"""What a model's code keeps of its calls outside its module: no trace of it is left in what is served."""

import functools
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from splitplane.domain.profiles import TensorSpec
from splitplane.model import load_partition
from splitplane.model.whole import load_whole, run_whole
from tests.support.made_models import Make, made_in


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with made_in(tmp_path, "models_with_tables") as make:
        yield make


def remembered(function: Callable[[int], torch.Tensor]) -> Callable[[int], torch.Tensor]:
    memory: dict[int, torch.Tensor] = {}

    def remember(size: int) -> torch.Tensor:
        if size not in memory:
            memory[size] = function(size)
        return memory[size]

    return remember


def sines(size: int) -> torch.Tensor:
    return torch.arange(size).sin()


ORDERED: OrderedDict[int, torch.Tensor] = OrderedDict()


def ordered(size: int) -> torch.Tensor:
    if size not in ORDERED:
        ORDERED[size] = sines(size)
    return ORDERED[size]


@functools.lru_cache(maxsize=4)
def pairs(size: int) -> list[tuple[str, torch.Tensor]]:
    return [("sines", sines(size))]


cached, unbounded, enclosed = functools.lru_cache(sines), functools.cache(sines), remembered(sines)


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)

    def table(self, size: int) -> torch.Tensor:
        return cached(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.first(x).relu() + self.table(x.shape[1]))
        return result


class Unbounded(Table):
    def table(self, size: int) -> torch.Tensor:
        return unbounded(size)


class InPairs(Table):
    def table(self, size: int) -> torch.Tensor:
        return pairs(size)[0][1]


class Ordered(Table):
    def table(self, size: int) -> torch.Tensor:
        return ordered(size)


class Enclosed(Table):
    def table(self, size: int) -> torch.Tensor:
        return enclosed(size)


@pytest.mark.parametrize("factory", [Table, Unbounded, InPairs, Ordered, Enclosed])
def test_a_table_that_a_function_keeps_is_no_obstacle_and_is_whole_afterwards(
    make: Make, factory: type[nn.Module]
) -> None:
    source = make(factory)
    partition = load_partition(source, 0, None)
    assert partition.graph.refusal is None
    assert len(partition.graph.segments) > 1
    given = {"x": torch.randn(3, 64)}
    (expected,) = run_whole(source, load_whole(source), given)
    torch.testing.assert_close(partition.run(0, partition.last, given)["output_0"], expected)


SHARED = nn.Parameter(torch.randn(64))


class Sharing(Table):
    """Registers a parameter that was there before it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = SHARED

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.scale)


def test_a_parameter_that_a_constructor_only_registers_keeps_its_values(make: Make) -> None:
    source, values = make(Sharing), SHARED.detach().clone()
    partition = load_partition(source, 0, None)
    assert partition.graph.refusal is None
    assert type(SHARED) is nn.Parameter
    assert torch.equal(SHARED, values)
    given = {"x": torch.randn(3, 64)}
    (expected,) = run_whole(source, load_whole(source), given)
    torch.testing.assert_close(partition.run(0, partition.last, given)["output_0"], expected)


class Scratch(Table):
    """Uses a buffer as room that each call fills before it reads it."""

    room: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("room", torch.zeros(16, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.room[: x.shape[0]].copy_(self.first(x))
        result: torch.Tensor = self.last(self.room[: x.shape[0]].relu())
        return result


class ReadsAll(Scratch):
    """Reads more than it has written."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.room[: x.shape[0]].copy_(self.first(x))
        result: torch.Tensor = self.last(x) + self.room.sum(0)
        return result


def test_a_buffer_that_each_call_fills_before_it_reads_it_is_no_state(make: Make) -> None:
    source = make(Scratch)
    partition, whole = load_partition(source, 0, None), load_whole(source)
    assert partition.graph.refusal is None
    for batch in (4, 2, 1, 16):
        given = {"x": torch.randn(batch, 64)}
        (expected,) = run_whole(source, whole, given)
        outputs = partition.run(1, partition.last, partition.run(0, 1, given))
        torch.testing.assert_close(outputs["output_0"], expected)


def test_a_buffer_of_which_more_is_read_than_was_written_is_state(make: Make) -> None:
    refusal = load_partition(make(ReadsAll), 0, None).graph.refusal
    assert refusal is not None
    assert "writes to room: it keeps state between calls" in refusal.reason


class InArray(Table):
    """Counts in an array of numpy's, too large to be written down in full."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = SimpleNamespace(calls=np.zeros(5000, dtype=np.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept.calls = self.kept.calls + 1
        return self.layers(x) + torch.from_numpy(self.kept.calls)[:1]

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.first(x).relu())
        return result


class InPlace(InArray):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept.calls += 1
        return self.layers(x) + torch.tensor(self.kept.calls)[:1]


@pytest.mark.parametrize("factory", [InArray, InPlace])
def test_state_in_large_arrays_is_found(make: Make, factory: type[nn.Module]) -> None:
    refusal = load_partition(make(factory), 0, None).graph.refusal
    assert refusal is not None
    assert "it keeps state between calls" in refusal.reason


class Counted(Table):
    """Returns how long its input is, a number of its own, and a table of sizes beside what it computes."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, int, float, torch.Tensor]:
        places = torch.arange(x.shape[1]).expand(x.shape[0], -1)
        return self.last(self.first(x).relu()).mean(2), x.shape[1], 0.5, places


def test_numbers_among_the_outputs_are_told_once_for_each_sample(make: Make) -> None:
    source = replace(make(Counted), inputs=(TensorSpec("x", "FP32", (6, 64), ("steps", None)),))
    partition, whole = load_partition(source, 0, None), load_whole(source)
    assert partition.graph.refusal is None
    assert [(each.datatype, each.declared_shape) for each in partition.graph.outputs] == [
        ("FP32", (-1, -1)), ("INT64", (-1,)), ("FP32", (-1,)), ("INT64", (-1, -1)),
    ]  # fmt: skip
    given = {"x": torch.randn(3, 5, 64)}
    expected = run_whole(source, whole, given)
    assert expected[1].tolist() == [5, 5, 5]
    for cut in range(1, partition.last):
        outputs = partition.run(cut, partition.last, partition.run(0, cut, given))
        for output, one in zip(outputs.values(), expected, strict=True):
            torch.testing.assert_close(output, one)


ELSEWHERE = """
class Held:
    table = None

HELD = [Held()]
"""
KEEPING = """
import torch
from elsewhere import HELD

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x):
        if HELD[0].table is None:
            HELD[0].table = torch.arange(4.0)
        return self.layer(self.layer(x) + HELD[0].table)
"""


@pytest.mark.parametrize(
    "arguments",
    [["inspect"], ["profile", "--seconds", "1", "--batch", "2", "--threads", "1"]],
    ids=["inspect", "profile"],
)
def test_a_program_begins_again_where_a_trace_left_what_nothing_puts_back(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    (tmp_path / "keeping.py").write_text(KEEPING)
    (tmp_path / "temporary").mkdir()
    command, (what, *options) = "from splitplane.cli import main; main()", arguments
    done = subprocess.run(
        [
            sys.executable, "-c", command, "model", what, "keeping:Model", "--path", str(tmp_path),
            "--input", "x:FP32:-1,4", *options,
        ],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")}, capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert what == "profile" or "keeping:Model cannot be split, and is served whole: " in told
    assert "nor can it" not in told
    # Without --weights a profile writes the factory's own to a file, which the first process leaves to nobody.
    assert not list((tmp_path / "temporary").glob("splitplane-*"))


def test_a_program_begins_again_once() -> None:
    code = (
        "from splitplane.afresh import begin_again, may_begin_again, told\n"
        "may_begin_again(); print('began', told()); begin_again('what was found'); print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout.splitlines() == ["began None", "began what was found", "went on"]

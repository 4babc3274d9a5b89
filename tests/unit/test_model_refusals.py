"""A model that cannot be split gets a verdict, with the reason and the line, and is served whole."""

import collections
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from splitplane.domain.profiles import TensorSpec
from splitplane.model import FactoryError, ModelSource, export, load_partition
from splitplane.model.building import build_plainly
from splitplane.model.code import source_lines
from tests.support.made_models import Make, made_in


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with made_in(tmp_path, "models_under_test") as make:
        yield make


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)


class Branching(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        return x + 1.0 if bool(x.sum() > 0) else x - 1.0


class Looping(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x.abs().max()) % 3):
            x = self.layer(x)
        return self.layer(x)


class OneByOne(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.layer(sample) for sample in x.unbind(0)])


class Numeric(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.layer(x).numpy() * 2)


class Counting(Base):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1.0)
        return self.layer(x) + self.count


class Remembering(Base):
    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.layer(x) + self.last
        self.last = x.sum(0)
        return result


class Caching(Base):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[int]] = {"sizes": []}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen["sizes"].append(x.shape[1])
        return self.layer(x)


class CallCounting(Base):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return self.layer(x)


class Queueing(Base):
    """Adds what the calls before saw, from a container that is none of a module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.history = collections.deque[torch.Tensor](maxlen=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.history.append(x.mean(0))
        return self.layer(x) + torch.stack(list(self.history)).sum(0)


class Held:
    calls = 0
    last: torch.Tensor | None = None


class Elsewhere(Base):
    """Counts in an object that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Held()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state.calls += 1
        return self.layer(x) * self.state.calls


class Replacing(Base):
    """Each call reads what the one before left: the operations are the same from the second on."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Held()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.layer(x)
        if self.state.last is not None:
            result = result + self.state.last
        self.state.last = x.mean(0)
        return result


class OfTheClass(Base):
    """Counts for all modules of its class."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        OfTheClass.calls += 1
        return self.layer(x) * OfTheClass.calls


class CountingInTensors(Base):
    """Replaces, in an object that it holds, a tensor that is too large to be looked at by another made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.state = SimpleNamespace(counts=torch.zeros(40, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state.counts = self.state.counts + 1
        return self.layer(x) + self.state.counts[0]


class Settling(Base):
    """Lowers its window to the size of its input, once."""

    def __init__(self) -> None:
        super().__init__()
        self.window = 100

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.window = min(self.window, x.shape[1])
        return self.layer(x.relu()) * self.window


def test_what_a_first_call_sets_once_and_for_all_is_no_state(make: Make) -> None:
    source = make(Settling)
    partition = load_partition(source, 0, None)
    assert partition.graph.refusal is None
    x = torch.randn(3, 64)
    model = Settling()
    model.load_state_dict(load_file(str(source.weights_uri).removeprefix("file://")))
    with torch.no_grad():
        expected = model(x)
    assert torch.allclose(partition.run(0, partition.last, {"x": x})["output_0"], expected)


class Seeded(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        numbers = torch.Generator().manual_seed(0)
        return self.layer(x) + torch.randn(64, generator=numbers)


@pytest.mark.parametrize(
    ("factory", "reason", "line"),
    [
        (Seeded, "uses a Generator, which no graph carries from one process to another", "torch.randn(64, generator"),
        (
            CallCounting,
            "forward of CallCounting writes to its attribute calls: it keeps state",
            "self.calls = self.calls + 1",
        ),
        (Branching, "depends on the values of its inputs", "if bool(x.sum() > 0)"),
        (Looping, "depends on the values of its inputs", "range(int(x.abs().max()) % 3)"),
        (OneByOne, "its code works for a batch of 2 only", "for sample in x.unbind(0)"),
        (Numeric, "torch.export of models_under_test:build failed: ", "self.layer(x).numpy()"),
        (Counting, "writes to count: it keeps state between calls", "self.count.add_(1.0)"),
        (Remembering, "forward of Remembering writes to its attribute last: it keeps state", "self.last = x.sum(0)"),
        (Caching, "forward of Caching writes to its attribute seen: it keeps state", 'self.seen["sizes"].append'),
    ],
)
def test_the_verdict_tells_reason_and_line_and_the_model_is_run_as_it_is(
    make: Make, factory: Callable[[], nn.Module], reason: str, line: str
) -> None:
    source = make(factory)
    partition = load_partition(source, 0, None)
    graph = partition.graph
    assert graph.refusal is not None
    assert reason in graph.refusal.reason
    assert graph.refusal.location is not None
    assert re.match(rf"{re.escape(__file__)}:\d+, in forward: .*{re.escape(line)}", graph.refusal.location)
    assert (len(graph.cuts), graph.segments) == (2, ("model",))
    assert graph.outputs == (TensorSpec("output_0", "FP32", (64,)),)
    whole = factory().eval()
    whole.load_state_dict(load_file(tmp_weights(source)))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = whole(x)
    torch.testing.assert_close(partition.run(0, 1, {"x": x})["output_0"], expected)


def tmp_weights(source: ModelSource) -> Path:
    assert source.weights_uri is not None
    return Path(source.weights_uri.removeprefix("file://"))


def test_a_model_that_keeps_state_keeps_it_while_it_is_served(make: Make) -> None:
    partition = load_partition(make(Counting), 0, None)
    x = torch.zeros(1, 64)
    first, second = (partition.run(0, 1, {"x": x})["output_0"] for _ in range(2))
    torch.testing.assert_close(second, first + 1.0)


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        (Queueing, "return self.layer(x) + torch.stack(list(self.history)).sum(0)"),
        (Elsewhere, "return self.layer(x) * self.state.calls"),
        (Replacing, "result = result + self.state.last"),
        (OfTheClass, "return self.layer(x) * OfTheClass.calls"),
        (CountingInTensors, "self.state.counts = self.state.counts + 1"),
    ],
)
def test_state_is_found_wherever_it_is_kept(make: Make, factory: Callable[[], nn.Module], line: str) -> None:
    refusal = export(make(factory)).refusal
    assert refusal is not None
    assert "does something else when it is called again: it keeps state" in refusal.reason
    assert refusal.location is not None
    assert refusal.location.endswith(f"in forward: {line}")


class Tabulating(Base):
    """Keeps a table that it computes at its first call, of no input."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.tables:
            self.tables.append(torch.arange(x.shape[1]).sin())
        return self.layer(x.relu() + self.tables[0])


def test_a_table_that_a_first_call_keeps_is_no_state(make: Make) -> None:
    assert export(make(Tabulating)).refusal is None


class Trimming(Base):
    """Cuts a large table to the size of its input at each call, which changes nothing after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.held = SimpleNamespace(table=torch.rand(40, 80, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.held.table = self.held.table[:, : x.shape[1]]
        return self.layer(x.relu() + self.held.table[3])


def test_a_table_that_each_call_cuts_to_size_is_no_state(make: Make) -> None:
    assert export(make(Trimming)).refusal is None


class Seeding(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return self.layer(x.relu() + torch.rand(x.shape[0], 64))


class SeedingAside(Base):
    """Draws from a state that it puts back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(3)
            noise = torch.rand(64)
        return self.layer(x.relu() + noise)


class SeedingInVain(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return self.layer(torch.dropout(x, 0.5, self.training))


@pytest.mark.parametrize("factory", [Seeding, SeedingAside])
def test_a_model_that_seeds_what_it_draws_is_served_whole(make: Make, factory: Callable[[], nn.Module]) -> None:
    source = make(factory)
    refusal = export(source).refusal
    assert refusal is not None
    assert "seeds the random numbers that it draws" in refusal.reason
    assert refusal.location is not None
    assert "manual_seed(3)" in refusal.location or "fork_rng" in refusal.location
    model = load_partition(source, 0, None)
    x = np.ones((2, 64), np.float32)
    assert_same(model.run(0, 1, {"x": torch.from_numpy(x)}), model.run(0, 1, {"x": torch.from_numpy(x)}))
    assert vars(torch.random)["default_generator"] is torch.default_generator


def test_a_seed_that_nothing_is_drawn_from_is_no_reason(make: Make) -> None:
    assert export(make(SeedingInVain)).refusal is None


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(one, other, atol=0.0, rtol=0.0)


def test_the_fingerprint_of_a_whole_model_covers_its_weights(make: Make) -> None:
    source = make(Branching)
    before = export(source).fingerprint
    assert export(source).fingerprint == before
    save_file(dict(Branching().state_dict()), tmp_weights(source))
    assert export(source).fingerprint != before


class WritesToInput(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 0.5
        return self.layer(x.relu_())


def test_writing_to_an_input_is_no_state_and_leaves_what_a_stage_was_given_as_it_was(make: Make) -> None:
    partition = load_partition(make(WritesToInput), 0, None)
    assert partition.graph.refusal is None
    x = torch.randn(3, 64)
    given = x.clone()
    first, second = (partition.run(0, partition.last, {"x": x})["output_0"] for _ in range(2))
    assert torch.equal(x, given)
    assert torch.equal(first, second)


class Drawn(Base):
    """Random numbers that nothing seeds, in no file."""

    noise: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.relu()) + self.noise


class DrawnByNumpy(Base):
    def __init__(self) -> None:
        super().__init__()
        self.tables = [torch.from_numpy(np.random.default_rng().random(64, dtype=np.float32))]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.relu()) + self.tables[0]


class DrawnAndBranching(Drawn):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        return x + 1.0 if bool(x.sum() > 0) else x - 1.0


@pytest.mark.parametrize(
    ("factory", "place"), [(Drawn, "noise"), (DrawnByNumpy, "tables"), (DrawnAndBranching, "noise")]
)
def test_values_that_each_process_draws_for_itself_are_refused(
    make: Make, factory: Callable[[], nn.Module], place: str
) -> None:
    with pytest.raises(FactoryError, match=rf"gives \S*{place}\S* other values each time .* persistent buffer"):
        export(make(factory))


class DrawnInVain(Base):
    def __init__(self) -> None:
        super().__init__()
        self.spare = torch.randn(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.relu())


def test_values_that_no_output_needs_may_differ(make: Make) -> None:
    assert export(make(DrawnInVain)).refusal is None


class Forces(Base):
    """The gradient of an energy."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.requires_grad_()
            (gradient,) = torch.autograd.grad(self.layer(x).tanh().sum(), x)
        return gradient


def test_a_model_that_computes_gradients_is_served_whole(make: Make) -> None:
    source = make(Forces)
    partition = load_partition(source, 0, None)
    assert partition.graph.refusal is not None
    whole = Forces()
    whole.load_state_dict(load_file(tmp_weights(source)))
    x = torch.randn(3, 64)
    given = x.clone()
    torch.testing.assert_close(partition.run(0, 1, {"x": given})["output_0"], whole(x.clone()))
    assert torch.equal(x, given)
    assert not given.requires_grad


class Wavering(nn.Module):
    """Depends on its values, and answers each token, their pairs, and all of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.layer(x) if bool(x.sum() > 0) else x
        return x, x.unflatten(1, (-1, 2)).mean(2), x.mean(1)


def test_what_a_whole_model_answers_has_the_free_sizes_that_move_it(make: Make) -> None:
    source = replace(make(Wavering), inputs=(TensorSpec("x", "FP32", (8, 4), ("tokens", None)),))
    partition = load_partition(source, 0, None)
    assert [(each.shape, each.free) for each in partition.graph.outputs] == [
        ((8, 4), ("tokens", None)),
        ((4, 4), ("f(tokens)", None)),
        ((4,), ()),
    ]
    outputs = partition.run(0, 1, {"x": torch.randn(3, 6, 4)})
    assert [tuple(each.shape) for each in outputs.values()] == [(3, 6, 4), (3, 3, 4), (3, 4)]


WHOLE = """
import torch
from parts_under_test import Part

class Model(Part):
    def forward(self, x):
        x = self.layer(x)
        return x + 1.0 if bool(x.sum() > 0) else x - 1.0

def build():
    return Model()
"""
PART = """
import torch

class Part(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)
"""


def test_the_fingerprint_of_a_whole_model_covers_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = ModelSource("test", "whole_under_test:build", None, None, (TensorSpec("x", "FP32", (64,)),))

    def fingerprint(whole: str, part: str) -> str:
        for name, text in {"whole_under_test": whole, "parts_under_test": part}.items():
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        graph = export(source)
        assert graph.refusal is not None
        return graph.fingerprint

    first = fingerprint(WHOLE, PART)
    assert fingerprint(WHOLE, PART) == first
    assert fingerprint(WHOLE.replace("x - 1.0", "x - 2.0"), PART) != first
    assert fingerprint(WHOLE, PART.replace("self.layer =", "self.other = self.layer =")) != first
    for name in ("whole_under_test", "parts_under_test"):
        del sys.modules[name]


HELPED = """
from typing import TYPE_CHECKING
import numpy as np
import torch
from mine.shapes import shift
if TYPE_CHECKING:
    import for_checkers_only

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def forward(self, x):
        from mine import lazy
        x = self.layer(x)
        return shift(x) if bool(x.sum() > 0) else lazy.back(x)

def build():
    return Model()
"""
HELPERS = {
    "mine/__init__.py": "",
    "mine/shapes.py": "from . import constants\nfrom beside import ONE\ndef shift(x): return x + constants.TWO + ONE\n",
    "mine/constants.py": "TWO = 2.0\n",
    "mine/lazy.py": "def back(x):\n    return x - 1.0\n",
    "mine/unused.py": "X = 1\n",
    "mine/model.py": HELPED,
    "beside.py": "ONE = 1.0\n",
    "for_checkers_only.py": "X = 1\n",
}


def test_the_fingerprint_of_a_whole_model_covers_the_functions_that_its_code_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = ModelSource("test", "mine.model:build", None, None, (TensorSpec("x", "FP32", (64,)),))
    (tmp_path / "mine").mkdir()

    def lines(**changed: str) -> list[str]:
        for name, text in HELPERS.items():
            (tmp_path / name).write_text(text + changed.get(name.removesuffix(".py").replace("/", "_"), ""))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "beside")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return source_lines(source.factory, build_plainly(source))

    first = lines()
    own = [line.split()[1] for line in first if line.startswith("code ")]
    assert own == ["beside", "mine", "mine.constants", "mine.lazy", "mine.model", "mine.shapes"]
    assert [line for line in first if line.startswith("library ")] == [f"library numpy {np.__version__}"]
    for changed in ("mine___init__", "mine_shapes", "mine_constants", "mine_lazy", "beside"):
        assert lines(**{changed: "# changed\n"}) != first, changed
    for other in ("mine_unused", "for_checkers_only"):
        assert lines(**{other: "# changed\n"}) == first, other
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "beside")]:
        del sys.modules[name]


class Keys:
    def __init__(self, keys: torch.Tensor) -> None:
        self.keys = keys


class WithCache(Base):
    """As language models of transformers answer unless they are told otherwise."""

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        x = self.layer(x)
        return {"logits": self.layer(x), "past_key_values": Keys(x)}


def test_the_verdict_tells_which_object_among_the_outputs_to_leave_out(make: Make) -> None:
    graph = export(make(WithCache))
    assert graph.refusal is not None
    assert (
        f"its outputs hold a {__name__}.Keys, which torch cannot look into: return tensors only" in graph.refusal.reason
    )
    assert "use_cache=False" in graph.refusal.reason
    assert graph.outputs == (TensorSpec("output_0", "FP32", (64,)),)


ALL_CALLS = torch.zeros(64)
TABLES: dict[int, torch.Tensor] = {}
ELSEWHERE = Held()


class OfAllModels(Base):
    """Counts in a global tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global ALL_CALLS
        ALL_CALLS = ALL_CALLS + 1
        return self.layer(x) + ALL_CALLS


class OfOneClass(Base):
    calls = torch.zeros(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        OfOneClass.calls = OfOneClass.calls + 1
        return self.layer(x) + OfOneClass.calls


class TableOfAll(Base):
    """Keeps a table of no input for all modules at the first call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] not in TABLES:
            TABLES[x.shape[1]] = torch.arange(x.shape[1]).sin()
        return self.layer(self.layer(x).relu() + TABLES[x.shape[1]])


class OfAnObject(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ELSEWHERE.last = torch.zeros(64) if ELSEWHERE.last is None else ELSEWHERE.last + 1
        return self.layer(x) + ELSEWHERE.last


@pytest.mark.parametrize(
    ("factory", "kept", "line"),
    [
        (OfAllModels, f"{__name__}.ALL_CALLS", "ALL_CALLS = ALL_CALLS + 1"),
        (OfOneClass, "OfOneClass.calls", "OfOneClass.calls = OfOneClass.calls + 1"),
    ],
)
def test_a_tensor_that_models_share_is_state_and_no_trace_is_left_in_it(
    make: Make, factory: Callable[[], nn.Module], kept: str, line: str
) -> None:
    partition = load_partition(make(factory), 0, None)
    refusal = partition.graph.refusal
    assert refusal is not None
    assert f"replaces the tensor {kept}: it keeps state between calls" in refusal.reason
    assert refusal.location is not None
    assert refusal.location.endswith(f"in forward: {line}")
    first, second = (partition.run(0, 1, {"x": torch.zeros(1, 64)})["output_0"].numpy() for _ in range(2))
    np.testing.assert_allclose(second, first + 1.0, rtol=1e-5)


def test_a_table_that_models_share_is_no_state_and_no_trace_is_left_in_it(make: Make) -> None:
    assert export(make(TableOfAll)).refusal is None
    assert not TABLES


def test_a_model_that_computes_with_what_a_trace_left_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ELSEWHERE, "last", torch.zeros(64))
    with pytest.raises(FactoryError, match="keeps tensors of its calls where a trace cannot put them back"):
        export(make(OfAnObject))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_the_module_in_a_wrapper_is_split_with_weights_that_were_saved_of_either(
    make: Make, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)).eval()

    model, x = build(), torch.randn(3, 64)
    source = make(lambda: wrap(build()))
    for saved in (wrap(model), model):
        save_file(dict(saved.state_dict()), tmp_weights(source))
        partition = load_partition(source, 0, None)
        assert partition.graph.refusal is None
        assert partition.last > 1
        assert torch.equal(partition.run(0, partition.last, {"x": x})["output_0"], model(x))


class Averaging(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).mean(0)


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bags, self.layer = nn.EmbeddingBag(50, 8), nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(self.bags(ids))


def test_a_size_that_is_not_seen_to_be_the_batch_is_told(make: Make) -> None:
    source = replace(make(Bags), weights_uri=None, inputs=(TensorSpec("ids", "INT64", (6,), ("tokens",)),))
    told = export(source).verdict
    assert told is not None
    assert "but ((batch*tokens+tokens-1)//tokens), which cannot be told to be the batch" in told


class TwoSamples(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).reshape(2, 64)


@pytest.mark.parametrize(
    ("factory", "reasons"),
    [
        (Averaging, "does not have the batch as dimension 0 .*nor can it be served whole: output 0 .* is .*64"),
        (
            TwoSamples,
            "a batch of 2 only .*; nor can it be served whole: .* fails on inputs as declared: .*'.2, 64.' is",
        ),
    ],
)
def test_a_model_that_can_be_served_in_no_way_is_refused_with_both_reasons(
    make: Make, factory: Callable[[], nn.Module], reasons: str
) -> None:
    with pytest.raises(FactoryError, match=reasons):
        export(make(factory))

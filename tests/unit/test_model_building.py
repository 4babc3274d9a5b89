"""A module built without memory for its weights is what the factory makes, in everything but that memory."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelSource, export, load_partition
from splitplane.model.building import build_lean
from splitplane.model.whole import save_own_weights

WIDTH = 16
Make = Callable[[Callable[[], nn.Module]], ModelSource]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Turns a class into a source: a factory module, and weights on disk that the factory does not make by itself."""
    module = ModuleType("built_models")
    sys.modules[module.__name__] = module

    def source(factory: Callable[[], nn.Module]) -> ModelSource:
        module.build = factory  # type: ignore[attr-defined]
        given = ModelSource("test", f"{module.__name__}:build", None, None, (TensorSpec("x", "FP32", (WIDTH,)),))
        path = tmp_path / "weights.safetensors"
        save_own_weights(given, path)
        return ModelSource(given.name, given.factory, path.as_uri(), None, given.inputs)

    yield source
    del sys.modules[module.__name__]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


class RandomFeatures(Layers):
    """Random numbers in no file, drawn after those of weights."""

    projection: torch.Tensor

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        nn.init.trunc_normal_(self.first.weight)
        nn.init.orthogonal_(self.last.weight)
        self.register_buffer("projection", torch.randn(WIDTH, WIDTH), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cos(self.first(x) @ self.projection))


class OwnGenerator(RandomFeatures):
    """Weights and buffer by a generator that is not torch's."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        nn.init.kaiming_uniform_(self.first.weight, generator=generator)
        self.projection = torch.rand(WIDTH, WIDTH, generator=generator)


class ReadsValues(Layers):
    """A number in the code that the initial weights give."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.scale = float(self.first.weight.detach().std())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale


class OneMatrix(Layers):
    """One parameter, registered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first.weight = self.last.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)


class OneStorage(Layers):
    """Two parameters over one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.last.weight = nn.Parameter(self.first.weight.data)


class Elsewhere(Layers):
    """A parameter that lies in a plain dict as well."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)
        self.named = {"mix": self.mix}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x @ self.named["mix"])


class Viewed(Layers):
    """A view of a parameter, taken before it is registered."""

    def __init__(self) -> None:
        super().__init__()
        mix = nn.Parameter(torch.randn(2 * WIDTH, WIDTH) / 4)
        self.part = mix.data[:WIDTH]
        self.mix = mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x @ self.part) + self.mix.sum()


class Copied(Layers):
    """Layers that are copies of one, as in ``nn.TransformerEncoder``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, batch_first=True), 2, enable_nested_tensor=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.encoder(x[:, None])[:, 0])


class HalfPrecision(Layers):
    """Moved to another type by its constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.half())


@pytest.mark.parametrize(
    "factory",
    [
        RandomFeatures, OwnGenerator, ReadsValues, OneMatrix, OneStorage, Elsewhere, Viewed, Copied, HalfPrecision,
    ],
)  # fmt: skip
def test_ranges_give_what_a_plain_process_gives(make: Make, factory: type[nn.Module]) -> None:
    source = make(factory)
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(2))
    plain = factory().eval()
    weights = load_file(str(source.weights_uri).removeprefix("file://"))
    plain.load_state_dict(weights, strict=False)  # the file has tied weights under one of their names
    with torch.no_grad():
        expected = plain(x)
    partition = load_partition(source, 0, None)
    (given,) = partition.run(0, partition.last, {"x": x}).values()
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("factory", [Elsewhere, Viewed])
def test_a_weight_that_the_module_keeps_under_a_second_name_is_told(make: Make, factory: type[nn.Module]) -> None:
    graph = export(make(factory))
    assert graph.refusal is not None
    assert "keeps a weight or a view of one as" in graph.refusal.reason


@pytest.mark.parametrize("factory", [Layers, RandomFeatures, OneMatrix, Copied])
def test_no_weight_gets_memory(make: Make, factory: type[nn.Module]) -> None:
    assert all(isinstance(parameter, FakeTensor) for parameter in build_lean(make(factory)).parameters())

"""Classes of a test as models: a factory module, and its initial weights on disk."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from safetensors.torch import save_file
from torch import nn

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelSource

Make = Callable[[Callable[[], nn.Module]], ModelSource]


@contextmanager
def made_in(folder: Path, name: str) -> Iterator[Make]:
    """Turns a class into a source, one at a time, while a module with that name stands for it."""
    module = ModuleType(name)
    sys.modules[name] = module

    def source(factory: Callable[[], nn.Module]) -> ModelSource:
        path = folder / "weights.safetensors"
        save_file(dict(factory().state_dict()), path)
        module.build = factory  # type: ignore[attr-defined]
        return ModelSource("test", f"{name}:build", path.as_uri(), None, (TensorSpec("x", "FP32", (64,)),))

    yield source
    del sys.modules[name]

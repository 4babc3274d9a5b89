"""Which code a model runs: a graph tells it of a model that can be split; of any other only its source files do."""

import hashlib
import inspect
import sys
from pathlib import Path

from torch import nn

from splitplane.model.source import find_factory

_LIBRARIES = frozenset({"torch", *sys.stdlib_module_names})
"""Torch's release is part of a fingerprint by itself, and Python's that of the image."""


def source_lines(factory: str, module: nn.Module) -> list[str]:
    """A line for each Python module that the factory or a class of the model's modules comes from, base classes too.

    Each with the sha256 of its source file. What these import beyond that, such as functions, isn't looked into.
    Raises :class:`FactoryError` where there is no such factory.
    """
    return [f"code {name} {_digest(name)}" for name in own_modules(factory, module)]


def own_modules(factory: str, module: nn.Module) -> list[str]:
    """The Python modules of a model's code. Raises :class:`FactoryError` where there is no such factory."""
    names = {factory.partition(":")[0], str(find_factory(factory).__module__)}
    names |= {each.__module__ for each in own_classes(module)}
    return sorted(name for name in names if _is_own(name))


def own_classes(module: nn.Module) -> set[type]:
    """The classes of the modules that a model consists of, and their bases, but torch's and Python's."""
    classes = {base for child in module.modules() for base in type(child).__mro__}
    return {each for each in classes if _is_own(each.__module__)}


def _is_own(name: str) -> bool:
    return name.partition(".")[0] not in _LIBRARIES


def _digest(name: str) -> str:
    """Of the file that a Python module was loaded from; one that was loaded from none is known by its name alone."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return "none"
    path = Path(inspect.getsourcefile(sys.modules[name]) or file)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"

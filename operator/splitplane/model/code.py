"""Which code a model runs: a graph tells it of a model that can be split; of any other only its source files do."""

import hashlib

from torch import nn

from splitplane.model.imports import LIBRARIES, follow, source_file
from splitplane.model.source import find_factory


def source_lines(factory: str, module: nn.Module) -> list[str]:
    """A line for each Python module that the model's code consists of, with the sha256 of its source file.

    These are the modules that the factory or a class of the model's modules comes from, base classes too, and what the
    factory's own package and the other files of the user's import; of each library that they import its version.
    Raises :class:`FactoryError` where there is no such factory.
    """
    homes, names = _homes(factory), own_modules(factory, module)
    imported = follow(names, {name.partition(".")[0] for name in homes})
    files = {name: source_file(name) for name in names} | dict(imported.own)
    code = [
        f"code {name} {'none' if path is None else hashlib.sha256(path.read_bytes()).hexdigest()}"
        for name, path in sorted(files.items())
    ]
    return [*code, *(f"library {name} {version}" for name, version in imported.distributions.items())]


def own_modules(factory: str, module: nn.Module) -> list[str]:
    """The Python modules of a model's code. Raises :class:`FactoryError` where there is no such factory."""
    names = _homes(factory) | {each.__module__ for each in own_classes(module)}
    return sorted(name for name in names if _is_own(name))


def own_classes(module: nn.Module) -> set[type]:
    """The classes of the modules that a model consists of, and their bases, but torch's and Python's."""
    classes = {base for child in module.modules() for base in type(child).__mro__}
    return {each for each in classes if _is_own(each.__module__)}


def _homes(factory: str) -> set[str]:
    """The modules that a factory is named by and comes from."""
    return {factory.partition(":")[0], str(find_factory(factory).__module__)}


def _is_own(name: str) -> bool:
    return name.partition(".")[0] not in LIBRARIES

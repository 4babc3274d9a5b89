"""Which Python modules the code of a model imports, told from its source: what was imported so far may be otherwise.

Nothing is imported to find out. An import whose name is made up as it runs (``importlib.import_module(name)``) is not
seen, nor one that is for type checkers alone.
"""

import ast
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

LIBRARIES = frozenset({"torch", "splitplane", *sys.stdlib_module_names})
"""Torch's release is part of a fingerprint by itself; ours and Python's are those of the image."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders of libraries, in which only a package of the user's own is looked into."""


@dataclass(frozen=True, slots=True)
class Imported:
    """The user's own modules with their source files, and the packages of others."""

    own: Mapping[str, Path]
    others: frozenset[str]

    @property
    def distributions(self) -> dict[str, str]:
        """Name and version of what the others are installed by."""
        known = importlib.metadata.packages_distributions()
        names = {name for package in self.others for name in known.get(package, ())}
        return {name: importlib.metadata.version(name) for name in sorted(names)}


def follow(modules: Iterable[str], packages: Iterable[str]) -> Imported:
    """The modules and what they import, directly or not, as far as that is the user's own.

    Which is: of the packages (names without dots) that are given, or lying where no libraries are installed.
    """
    mine, own, others = frozenset(packages), dict[str, Path](), set[str]()
    seen, left = set[str](), sorted(modules)
    while left:
        name = left.pop()
        package, path = name.partition(".")[0], source_file(name)
        if name in seen or package in LIBRARIES:
            continue
        seen.add(name)
        if path is None:  # a name in a module, a folder without code of its own, or nothing that is there
            continue
        if package in mine or _INSTALLED.isdisjoint(path.parts):
            own[name] = path
            left += _imported_by(name, path)
        else:
            others.add(package)
    return Imported(own, frozenset(others))


def source_file(name: str) -> Path | None:
    """Where a module's code lies; of one that was made as the program ran, nowhere."""
    spec = _find(name)
    file = getattr(sys.modules.get(name), "__file__", None) or (spec.origin if spec is not None else None)
    return Path(file) if file is not None and Path(file).is_file() else None


def _find(name: str) -> ModuleSpec | None:
    """What would be imported by a name, without importing its parents, as ``importlib.util.find_spec`` does."""
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if isinstance(loaded, ModuleSpec):
        return loaded
    parent = name.rpartition(".")[0]
    if not parent:
        return PathFinder.find_spec(name)
    spec = _find(parent)
    if spec is None or spec.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, list(spec.submodule_search_locations))


def _imported_by(name: str, path: Path) -> Iterator[str]:
    if path.suffix != ".py":
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # whatever imports it fails by itself
        return
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            found = [each.name for each in node.names]
        elif not node.level:
            found = [f"{node.module}.{each.name}" for each in node.names]
        else:
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # the module itself provides for that, or fails by itself
                continue
            found = [f"{base}.{each.name}" for each in node.names]
        for each in found:  # a package is run before what lies in it
            parts = each.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test).rpartition(".")[2] == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _statements(other)
        else:
            yield from _statements(child)

"""Names of segments that a person recognises: the module at whose output a segment ends."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from torch import fx

from splitplane.model.flow import Place
from splitplane.model.operations import is_heavy, is_rearrangement
from splitplane.model.traced import Traced, is_size

WORTH_A_NAME = 0.01
"""A cut is named after the last value that crosses it and is at least this share of its bytes; masks are less."""


def segment_names(traced: Traced, places: tuple[Place, ...]) -> tuple[str, ...]:
    """One name for each segment, each once; a cut is named after the segment before it."""
    names: list[str] = []
    taken: dict[str, int] = {}
    order = {node: position for position, node in enumerate(traced.graph.nodes)}
    for left, right in pairwise(places):
        made = [node for node in right.nodes if _bytes(traced, node) >= WORTH_A_NAME * right.bytes]
        node = max(made or right.nodes, key=order.__getitem__)
        added = max(node.all_input_nodes, key=order.__getitem__, default=node)
        name = (
            _ended(traced, node)
            or (_ended(traced, added) if _modules(node) else None)  # what a residual connection is added to
            or _weighed(traced, left, right)
            or _ended(traced, added)
            or node.name
        )
        taken[name] = taken.get(name, 0) + 1
        names.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
    return tuple(names)


def _bytes(traced: Traced, node: fx.Node) -> int:
    crossing = traced.crossing(node)
    return 0 if crossing is None else crossing.bytes(traced.sizes)


def _ended(traced: Traced, node: fx.Node) -> str | None:
    """The outermost module whose output this node is: it was made in it, and is used outside it."""
    used = [set(_modules(user)) for user in _uses(traced, node)]
    return next((module for module in _modules(node) if not any(module in modules for modules in used)), None)


def _uses(traced: Traced, node: fx.Node) -> Iterator[fx.Node]:
    """What works with a node's value, however it is rearranged before."""
    for user in node.users:
        if is_rearrangement(user):
            yield from _uses(traced, user)
        elif not is_size(user, traced.sizes) and user.op != "output":
            yield user


def _weighed(traced: Traced, left: Place, right: Place) -> str:
    """The module that the heavy operations of a segment have in common, else the last of those modules."""
    nodes = traced.needed(left.nodes, right.nodes)
    paths = [
        modules[-1].split(".")
        for node in traced.graph.nodes
        if node in nodes and is_heavy(traced, node) and (modules := _modules(node))
    ]
    return ".".join(_common(paths) or (paths[-1] if paths else ()))


def _common(paths: Iterable[list[str]]) -> list[str]:
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return common


def _modules(node: fx.Node) -> list[str]:
    """Paths of the modules that a node was made in, the outermost first, the model itself left out."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values() if path]

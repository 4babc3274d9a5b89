"""Buffers that a call writes to: scratch room, if nothing that it gives depends on what a call before left there.

Told of a functional graph, in which a write is a value of its own. What is read of a part that was written just now
(``buffer[:n]``) is what was written there.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

_FILLING = frozenset(
    {
        "empty_like", "fill", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "rand_like",
        "randn_like", "sym_size", "zero", "zeros_like",
    }
)  # fmt: skip
"""Operations that take of their first tensor the form alone."""
_PARTS = {"slice": "slice_scatter", "select": "select_scatter"}


def is_read(buffer: fx.Node, outputs: Iterable[object]) -> bool:
    """Whether outputs may depend on the values that a buffer has when a call begins."""
    old: set[fx.Node] = {buffer}
    for node in buffer.graph.nodes:
        if node is not buffer and any(source in old for source in _read(node)):
            old.add(node)
    return any(output in old for output in outputs)


def _read(node: fx.Node) -> list[fx.Node]:
    """Of which nodes the values may show in that of this one."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.all_input_nodes
    name = node.target.overloadpacket.__name__
    if name == "copy":
        return _nodes(node.args[1])
    if name in _FILLING:
        return [source for argument in node.args[1:] for source in _nodes(argument)]
    if name in _PARTS:
        (whole,) = _nodes(node.args[0])
        written = isinstance(whole.target, torch._ops.OpOverload) and (
            whole.target.overloadpacket.__name__ == _PARTS[name] and _place(whole, 2) == _place(node, 1)
        )
        return _nodes(whole.args[1]) if written else [whole]
    return node.all_input_nodes


def _nodes(argument: Any) -> list[fx.Node]:
    return [argument] if isinstance(argument, fx.Node) else []


def _place(node: fx.Node, first: int) -> list[str]:
    """Dimension, start, end and step (or dimension and index), sizes by what they are."""
    defaults = [each.default_value for each in node.target._schema.arguments][first:]  # type: ignore[union-attr]
    given = [*node.args[first:], *defaults[len(node.args) - first :]]
    told = [each.meta.get("val") if isinstance(each, fx.Node) else each for each in given]
    return [str(0 if each is None else each) for each in told]

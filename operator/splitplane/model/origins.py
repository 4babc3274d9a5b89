"""Which values that cross a cut are an input of the model, or all but: whoever keeps the input in may not let them out.

An input that one branch takes late crosses beside what the others have computed.
"""

import operator

import torch
from torch import fx

from splitplane.domain.inputs import padding_masks
from splitplane.model.operations import is_heavy, is_rearrangement
from splitplane.model.traced import Kind, Traced, is_random

_TOGETHER = frozenset(
    {"cat", "concat", "copy", "index_put", "masked_fill", "select_scatter", "slice_scatter", "stack", "where"}
)
"""What gives the numbers of several arguments side by side."""
_PLACED = frozenset(
    {
        "chunk", "constant_pad_nd", "diagonal", "flip", "gather", "index", "index_select", "narrow", "pad",
        "pixel_shuffle", "pixel_unshuffle", "repeat", "roll", "rot90", "select", "split", "split_with_sizes", "tile",
        "unbind", "unfold",
    }
)  # fmt: skip
"""Beside what rearranges: what gives numbers of the first argument at other places, or some of them."""
_BY_NUMBER = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm"})
"""Beside what torch calls pointwise: a learned scale for each number hides none, though it is a large table."""


def input_of(traced: Traced, node: fx.Node) -> str | None:
    """The input of which a value shows all or much, as no heavy operation came between; masks of padding are none.

    What else is placed beside it, as ``cat`` does, does not hide it. The result of a heavy operation that is reckoned
    with it, number by number, does, and so does a comparison.
    """
    crossings = ((name, traced.crossing(given)) for name, given in traced.inputs.items())
    masks = padding_masks([each.spec(name, traced.sizes) for name, each in crossings if each is not None])
    names = {given: name for name, given in traced.inputs.items() if name not in masks}
    stack, seen = [(node, False)], {node}
    while stack:
        each, light = stack.pop()
        if each in names:
            return names[each]
        sources = _placed(each)
        value = each.meta.get("val")
        if not sources and isinstance(value, torch.Tensor) and value.dtype != torch.bool:
            light = light or _is_light(traced, each)  # so is all behind it then
            sources = each.all_input_nodes if light else []
        new = [source for source in reversed(sources) if source not in seen]
        stack += [(source, light) for source in new]
        seen.update(new)
    return None


def _placed(node: fx.Node) -> list[fx.Node]:
    """Of what a node only gives other places, the values."""
    name = node.target.overloadpacket.__name__ if isinstance(node.target, torch._ops.OpOverload) else ""
    if name in _TOGETHER:
        return node.all_input_nodes
    if name in _PLACED or is_rearrangement(node) or node.target is operator.getitem:
        return [node.args[0]] if isinstance(node.args[0], fx.Node) else []
    return []


def _works_by_number(node: fx.Node) -> bool:
    """Without chance, as dropout does outside of training."""
    if not isinstance(node.target, torch._ops.OpOverload) or is_random(node):
        return False
    idle = torch.Tag.nondeterministic_seeded in node.target.tags
    return idle or torch.Tag.pointwise in node.target.tags or node.target.overloadpacket.__name__ in _BY_NUMBER


def _is_light(traced: Traced, node: fx.Node) -> bool:
    """Whether no heavy operation is behind a value."""
    stack, seen = [node], {node}
    while stack:
        each = stack.pop()
        if is_heavy(traced, each) and not _works_by_number(each):
            return False
        for source in each.all_input_nodes:
            if source not in seen and traced.kinds.get(source) is Kind.DATA:
                seen.add(source)
                stack.append(source)
    return True

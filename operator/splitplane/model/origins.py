"""Which values that cross a cut are an input of the model, or all but: whoever keeps the input in may not let them out.

An input that one branch takes late crosses beside what the others have computed.
"""

import torch
from torch import fx

from splitplane.domain.inputs import padding_masks
from splitplane.model.operations import is_heavy, is_rearrangement
from splitplane.model.traced import Kind, Traced

_KEEPING = frozenset(
    {"batch_norm", "cat", "concat", "group_norm", "instance_norm", "layer_norm", "stack", "to", "_to_copy", "type_as"}
)
"""Beside what rearranges and what works number by number: from what they give the input is read as easily."""


def input_of(traced: Traced, node: fx.Node) -> str | None:
    """The input of which a value shows all or much, as no heavy operation came between; masks of padding are none."""
    crossings = ((name, traced.crossing(given)) for name, given in traced.inputs.items())
    masks = padding_masks([each.spec(name, traced.sizes) for name, each in crossings if each is not None])
    names = {given: name for name, given in traced.inputs.items() if name not in masks}
    if not _is_light(traced, node):
        return None
    stack, seen = [node], {node}
    while stack:
        each = stack.pop()
        if each in names:
            return names[each]
        value = each.meta.get("val")
        if _keeps(each) and isinstance(value, torch.Tensor) and value.dtype != torch.bool:
            sources = [source for source in reversed(each.all_input_nodes) if source not in seen]
            stack += sources
            seen.update(sources)
    return None


def _keeps(node: fx.Node) -> bool:
    if is_rearrangement(node):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in node.target.tags or node.target.overloadpacket.__name__ in _KEEPING


def _is_light(traced: Traced, node: fx.Node) -> bool:
    """Whether no heavy operation is behind a value."""
    stack, seen = [node], {node}
    while stack:
        each = stack.pop()
        if is_heavy(traced, each):
            return False
        for source in each.all_input_nodes:
            if source not in seen and traced.kinds.get(source) is Kind.DATA:
                seen.add(source)
                stack.append(source)
    return True

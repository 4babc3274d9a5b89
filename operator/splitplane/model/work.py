"""How much arithmetic and how much traffic of memory a node is, told from shapes alone."""

import math
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from splitplane.model.sizes import Sizes, expression


def flops(node: fx.Node, sizes: Sizes) -> int:
    """Floating-point operations of a node for one sample of the example, at least one for each number it makes."""
    made = sum(
        math.prod(sizes.example(expression(size)) for size in leaf.shape if sizes.knows(size))
        for leaf in _leaves(node.meta.get("val"))
    )
    if not isinstance(node.target, torch._ops.OpOverload):
        return made
    arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda source: _meta(source.meta["val"], sizes))
    try:
        with FlopCounterMode(display=False) as counter:
            node.target(*arguments, **keywords)
    except Exception:  # an operator may know no meta tensors
        return made
    return max(made, int(counter.get_total_flops()))


def moved_bytes(node: fx.Node, sizes: Sizes) -> int:
    """Bytes of the tensors that a node reads and of those that it makes, for one sample of the example."""
    tensors = [leaf for each in (node, *node.all_input_nodes) for leaf in _leaves(each.meta.get("val"))]
    return sum(
        leaf.element_size() * math.prod(sizes.example(expression(size)) for size in leaf.shape)
        for leaf in tensors
        if all(map(sizes.knows, leaf.shape))
    )


def _leaves(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for each in value for leaf in _leaves(each)] if isinstance(value, (tuple, list)) else []


def _meta(value: Any, sizes: Sizes) -> Any:
    if isinstance(value, torch.Tensor):
        shape = [sizes.example(expression(size)) for size in value.shape]
        return torch.empty(shape, dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return [_meta(each, sizes) for each in value]
    return sizes.example(expression(value)) if isinstance(value, torch.SymInt) else value

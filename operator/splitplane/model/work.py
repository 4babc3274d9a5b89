"""How much arithmetic and how much traffic of memory a node is, told from shapes alone."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from splitplane.domain.profiles import Work
from splitplane.model.operations import is_rearrangement
from splitplane.model.sizes import Sizes, expression
from splitplane.model.traced import subgraphs

_LOOPS = {"associative_scan": 1, "map_impl": 1, "scan": 2}
"""Operators that call a subgraph for each place along the first dimension of one of their arguments: which one."""


def work_of(nodes: Iterable[fx.Node], sizes: Sizes) -> Work:
    """What nodes ask of a device for one sample of the example; those that only rearrange count nothing."""
    done = [node for node in nodes if _works(node)]
    return Work(sum(flops(node, sizes) for node in done), sum(moved_bytes(node, sizes) for node in done))


def flops(node: fx.Node, sizes: Sizes) -> int:
    """Floating-point operations of a node for one sample of the example, at least one for each number it makes.

    Of control flow they are those of the larger branch, or of a loop's body for each place that it runs over; of a loop
    whose end depends on values, one round's.
    """
    made = sum(
        math.prod(sizes.example(expression(size)) for size in leaf.shape if sizes.knows(size))
        for leaf in _leaves(node.meta.get("val"))
    )
    if not isinstance(node.target, torch._ops.OpOverload):
        return max(made, _within(node, sizes, flops))
    try:
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda source: _meta(source.meta["val"], sizes))
        with FlopCounterMode(display=False) as counter:
            node.target(*arguments, **keywords)
    except Exception:  # an operator may know no meta tensors
        return made
    return max(made, int(counter.get_total_flops()))


def moved_bytes(node: fx.Node, sizes: Sizes) -> int:
    """Bytes of the tensors that a node reads and of those that it makes, for one sample of the example.

    Of control flow as :func:`flops`.
    """
    if isinstance(node.target, torch._ops.HigherOrderOperator) and subgraphs(node):
        return _within(node, sizes, moved_bytes)
    tensors = [leaf for each in (node, *node.all_input_nodes) for leaf in _leaves(each.meta.get("val"))]
    return sum(
        leaf.element_size() * math.prod(sizes.example(expression(size)) for size in leaf.shape)
        for leaf in tensors
        if all(map(sizes.knows, leaf.shape))
    )


def _works(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is not operator.getitem and not is_rearrangement(node)


def _within(node: fx.Node, sizes: Sizes, count: Callable[[fx.Node, Sizes], int]) -> int:
    """What the subgraphs that a node calls amount to."""
    each = [sum(count(inner, sizes) for inner in graph.nodes if _works(inner)) for graph in subgraphs(node)]
    if node.target is torch.ops.higher_order.cond:
        return max(each, default=0)
    return _rounds(node, sizes) * sum(each)


def _rounds(node: fx.Node, sizes: Sizes) -> int:
    place = _LOOPS.get(getattr(node.target, "__name__", ""))
    over: Any = () if place is None else node.args[place]
    for each in over:
        (*_, tensor) = _leaves(each.meta.get("val"))
        return sizes.example(expression(tensor.shape[0])) if sizes.knows(tensor.shape[0]) else 1
    return 1


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

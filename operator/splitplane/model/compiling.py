"""From the nodes of a range to code that takes what crosses its first cut and gives what crosses its last."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

from splitplane.model.graphs import Program, Value
from splitplane.model.sizes import Sizes, emit, expression, solve
from splitplane.model.traced import Kind, is_size


def constants(program: Program, nodes: set[fx.Node], weights: Mapping[str, torch.Tensor]) -> dict[fx.Node, object]:
    """Values that do not depend on a request: weights, rebuilt buffers, and all that is computed from these alone.

    Only those are kept that something else than another constant reads: a weight that is cast once need not stay.
    """
    traced = program.traced
    values: dict[fx.Node, object] = {}
    with torch.inference_mode():
        for node in traced.graph.nodes:
            if node not in nodes or traced.kinds.get(node) is not Kind.CONSTANT:
                continue
            if node in traced.weights:
                values[node] = weights[traced.weights[node]]
            elif node in traced.constants:
                values[node] = traced.constants[node]
            elif node.op == "get_attr":
                values[node] = traced.root.get_submodule(str(node.target))
            else:
                values[node] = _evaluate(node, values)
    return {node: value for node, value in values.items() if any(user not in values for user in node.users)}


def _evaluate(node: fx.Node, values: Mapping[fx.Node, object]) -> object:
    assert callable(node.target)  # placeholders and attributes are dealt with by the caller
    value: Any = values.__getitem__
    arguments, keywords = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
    return node.target(*arguments, **keywords)


def compile_range(
    program: Program, first: int, last: int, values: Mapping[fx.Node, object], mark: Callable[[], None] | None = None
) -> fx.GraphModule:
    """Straight-line code for the range; ``values`` holds its constants.

    With ``mark``, the code calls it each time that it has done all that is needed for a cut after ``first``.
    """
    traced = program.traced
    code, copies, root = fx.Graph(), dict[fx.Node, Any](), dict[str, object]()
    # By place, not by name: users may give inputs names that Python does not take, such as input.1 or class.
    received = [(value, code.placeholder(f"input_{index}")) for index, value in enumerate(program.crossing(first))]
    symbols = _read_sizes(code, program.sizes, received)
    for value, given in received:
        if value.node is not None:
            copies[value.node] = value.crossing.emit_receiving(code, given)
    for cut in (last,) if mark is None else range(first + 1, last + 1):
        if mark is not None and cut > first + 1:
            code.call_function(mark)
        nodes = program.nodes(first, cut)
        for node in traced.graph.nodes:
            if node not in nodes or node in copies or traced.kinds.get(node) is Kind.CONSTANT:
                continue
            if is_size(node, traced.sizes):
                copies[node] = emit(code, expression(node.meta["val"]), symbols)
                continue
            for source in node.all_input_nodes:
                if source not in copies:
                    # By place here too: a module has attributes of its own, such as to.
                    name = f"constant_{len(root)}"
                    root[name] = values[source]
                    copies[source] = code.get_attr(name)
            copies[node] = _copy(code, node, copies)
    sent = []
    for value in program.crossing(last):
        whole = symbols[value.symbol] if value.node is None else copies[value.node]
        sent.append(value.crossing.emit_sending(code, whole, symbols[program.sizes.batch]))
    if mark is not None:
        code.call_function(mark)
    code.output(tuple(sent))
    code.eliminate_dead_code(lambda node: node.is_impure() or node.target is mark)
    return fx.GraphModule(_holder(root), code)


def _read_sizes(code: fx.Graph, sizes: Sizes, received: Sequence[tuple[Value, fx.Node]]) -> dict[sympy.Symbol, fx.Node]:
    """The free sizes, read off what was received; those that the range does not use are dead code."""
    size_of = torch.ops.aten.sym_size.int
    symbols = {sizes.batch: code.call_function(size_of, (received[0][1], 0))}
    for value, given in received:
        if value.symbol is not None:
            symbols[value.symbol] = value.crossing.emit_receiving(code, given)
        for index, size in enumerate(value.crossing.sample, 1):
            solved = solve(size)
            if solved is not None and solved[0] not in symbols:
                symbol, factor, rest = solved
                read = code.call_function(size_of, (given, index))
                symbols[symbol] = code.call_function(
                    operator.floordiv, (code.call_function(operator.sub, (read, rest)), factor)
                )
    return symbols


def _copy(code: fx.Graph, node: fx.Node, copies: Mapping[fx.Node, Any]) -> fx.Node:
    """A node with the copies of its arguments, which may be plain numbers.

    A view is legal for the strides that tensors had when the whole model was traced. What crosses a cut may have
    others, and so may what is computed from it.
    """
    target = torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
    arguments = fx.node.map_arg(node.args, copies.__getitem__)
    keywords = fx.node.map_arg(node.kwargs, copies.__getitem__)
    return code.create_node(node.op, target, arguments, keywords, node.name)


def _holder(values: Mapping[str, object]) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            module.register_buffer(name, value)
        else:
            setattr(module, name, value)
    return module

"""Whether a graph holds where a free size is 1. Torch traces with 2 at least, and takes that for granted.

Two things can be otherwise there. An operation that drops dimensions of 1 (``squeeze()``) gives another shape than the
graph says: the graph is run at such sizes, on tensors without memory. And code that asks for a size takes another way
than the one that was traced (``if ids.shape[1] == 1``). Most such ways lead to the same numbers; so where an answer
would be another, module and graph are run side by side, on made-up weights that take next to no memory.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from splitplane.domain.profiles import TensorSpec
from splitplane.model.errors import FactoryError, NotSplittableError
from splitplane.model.recurrent import told_by_shape
from splitplane.model.refusals import line_of_operation
from splitplane.model.samples import sample
from splitplane.model.sizes import Size, expression
from splitplane.model.source import ModelSource, bind_inputs
from splitplane.model.stand_ins import QuickProducts, stand_in
from splitplane.model.traced import Traced, is_size
from splitplane.model.watching import Question
from splitplane.model.whole import answers

TOLERANCE = 1e-4
"""Of the largest value: what kernels may round differently. A way that computes something else is far beyond."""

Values = Mapping[sympy.Symbol, int]


def try_ones(source: ModelSource, module: nn.Module, traced: Traced, questions: Iterable[Question]) -> Traced:
    """Raise the least of free sizes to 2 where the graph does not hold at 1, and tell what one sample cannot send.

    Raises :class:`NotSplittableError` where a batch of one is another model, for requests of one are the rule, and
    :class:`FactoryError` where its outputs do not have the batch as dimension 0.
    """
    asked = list(questions)
    sizes = traced.sizes
    reshaped = _one_sample(source, module, traced, asked)
    found: dict[sympy.Symbol, Size] = {
        symbol: size
        if size.lowest > 1 or symbol == sizes.batch or _holds(source, module, traced, asked, symbol)
        else replace(size, lowest=2)
        for symbol, size in sizes.by_symbol.items()
    }
    return replace(traced, sizes=replace(sizes, by_symbol=found), reshaped=reshaped)


def _one_sample(
    source: ModelSource, module: nn.Module, traced: Traced, questions: list[Question]
) -> frozenset[fx.Node]:
    """The values that have another shape for a batch of one than for more."""
    values = _values(traced)
    reshaped = reshaped_at(traced, values)
    for index, node in enumerate(traced.outputs):
        if reshaped is not None and node in reshaped:
            place = line_of_operation(next(iter(reshaped)))
            raise FactoryError(
                f"output {index} of {source.factory} has the shape {reshaped[node]} for a batch of one, without the "
                f"batch: name the dimension that squeeze() is to drop{f' ({place})' if place else ''}"
            )
    apart = _apart(questions, values)
    if (apart is not None or reshaped != {}) and not (same := agree(source, module, traced, values)):
        if apart is None and reshaped is None and same is None:
            return frozenset()  # neither of them runs on made-up inputs
        if reshaped is None and reshaped_at(traced, {**values, traced.sizes.batch: 2}) is None:
            raise NotSplittableError(f"the graph that torch.export makes of {source.factory} runs on no batch")
        raise NotSplittableError(
            f"{source.factory} treats a batch of one apart, and does something else with it than its graph for more",
            line_of_operation(*list(reshaped or ())[:1], *([apart.place] if apart is not None else ())),
        )
    return frozenset(reshaped or ())


def _holds(
    source: ModelSource, module: nn.Module, traced: Traced, questions: list[Question], symbol: sympy.Symbol
) -> bool:
    """Whether a size may be 1: for one sample, and for two."""
    one, two = ({**_values(traced), symbol: 1, traced.sizes.batch: batch} for batch in (1, 2))
    if reshaped_at(traced, two) != {} or reshaped_at(traced, one) is None:
        return False
    apart = next((values for values in (two, one) if _apart(questions, values) is not None), None)
    return apart is None or agree(source, module, traced, apart) is True


def _values(traced: Traced) -> dict[sympy.Symbol, int]:
    """One sample of the example."""
    sizes = traced.sizes
    return {symbol: 1 if symbol == sizes.batch else size.example for symbol, size in sizes.by_symbol.items()}


def _apart(questions: Iterable[Question], values: Values) -> Question | None:
    """The first question that has another answer at these sizes than it had in the trace."""
    for question in questions:
        answer = question.asked.xreplace({symbol: sympy.Integer(value) for symbol, value in values.items()})
        if answer in (sympy.true, sympy.false) and bool(answer) is not question.told:
            return question
    return None


def _shape(shape: Iterable[object], traced: Traced, values: Values) -> list[int] | None:
    """What the graph says of a shape; ``None`` if it depends on data."""
    dimensions = list(shape)
    if not all(map(traced.sizes.knows, dimensions)):
        return None
    return [int(expression(size).subs(values)) for size in dimensions]


class _Run(fx.Interpreter):
    """Runs the graph as ranges do, which compute sizes from the free ones; notes what has other shapes than it says."""

    def __init__(self, traced: Traced, values: Values) -> None:
        super().__init__(traced.root, graph=traced.graph)
        self.reshaped: dict[fx.Node, list[int]] = {}
        self._traced = traced
        self._values = values

    def run_node(self, n: fx.Node) -> Any:
        expected = n.meta.get("val")
        if is_size(n, self._traced.sizes):
            return int(expression(expected).subs(self._values))
        result = super().run_node(n)
        if isinstance(result, torch.Tensor) and isinstance(expected, torch.Tensor):
            shape = _shape(expected.shape, self._traced, self._values)
            if shape is not None and list(result.shape) != shape:
                self.reshaped[n] = list(result.shape)
        return result


def reshaped_at(traced: Traced, values: Values) -> dict[fx.Node, list[int]] | None:
    """What has other shapes at these sizes than the graph says, in its order; ``None`` if the graph fails at them."""
    run = _Run(traced, values)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    given: dict[fx.Node, Any] = {}
    try:
        with torch.no_grad(), mode, told_by_shape():
            for node in traced.graph.find_nodes(op="placeholder"):
                value = node.meta.get("val")
                if isinstance(value, torch.Tensor):
                    given[node] = torch.empty(_shape(value.shape, traced, values) or (), dtype=value.dtype)
            run.run(initial_env=given)
    except Exception:  # operators raise many types
        return None
    return run.reshaped


def agree(source: ModelSource, module: nn.Module, traced: Traced, values: Values) -> bool | None:
    """Whether module and graph give the same at these sizes; ``None`` if the module gives nothing."""
    specs = [
        TensorSpec(name, spec.datatype, tuple(_shape(traced.inputs[name].meta["val"].shape[1:], traced, values) or ()))
        for name, spec in ((each.name, each) for each in source.inputs)
    ]
    inputs = sample(specs, batch=values[traced.sizes.batch])
    weights = {name: stand_in(value) for name, value in module.named_parameters()}
    with torch.no_grad(), QuickProducts():  # type: ignore[no-untyped-call]
        try:
            arguments = bind_inputs(source, module, {name: value.clone() for name, value in inputs.items()})
            result = torch.func.functional_call(module, weights, (), arguments)
            expected = answers(result, values[traced.sizes.batch])
        except Exception:  # the tenant's code may raise anything
            return None
        held = {**dict(module.named_buffers(remove_duplicate=False)), **weights}
        given = {node: inputs[name] for name, node in traced.inputs.items()} | dict(traced.constants)
        try:
            for node, name in traced.weights.items():
                names = (name, *traced.aliases.get(name, ()))
                given[node] = next(held[each] for each in names if each in held)
            outputs = _Run(traced, values).run(initial_env=given)
        except Exception:  # operators raise many types
            return False
    return len(outputs) == len(expected) and all(map(_alike, outputs, expected))


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    largest = float(other.abs().max())
    return math.isfinite(largest) and torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * largest)

"""From a factory to one flat graph with free dimensions, without memory for the weights.

This is the only module that knows ``torch.export``; the others see :class:`Traced`.
"""

import contextlib
import enum
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import UserError
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from splitplane.model.crossing import Crossing, crossing
from splitplane.model.datatypes import torch_datatype
from splitplane.model.errors import NotSplittableError
from splitplane.model.refusals import describe, line_of_attribute, line_of_operation
from splitplane.model.sizes import BATCH, Size, Sizes, expression, solve
from splitplane.model.source import ModelSource, bind_inputs, build_module, replace_parameters
from splitplane.model.watching import CallWatch

TRACED_BATCH = 2
"""One would be burnt in as a constant: ``torch.export`` takes sizes 0 and 1 for fixed."""
REFINEMENTS = 4
"""How often an export is repeated with the constraints on sizes that the one before found."""


class Kind(enum.IntEnum):
    """What a node's value depends on."""

    CONSTANT = 0
    """On weights and buffers only: evaluated once, when a partition is loaded."""
    SIZE = 1
    """On the free sizes too: recomputed in every range, never sent."""
    DATA = 2
    """On the values of the inputs."""


@dataclass(frozen=True)
class Traced:
    """A flat graph of what the outputs need, in the order in which it runs; ``kinds`` covers all but the output."""

    graph: fx.Graph
    root: torch.nn.Module
    """Holds the subgraphs that control-flow nodes call."""
    inputs: Mapping[str, fx.Node]
    outputs: tuple[fx.Node, ...]
    weights: Mapping[fx.Node, str]
    """Placeholders whose values lie in the weights file, by their names there; tied ones have one name."""
    aliases: Mapping[str, tuple[str, ...]]
    """All names of tied weights: a file may hold any one of them."""
    parameters: frozenset[fx.Node]
    constants: Mapping[fx.Node, torch.Tensor]
    """Placeholders whose values the constructor made: in no weights file, or persisted by older releases only."""
    constant_names: Mapping[fx.Node, str]
    sizes: Sizes
    kinds: Mapping[fx.Node, Kind] = field(repr=False)

    def crossing(self, node: fx.Node) -> Crossing | None:
        """How this node's value would cross a cut; ``None`` if it cannot."""
        return crossing(node.meta.get("val"), self.sizes)

    def needed(self, start: Iterable[fx.Node], end: Iterable[fx.Node]) -> set[fx.Node]:
        """All nodes that compute ``end`` from ``start``, constants and sizes included, ``start`` excluded.

        Inputs of the model are part of the answer if ``end`` cannot be computed from ``start``.
        """
        return _needed(start, end, self.sizes)


def _needed(start: Iterable[fx.Node], end: Iterable[fx.Node], sizes: Sizes) -> set[fx.Node]:
    known, found, stack = set(start), set(), list(end)
    while stack:
        node = stack.pop()
        if node in known or node in found:
            continue
        found.add(node)
        if not is_size(node, sizes):
            stack.extend(node.all_input_nodes)
    return found


def is_size(node: fx.Node, sizes: Sizes) -> bool:
    """Whether this node is a size that follows from the free ones, so that no range needs what it was read from."""
    return isinstance(value := node.meta.get("val"), torch.SymInt) and sizes.knows(value)


def trace(source: ModelSource) -> Traced:
    """Build and export the model. Raises :class:`FactoryError` or :class:`NotSplittableError`."""
    module = build_module(source)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    replace_parameters(module, lambda parameter: _fake(parameter, mode))
    examples = {
        spec.name: torch.zeros((TRACED_BATCH, *spec.shape), dtype=torch_datatype(spec.datatype))
        for spec in source.inputs
    }
    arguments = bind_inputs(source, module, examples)
    watch = CallWatch(module)
    try:
        program = _export(source, module, arguments, watch)
    finally:
        watch.end()
    if watch.changed is not None:
        child, name = watch.changed
        raise NotSplittableError(
            f"forward of {type(child).__name__} writes to its attribute {name}: it keeps state between calls",
            line_of_attribute(child, name),
        )
    return _read(source, module, program)


def _fake(parameter: nn.Parameter, mode: FakeTensorMode) -> nn.Parameter:
    """A parameter without memory that says it lies on the CPU: a graph of meta tensors would have that device in it."""
    with mode:
        return nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=False)


def _export(
    source: ModelSource, module: nn.Module, arguments: Mapping[str, object], watch: CallWatch
) -> ExportedProgram:
    """Export with every free dimension free, taking over the constraints on them that torch finds."""
    dimensions: dict[str, Any] = {BATCH: Dim(BATCH)}
    by_input: dict[str, Any] = {}
    for spec in source.inputs:
        names = spec.free or (None,) * len(spec.shape)
        free = {index: dimensions.setdefault(name, Dim(name)) for index, name in enumerate(names, 1) if name}
        by_input[spec.name] = {0: dimensions[BATCH], **free}
    shapes: Any = bind_inputs(source, module, by_input)
    with torch.no_grad(), _quiet():
        for _ in range(REFINEMENTS):
            try:
                program = torch.export.export(module, (), kwargs=arguments, dynamic_shapes=shapes, strict=False)
                if any(_mutates(node) for node in program.graph.nodes):
                    program = program.run_decompositions({})
                return program
            except UserError as error:
                refined = _refined(str(error), shapes)
                if refined is None:
                    raise NotSplittableError(
                        f"torch.export of {source.factory} failed: {describe(error)}",
                        line_of_operation(*watch.demands, error),
                    ) from error
                shapes = refined
            except Exception as error:  # torch.export raises many types, and runs the tenant's code
                raise NotSplittableError(
                    f"torch.export of {source.factory} failed: {describe(error)}", line_of_operation(error)
                ) from error
    raise NotSplittableError(f"torch.export of {source.factory} finds ever new constraints on its sizes: {shapes}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch says about the tenant's code and its own internals: a failure has its own message."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was, log.disabled = log.disabled, True
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was


def _refined(message: str, shapes: dict[str, Any]) -> dict[str, Any] | None:
    """Shapes with the constraints that torch suggests, if they are no worse than a narrower range or a multiple."""
    told, heading, rest = message.partition("Suggested fixes:")
    fixes = rest.partition("\n\n")[0]
    try:
        refined: Any = refine_dynamic_shapes_from_suggested_fixes(told + heading + fixes, shapes)
    except Exception:  # there is no suggestion, or it cannot be read
        return None
    fixed = any(isinstance(dim, int) for dims in refined.values() for dim in dims.values())
    return None if fixed or str(refined) == str(shapes) else refined


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _read(source: ModelSource, module: torch.nn.Module, program: ExportedProgram) -> Traced:
    placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    aliases = _aliases(module)
    weights: dict[fx.Node, str] = {}
    parameters: set[fx.Node] = set()
    constants: dict[fx.Node, torch.Tensor] = {}
    constant_names: dict[fx.Node, str] = {}
    user_inputs: list[fx.Node] = []
    for spec in program.graph_signature.input_specs:
        node, name = placeholders[spec.arg.name], str(spec.target)
        if spec.kind == InputKind.USER_INPUT:
            user_inputs.append(node)
        elif spec.kind == InputKind.PARAMETER or (spec.kind == InputKind.BUFFER and spec.persistent):
            weights[node] = aliases.get(name, (name,))[0]
            if spec.kind == InputKind.PARAMETER:
                parameters.add(node)
        else:
            value = program.constants.get(name)
            if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor) or value.is_meta:
                raise NotSplittableError(
                    f"{name} of {source.factory} has no value before the weights are loaded: compute it "
                    "in forward, or register it as a persistent buffer"
                )
            constants[node], constant_names[node] = value, name
    _refuse_state(source, program)
    inputs = _name_inputs(source, module, user_inputs)
    sizes = _sizes(source, program, inputs)
    outputs = tuple(node for node in program.graph.output_node().args[0] if isinstance(node, fx.Node))
    _drop_unused(program.graph, inputs.values(), outputs, sizes)
    traced = Traced(
        graph=program.graph,
        root=program.graph_module,
        inputs=inputs,
        outputs=outputs,
        weights=weights,
        aliases=aliases,
        parameters=frozenset(parameters),
        constants=constants,
        constant_names=constant_names,
        sizes=sizes,
        kinds=_classify(program.graph, frozenset(user_inputs), sizes),
    )
    if not outputs:
        raise NotSplittableError(f"{source.factory} returns no tensor")
    for node in outputs:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.ndim or not sizes.is_batch(value.shape[0]):
            raise NotSplittableError(
                f"output {node.name} of {source.factory} does not have the batch as dimension 0",
                line_of_operation(node),
            )
    return traced


def _refuse_state(source: ModelSource, program: ExportedProgram) -> None:
    mutated = {
        spec.arg.name: str(spec.target or spec.arg.name)
        for spec in program.graph_signature.output_specs
        if spec.kind != OutputKind.USER_OUTPUT
    }
    if mutated:
        (writer, *_) = (node for node in program.graph.nodes if node.name in mutated)
        raise NotSplittableError(
            f"forward of {source.factory} writes to {', '.join(mutated.values())}: it keeps state between calls",
            line_of_operation(writer),
        )


def _name_inputs(source: ModelSource, module: torch.nn.Module, nodes: list[fx.Node]) -> dict[str, fx.Node]:
    order = bind_inputs(source, module, {spec.name: spec.name for spec in source.inputs})
    named = dict(zip(map(str, order.values()), nodes, strict=True))
    return {spec.name: named[spec.name] for spec in source.inputs}


def _sizes(source: ModelSource, program: ExportedProgram, inputs: Mapping[str, fx.Node]) -> Sizes:
    """The symbols of the free dimensions, with the ranges that torch found for them."""
    found: dict[Any, Size] = {}
    batch = None
    for spec in source.inputs:
        shape = inputs[spec.name].meta["val"].shape
        for size, name, example in zip(shape, (BATCH, *spec.free), (TRACED_BATCH, *spec.shape), strict=False):
            if name is None or isinstance(size, int):
                continue
            solved = solve(expression(size))
            if solved is None:
                raise NotSplittableError(f"dimension {name} of input {spec.name} must be {expression(size)}")
            symbol, factor, rest = solved
            limits = program.range_constraints.get(symbol)
            highest = int(limits.upper) if limits is not None and limits.upper < 2**31 else None
            # Torch assumes 2 at least of every free size, for it takes sizes 0 and 1 for fixed.
            lowest = int(limits.lower) if limits is not None and limits.lower > TRACED_BATCH else 1
            found[symbol] = Size(name, (example - rest) // factor, lowest, highest)
            if name == BATCH:
                batch = symbol
    if batch is None:
        raise NotSplittableError(f"torch.export of {source.factory} burnt the batch of {TRACED_BATCH} in")
    return Sizes(found, batch)


def _aliases(module: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in names.values() for name in group if len(group) > 1}


def _classify(graph: fx.Graph, inputs: frozenset[fx.Node], sizes: Sizes) -> dict[fx.Node, Kind]:
    kinds: dict[fx.Node, Kind] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        if node in inputs:
            kinds[node] = Kind.DATA
        elif is_size(node, sizes):
            # However it was reached, the tensors that cross a cut tell it.
            kinds[node] = Kind.SIZE
        else:
            kinds[node] = max((kinds[source] for source in node.all_input_nodes), default=Kind.CONSTANT)
    return kinds


def _drop_unused(graph: fx.Graph, inputs: Iterable[fx.Node], outputs: Iterable[fx.Node], sizes: Sizes) -> None:
    """Erase assertions and whatever else no output needs: it would seem to be alive across cuts."""
    kept = {*inputs, *_needed((), outputs, sizes), graph.output_node()}
    for node in reversed(list(graph.nodes)):
        if node not in kept and not node.users:
            graph.erase_node(node)

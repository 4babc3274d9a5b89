"""From a factory to one flat graph with free dimensions, without memory for the weights."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from splitplane.model.building import NeedsValuesError, build_lean, build_plainly
from splitplane.model.datatypes import torch_datatype
from splitplane.model.errors import NotSplittableError
from splitplane.model.exporting import export_program
from splitplane.model.outside import outside_kept
from splitplane.model.refusals import line_of_operation, line_of_writing
from splitplane.model.replaying import find_state
from splitplane.model.scratch import is_read
from splitplane.model.seeding import made_values, refuse_unseeded
from splitplane.model.sizes import BATCH, Size, Sizes, expression, solve
from splitplane.model.smallest import try_ones
from splitplane.model.source import ModelSource, bind_inputs
from splitplane.model.state import state_tensors, tied
from splitplane.model.traced import Traced, classify, is_random, needed
from splitplane.model.unproven import takes_other_sizes, tried
from splitplane.model.watching import CallWatch
from splitplane.model.whole import number_type

TRACED_BATCH = 2
"""One would be burnt in as a constant: ``torch.export`` takes sizes 0 and 1 for fixed."""


def trace(source: ModelSource) -> Traced:
    """Build and export the model. Raises :class:`FactoryError` or :class:`NotSplittableError`."""
    with warnings.catch_warnings():
        # Layers that are copied, or look at where their weights lie, get no answer that could do harm here.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        try:
            return _built_and_traced(source, build_lean)
        except NeedsValuesError:
            return _built_and_traced(source, build_plainly)


def _built_and_traced(source: ModelSource, build: Callable[[ModelSource], nn.Module]) -> Traced:
    module = build(source)
    made = made_values(module)
    traced = _traced(source, module)
    del module  # it may have all weights
    refuse_unseeded(source, build, made, traced.constants.values())
    return traced


def _traced(source: ModelSource, module: nn.Module) -> Traced:
    examples = {
        spec.name: torch.zeros((TRACED_BATCH, *spec.shape), dtype=torch_datatype(spec.datatype))
        for spec in source.inputs
    }
    arguments = bind_inputs(source, module, examples)
    with outside_kept(source, module):
        repeated = find_state(module, arguments)
    try:
        program, watch = _watched(source, module, arguments)
        if watch.changed and watch.settle():
            program, watch = _watched(source, module, arguments)
    except NotSplittableError as refusal:
        found = _unproven(source, module, arguments) if repeated is None else None
        if found is None:
            raise refusal from None
        return found
    written = watch.changed if repeated is not None else watch.remembered()
    if written:
        child, name = next(iter(written))
        raise NotSplittableError(
            f"forward of {type(child).__name__} writes to its attribute {name}: it keeps state between calls",
            line_of_writing(child, f"self.{name}"),
        )
    traced = _read(source, module, program)
    if repeated is not None:
        raise NotSplittableError(
            f"{source.factory} does something else when it is called again: it keeps state between calls",
            line_of_operation(repeated),
        )
    if watch.seeded and any(map(is_random, traced.graph.nodes)):
        raise NotSplittableError(
            f"{source.factory} seeds the random numbers that it draws, which no graph holds",
            line_of_operation(*watch.seeded),
        )
    if _are_multiples(source, traced) and takes_other_sizes(source, module):
        found = _unproven(source, module, arguments)
        if found is not None:
            return found
    return try_ones(source, module, traced, watch.asked())


def _unproven(source: ModelSource, module: nn.Module, arguments: Mapping[str, object]) -> Traced | None:
    """A graph for free sizes of which torch cannot prove that it holds, if it does nevertheless."""
    if not any(spec.free for spec in source.inputs):
        return None
    try:
        program, watch = _watched(source, module, arguments, unproven=True)
        traced = _read(source, module, program)
    except NotSplittableError:
        return None
    if watch.changed or watch.seeded or _are_multiples(source, traced):
        return None
    believed = tried(source, module, traced, [*watch.guards(), *(each.asked for each in watch.asked())])
    return None if believed is None else try_ones(source, module, believed, watch.asked())


def _are_multiples(source: ModelSource, traced: Traced) -> bool:
    """Whether a free dimension is none that takes any size: a multiple of one, fixed, or several under one name."""
    symbols: dict[str, set[object]] = {}
    for spec in source.inputs:
        for name, size in zip(spec.free, traced.inputs[spec.name].meta["val"].shape[1:], strict=False):
            if name is not None:
                symbols.setdefault(name, set()).add(expression(size))
    return any(len(each) > 1 or not all(size.is_Symbol for size in each) for each in symbols.values())  # type: ignore[attr-defined]


def _watched(
    source: ModelSource, module: nn.Module, arguments: Mapping[str, object], *, unproven: bool = False
) -> tuple[ExportedProgram, CallWatch]:
    watch = CallWatch(module)
    try:
        with outside_kept(source, module):
            return export_program(source, module, arguments, watch, unproven=unproven), watch
    except NotSplittableError as refusal:
        # What else refers to a parameter, or was computed from one, is such a constant.
        if "fake tensor in the exported program constant" in refusal.reason and _is_lean(module):
            raise NeedsValuesError from refusal
        raise
    finally:
        watch.end()


def _read(source: ModelSource, module: torch.nn.Module, program: ExportedProgram) -> Traced:
    placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    aliases = _aliases(module)
    held = {tensor.untyped_storage()._cdata for tensor in state_tensors(module).values()}
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
            if spec.kind == InputKind.CUSTOM_OBJ:
                raise NotSplittableError(
                    f"forward of {source.factory} uses a {type(value).__name__}, which no graph carries from one "
                    "process to another (numbers from a seed can be drawn in the constructor and kept as a buffer)",
                    line_of_operation(*node.users),
                )
            if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor) or value.is_meta:
                if _is_lean(module):
                    raise NeedsValuesError
                raise NotSplittableError(
                    f"{name} of {source.factory} has no value before the weights are loaded: compute it "
                    "in forward, or register it as a persistent buffer"
                )
            if value.untyped_storage()._cdata in held:
                raise NotSplittableError(
                    f"{source.factory} keeps a weight or a view of one as {name} too, which no export follows: "
                    "register it once and take the view in forward"
                )
            constants[node], constant_names[node] = value, name
    _refuse_state(source, program)
    inputs = _name_inputs(source, module, user_inputs)
    sizes = _sizes(source, program, inputs)
    outputs = _outputs(program, next(iter(inputs.values())))
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
        kinds=classify(program.graph, frozenset((*user_inputs, *outputs)), sizes),
    )
    if not outputs:
        raise NotSplittableError(f"{source.factory} returns no tensor")
    for node in outputs:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.ndim or not sizes.is_batch(value.shape[0]):
            told = f"output {node.name} of {source.factory} does not have the batch as dimension 0"
            if isinstance(value, torch.Tensor) and value.ndim and sizes.knows(value.shape[0]):
                size = expression(value.shape[0])
                told += f" but {sizes.name(size) or size}"
                if sizes.batch in size.free_symbols:
                    told += ", which cannot be told to be the batch"
            raise NotSplittableError(told, line_of_operation(node))
    return traced


def _outputs(program: ExportedProgram, first: fx.Node) -> tuple[fx.Node, ...]:
    """What the caller gets, which is all that the graph is to give: an input that the model wrote to is the caller's no
    more, for it came over a network. A number is made a tensor of one for each sample of the ``first`` input."""
    output = program.graph.output_node()
    with program.graph.inserting_before(output):
        given = tuple(
            value if isinstance(_value(value), torch.Tensor) else _repeated(value, first) for value in _given(program)
        )
    output.args = (given,)
    return given


def _repeated(value: Any, first: fx.Node) -> fx.Node:
    example, dtype = first.meta["val"], number_type(_value(value))
    batch = first.graph.call_function(torch.ops.aten.sym_size.int, (first, 0))
    batch.meta["val"] = example.shape[0]
    repeated = first.graph.call_function(torch.ops.aten.full.default, ([batch], value), {"dtype": dtype})
    with example.fake_mode:
        repeated.meta["val"] = torch.empty(example.shape[:1], dtype=dtype)
    return repeated


def _given(program: ExportedProgram) -> tuple[Any, ...]:
    """Tensors and numbers among the outputs."""
    specs = program.graph_signature.output_specs
    return tuple(
        value
        for value, spec in zip(program.graph.output_node().args[0], specs, strict=True)
        if spec.kind == OutputKind.USER_OUTPUT
        and (isinstance(_value(value), torch.Tensor) or number_type(_value(value)) is not None)
    )


def _value(node: object) -> object:
    return node.meta.get("val") if isinstance(node, fx.Node) else node


def _refuse_state(source: ModelSource, program: ExportedProgram) -> None:
    given = _given(program)
    buffers = {
        spec.target: node
        for spec, node in zip(
            program.graph_signature.input_specs, program.graph.find_nodes(op="placeholder"), strict=True
        )
        if spec.kind == InputKind.BUFFER
    }
    mutated = {
        spec.arg.name: str(spec.target or spec.arg.name)
        for spec in program.graph_signature.output_specs
        if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION)
        and not (spec.kind == OutputKind.BUFFER_MUTATION and not is_read(buffers[spec.target], given))
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
            # Torch assumes 2 at least of every free size, for it takes sizes 0 and 1 for fixed: ``smallest`` tries 1.
            lowest = int(limits.lower) if limits is not None and limits.lower > TRACED_BATCH else 1
            found[symbol] = Size(name, (example - rest) // factor, lowest, highest)
            if name == BATCH:
                batch = symbol
    if batch is None:
        raise NotSplittableError(f"torch.export of {source.factory} burnt the batch of {TRACED_BATCH} in")
    return Sizes(found, batch)


def _is_lean(module: nn.Module) -> bool:
    return any(isinstance(parameter, FakeTensor) for parameter in module.parameters())


def _aliases(module: nn.Module) -> dict[str, tuple[str, ...]]:
    return {name: names for name, names in tied(state_tensors(module)).items() if len(names) > 1}


def _drop_unused(graph: fx.Graph, inputs: Iterable[fx.Node], outputs: Iterable[fx.Node], sizes: Sizes) -> None:
    """Erase assertions and whatever else no output needs: it would seem to be alive across cuts."""
    kept = {*inputs, *needed((), outputs, sizes), graph.output_node()}
    for node in reversed(list(graph.nodes)):
        if node not in kept and not node.users:
            graph.erase_node(node)

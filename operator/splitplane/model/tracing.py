"""From a factory to one flat graph with a free batch dimension, without memory for the weights.

This is the only module that knows ``torch.export``; the others see :class:`Traced`.
"""

import enum
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from splitplane.domain.profiles import TensorSpec
from splitplane.model.datatypes import oip_datatype, torch_datatype
from splitplane.model.errors import NotSplittableError
from splitplane.model.source import ModelSource, bind_inputs, build_module

TRACED_BATCH = 2
"""One would be burnt in as a constant: ``torch.export`` takes sizes 0 and 1 for fixed."""


class Kind(enum.IntEnum):
    """What a node's value depends on."""

    CONSTANT = 0
    """On weights and buffers only: evaluated once, when a partition is loaded."""
    BATCH = 1
    """On the size of the batch too: recomputed in every range, never sent."""
    DATA = 2
    """On the values of the inputs."""


@dataclass(frozen=True)
class Traced:
    """A flat graph. Nodes are in the order in which they run; ``kinds`` covers all but the output node."""

    graph: fx.Graph
    root: torch.nn.Module
    """Holds the subgraphs that control-flow nodes call."""
    inputs: Mapping[str, fx.Node]
    outputs: tuple[fx.Node, ...]
    weights: Mapping[fx.Node, str]
    """Placeholders whose values lie in the weights file, by their names there."""
    aliases: Mapping[str, tuple[str, ...]]
    """Other names of tied weights: a file may hold any one of them."""
    parameters: frozenset[fx.Node]
    constants: Mapping[fx.Node, torch.Tensor]
    """Placeholders whose values the constructor made: in no weights file, or persisted by older releases only."""
    batch: Any
    """The symbol of the batch dimension."""
    kinds: Mapping[fx.Node, Kind] = field(repr=False)

    def spec(self, node: fx.Node, name: str | None = None) -> TensorSpec | None:
        """What would cross a cut if this node's value were sent; ``None`` if it cannot be (no leading batch)."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or not self.is_batch(value.shape[0]):
            return None
        datatype, rest = oip_datatype(value.dtype), tuple(value.shape[1:])
        if datatype is None or not all(isinstance(size, int) for size in rest):
            return None
        return TensorSpec(name or node.name, datatype, rest)

    def is_batch(self, size: object) -> bool:
        return isinstance(size, torch.SymInt) and size.node.expr == self.batch


def trace(source: ModelSource) -> Traced:
    """Build and export the model. Raises :class:`FactoryError` or :class:`NotSplittableError`."""
    module = build_module(source, FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True))
    examples = {
        spec.name: torch.zeros((TRACED_BATCH, *spec.shape), dtype=torch_datatype(spec.datatype))
        for spec in source.inputs
    }
    arguments = bind_inputs(source, module, examples)
    batch = Dim("batch")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the tenant's code and torch's own internals
            program = torch.export.export(
                module, (), kwargs=arguments, dynamic_shapes={name: {0: batch} for name in arguments}, strict=False
            )
            if any(_mutates(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
    except Exception as error:  # torch.export raises many types, and runs the tenant's code
        raise NotSplittableError(f"torch.export of {source.factory} failed: {_reason(error)}") from error
    return _read(source, module, program)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _reason(error: Exception) -> str:
    """The first lines that tell something: torch appends advice and stacks over many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:600]}" if lines else type(error).__name__


def _read(source: ModelSource, module: torch.nn.Module, program: ExportedProgram) -> Traced:
    placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    weights: dict[fx.Node, str] = {}
    parameters: set[fx.Node] = set()
    constants: dict[fx.Node, torch.Tensor] = {}
    user_inputs: list[fx.Node] = []
    for spec in program.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind == InputKind.USER_INPUT:
            user_inputs.append(node)
        elif spec.kind == InputKind.PARAMETER or (spec.kind == InputKind.BUFFER and spec.persistent):
            weights[node] = str(spec.target)
            if spec.kind == InputKind.PARAMETER:
                parameters.add(node)
        else:
            value = program.constants.get(str(spec.target))
            if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
                raise NotSplittableError(
                    f"{spec.target} of {source.factory} has no value before the weights are loaded: compute it "
                    "in forward, or register it as a persistent buffer"
                )
            constants[node] = value
    mutated = [
        spec.target or spec.arg.name
        for spec in program.graph_signature.output_specs
        if spec.kind != OutputKind.USER_OUTPUT
    ]
    if mutated:
        raise NotSplittableError(f"forward of {source.factory} writes to {', '.join(mutated)}: a stage keeps no state")
    output = program.graph.output_node().args[0]
    outputs = tuple(node for node in output if isinstance(node, fx.Node))
    inputs = _name_inputs(source, module, user_inputs)
    batch = next(iter(inputs.values())).meta["val"].shape[0].node.expr
    traced = Traced(
        graph=program.graph,
        root=program.graph_module,
        inputs=inputs,
        outputs=outputs,
        weights=weights,
        aliases=_aliases(module),
        parameters=frozenset(parameters),
        constants=constants,
        batch=batch,
        kinds=_classify(program.graph, frozenset(user_inputs), batch),
    )
    for node in outputs:
        if traced.spec(node) is None:
            raise NotSplittableError(f"output {node.name} of {source.factory} does not have the batch as dimension 0")
    if not outputs:
        raise NotSplittableError(f"{source.factory} returns no tensor")
    return traced


def _name_inputs(source: ModelSource, module: torch.nn.Module, nodes: list[fx.Node]) -> dict[str, fx.Node]:
    order = bind_inputs(source, module, {spec.name: spec.name for spec in source.inputs})
    named = dict(zip(map(str, order.values()), nodes, strict=True))
    return {spec.name: named[spec.name] for spec in source.inputs}


def _aliases(module: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in names.values() for name in group if len(group) > 1}


def _classify(graph: fx.Graph, inputs: frozenset[fx.Node], batch: object) -> dict[fx.Node, Kind]:
    kinds: dict[fx.Node, Kind] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        value = node.meta.get("val")
        if node in inputs:
            kinds[node] = Kind.DATA
        elif isinstance(value, torch.SymInt) and value.node.expr == batch:
            # However it was reached, any tensor that crosses a cut can tell it.
            kinds[node] = Kind.BATCH
        else:
            kinds[node] = max((kinds[source] for source in node.all_input_nodes), default=Kind.CONSTANT)
    return kinds

"""A contiguous range of segments in memory, and the code that runs any range inside it."""

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from splitplane.model.errors import WeightsError
from splitplane.model.graphs import ModelGraph, export
from splitplane.model.source import ModelSource
from splitplane.model.tracing import Kind
from splitplane.model.weights import WeightsFile


class Partition:
    """Segments ``[first, last)`` of a model with their weights.

    Every active range is compiled once, on first use, into straight-line code. Threads may share a partition.
    """

    def __init__(self, graph: ModelGraph, first: int, last: int, values: Mapping[fx.Node, object]) -> None:
        self.graph = graph
        self.first = first
        self.last = last
        self._values = values
        self._compiled: dict[tuple[int, int], fx.GraphModule] = {}
        self._lock = threading.Lock()

    def run(self, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run ``[first, last)`` on what crosses cut ``first``; returns what crosses cut ``last``, contiguous.

        Raises ``ValueError`` when the range is not resident here, or names, dtypes or shapes are not the cut's.
        """
        code = self._compiled.get((first, last)) or self._compile(first, last)
        specs = self.graph.cuts[first].tensors
        if tensors.keys() != {spec.name for spec in specs}:
            wanted = ", ".join(spec.name for spec in specs)
            raise ValueError(f"cut {first} takes the tensors {wanted}, not {', '.join(tensors) or 'none'}")
        arguments = [tensors[spec.name] for spec in specs]
        for spec, node, tensor in zip(specs, self.graph.crossing(first).values(), arguments, strict=True):
            if tensor.shape[1:] != spec.shape or tensor.dtype != node.meta["val"].dtype:
                raise ValueError(
                    f"tensor {spec.name} of cut {first} must be {spec.datatype} of shape [-1, "
                    f"{', '.join(map(str, spec.shape))}], not {tensor.dtype} of {list(tensor.shape)}"
                )
        with torch.inference_mode():
            results = code(*arguments)
            return {
                spec.name: result.contiguous()
                for spec, result in zip(self.graph.cuts[last].tensors, results, strict=True)
            }

    def _compile(self, first: int, last: int) -> fx.GraphModule:
        if not self.first <= first < last <= self.last:
            raise ValueError(f"range {first}:{last} is empty or not inside the resident range {self.first}:{self.last}")
        with self._lock:
            if (first, last) not in self._compiled:
                self._compiled[first, last] = _compile(self.graph, first, last, self._values)
            return self._compiled[first, last]


def load_partition(source: ModelSource, first: int, last: int | None) -> Partition:
    """Build a model's graph and read the weights of ``[first, last)``; ``None`` stands for the last cut.

    Raises :class:`ModelError` of any kind, and ``ValueError`` for a range that the model does not have.
    """
    return load_weights(export(source), first, last)


def load_weights(graph: ModelGraph, first: int, last: int | None) -> Partition:
    """Read the weights of ``[first, last)`` of a graph at hand, and nothing else. Raises as :func:`load_partition`."""
    end = len(graph.segments) if last is None else last
    if not 0 <= first < end <= len(graph.segments):
        raise ValueError(f"{graph.source.name} has cuts 0 to {len(graph.segments)}; {first}:{end} is no range of them")
    return Partition(graph, first, end, _constants(graph, first, end))


def _constants(graph: ModelGraph, first: int, last: int) -> dict[fx.Node, object]:
    """Values that do not depend on a request: weights, rebuilt buffers, and all that is computed from these alone."""
    traced, nodes = graph.traced, graph.nodes(first, last)
    names = {node: traced.weights[node] for node in nodes if node in traced.weights}
    weights = WeightsFile.open(graph.source).read(names.values(), traced.aliases)
    values: dict[fx.Node, object] = {}
    with torch.inference_mode():
        for node in traced.graph.nodes:
            if node not in nodes or traced.kinds.get(node) is not Kind.CONSTANT:
                continue
            if node in names:
                tensor, expected = weights[names[node]], node.meta["val"]
                if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
                    raise WeightsError(
                        f"weight {names[node]} is {tensor.dtype} {list(tensor.shape)} in the file; the factory "
                        f"makes it {expected.dtype} {list(expected.shape)}"
                    )
                values[node] = tensor
            elif node in traced.constants:
                values[node] = traced.constants[node]
            elif node.op == "get_attr":
                values[node] = traced.root.get_submodule(str(node.target))
            else:
                values[node] = _evaluate(node, values)
    return values


def _evaluate(node: fx.Node, values: Mapping[fx.Node, object]) -> object:
    assert callable(node.target)  # placeholders and attributes are dealt with by the caller
    value: Any = values.__getitem__
    arguments, keywords = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
    return node.target(*arguments, **keywords)


def _compile(graph: ModelGraph, first: int, last: int, values: Mapping[fx.Node, object]) -> fx.GraphModule:
    traced, nodes = graph.traced, graph.nodes(first, last)
    code, copies, root = fx.Graph(), {}, {}
    for name, node in graph.crossing(first).items():
        copies[node] = code.placeholder(name)
    received = next(iter(copies.values()))
    for node in traced.graph.nodes:
        if node not in nodes or node in copies or node in values:
            continue
        if traced.is_batch(node.meta.get("val")):
            copies[node] = code.call_function(torch.ops.aten.sym_size.int, (received, 0))
            continue
        for source in node.all_input_nodes:
            if source not in copies:
                root[source.name] = values[source]
                copies[source] = code.get_attr(source.name)
        copies[node] = code.node_copy(node, copies.__getitem__)
    code.output(tuple(copies[node] for node in graph.crossing(last).values()))
    code.eliminate_dead_code()
    return fx.GraphModule(_holder(root), code)


def _holder(values: Mapping[str, object]) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            module.register_buffer(name, value)
        else:
            setattr(module, name, value)
    return module

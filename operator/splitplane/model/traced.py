"""A model's flat graph, and what each of its values depends on."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from splitplane.model.crossing import Crossing, crossing
from splitplane.model.sizes import Sizes


class Kind(enum.IntEnum):
    """What a node's value depends on."""

    CONSTANT = 0
    """On weights and buffers only: evaluated once, when a partition is loaded."""
    SIZE = 1
    """On the free sizes too: recomputed in every range, never sent."""
    DATA = 2
    """On the values of the inputs, or on chance: drawn once, and sent to whoever needs it."""


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
    reshaped: frozenset[fx.Node] = frozenset()
    """Those whose values have another shape for a batch of one, and cannot be sent."""

    def crossing(self, node: fx.Node) -> Crossing | None:
        """How this node's value would cross a cut; ``None`` if it cannot."""
        if node in self.reshaped:
            return None
        return crossing(node.meta.get("val"), self.sizes)

    def needed(self, start: Iterable[fx.Node], end: Iterable[fx.Node]) -> set[fx.Node]:
        """All nodes that compute ``end`` from ``start``, constants and sizes included, ``start`` excluded.

        Inputs of the model are part of the answer if ``end`` cannot be computed from ``start``.
        """
        return needed(start, end, self.sizes)


def needed(start: Iterable[fx.Node], end: Iterable[fx.Node], sizes: Sizes) -> set[fx.Node]:
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


def classify(graph: fx.Graph, given: frozenset[fx.Node], sizes: Sizes) -> dict[fx.Node, Kind]:
    """``given``: inputs, and outputs, for whoever gives these needs their values even if they are sizes alone."""
    kinds: dict[fx.Node, Kind] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        if node in given or is_random(node):
            kinds[node] = Kind.DATA
        elif is_size(node, sizes):
            # However it was reached, the tensors that cross a cut tell it.
            kinds[node] = Kind.SIZE
        else:
            kinds[node] = max((kinds[source] for source in node.all_input_nodes), default=Kind.CONSTANT)
    return kinds


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers; dropout does not outside of training."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return any(is_random(inner) for graph in subgraphs(node) for inner in graph.nodes)
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    arguments = node.target._schema.arguments
    given = {each.name: each.default_value for each in arguments}
    given.update(zip(given, node.args, strict=False))
    given.update(node.kwargs)
    return all(given.get(name, True) for name in ("train", "training", "dropout_p"))


def subgraphs(node: fx.Node) -> list[fx.Graph]:
    """What a node of control flow calls."""
    root = node.graph.owning_module
    named = [each for each in node.args if isinstance(each, fx.Node) and each.op == "get_attr"]
    found = [root.get_submodule(str(each.target)) for each in named] if root is not None else []
    return [each.graph for each in found if isinstance(each, fx.GraphModule)]

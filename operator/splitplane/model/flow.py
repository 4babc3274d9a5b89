"""What crosses at a position of a graph in the fewest bytes: a minimum vertex cut.

From what crosses, everything later can be computed by light operations alone. So masks and reshaped or cast copies are
recomputed downstream from something smaller, an activation that is needed before and after its ReLU is sent once, and
constants are never sent.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx
import sympy  # type: ignore[import-untyped]
import torch
from networkx.algorithms.flow import edmonds_karp
from torch import fx

from splitplane.model.operations import is_heavy
from splitplane.model.traced import Kind, Traced


@dataclass(frozen=True)
class Place:
    """A place to cut: before node ``position`` of the graph.

    ``nodes`` are what crosses, in the graph's order; ``sizes`` are free sizes that none of them shows.
    """

    position: int
    nodes: tuple[fx.Node, ...]
    bytes: int
    sizes: tuple[sympy.Symbol, ...] = ()


class Flow:
    """The graph as a network in which a node's capacity is the bytes that its value takes on the wire."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.order = {node: position for position, node in enumerate(traced.graph.nodes)}
        self.capacity: dict[fx.Node, int | None] = {
            node: self._bytes(node) for node, kind in traced.kinds.items() if kind is Kind.DATA
        }
        self.last_use = {node: max((self.order[user] for user in node.users), default=-1) for node in self.capacity}

    def _bytes(self, node: fx.Node) -> int | None:
        """``None`` if the value cannot be sent: its form is not the protocol's, or its layout in memory matters."""
        crossing = self.traced.crossing(node)
        if crossing is None or any(getattr(user.target, "overloadpacket", None) is _AS_STRIDED for user in node.users):
            return None
        return crossing.bytes(self.traced.sizes)

    def bytes(self, nodes: Iterable[fx.Node]) -> int:
        return sum(self.capacity[node] or 0 for node in nodes)

    def stuck(self) -> list[fx.Node]:
        """Tensors that would have to cross somewhere and cannot be sent."""
        return [
            node
            for node, size in self.capacity.items()
            if size is None
            and self.last_use[node] > self.order[node]
            and isinstance(node.meta.get("val"), torch.Tensor)
        ]

    def cheapest(self, position: int) -> Place | None:
        """The minimum vertex cut at a position; ``None`` if something that cannot be sent would have to cross."""
        live = [node for node, last in self.last_use.items() if self.order[node] < position <= last]
        network = nx.DiGraph()
        stack, seen = list(live), set(live)
        for node in live:
            network.add_edge((node, "out"), "later")
        while stack:
            node = stack.pop()
            capacity = self.capacity[node]
            # An edge without a capacity cannot be cut.
            network.add_edge((node, "in"), (node, "out"), **({} if capacity is None else {"capacity": capacity}))
            if node.op == "placeholder" or is_heavy(self.traced, node):
                network.add_edge("earlier", (node, "in"))
                continue
            for source in node.all_input_nodes:
                if self.traced.kinds[source] is Kind.DATA:
                    network.add_edge((source, "out"), (node, "in"))
                    if source not in seen:
                        seen.add(source)
                        stack.append(source)
        try:
            # Of several minimum cuts this gives the one nearest to the sink, which is unique: every process finds the
            # same, and nothing is recomputed in vain.
            size, (upstream, _) = nx.minimum_cut(network, "earlier", "later", flow_func=edmonds_karp)
        except nx.NetworkXUnbounded:
            return None
        crossing = [node for node in seen if (node, "in") in upstream and (node, "out") not in upstream]
        return Place(position, tuple(sorted(crossing, key=self.order.__getitem__)), int(size))


_AS_STRIDED = torch.ops.aten.as_strided

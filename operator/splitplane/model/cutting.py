"""Where a graph can be divided, and what crosses there.

Between two neighbouring *heavy* operations (matrix products, convolutions, attention, look-ups in weight tables) lies
a run of light ones. Each run offers one cut, at its position of fewest bytes; of equals the latest that is not a mere
rearrangement, so that light work is done before the tensors leave, and they leave in the form the layer gave them
(dimension 1 is what int8 scales apart). A cut is dominated if an earlier interior cut and a later cut both carry fewer
bytes: for latency alone one of them is better whichever side should do more. It is dropped if they are near, so
that they balance work and memory as well as it does (the insides of attention and of feed-forward blocks), or if they
carry far less. Input and output are always cuts; the input dominates nothing, for it may be private.

What crosses at a position is the set of fewest bytes from which everything later can be computed by light operations
alone: a minimum vertex cut. So masks and reshaped or cast copies are recomputed downstream from something smaller, an
activation that is needed before and after its ReLU is sent once, and constants are never sent. Free sizes are read off
what crosses; one that no tensor shows is sent as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import networkx as nx  # type: ignore[import-untyped]
import sympy  # type: ignore[import-untyped]
import torch
from networkx.algorithms.flow import edmonds_karp  # type: ignore[import-untyped]
from torch import fx

from splitplane.model.errors import NotSplittableError
from splitplane.model.sizes import expression, solve
from splitplane.model.tracing import Kind, Traced, is_size
from splitplane.model.work import flops

MAX_CUTS = 256
"""A deeper model gets its cuts thinned out evenly by heavy operations."""

HEAVY = frozenset(
    {
        "addbmm", "addmm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "convolution", "einsum", "gru", "linear", "lstm", "matmul", "mm", "rnn_relu", "rnn_tanh",
        "scaled_dot_product_attention",
    }
)  # fmt: skip
"""Operations that are heavy even where no weight table goes in."""


REARRANGING = frozenset(
    {
        "alias", "clone", "contiguous", "detach", "expand", "expand_as", "flatten", "movedim", "permute", "reshape",
        "slice", "squeeze", "transpose", "unflatten", "unsqueeze", "view",
    }
)  # fmt: skip
"""Operations that do no work: a cut after one is no better than a cut before it."""

SIZE_BYTES = 8

NEAR = 1 / 4
FAR_TIMES = 4
"""A cut that carries more than one before it and one after it is dropped where at most this share of the model's work
lies between those two, and, however much lies between, where it carries at least so many times what each of them does.
"""


@dataclass(frozen=True)
class Place:
    """A place to cut: before node ``position`` of the graph.

    ``nodes`` are what crosses, in the graph's order; ``sizes`` are free sizes that none of them shows.
    """

    position: int
    nodes: tuple[fx.Node, ...]
    bytes: int
    sizes: tuple[sympy.Symbol, ...] = ()


def find_places(traced: Traced) -> list[Place]:
    """All cuts of a graph, the input first and the output last."""
    graph = _Flow(traced)
    heavy = [node for node in traced.graph.nodes if is_heavy(traced, node)]
    inputs, outputs = tuple(traced.inputs.values()), tuple(dict.fromkeys(traced.outputs))
    first = Place(0, inputs, graph.bytes(inputs))
    last = Place(len(graph.order), outputs, graph.bytes(outputs))
    interior = []
    bounds = [*(graph.order[node] for node in heavy), len(graph.order) - 1]
    for start, end in pairwise(bounds):
        run = [place for position in range(start + 1, end + 1) if (place := graph.cheapest(position))]
        if run and end != bounds[-1]:
            interior.append(min(run, key=_preference))
    places = [first, *_drop_dominated(interior, last, _work_done(traced, heavy, len(graph.order))), last]
    places = _thin_out(places, [graph.order[node] for node in heavy])
    return _send_sizes(traced, _drop_unreachable(traced, graph.order, places))


def is_heavy(traced: Traced, node: fx.Node) -> bool:
    """Whether repeating this node downstream would be wrong (it is random) or would cost more than light work."""
    if traced.kinds.get(node) is not Kind.DATA or node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target.overloadpacket.__name__ in HEAVY or torch.Tag.nondeterministic_seeded in node.target.tags:
        return True
    return any(source in traced.parameters and source.meta["val"].ndim > 1 for source in node.all_input_nodes)


class _Flow:
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


def _work_done(traced: Traced, heavy: Sequence[fx.Node], positions: int) -> list[float]:
    """For each position of the graph, the end included, the share of all work before it."""
    work = {node: flops(node, traced.sizes) for node in heavy}
    total, done, shares = sum(work.values()) or 1, 0, []
    for node in traced.graph.nodes:
        shares.append(done / total)
        done += work.get(node, 0)
    return [*shares, *[1.0] * (positions + 1 - len(shares))]


def is_rearrangement(node: fx.Node) -> bool:
    """Whether a node does no work."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket.__name__ in REARRANGING


def _preference(place: Place) -> tuple[int, bool, int]:
    return place.bytes, is_rearrangement(place.nodes[-1]), -place.position


def _drop_dominated(interior: Sequence[Place], last: Place, done: Sequence[float]) -> list[Place]:
    """``done[p]`` is the share of all work before position ``p``."""
    kept = []
    for index, place in enumerate(interior):
        earlier = [other for other in interior[:index] if other.bytes < place.bytes]
        later = [other for other in (*interior[index + 1 :], last) if other.bytes < place.bytes]
        near = earlier and later and done[later[0].position] - done[earlier[-1].position] <= NEAR
        large = all(side and FAR_TIMES * min(each.bytes for each in side) <= place.bytes for side in (earlier, later))
        repeated = any(other.nodes == place.nodes for other in (*interior[:index], last))
        if not near and not large and not repeated:
            kept.append(place)
    return kept


def _thin_out(places: list[Place], heavy: Sequence[int]) -> list[Place]:
    """Merge the two neighbouring segments with the fewest heavy operations until at most ``MAX_CUTS`` are left."""
    places = list(places)
    while len(places) > MAX_CUTS:
        merged = [
            sum(left.position <= position < right.position for position in heavy)
            for left, right in zip(places, places[2:], strict=False)
        ]
        del places[merged.index(min(merged)) + 1]
    return places


def _drop_unreachable(traced: Traced, order: Mapping[fx.Node, int], places: Sequence[Place]) -> list[Place]:
    """Keep the cuts that follow from the one before by work that no earlier segment has done."""
    kept = [places[0]]
    for place in places[1:]:
        while len(kept) > 1 and not _follows(traced, order, kept[-1], place):
            kept.pop()
        kept.append(place)
    if not _follows(traced, order, kept[0], kept[1]):
        raise NotSplittableError("the outputs do not follow from the inputs")
    return kept


def _follows(traced: Traced, order: Mapping[fx.Node, int], left: Place, right: Place) -> bool:
    inputs = set(traced.inputs.values())
    return not any(
        node in inputs or (order[node] < left.position and is_heavy(traced, node))
        for node in traced.needed(left.nodes, right.nodes)
    )


def _send_sizes(traced: Traced, places: Sequence[Place]) -> list[Place]:
    """Let those free sizes cross that some later range needs and no tensor that crosses shows."""
    found: list[Place] = []
    wanted: set[sympy.Symbol] = set()
    later: Sequence[fx.Node] = traced.outputs
    for place in reversed(places):
        wanted |= used_sizes(traced, traced.needed(place.nodes, later))
        sent = tuple(sorted(wanted - shown_sizes(traced, place.nodes), key=str)) if place.position else ()
        found.append(replace(place, sizes=sent, bytes=place.bytes + SIZE_BYTES * len(sent)))
        later = place.nodes
    return found[::-1]


def used_sizes(traced: Traced, nodes: Iterable[fx.Node]) -> set[sympy.Symbol]:
    """The symbols that these nodes compute with."""
    return {
        symbol for node in nodes if is_size(node, traced.sizes) for symbol in expression(node.meta["val"]).free_symbols
    }


def shown_sizes(traced: Traced, nodes: Iterable[fx.Node]) -> set[sympy.Symbol]:
    """The symbols that can be read off what crosses: the batch always, others where a dimension is linear in them."""
    shown = {traced.sizes.batch}
    for node in nodes:
        crossing = traced.crossing(node)
        assert crossing is not None  # it crosses
        shown |= {solved[0] for size in crossing.sample if (solved := solve(size)) is not None}
    return shown

"""Where a graph can be divided, and what crosses there.

Between two neighbouring *heavy* operations (matrix products, convolutions, attention, look-ups in weight tables) lies
a run of light ones. Each run offers one cut, at its position of fewest bytes; of equals the latest that is not a mere
rearrangement, so that light work is done before the tensors leave, and they leave in the form the layer gave them
(dimension 1 is what int8 scales apart). A cut is dropped if an earlier interior cut and a later cut both carry fewer
bytes: whichever side should do more work, one of them is better (this drops the insides of attention and of
feed-forward blocks). Input and output are always cuts; the input dominates nothing, for it may be private.

What crosses at a position is the set of fewest bytes from which everything later can be computed by light operations
alone: a minimum vertex cut. So masks and reshaped or cast copies are recomputed downstream from something smaller, an
activation that is needed before and after its ReLU is sent once, and constants are never sent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx  # type: ignore[import-untyped]
import torch
from networkx.algorithms.flow import edmonds_karp  # type: ignore[import-untyped]
from torch import fx

from splitplane.domain.codecs import raw_bytes
from splitplane.model.errors import NotSplittableError
from splitplane.model.tracing import Kind, Traced

MAX_CUTS = 32
"""Profiling times every prefix; a deeper model gets its cuts thinned out evenly by heavy operations."""

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


@dataclass(frozen=True)
class Place:
    """A place to cut: before node ``position`` of the graph; ``nodes`` are what crosses, in the graph's order."""

    position: int
    nodes: tuple[fx.Node, ...]
    bytes: int


def find_places(traced: Traced) -> list[Place]:
    """All cuts of a graph, the input first and the output last."""
    order = {node: position for position, node in enumerate(traced.graph.nodes)}
    heavy = [node for node in traced.graph.nodes if is_heavy(traced, node)]
    inputs, outputs = tuple(traced.inputs.values()), tuple(dict.fromkeys(traced.outputs))
    first = Place(0, inputs, _bytes(traced, inputs))
    last = Place(len(order), outputs, _bytes(traced, outputs))
    interior = []
    bounds = [*(order[node] for node in heavy), len(order) - 1]
    for start, end in pairwise(bounds):
        run = [place for position in range(start + 1, end + 1) if (place := _cheapest(traced, order, position))]
        if run and end != bounds[-1]:
            interior.append(min(run, key=_preference))
    places = [first, *_drop_dominated(interior, last), last]
    places = _thin_out(places, [order[node] for node in heavy])
    return _drop_unreachable(traced, order, places)


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


def needed(traced: Traced, start: Iterable[fx.Node], end: Iterable[fx.Node]) -> set[fx.Node]:
    """All nodes that compute ``end`` from ``start``, constants and batch sizes included, ``start`` excluded.

    Inputs of the model are part of the answer if ``end`` cannot be computed from ``start``.
    """
    known, found, stack = set(start), set(), list(end)
    while stack:
        node = stack.pop()
        if node in known or node in found:
            continue
        found.add(node)
        if not reads_batch(traced, node):
            stack.extend(node.all_input_nodes)
    return found


def reads_batch(traced: Traced, node: fx.Node) -> bool:
    """Whether this node is the size of the batch, which every range takes from the tensors it receives."""
    return traced.kinds.get(node) is Kind.BATCH and traced.is_batch(node.meta.get("val"))


def _bytes(traced: Traced, nodes: Iterable[fx.Node]) -> int:
    return sum(raw_bytes(spec) for node in nodes if (spec := traced.spec(node)) is not None)


def _cheapest(traced: Traced, order: Mapping[fx.Node, int], position: int) -> Place | None:
    """The minimum vertex cut at a position; ``None`` if something that cannot be sent would have to cross."""
    live = [
        node
        for node, index in order.items()
        if index < position
        and traced.kinds.get(node) is Kind.DATA
        and any(order[user] >= position for user in node.users)
    ]
    network = nx.DiGraph()
    stack, seen = list(live), set(live)
    for node in live:
        network.add_edge((node, "out"), "later")
    while stack:
        node = stack.pop()
        spec = traced.spec(node)
        # An edge without a capacity cannot be cut.
        network.add_edge((node, "in"), (node, "out"), **({} if spec is None else {"capacity": raw_bytes(spec)}))
        if node.op == "placeholder" or is_heavy(traced, node):
            network.add_edge("earlier", (node, "in"))
            continue
        for source in node.all_input_nodes:
            if traced.kinds[source] is Kind.DATA:
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
    return Place(position, tuple(sorted(crossing, key=order.__getitem__)), int(size))


def _preference(place: Place) -> tuple[int, bool, int]:
    target = place.nodes[-1].target
    rearranged = isinstance(target, torch._ops.OpOverload) and target.overloadpacket.__name__ in REARRANGING
    return place.bytes, rearranged, -place.position


def _drop_dominated(interior: Sequence[Place], last: Place) -> list[Place]:
    kept = []
    for index, place in enumerate(interior):
        earlier = any(other.bytes < place.bytes for other in interior[:index])
        later = any(other.bytes < place.bytes for other in (*interior[index + 1 :], last))
        repeated = any(other.nodes == place.nodes for other in (*interior[:index], last))
        if not (earlier and later) and not repeated:
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
        for node in needed(traced, left.nodes, right.nodes)
    )

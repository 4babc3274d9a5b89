"""Where a graph can be divided, and what crosses there.

Between two neighbouring *heavy* operations (matrix products, convolutions, attention, look-ups in weight tables) lies
a run of light ones. Each run offers one cut, at its position of fewest bytes; of equals the latest that is not a mere
rearrangement, so that light work is done before the tensors leave, and they leave in the form the layer gave them
(dimension 1 is what int8 scales apart). Some are dropped (``pruning``). Input and output are always cuts; the input
dominates nothing, for it may be private, nor does a cut that an input crosses as it is (``origins``).

What crosses is found by ``flow``. Free sizes are read off what crosses; one that no tensor shows is sent as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

from splitplane.model.errors import NotSplittableError
from splitplane.model.flow import Flow, Place
from splitplane.model.operations import is_heavy, is_rearrangement
from splitplane.model.origins import input_of
from splitplane.model.pruning import drop_dominated, thin_out
from splitplane.model.sizes import expression, solve
from splitplane.model.traced import Kind, Traced, is_size
from splitplane.model.work import flops

SIZE_BYTES = 8


def find_places(traced: Traced) -> list[Place]:
    """All cuts of a graph, the input first and the output last."""
    graph = Flow(traced)
    heavy = [node for node in traced.graph.nodes if is_heavy(traced, node)]
    inputs, outputs = tuple(traced.inputs.values()), tuple(dict.fromkeys(traced.outputs))
    first = Place(0, inputs, graph.bytes(inputs))
    last = Place(len(graph.order), outputs, graph.bytes(outputs))
    interior = []
    # No cut follows what is drawn without any input: the work before it is none.
    drawn = [node for node in heavy if not any(traced.kinds[each] is Kind.DATA for each in node.all_input_nodes)]
    bounds = [graph.order[node] for node in heavy if node not in drawn]
    bounds.append(len(graph.order) - 1)
    for start, end in pairwise(bounds):
        run = [place for position in range(start + 1, end + 1) if (place := graph.cheapest(position))]
        if run and end != bounds[-1]:
            interior.append(min(run, key=_preference))
    kept = drop_dominated(
        interior, last, _work_done(traced, heavy, len(graph.order)),
        lambda place: any(input_of(traced, node) is not None for node in place.nodes),
    )  # fmt: skip
    places = [first, *kept, last]
    places = thin_out(places, [graph.order[node] for node in heavy])
    return _send_sizes(traced, _drop_unreachable(traced, graph.order, places))


def why_uncut(traced: Traced) -> str:
    """Of a graph whose only cuts are its input and its output: why there is no other."""
    flow = Flow(traced)
    heavy = [node for node in traced.graph.nodes if is_heavy(traced, node)]
    if len(heavy) < 2:
        told = f"the only heavy operation in it is {_told(heavy[0])}" if heavy else "there is no heavy operation in it"
        return f"{told}, and cuts lie between two"
    kept = [node for node in flow.stuck() if flow.order[heavy[0]] <= flow.order[node] < flow.order[heavy[-1]]]
    if kept:
        return f"what would have to cross cannot be sent: {', '.join(dict.fromkeys(map(_told, kept)))}"
    return (
        f"whatever crosses between its {len(heavy)} heavy operations is an output already, or takes work that was done "
        "before"
    )


def _told(node: fx.Node) -> str:
    """An operation by its name, and what it makes if that is a tensor."""
    value = node.meta.get("val")
    made = f" ({str(value.dtype).removeprefix('torch.')})" if isinstance(value, torch.Tensor) else ""
    overloads = getattr(node.target, "overloadpacket", None)
    return f"{getattr(overloads or node.target, '__name__', node.name)}{made}"


def _work_done(traced: Traced, heavy: Sequence[fx.Node], positions: int) -> list[float]:
    """For each position of the graph, the end included, the share of all work before it."""
    work = {node: flops(node, traced.sizes) for node in heavy}
    total, done, shares = sum(work.values()) or 1, 0, []
    for node in traced.graph.nodes:
        shares.append(done / total)
        done += work.get(node, 0)
    return [*shares, *[1.0] * (positions + 1 - len(shares))]


def _preference(place: Place) -> tuple[int, bool, int]:
    return place.bytes, is_rearrangement(place.nodes[-1]), -place.position


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

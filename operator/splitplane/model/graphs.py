"""A model as its cuts and segments: what a profile reports and what a partition is built from."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import fx

from splitplane.domain.codecs import encoded_bytes
from splitplane.domain.profiles import CODECS, Cut, TensorSpec
from splitplane.model.cutting import Place, find_places, needed
from splitplane.model.source import ModelSource
from splitplane.model.tracing import Kind, Traced, trace
from splitplane.model.weights import WeightsFile

FORMAT = 1
"""Part of the fingerprint: raised when the rules of cutting change, for then indices of cuts mean other places."""


@dataclass(frozen=True)
class ModelGraph:
    """The cuts and segments of a model; cut 0 is its input, the last cut its output.

    ``segments[i]`` lies between cut ``i`` and cut ``i + 1`` and is named as people know it; a cut is named after the
    segment before it. ``weight_bytes[i]`` counts a weight that two segments share in both. ``fingerprint`` covers
    graph, cuts, weights digest and torch's minor version: parts with equal fingerprints fit together.
    """

    cuts: tuple[Cut, ...]
    segments: tuple[str, ...]
    weight_bytes: tuple[int, ...]
    fingerprint: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source: ModelSource
    traced: Traced = field(repr=False)
    places: tuple[Place, ...] = field(repr=False)

    def nodes(self, first: int, last: int) -> set[fx.Node]:
        """Every node that the range ``[first, last)`` runs or reads, what crosses its first cut excluded."""
        return needed(self.traced, self.places[first].nodes, self.places[last].nodes)

    def crossing(self, cut: int) -> Mapping[str, fx.Node]:
        """Nodes by the names under which they cross a cut."""
        if cut == 0:
            return self.traced.inputs
        if cut == len(self.segments):
            return {f"output_{index}": node for index, node in enumerate(self.traced.outputs)}
        return {node.name: node for node in self.places[cut].nodes}


def export(source: ModelSource) -> ModelGraph:
    """Trace a model and find its cuts. The weights are verified, not loaded.

    Raises :class:`FactoryError`, :class:`WeightsError` or :class:`NotSplittableError`.
    """
    digest = WeightsFile.open(source).sha256
    traced = trace(source)
    places = tuple(find_places(traced))
    segments = _segment_names(traced, places)
    names = ("input", *segments[:-1], "output")
    cuts = []
    for index, place in enumerate(places):
        if index == 0:
            specs = source.inputs
        elif index == len(segments):
            specs = tuple(_spec(traced, node, f"output_{i}") for i, node in enumerate(traced.outputs))
        else:
            specs = tuple(_spec(traced, node, node.name) for node in place.nodes)
        cuts.append(_cut(index, names[index], specs))
    return ModelGraph(
        cuts=tuple(cuts),
        segments=segments,
        weight_bytes=tuple(_weight_bytes(traced, left, right) for left, right in pairwise(places)),
        fingerprint=_fingerprint(traced, cuts, digest),
        inputs=cuts[0].tensors,
        outputs=cuts[-1].tensors,
        source=source,
        traced=traced,
        places=places,
    )


def _spec(traced: Traced, node: fx.Node, name: str) -> TensorSpec:
    spec = traced.spec(node, name)
    assert spec is not None, node.name  # only what can be sent is offered as a cut
    return spec


def _cut(index: int, name: str, tensors: tuple[TensorSpec, ...]) -> Cut:
    form = json.dumps([[spec.name, spec.datatype, spec.shape] for spec in tensors])
    return Cut(
        index=index,
        name=name,
        tensors=tensors,
        wire_bytes={codec: sum(encoded_bytes(spec, codec) for spec in tensors) for codec in CODECS},
        schema_hash=hashlib.sha256(form.encode()).hexdigest()[:16],
    )


def _weight_bytes(traced: Traced, left: Place, right: Place) -> int:
    return sum(
        node.meta["val"].numel() * node.meta["val"].element_size()
        for node in needed(traced, left.nodes, right.nodes)
        if node in traced.weights
    )


def _segment_names(traced: Traced, places: tuple[Place, ...]) -> tuple[str, ...]:
    """The module that a segment's weights have in common, else the first of those modules, else an operation."""
    names: list[str] = []
    for left, right in pairwise(places):
        nodes = needed(traced, left.nodes, right.nodes)
        own = [node for node in traced.graph.nodes if node in nodes and traced.kinds.get(node) is Kind.DATA]
        paths = [
            path.split(".")
            for node in own
            if any(source in traced.weights for source in node.all_input_nodes) and (path := _module_path(node))
        ]
        common: list[str] = []
        for parts in zip(*paths, strict=False):
            if len(set(parts)) > 1:
                break
            common.append(parts[0])
        name = ".".join(common or (paths[0] if paths else [own[-1].name if own else "identity"]))
        names.append(name if name not in names else f"{name}#{names.count(name) + 1}")
    return tuple(names)


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _fingerprint(traced: Traced, cuts: Iterable[Cut], digest: str) -> str:
    major, minor = torch.__version__.split(".")[:2]
    lines = [f"format {FORMAT}", f"torch {major}.{minor}", f"weights {digest}"]
    lines.extend(
        f"{node.op} {node.name} {node.target} {node.args} {node.kwargs} {_form(traced, node)}"
        for node in traced.graph.nodes
    )
    lines.extend(f"cut {cut.schema_hash}" for cut in cuts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _form(traced: Traced, node: fx.Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ""
    return f"{value.dtype} {['batch' if traced.is_batch(size) else str(size) for size in value.shape]}"

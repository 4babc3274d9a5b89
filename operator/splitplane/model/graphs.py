"""A model as its cuts and segments: what a profile reports and what a partition is built from."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

from splitplane import afresh
from splitplane.domain.codecs import encoded_bytes
from splitplane.domain.profiles import CODECS, Cut, TensorSpec, Tied, Work
from splitplane.model.crossing import Crossing, Form
from splitplane.model.cutting import find_places, why_uncut
from splitplane.model.errors import FactoryError, NotSplittableError
from splitplane.model.flow import Place
from splitplane.model.naming import segment_names
from splitplane.model.origins import input_of
from splitplane.model.outside import traced_objects
from splitplane.model.seeding import refuse_unseeded_whole
from splitplane.model.sizes import Sizes, expression
from splitplane.model.source import ModelSource
from splitplane.model.traced import Kind, Traced
from splitplane.model.tracing import trace
from splitplane.model.weights import WeightsFile, tensor_bytes
from splitplane.model.whole import describe_whole
from splitplane.model.work import work_of

FORMAT = 2
"""Part of the fingerprint: raised when the rules of cutting change, for then indices of cuts mean other places."""


@dataclass(frozen=True)
class Value:
    """One thing that crosses a cut: the value of a node, or a free size that no tensor shows."""

    name: str
    node: fx.Node | None
    symbol: sympy.Symbol | None
    crossing: Crossing


@dataclass(frozen=True)
class Program:
    """A splittable model's graph and where it is cut."""

    traced: Traced
    places: tuple[Place, ...]

    @property
    def sizes(self) -> Sizes:
        return self.traced.sizes

    def nodes(self, first: int, last: int) -> set[fx.Node]:
        """Every node that the range ``[first, last)`` runs or reads, what crosses its first cut excluded."""
        return self.traced.needed(self.places[first].nodes, self.places[last].nodes)

    def resident(self, first: int, last: int) -> set[fx.Node]:
        """Every node that the range or one inside it runs or reads."""
        return set[fx.Node]().union(*(self.nodes(cut, cut + 1) for cut in range(first, last)))

    def crossing(self, cut: int) -> tuple[Value, ...]:
        """What crosses a cut, in the order of its schema."""
        named: Iterable[tuple[str, fx.Node]]
        if cut == 0:
            named = self.traced.inputs.items()
        elif cut == len(self.places) - 1:
            named = ((f"output_{index}", node) for index, node in enumerate(self.traced.outputs))
        else:
            named = ((self._named(node), node) for node in self.places[cut].nodes)
        values = [Value(name, node, None, _crossing(self.traced, node)) for name, node in named]
        for symbol in self.places[cut].sizes:
            size = Crossing(Form.SIZE, 0, torch.int64, ())
            values.append(Value(f"size_{self.sizes.by_symbol[symbol].name}", None, symbol, size))
        return tuple(values)

    def _named(self, node: fx.Node) -> str:
        """The name under which a value crosses, by which ``domain.inputs`` tells what still shows an input."""
        shown = input_of(self.traced, node)
        return node.name if shown is None or shown == node.name else f"{shown}.{node.name}"

    def work(self, first: int, last: int) -> Work:
        """What a range asks of a device for one sample; rearrangements and what is done at loading count nothing."""
        return work_of(
            (node for node in self.nodes(first, last) if self.traced.kinds.get(node) is Kind.DATA), self.sizes
        )

    def weight_bytes(self, first: int, last: int) -> int:
        """Bytes of the weights that a range reads, tied ones counted once."""
        return sum(self._weights(first, last).values())

    def tied(self) -> tuple[Tied, ...]:
        """What segments share of their weights."""
        latest: dict[str, int] = {}
        found: defaultdict[tuple[int, int], int] = defaultdict(int)
        for segment in range(len(self.places) - 1):
            for name, size in self._weights(segment, segment + 1).items():
                if name in latest:
                    found[latest[name], segment] += size
                latest[name] = segment
        return tuple(Tied(*segments, size) for segments, size in sorted(found.items()))

    def _weights(self, first: int, last: int) -> Mapping[str, int]:
        """Bytes of the weights that a range reads, by their names in the file."""
        held = {
            self.traced.weights[node]: node.meta["val"]
            for node in self.resident(first, last)
            if node in self.traced.weights
        }
        return {name: value.numel() * value.element_size() for name, value in held.items()}


@dataclass(frozen=True)
class ModelGraph:
    """The cuts and segments of a model; cut 0 is its input, the last cut its output.

    ``segments[i]`` lies between cut ``i`` and cut ``i + 1`` and is named as people know it; a cut is named after the
    segment before it. ``weight_bytes[i]`` counts a weight that two segments share in both; ``tied`` holds what they
    share. ``fingerprint`` covers graph (of a model that cannot be split, its source files), cuts, rebuilt buffers,
    weights digest and torch's minor version: parts with equal fingerprints fit together.

    A model that cannot be split has one segment and no program; ``refusal`` says why. Another may have one segment as
    well, for there is no place in it worth a cut; ``uncut`` says why.
    """

    cuts: tuple[Cut, ...]
    segments: tuple[str, ...]
    weight_bytes: tuple[int, ...]
    fingerprint: str
    source: ModelSource
    program: Program | None = field(repr=False)
    refusal: NotSplittableError | None = None
    uncut: str | None = None
    tied: tuple[Tied, ...] = ()

    @property
    def verdict(self) -> str | None:
        """What to tell a user of a model that has one segment only."""
        if self.refusal is not None:
            return f"cannot be split, and is served whole: {self.refusal}"
        return None if self.uncut is None else f"has no place worth a cut, and is served whole: {self.uncut}"

    def work(self) -> tuple[Work, ...]:
        """What each segment asks of a device for one sample. Of a model that cannot be split nothing is known."""
        if self.program is None:
            return (Work(0, 0),)
        return tuple(self.program.work(cut, cut + 1) for cut in range(len(self.segments)))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.cuts[0].tensors

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.cuts[-1].tensors


def export(source: ModelSource) -> ModelGraph:
    """Trace a model and find its cuts. The weights are verified; they are read only if the model cannot be split.

    Raises :class:`FactoryError` or :class:`WeightsError`.
    """
    digest = "none" if source.weights_uri is None else WeightsFile.open(source).sha256
    earlier = _found_earlier(source)
    if earlier is not None:
        return _whole(source, digest, earlier, again=True)
    before = traced_objects()
    refusal = None
    try:
        traced = trace(source)
        program = Program(traced, tuple(find_places(traced)))
    except NotSplittableError as error:
        # A copy, for the one that was raised holds all that its stack refers to.
        refusal = NotSplittableError(error.reason, error.location)
    if refusal is not None:
        if len(traced_objects()) > len(before):
            afresh.begin_again(_told(source, refusal))
        return _whole(source, digest, refusal)
    segments = segment_names(traced, program.places)
    specs: list[Sequence[TensorSpec]] = [
        [value.crossing.spec(value.name, program.sizes) for value in program.crossing(cut)]
        for cut in range(len(program.places))
    ]
    cuts = _cuts((source.inputs, *specs[1:]), segments)
    return ModelGraph(
        cuts=cuts,
        segments=segments,
        weight_bytes=tuple(program.weight_bytes(left, right) for left, right in pairwise(range(len(cuts)))),
        fingerprint=_fingerprint([f"weights {digest}", *_graph_lines(program)], cuts),
        source=source,
        program=program,
        uncut=why_uncut(traced) if len(segments) == 1 else None,
        tied=program.tied(),
    )


def _told(source: ModelSource, refusal: NotSplittableError) -> str:
    return json.dumps([_model(source), refusal.reason, refusal.location])


def _found_earlier(source: ModelSource) -> NotSplittableError | None:
    """Why this model cannot be split, if this program found out before it began again."""
    model, *refusal = json.loads(afresh.told() or "[null]")
    return NotSplittableError(*refusal) if model == _model(source) else None


def _model(source: ModelSource) -> str:
    # A trace reads no weights, and where they lie may differ the next time: in a temporary folder.
    return repr(replace(source, weights_uri=None))


def _whole(source: ModelSource, digest: str, refusal: NotSplittableError, *, again: bool = False) -> ModelGraph:
    """``again``: in a process that was begun for want of one that knows no tensors without memory."""
    try:
        refuse_unseeded_whole(source, lean=not again)
        described = describe_whole(source)
    except FactoryError as error:
        raise FactoryError(f"{refusal}; nor can it be served whole: {error}") from error
    cuts = _cuts((source.inputs, described.outputs), ("model",))
    return ModelGraph(
        cuts=cuts,
        segments=("model",),
        weight_bytes=(described.weight_bytes,),
        fingerprint=_fingerprint([f"weights {digest}", f"whole {source.factory}", *described.code], cuts),
        source=source,
        program=None,
        refusal=refusal,
    )


def _crossing(traced: Traced, node: fx.Node) -> Crossing:
    crossing = traced.crossing(node)
    assert crossing is not None, node.name  # only what can be sent is offered as a cut
    return crossing


def _cuts(specs: Sequence[Sequence[TensorSpec]], segments: Sequence[str]) -> tuple[Cut, ...]:
    names = ("input", *segments[:-1], "output")
    return tuple(
        _cut(index, name, tuple(tensors)) for index, (name, tensors) in enumerate(zip(names, specs, strict=True))
    )


def _cut(index: int, name: str, tensors: tuple[TensorSpec, ...]) -> Cut:
    form = json.dumps([[spec.name, spec.datatype, spec.shape, spec.free] for spec in tensors])
    return Cut(
        index=index,
        name=name,
        tensors=tensors,
        wire_bytes={codec: sum(encoded_bytes(spec, codec) for spec in tensors) for codec in CODECS},
        schema_hash=hashlib.sha256(form.encode()).hexdigest()[:16],
    )


def _fingerprint(lines: Iterable[str], cuts: Iterable[Cut]) -> str:
    major, minor = torch.__version__.split(".")[:2]
    told = [f"format {FORMAT}", f"torch {major}.{minor}", *lines, *(f"cut {cut.schema_hash}" for cut in cuts)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


def _graph_lines(program: Program) -> Iterable[str]:
    traced = program.traced
    for node in traced.graph.nodes:
        yield f"{node.op} {node.name} {node.target} {node.args} {node.kwargs} {_form(traced, node)}"
    for node, value in traced.constants.items():
        yield f"constant {node.name} {hashlib.sha256(tensor_bytes(value.contiguous())).hexdigest()}"
    for name, module in traced.root.named_modules():  # branches and loops, which nodes call by name
        if name and isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                yield f"in {name}: {node.op} {node.name} {node.target} {node.args} {node.kwargs}"


def _form(traced: Traced, node: fx.Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ""
    sizes = traced.sizes
    told = [sizes.name(expression(size)) or str(size) if sizes.knows(size) else "?" for size in value.shape]
    return f"{value.dtype} {told}"

"""A contiguous range of segments in memory, and the code that runs any range inside it."""

import threading
from collections.abc import Callable, Mapping
from functools import partial

import torch

from splitplane.model.checking import InputCheck
from splitplane.model.compiling import compile_range, constants
from splitplane.model.errors import WeightsError
from splitplane.model.graphs import ModelGraph, Program, export
from splitplane.model.source import ModelSource
from splitplane.model.weights import WeightsFile
from splitplane.model.whole import check_fits, load_whole, run_whole

Code = Callable[..., tuple[torch.Tensor, ...]]
"""Takes the tensors of a cut in the order of its schema, gives those of another."""

Mark = Callable[[], None]


Compile = Callable[[int, int, Mark | None], Code]
"""Makes code for a range, which calls the mark, if there is one, each time that a cut after the first is reached."""


class Partition:
    """Segments ``[first, last)`` of a model with their weights.

    Every active range is compiled once, on first use, into straight-line code. Threads may share a partition.
    """

    def __init__(self, graph: ModelGraph, first: int, last: int, compile_range: Compile) -> None:
        self.graph = graph
        self.first = first
        self.last = last
        self._compile = compile_range
        self._compiled: dict[tuple[int, int], tuple[InputCheck, Code]] = {}
        self._lock = threading.Lock()

    def run(self, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run ``[first, last)`` on what crosses cut ``first``; returns what crosses cut ``last``, contiguous.

        Raises ``ValueError`` when the range is not resident here, or names, dtypes or shapes are not the cut's.
        """
        check, code = self._compiled.get((first, last)) or self._prepare(first, last)
        arguments = check(tensors)
        with torch.inference_mode():
            results = code(*arguments)
            return {
                spec.name: result.contiguous()
                for spec, result in zip(self.graph.cuts[last].tensors, results, strict=True)
            }

    def marked(self, mark: Mark) -> Callable[[Mapping[str, torch.Tensor]], None]:
        """What runs all that is resident, and calls ``mark`` each time that a cut after the first is reached."""
        check, code = InputCheck(self.graph, self.first), self._compile(self.first, self.last, mark)

        def run(tensors: Mapping[str, torch.Tensor]) -> None:
            arguments = check(tensors)
            with torch.inference_mode():
                code(*arguments)

        return run

    def _prepare(self, first: int, last: int) -> tuple[InputCheck, Code]:
        if not self.first <= first < last <= self.last:
            raise ValueError(f"range {first}:{last} is empty or not inside the resident range {self.first}:{self.last}")
        with self._lock:
            if (first, last) not in self._compiled:
                self._compiled[first, last] = InputCheck(self.graph, first), self._compile(first, last, None)
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
    if graph.program is None:
        return Partition(graph, first, end, partial(_whole, graph.source))
    return Partition(graph, first, end, _ranges(graph, graph.program, first, end))


def _ranges(graph: ModelGraph, program: Program, first: int, last: int) -> Compile:
    traced, nodes = program.traced, program.resident(first, last)
    expected = {traced.weights[node]: node.meta["val"] for node in nodes if node in traced.weights}
    file = WeightsFile.open(graph.source)
    weights = file.read(expected, traced.aliases)
    for name, tensor in weights.items():
        check_fits(name, tensor, expected[name])
    rebuilt = {traced.constant_names[node]: traced.constants[node] for node in nodes if node in traced.constants}
    for name, tensor in file.read_held(rebuilt).items():
        check_rebuilt(name, tensor, rebuilt[name])
    values = constants(program, nodes, weights)
    return lambda start, end, mark: compile_range(program, start, end, values, mark)


def check_rebuilt(name: str, held: torch.Tensor, rebuilt: torch.Tensor) -> None:
    """Raises :class:`WeightsError` if a file that holds a buffer which the factory rebuilds has other values in it.

    Of integers and booleans only: old files hold tables of frequencies in less precision.
    """
    if not rebuilt.is_floating_point() and not torch.equal(held.to(rebuilt.dtype), rebuilt):
        raise WeightsError(
            f"buffer {name} has other values in the file than the factory gives it: the file belongs to a model that "
            "is configured otherwise"
        )


def _whole(source: ModelSource, _first: int, _last: int, mark: Mark | None) -> Code:
    module = load_whole(source)
    names = [spec.name for spec in source.inputs]

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = run_whole(source, module, dict(zip(names, tensors, strict=True)))
        if mark is not None:
            mark()
        return outputs

    return run

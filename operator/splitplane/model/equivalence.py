"""Whether the ranges of a model, composed, give what the model gives: the test that every model can be put to.

Every range runs in a process of its own, which reads its weights from disk and gets what crosses its first cut from a
file, as pods get it over the network. The whole model runs eagerly in another. A process is forked from one that has
the graph and no weights in memory.
"""

import math
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from splitplane.model.errors import ModelError
from splitplane.model.graphs import ModelGraph, export
from splitplane.model.partitions import load_weights
from splitplane.model.source import ModelSource
from splitplane.model.whole import load_whole, run_whole

TOLERANCE = 1e-5
"""Largest difference in fp32, as a share of the output's largest absolute value."""
BATCHES = (1, 3, 8)

Way = tuple[int, ...]
"""Cuts at which a model is divided, from 0 to the last."""
Ways = Callable[[int], Iterable[Way]]
"""The ways to try, given the last cut."""
Samples = Mapping[int, Mapping[str, torch.Tensor]]
"""Inputs by their batch size."""

# A process is forked from a server that has the libraries imported, and nothing of a model in memory.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["splitplane.model.equivalence", "torch.export._trace", "torch._dynamo"])
_RANGES = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the composed ranges are from the whole; infinite where a NaN or another integer came out."""

    way: Way
    batch: int
    error: float


def every_cut(last: int) -> Iterable[Way]:
    """Both sides of every cut, and the whole model as one range."""
    yield (0, last)
    yield from ((0, cut, last) for cut in range(1, last))


def every_segment(last: int) -> Iterable[Way]:
    """All segments, one after another."""
    yield tuple(range(last + 1))


def compare(
    source: ModelSource, samples: Samples, ways: Ways = every_cut, *, progress: Callable[[str], None] = lambda _: None
) -> list[Difference]:
    """Run a model in several ways, and as it is. Raises :class:`ModelError` if it cannot be loaded or split."""
    receiver, sender = _SERVER.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="splitplane-equivalence-") as folder:
        _save({batch: dict(tensors) for batch, tensors in samples.items()}, Path(folder) / "0")
        worker = _SERVER.Process(target=_compare, args=(source, ways, Path(folder), sender))
        worker.start()
        sender.close()
        try:
            while isinstance(message := receiver.recv(), str):
                progress(message)
        except EOFError:
            raise RuntimeError(f"a process that ran {source.name} died, see above") from None
        finally:
            worker.join()
    if isinstance(message, ModelError):
        raise message
    differences: list[Difference] = message
    return differences


def _compare(source: ModelSource, ways: Ways, folder: Path, sender: Connection) -> None:
    torch.set_num_threads(1)
    try:
        graph = export(source)
        if graph.refusal is not None:
            raise graph.refusal
        _in_process(_run_whole, source, folder / "0", folder / "whole")
        expected, differences = _load(folder / "whole"), []
        files: dict[Way, Path] = {(0,): folder / "0"}
        for way in ways(len(graph.segments)):
            for step, (first, last) in enumerate(pairwise(way), start=2):
                if way[:step] not in files:  # ways that begin alike share what they have in common
                    result = folder / str(len(files))
                    _in_process(_run_range, graph, first, last, files[way[: step - 1]], result)
                    files[way[:step]] = result
            outputs = _load(files[way])
            differences += [Difference(way, batch, _error(outputs[batch], expected[batch])) for batch in expected]
            sender.send(f"{source.name}: {'-'.join(map(str, way))}")
        sender.send(differences)
    except ModelError as error:
        sender.send(error)


def _in_process(target: Callable[..., None], *arguments: object) -> None:
    process = _RANGES.Process(target=target, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{target.__name__}{arguments[1:3]} ended with {process.exitcode}")


def _run_whole(source: ModelSource, given: Path, result: Path) -> None:
    module = load_whole(source)
    with torch.inference_mode():
        outputs = {batch: run_whole(source, module, tensors) for batch, tensors in _load(given).items()}
    _save({batch: {f"output_{i}": value for i, value in enumerate(each)} for batch, each in outputs.items()}, result)


def _run_range(graph: ModelGraph, first: int, last: int, given: Path, result: Path) -> None:
    partition = load_weights(graph, first, last)
    _save({batch: partition.run(first, last, tensors) for batch, tensors in _load(given).items()}, result)


def _save(tensors: Mapping[int, Mapping[str, torch.Tensor]], path: Path) -> None:
    flat = {f"{batch}/{name}": value.contiguous() for batch, each in tensors.items() for name, value in each.items()}
    save_file(flat, path)


def _load(path: Path) -> dict[int, dict[str, torch.Tensor]]:
    tensors: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path).items():
        batch, _, name = key.partition("/")
        tensors.setdefault(int(batch), {})[name] = value
    return tensors


def _error(outputs: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of any output, as a share of that output's largest absolute value."""
    return max(_relative(outputs[name], value) for name, value in expected.items())


def _relative(output: torch.Tensor, expected: torch.Tensor) -> float:
    if not expected.is_floating_point():
        return 0.0 if torch.equal(output, expected) else float("inf")
    difference, scale = (output.double() - expected.double()).abs().max(), expected.double().abs().max()
    error = float(difference / scale) if scale > 0 else float(difference)
    return float("inf") if math.isnan(error) else error

"""Whether the ranges of a model, composed, give what the model gives: the test that every model can be put to.

Every range runs in a process of its own, which reads its weights from disk and gets what crosses its first cut from a
file, as pods get it over the network. The whole model runs eagerly in another. A process is forked from one that has
the graph and no weights in memory, and draws random numbers of its own.
"""

import multiprocessing
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from splitplane.model.errors import FactoryError, ModelError
from splitplane.model.graphs import ModelGraph, export
from splitplane.model.partitions import load_weights
from splitplane.model.samples import Run
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
Draw = Callable[[ModelGraph, Run], Samples]
"""Makes inputs for a model, given its graph and what runs it as it is."""
_Answer = TypeVar("_Answer")

# A process is forked from a server that has the libraries imported, and nothing of a model in memory.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["splitplane.model.equivalence", "torch.export._trace", "torch._dynamo"])
_RANGES = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the composed ranges are from the whole.

    Infinite where they give another shape, type, integer, infinity or NaN, and where a range fails: then ``failure``
    says how.
    """

    way: Way
    batch: int
    error: float
    failure: str = ""


@dataclass(slots=True)
class _Given:
    """What the ranges of a way gave: a file with the batches that came through, and why the others did not."""

    path: Path
    failures: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Whole:
    """Which batches the whole did not come through, and why; and what is odd about it."""

    failures: dict[int, str]
    note: str = ""


def every_cut(last: int) -> Iterable[Way]:
    """Both sides of every cut, and the whole model as one range."""
    yield (0, last)
    yield from ((0, cut, last) for cut in range(1, last))


def every_segment(last: int) -> Iterable[Way]:
    """All segments, one after another."""
    yield tuple(range(last + 1))


def compare(
    source: ModelSource,
    samples: Samples | Draw,
    ways: Ways = every_cut,
    *,
    progress: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Difference]:
    """Run a model in several ways, and as it is; ``note`` is told what is odd about it as it is.

    Raises :class:`ModelError` if it cannot be loaded or split, or fails as it is on these samples.
    """
    receiver, sender = _SERVER.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="splitplane-equivalence-") as folder:
        if not callable(samples):
            _save(samples, Path(folder) / "0")
        draw = samples if callable(samples) else None
        worker = _SERVER.Process(target=_compare, args=(source, draw, ways, Path(folder), sender))
        worker.start()
        sender.close()
        try:
            while isinstance(message := receiver.recv(), str | _Whole):
                if isinstance(message, str):
                    progress(message)
                elif message.note:
                    note(message.note)
        except EOFError:
            raise RuntimeError(f"the process that exported {source.name} died, see above") from None
        except BaseException:  # as when the user interrupts it
            worker.terminate()
            raise
        finally:
            worker.join()
    if isinstance(message, ModelError):
        raise message
    differences: list[Difference] = message
    return differences


def _compare(source: ModelSource, draw: Draw | None, ways: Ways, folder: Path, sender: Connection) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a terminal sends to all; it is for the caller to end them
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and with this one its own, which are daemons
    try:
        graph = export(source)
        if graph.refusal is not None:
            raise graph.refusal
        try:
            ran = _in_process(_run_whole, graph, draw, folder / "0", folder / "whole")
        except _DiedError as error:
            raise FactoryError(f"{source.factory} as it is: {error}") from error
        sender.send(ran)
        if ran.failures:
            told = "; ".join(f"on {batch} samples: {why}" for batch, why in ran.failures.items())
            raise FactoryError(f"{source.factory} fails as it is, on inputs as declared, {told}")
        expected, differences = _load(folder / "whole"), []
        made: dict[Way, _Given] = {(0,): _Given(folder / "0")}
        for way in ways(len(graph.segments)):
            for step, (first, last) in enumerate(pairwise(way), start=2):
                if way[:step] not in made:  # ways that begin alike share what they have in common
                    given, result = made[way[: step - 1]], folder / str(len(made))
                    try:
                        found = _in_process(_run_range, graph, first, last, given.path, result)
                    except _DiedError as error:
                        found = dict.fromkeys(expected, str(error))
                        _save({}, result)
                    made[way[:step]] = _Given(result, {**found, **given.failures})
            outputs, failures = _load(made[way].path), made[way].failures
            for batch, whole in expected.items():
                far = float("inf") if batch in failures else _error(outputs[batch], whole)
                differences.append(Difference(way, batch, far, failures.get(batch, "")))
            sender.send(f"{source.name}: {'-'.join(map(str, way))}")
        sender.send(differences)
    except ModelError as error:
        sender.send(error)


class _DiedError(Exception):
    """A process ended without a word, such as one that was killed for its memory."""


def _in_process(target: Callable[..., _Answer], *arguments: object) -> _Answer:
    """Call what runs all batches in a process of its own.

    Raises :class:`ModelError` as the target does, and :class:`_DiedError`.
    """
    receiver, sender = _RANGES.Pipe(duplex=False)
    process = _RANGES.Process(target=_report, args=(sender, target, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        message = receiver.recv()
    except EOFError:
        process.join()
        raise _DiedError(f"the process that ran it ended with {process.exitcode}") from None
    process.join()
    if isinstance(message, ModelError):
        raise message
    answer: _Answer = message
    return answer


def _report(sender: Connection, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Pods have no random state in common, which forked processes have.
    torch.seed()
    random.seed()
    np.random.seed()
    try:
        sender.send(target(*arguments))
    except ModelError as error:
        sender.send(error)


def _run_whole(graph: ModelGraph, draw: Draw | None, given: Path, result: Path) -> _Whole:
    # As the layers are written, and trained: torch's fast path leaves out what is padding, and part of autocast.
    torch.backends.mha.set_fastpath_enabled(False)
    source = graph.source
    module = load_whole(source)

    def run(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return {f"output_{index}": value for index, value in enumerate(run_whole(source, module, tensors))}

    if draw is not None:
        try:
            samples = draw(graph, run)
        except Exception as error:  # the tenant's code may raise anything
            raise FactoryError(f"{source.factory} fails as it is, on inputs as declared: {_told(error)}") from error
        _save(samples, given)
    failures = _run_each(run, given, result)
    _refuse_noise(source, run, given, result)
    attends = any(isinstance(each, nn.TransformerEncoderLayer | nn.MultiheadAttention) for each in module.modules())
    return _Whole(failures, _on_fast_path(run, given, result) if attends else "")


def _on_fast_path(run: Run, given: Path, result: Path) -> str:
    """What torch's fast path for attention makes of it, where that differs."""
    torch.backends.mha.set_fastpath_enabled(True)
    inputs = _load(given)
    far = max((_error(run(inputs[batch]), before) for batch, before in _load(result).items()), default=0.0)
    if far <= TOLERANCE:
        return ""
    told = f"by up to {far:.2g} of the largest value" if far < float("inf") else "in their form"
    return (
        "as it is, the model takes torch's fast path for attention, whose answers differ from those of its layers as "
        f"they are written {told}. Parts compute what is written, and are compared with that"
    )


def _refuse_noise(source: ModelSource, run: Run, given: Path, result: Path) -> None:
    """Raises :class:`FactoryError` where the whole gives something else when it is called again."""
    batch, before = next(iter(_load(result).items()), (0, {}))
    if not before:
        return
    again: Mapping[str, torch.Tensor] = run(_load(given)[batch])
    far = _error(again, before)
    if far > TOLERANCE:
        raise FactoryError(
            f"{source.factory} as it is gives other outputs at each call with the same inputs (by {far:.2g} of the "
            "largest value), so nothing can be compared with them: it draws random numbers. Let the factory leave "
            "these out for the comparison"
        )


def _run_range(graph: ModelGraph, first: int, last: int, given: Path, result: Path) -> dict[int, str]:
    partition = load_weights(graph, first, last)
    return _run_each(lambda tensors: partition.run(first, last, tensors), given, result)


def _run_each(
    run: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]], given: Path, result: Path
) -> dict[int, str]:
    """Write what each batch gives; why the others give nothing is returned."""
    results, failures = dict[int, Mapping[str, torch.Tensor]](), dict[int, str]()
    for batch, tensors in _load(given).items():
        try:
            results[batch] = run(tensors)
        except Exception as error:  # the tenant's code may raise anything
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
            failures[batch] = f"{_told(error)} (given {shapes})"
    _save(results, result)
    return failures


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _save(tensors: Mapping[int, Mapping[str, torch.Tensor]], path: Path) -> None:
    # Copies, for the format takes no tensors that share memory, as two outputs may.
    flat = {
        f"{batch}/{name}": value.clone(memory_format=torch.contiguous_format)
        for batch, each in tensors.items()
        for name, value in each.items()
    }
    save_file(flat, path)


def _load(path: Path) -> dict[int, dict[str, torch.Tensor]]:
    tensors: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path).items():
        batch, _, name = key.partition("/")
        tensors.setdefault(int(batch), {})[name] = value
    return tensors


def _error(outputs: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    if outputs.keys() != expected.keys():
        return float("inf")
    return max(relative_error(outputs[name], value) for name, value in expected.items())


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest finite absolute value that is expected.

    Infinite for another shape, type or integer, and where one is an infinity or NaN that the other is not.
    """
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(output, expected) else float("inf")
    finite = expected.isfinite()
    odd, odd_expected = output[~finite], expected[~finite]
    if not output[finite].isfinite().all() or not torch.allclose(odd, odd_expected, equal_nan=True):
        return float("inf")
    output, expected = output[finite].double(), expected[finite].double()
    if not expected.numel():
        return 0.0
    difference, scale = (output - expected).abs().max(), expected.abs().max()
    return float(difference / scale) if scale > 0 else float(difference)

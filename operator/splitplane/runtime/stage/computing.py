"""The work of the compute thread: decode requests, run the active range on them, encode what comes out.

Requests for the same range and of the same shapes may run as one batch. Each is decoded, encoded and answered by
itself: a codec's scales, and an error, are one request's own.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from splitplane.domain.profiles import Cut
from splitplane.runtime import codecs
from splitplane.runtime.inference import InferenceError, Tensor, TensorMetadata
from splitplane.runtime.metrics import StageMetrics
from splitplane.runtime.routes import Limits
from splitplane.runtime.stage.batching import Book, Sizes, joined, parted
from splitplane.runtime.stage.shielding import Shield

Pace = Callable[[float, float], float]
"""Given the core's and the wall's seconds of a range, waits as a slower device would; returns the seconds waited."""


class Graph(Protocol):
    """What a stage asks of a model's graph."""

    @property
    def cuts(self) -> Sequence[Cut]: ...


class Runnable(Protocol):
    """A resident range of a model (``splitplane.model`` loads it)."""

    @property
    def graph(self) -> Graph: ...

    def run(self, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]: ...


@dataclass(frozen=True, slots=True)
class Item:
    """One request's tensors as they came, the codec for what comes out, and whether that is defended first."""

    inputs: Sequence[Tensor]
    codec: str
    shielded: bool = False


@dataclass(frozen=True, slots=True)
class Computed:
    """One request's result; ``compute`` is what it was in the range for, be it with others."""

    tensors: tuple[Tensor, ...]
    decode: float
    compute: float
    encode: float


class Computer:
    """Makes work for the compute thread, and keeps what was learnt of batches. ``pace`` emulates a slower device."""

    def __init__(self, pace: Pace, metrics: StageMetrics, shield: Shield) -> None:
        self.pace, self.metrics, self.shield = pace, metrics, shield
        self.book = Book()

    def work(
        self, partition: Runnable, first: int, last: int, described: Sequence[TensorMetadata], limits: Limits
    ) -> "RangeWork":
        """What is to be done with a request whose tensors are described so."""
        shapes = tuple((tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in described)
        samples = described[0].shape[0] if described and described[0].shape else 1
        return RangeWork(self, partition, first, last, shapes, samples, limits)


@dataclass(frozen=True, slots=True)
class RangeWork:
    """A run of ``[first, last)`` for requests of these shapes (``worker.Batch``); ``samples`` are the request's."""

    computer: Computer
    partition: Runnable
    first: int
    last: int
    shapes: tuple[tuple[str, str, tuple[int, ...]], ...]
    samples: int
    limits: Limits

    @property
    def key(self) -> Hashable:
        return (self.first, self.last, self.limits, self.shapes)

    def most(self) -> int:
        return 1 if self.limits.samples == 1 else self._sizes.most(self.limits)

    def patience(self) -> tuple[int, float]:
        return self._sizes.patience(self.limits)

    @property
    def _sizes(self) -> Sizes:
        return self.computer.book.of((self.first, self.last, self.shapes))

    def run(self, items: Sequence[Item]) -> list[Computed | Exception]:
        """Emulated slowness holds the thread, as compute on a slower device would. Raises what the range raises."""
        decoded = [_decoded(item) for item in items]
        good = [each for each in decoded if isinstance(each, _Decoded)]
        if not good:
            return [each for each in decoded if isinstance(each, Exception)]
        samples = [each.samples for each in good]
        started, core = time.perf_counter(), time.thread_time()
        outputs = parted(self.partition.run(self.first, self.last, joined([each.tensors for each in good])), samples)
        self.computer.pace(time.thread_time() - core, time.perf_counter() - started)
        seconds = time.perf_counter() - started
        self._count(samples, seconds)
        ready = iter(outputs)
        return [
            self._encoded(next(ready), item, each.seconds, seconds) if isinstance(each, _Decoded) else each
            for item, each in zip(items, decoded, strict=True)
        ]

    def _encoded(self, outputs: Mapping[str, torch.Tensor], item: Item, decode: float, compute: float) -> Computed:
        started = time.perf_counter()
        if item.shielded:
            outputs = self.computer.shield(outputs)
        tensors = codecs.encode(outputs, item.codec)
        return Computed(tensors, decode, compute, time.perf_counter() - started)

    def _count(self, samples: Sequence[int], seconds: float) -> None:
        """The planner's stages know no batches: it is told what each request would have taken by itself."""
        sizes, total = self._sizes, sum(samples)
        sizes.ran(total, seconds, requests=len(samples))
        metrics = self.computer.metrics
        metrics.ran(total)
        for each in samples:
            alone = seconds if each == total else seconds * each / total * sizes.gain(total)
            metrics.computed(first=self.first, last=self.last, seconds=alone)


@dataclass(frozen=True, slots=True)
class _Decoded:
    tensors: Mapping[str, torch.Tensor]
    samples: int
    seconds: float


def _decoded(item: Item) -> _Decoded | InferenceError:
    started = time.perf_counter()
    try:
        tensors = codecs.decode(item.inputs)
    except InferenceError as error:
        return error
    samples = next((tensor.shape[0] for tensor in tensors.values() if tensor.ndim), 1)
    return _Decoded(tensors, samples, time.perf_counter() - started)

"""Measure a model on this device: time of every prefix, of other batch sizes and thread counts, codecs, memory.

The whole is run, and the clock read as it reaches each cut: nothing is run in parts that are summed, so caches and
allocator behave as they will in service.

On an emulated device the core's time is measured and multiplied by its speed factor, as a stage paces itself.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from splitplane.domain.codecs import raw_bytes
from splitplane.domain.profiles import ZSTD, CodecTimes, Cut, Timing
from splitplane.model.errors import FactoryError
from splitplane.model.memory import available_bytes, grown
from splitplane.model.partitions import Partition
from splitplane.model.samples import runnable_ids, sample
from splitplane.model.timing import WARM_UP, Clock, Tensors, time_prefixes

BUDGET_SECONDS = 16.0
"""Default time for all measuring after the model is loaded."""
OWN_SHARE, OTHER_SHARE = 0.4, 0.45
"""Parts of the budget for the batch of one on all threads, and for all other batch sizes and thread counts; the rest is
for codecs."""
BATCHES = (1, 4, 16)
OTHER_ROUNDS = 2, 20
REPORT_SECONDS = 2.0
CODEC_REPEATS = 7


@dataclass(frozen=True, slots=True)
class Codec:
    """The two directions of a wire codec, ``decode(encode(tensors))`` gives tensors again, and bytes on the wire."""

    encode: Callable[[Tensors], Any]
    decode: Callable[[Any], Any]
    size: Callable[[Any], int]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one device takes; seconds are medians for a batch of one on ``threads`` threads.

    ``prefix_seconds[i]`` belongs to ``[0, i)`` and never falls with ``i``. ``time_cv`` is the robust coefficient of
    variation of a range's time. ``activation_bytes`` is what the resident set grew by beyond the weights. ``cuts`` are
    the model's, with the bytes that codecs which compress took. ``inputs`` are the made-up sample that it ran on.
    """

    prefix_seconds: tuple[float, ...]
    time_cv: float
    rounds: int
    threads: int
    timings: tuple[Timing, ...]
    activation_bytes: int
    cuts: tuple[Cut, ...]
    codec_times: Mapping[str, CodecTimes]
    inputs: Tensors


Progress = Callable[[float, str], None]
"""Told the share of the time that has passed, and what was just found."""


def measure(
    partition: Partition,
    *,
    codecs: Mapping[str, Codec],
    progress: Progress,
    slowdown: float = 1.0,
    budget_seconds: float = BUDGET_SECONDS,
    batches: Sequence[int] = BATCHES,
    clock: Clock = time.perf_counter,
) -> Measured:
    """Measure a wholly resident model on made-up inputs. Raises ``ValueError`` when it is only partly resident,
    and :class:`FactoryError` where it fails on them.

    ``slowdown`` is that of an emulated device: its times are the core's times as many; 1 on real devices, whose times
    are the wall's. At least ``ROUNDS[0]`` rounds are run however slow the device is, so a short budget may be overrun.
    """
    cuts = len(partition.graph.cuts)
    if (partition.first, partition.last) != (0, cuts - 1):
        raise ValueError("only a wholly resident model can be measured")
    report, ids = _Reporter(progress, budget_seconds), dict[str, range]()
    try:
        activation = grown(
            lambda: ids.update(runnable_ids(partition.graph, lambda given: partition.run(0, partition.last, given)))
        )
    except (IndexError, RuntimeError) as error:  # what an export on tensors without memory does not find out
        if "allocate memory" in str(error):
            raise
        told = ", ".join(f"{each.name} {each.datatype} {list(each.declared_shape)}" for each in partition.graph.inputs)
        raise FactoryError(
            f"the model of {partition.graph.source.factory} fails on inputs as they are declared ({told}): {error}. "
            "Correct spec.model.inputs, or let the factory return a model that takes these"
        ) from error
    inputs = sample(partition.graph.inputs, ids=ids)
    if slowdown != 1.0:  # an emulated device shares its core with others: what it waits for them is no time of its own
        clock = time.thread_time
    own = time_prefixes(
        partition, inputs, clock=clock, end=report.started + OWN_SHARE * budget_seconds,
        each_round=lambda rounds, seconds: report(f"round {rounds}: the whole model took {seconds * 1000:.1f} ms"),
    )  # fmt: skip
    until = time.monotonic() + OTHER_SHARE * budget_seconds
    others = _other_timings(partition, ids, own.seconds[-1], batches, activation, clock, until, report)
    return Measured(
        prefix_seconds=tuple(slowdown * seconds for seconds in own.seconds),
        time_cv=own.cv,
        rounds=own.rounds,
        threads=torch.get_num_threads(),
        timings=tuple(
            replace(each, prefix_seconds=tuple(slowdown * seconds for seconds in each.prefix_seconds))
            for each in others
        ),
        activation_bytes=activation,
        cuts=_compressed(partition, codecs, inputs),
        codec_times=_measure_codecs(partition, codecs, inputs, report.started + budget_seconds),
        inputs=inputs,
    )


class _Reporter:
    """Passes on what was found, at most every ``REPORT_SECONDS``."""

    def __init__(self, progress: Progress, budget_seconds: float) -> None:
        self.started = self._last = time.monotonic()
        self._progress = progress
        self._budget = budget_seconds

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last > REPORT_SECONDS:
            self._last = now
            self._progress(min(1.0, (now - self.started) / self._budget), text)


def thread_counts(most: int) -> tuple[int, ...]:
    """The counts that are timed: one, half of all, and all."""
    return tuple(sorted({1, max(1, most // 2), most}))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _other_timings(
    partition: Partition, ids: Mapping[str, range], own_seconds: float, batches: Sequence[int], activation: int,
    clock: Clock, until: float, report: _Reporter,
) -> list[Timing]:  # fmt: skip
    """As many as the time and the memory allow, the quickest first. ``own_seconds`` is a sample on all threads."""
    most = torch.get_num_threads()
    wanted = [(batch * most / threads, batch, threads) for batch in batches for threads in thread_counts(most)]
    wanted = sorted(each for each in wanted if each[1:] != (1, most))
    found = []
    for index, (times, batch, threads) in enumerate(wanted):
        left = until - time.monotonic()
        least = (OTHER_ROUNDS[0] + WARM_UP) * times * own_seconds
        if least > left or batch * activation > available_bytes() / 2:
            continue
        try:
            with _threads(threads):
                inputs = sample(partition.graph.inputs, batch=batch, ids=ids)
                end = min(until, time.monotonic() + left / (len(wanted) - index))
                timed = time_prefixes(partition, inputs, clock=clock, end=end, bounds=OTHER_ROUNDS)
        except (RuntimeError, ValueError):  # some models that cannot be split take a batch of one only
            continue
        found.append(Timing(batch, threads, timed.seconds, timed.cv))
        report(f"batch {batch} on {threads} threads took {timed.seconds[-1] * 1000:.1f} ms")
    return found


def _compressed(partition: Partition, codecs: Mapping[str, Codec], inputs: Tensors) -> tuple[Cut, ...]:
    """The cuts with the bytes that these inputs took under codecs that compress."""
    cuts, tensors = list(partition.graph.cuts), inputs
    for index in range(1, partition.last):
        tensors = partition.run(index - 1, index, tensors)
        found = {name: codec.size(codec.encode(tensors)) for name, codec in codecs.items() if name.endswith(ZSTD)}
        cuts[index] = replace(cuts[index], wire_bytes={**cuts[index].wire_bytes, **found})
    return tuple(cuts)


def _measure_codecs(
    partition: Partition, codecs: Mapping[str, Codec], inputs: Tensors, end: float
) -> dict[str, CodecTimes]:
    """On the real activations of the cut that carries most, where time per byte outweighs time per call."""
    cuts = partition.graph.cuts
    cut = max(cuts[1:], key=lambda cut: cut.wire_bytes["fp32"])
    size = sum(raw_bytes(spec) for spec in cut.tensors)
    tensors = partition.run(0, cut.index, inputs)
    encoding: dict[str, list[float]] = {name: [] for name in codecs}
    decoding: dict[str, list[float]] = {name: [] for name in codecs}
    for repeat in range(CODEC_REPEATS + 1):
        for name, codec in codecs.items():
            started = time.perf_counter()
            encoded = codec.encode(tensors)
            middle = time.perf_counter()
            codec.decode(encoded)
            done = time.perf_counter()
            if repeat:  # the first is warm-up
                encoding[name].append((middle - started) / size)
                decoding[name].append((done - middle) / size)
        if repeat and time.monotonic() > end:
            break
    return {name: CodecTimes(statistics.median(encoding[name]), statistics.median(decoding[name])) for name in codecs}

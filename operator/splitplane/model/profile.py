"""Measure a model on this device: time of every prefix, codecs, memory.

Prefixes ``[0, i)`` are run as wholes, never summed from parts: caches and allocator behave as they will in service.
The cuts take turns, round after round, until the medians are settled or the time budget is spent; what slows a whole
round (another process, a hot core) is taken out before medians are compared.

On an emulated device the core's time is measured and multiplied by its speed factor, as a stage paces itself.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from splitplane.domain.codecs import raw_bytes
from splitplane.domain.profiles import CodecTimes
from splitplane.model.memory import peak_bytes, reset_peak, resident_bytes
from splitplane.model.partitions import Partition
from splitplane.model.samples import sample

BUDGET_SECONDS = 8.0
"""Default time for all measuring after the model is loaded."""
MIN_ROUNDS, MAX_ROUNDS = 3, 40
SETTLED, SETTLED_ROUNDS = 0.005, 8
"""Rounds end early once the standard error of the times, as a share of them, is below this; the estimate of it from
fewer rounds than these is itself too rough to be trusted."""
REPORT_SECONDS = 2.0
CODEC_REPEATS = 7
CODEC_SHARE = 0.15
"""Part of the budget that is left for codecs."""
NORMAL_MAD = 1.4826
"""Standard deviation over median absolute deviation, for a normal distribution."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Codec:
    """The two directions of a wire codec: ``decode(encode(tensors))`` gives tensors again."""

    encode: Callable[[Tensors], Any]
    decode: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one device takes; seconds are medians for a batch of one.

    ``prefix_seconds[i]`` belongs to ``[0, i)`` and never falls with ``i``. ``time_cv`` is the robust coefficient of
    variation of a range's time. ``activation_bytes`` is what the resident set grew by beyond the weights.
    """

    prefix_seconds: tuple[float, ...]
    time_cv: float
    activation_bytes: int
    codec_times: Mapping[str, CodecTimes]
    rounds: int


def measure(
    partition: Partition,
    *,
    codecs: Mapping[str, Codec],
    slowdown: float = 1.0,
    budget_seconds: float = BUDGET_SECONDS,
    progress: Callable[[str], None],
) -> Measured:
    """Measure a wholly resident model on made-up inputs. Raises ``ValueError`` when it is only partly resident.

    ``slowdown`` is that of an emulated device: its times are the core's times as many; 1 on real devices, whose times
    are the wall's. At least ``MIN_ROUNDS`` rounds are run however slow the device is, so a short budget may be overrun.
    """
    cuts = len(partition.graph.cuts)
    if (partition.first, partition.last) != (0, cuts - 1):
        raise ValueError("only a wholly resident model can be measured")
    inputs = sample(partition.graph.inputs)
    end = time.monotonic() + budget_seconds
    before = resident_bytes()
    reset_peak()
    partition.run(0, partition.last, inputs)
    activation = max(0, peak_bytes() - before)
    for cut in range(1, cuts):  # compiles the prefix and warms it up
        partition.run(0, cut, inputs)
    # An emulated device shares its core with others: what it waits for them is no time of its own.
    clock = time.perf_counter if slowdown == 1.0 else time.thread_time
    times = _run_rounds(partition, inputs, clock, end - CODEC_SHARE * budget_seconds, progress)
    return Measured(
        prefix_seconds=(0.0, *(slowdown * seconds for seconds in non_decreasing(levelled_medians(times)))),
        time_cv=variation(times),
        activation_bytes=activation,
        codec_times=_measure_codecs(partition, codecs, inputs, end),
        rounds=len(times[0]),
    )


def _run_rounds(
    partition: Partition,
    inputs: Tensors,
    clock: Callable[[], float],
    end: float,
    progress: Callable[[str], None],
) -> list[list[float]]:
    """Seconds of every prefix (but the empty one) round by round."""
    times: list[list[float]] = [[] for _ in range(partition.last)]
    longest, rounds, reported = 0.0, 0, time.monotonic()
    while rounds < MIN_ROUNDS or (
        rounds < MAX_ROUNDS
        and time.monotonic() + longest < end
        and (rounds < SETTLED_ROUNDS or variation(times) > SETTLED * math.sqrt(rounds))
    ):
        started = time.monotonic()
        for index, series in enumerate(times):
            series.append(_timed(partition, index + 1, inputs, clock))
        longest, rounds = max(longest, time.monotonic() - started), rounds + 1
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            progress(f"round {rounds}: the whole model took {times[-1][-1] * 1000:.1f} ms")
    return times


def _timed(partition: Partition, cut: int, inputs: Tensors, clock: Callable[[], float]) -> float:
    started = clock()
    partition.run(0, cut, inputs)
    return clock() - started


def levelled_medians(times: Sequence[Sequence[float]]) -> list[float]:
    """Median of each series (all of one length) after dividing every round by its level.

    A round's level is the median, over the series, of its time relative to the series' own median.
    """
    medians = [statistics.median(series) for series in times]
    levels = [
        statistics.median(value / median for value, median in zip(values, medians, strict=True))
        for values in zip(*times, strict=True)
    ]
    return [statistics.median(value / level for value, level in zip(series, levels, strict=True)) for series in times]


def non_decreasing(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to ``values`` in squares (pool adjacent violators).

    A longer prefix does more work; where its median came out smaller, that is noise, and both share the mean.
    """
    blocks: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / count:
            total, count = total + blocks[-1][0], count + blocks[-1][1]
            blocks.pop()
        blocks.append((total, count))
    return [total / count for total, count in blocks for _ in range(count)]


def variation(times: Sequence[Sequence[float]]) -> float:
    """Robust coefficient of variation, pooled over the prefixes that take at least half of the whole's time.

    Each time is divided by its prefix's median; ``NORMAL_MAD`` times the median distance from 1 estimates the
    standard deviation whatever single outliers do.
    """
    medians = [statistics.median(series) for series in times]
    ratios = [
        value / median
        for series, median in zip(times, medians, strict=True)
        if median > 0 and median >= medians[-1] / 2
        for value in series
    ]
    return NORMAL_MAD * statistics.median(abs(ratio - 1.0) for ratio in ratios) if ratios else 0.0


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

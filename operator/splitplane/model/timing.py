"""Timing the prefixes of a model: they take turns, round after round, and what slows a whole round is taken out."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from splitplane.model.partitions import Partition

ROUNDS = 3, 40
"""How many there are at least and at most."""
SETTLED, SETTLED_ROUNDS = 0.005, 8
"""Rounds end early once the standard error of the times, as a share of them, is below this; the estimate of it from
fewer rounds than these is itself too rough to be trusted."""
NORMAL_MAD = 1.4826
"""Standard deviation over median absolute deviation, for a normal distribution."""

Tensors = Mapping[str, torch.Tensor]
Clock = Callable[[], float]
"""``time.perf_counter`` on real devices."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Median seconds of ``[0, cut)`` for each cut asked for, which never fall, and the spread of a range's time."""

    seconds: tuple[float, ...]
    cv: float
    rounds: int


def time_prefixes(
    partition: Partition, cuts: Sequence[int], inputs: Tensors, *, clock: Clock, end: float,
    bounds: tuple[int, int] = ROUNDS,
    each_round: Callable[[int, float], None] = lambda _rounds, _seconds: None,
) -> Timed:  # fmt: skip
    """Time prefixes until they are settled or ``end`` (on ``time.monotonic``) is near; ``bounds`` are the fewest
    and the most rounds.

    ``each_round`` is told how many there were, and what the longest prefix took.
    """
    times: list[list[float]] = [[] for _ in cuts]
    longest, rounds = 0.0, 0
    while rounds < bounds[0] or (
        rounds < bounds[1]
        and time.monotonic() + longest < end
        and (rounds < SETTLED_ROUNDS or variation(times) > SETTLED * math.sqrt(rounds))
    ):
        started = time.monotonic()
        for cut, series in zip(cuts, times, strict=True):
            begun = clock()
            partition.run(0, cut, inputs)
            series.append(clock() - begun)
        longest, rounds = max(longest, time.monotonic() - started), rounds + 1
        each_round(rounds, times[-1][-1])
    return Timed(tuple(non_decreasing(levelled_medians(times))), variation(times), rounds)


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

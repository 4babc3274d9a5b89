"""When a model's run reaches each of its cuts: the whole is run again and again, and the clock is read at each cut.

A range's time is what passed between two cuts of one run, with the caches and the memory that the run had left there.
What slows a whole run (another process, a hot core) is taken out before runs are compared.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from splitplane.model.partitions import Partition

ROUNDS = 3, 300
"""How many runs there are at least and at most."""
SETTLED, SETTLED_ROUNDS = 0.002, 8
"""Runs end early once the standard error of their time, as a share of it, is below this; the estimate of it from
fewer runs than these is itself too rough to be trusted."""
WARM_UP = 2
NORMAL_MAD = 1.4826
"""Standard deviation over median absolute deviation, for a normal distribution."""

Tensors = Mapping[str, torch.Tensor]
Clock = Callable[[], float]
"""``time.perf_counter`` on real devices."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of ``[0, cut)`` for each cut, 0 included, which never fall, and the spread of the whole's time."""

    seconds: tuple[float, ...]
    cv: float
    rounds: int


def time_prefixes(
    partition: Partition, inputs: Tensors, *, clock: Clock, end: float, bounds: tuple[int, int] = ROUNDS,
    each_round: Callable[[int, float], None] = lambda _rounds, _seconds: None,
) -> Timed:  # fmt: skip
    """Time all prefixes until they are settled or ``end`` (on ``time.monotonic``) is near; ``bounds`` are the fewest
    and the most runs.

    ``each_round`` is told how many there were, and what the last took.
    """
    reached: list[float] = []
    run = partition.marked(lambda: reached.append(clock()))
    runs: list[list[float]] = []
    longest = 0.0
    for _ in range(WARM_UP):
        run(inputs)
    while len(runs) < bounds[0] or (
        len(runs) < bounds[1]
        and time.monotonic() + longest < end
        and (len(runs) < SETTLED_ROUNDS or variation([sum(each) for each in runs]) > SETTLED * math.sqrt(len(runs)))
    ):
        started = time.monotonic()
        reached[:] = [clock()]
        run(inputs)
        runs.append([after - before for before, after in pairwise(reached)])
        longest = max(longest, time.monotonic() - started)
        each_round(len(runs), sum(runs[-1]))
    segments = levelled_medians(list(zip(*runs, strict=True)))
    return Timed(tuple(accumulate(segments, initial=0.0)), variation([sum(each) for each in runs]), len(runs))


def levelled_medians(times: Sequence[Sequence[float]]) -> list[float]:
    """Median of each series (all of one length) after dividing every round by its level.

    A round's level is the median, over the series, of its time relative to the series' own median.
    """
    medians = [statistics.median(series) for series in times]
    levels = [
        statistics.median(
            [value / median for value, median in zip(values, medians, strict=True) if median > 0.0] or [1]
        )
        for values in zip(*times, strict=True)
    ]
    return [statistics.median(value / level for value, level in zip(series, levels, strict=True)) for series in times]


def variation(times: Sequence[float]) -> float:
    """Robust coefficient of variation: ``NORMAL_MAD`` times the median distance from the median, as a share of it."""
    median = statistics.median(times)
    return NORMAL_MAD * statistics.median(abs(value / median - 1.0) for value in times) if median > 0.0 else 0.0

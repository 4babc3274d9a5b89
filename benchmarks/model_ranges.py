"""How true a profile is: random ranges run by themselves, against the difference of the profile's prefixes."""

import random
import statistics
import time
from collections.abc import Mapping

import numpy as np
import torch

from benchmarks._report import Row, row
from splitplane.model import ModelSource, export, load_weights
from splitplane.model.partitions import Partition
from splitplane.model.profile import measure
from splitplane.model.samples import sample
from splitplane.model.timing import levelled_medians

REPEATS = 7
"""Profile and ranges are measured in turn so often, for a machine is not as fast one minute as the next; of the
predictions' ratios to what was measured right after them, the median counts."""
CLOCK = time.thread_time
"""The one thread's own time, in which what it waits for other processes of the machine does not count."""
SECONDS = 5.0
"""Time for a profile each time; two fifths of it are for the batch of one."""
ROUNDS = 3
"""How often each range is run each time."""
MEDIAN_LIMIT, P95_LIMIT = 5.0, 15.0


def ranges(counts: Mapping[ModelSource, int]) -> list[Row]:
    """Per cent by which predictions are off, of so many random ranges of each model."""
    rows, errors = [], list[float]()
    for source, count in counts.items():
        found = _errors(source, count)
        rows.append(row(f"model: prediction of {count} ranges of {source.name}, median", statistics.median(found), "%"))
        errors += found
    return [
        *rows,
        row(f"model: prediction of {len(errors)} ranges, median error", statistics.median(errors), "%", MEDIAN_LIMIT),
        row(f"model: prediction of {len(errors)} ranges, p95", float(np.percentile(errors, 95)), "%", P95_LIMIT),
    ]


def _errors(source: ModelSource, count: int) -> list[float]:
    partition = load_weights(export(source), 0, None)
    pairs = [(first, last) for first in range(partition.last) for last in range(first + 1, partition.last + 1)]
    chosen = random.Random(source.name).sample(pairs, count)
    inputs = sample(partition.graph.inputs)
    given = {first: partition.run(0, first, inputs) if first else inputs for first, _ in chosen}
    for first, last in chosen:  # compiles the range
        partition.run(first, last, given[first])
    ratios: list[list[float]] = [[] for _ in chosen]
    for _ in range(REPEATS):
        profile = measure(
            partition,
            codecs={},
            progress=lambda _share, _text: None,
            budget_seconds=SECONDS,
            batches=(1,),
            clock=CLOCK,
        ).prefix_seconds
        for (first, last), seconds, ratio in zip(chosen, _direct(partition, chosen, given), ratios, strict=True):
            ratio.append((profile[last] - profile[first]) / seconds)
    return [100.0 * abs(statistics.median(ratio) - 1.0) for ratio in ratios]


def _direct(
    partition: Partition, chosen: list[tuple[int, int]], given: Mapping[int, Mapping[str, torch.Tensor]]
) -> list[float]:
    times: list[list[float]] = [[] for _ in chosen]
    for _ in range(ROUNDS):
        for (first, last), series in zip(chosen, times, strict=True):
            started = CLOCK()
            partition.run(first, last, given[first])
            series.append(CLOCK() - started)
    return levelled_medians(times)

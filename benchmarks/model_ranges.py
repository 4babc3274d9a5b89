"""How true a profile is: random ranges measured directly, against the difference of the profile's prefixes."""

import random
import statistics
import time
from collections.abc import Mapping

import numpy as np

from benchmarks._report import Row, row
from splitplane.model import ModelSource, export, load_weights
from splitplane.model.partitions import Partition
from splitplane.model.profile import measure
from splitplane.model.samples import sample
from splitplane.model.timing import levelled_medians

SECONDS = 20.0
"""Time for a model's profile; half of it is for prefixes."""
ROUNDS = 15
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
    profile = measure(
        partition, codecs={}, progress=lambda _share, _text: None, budget_seconds=SECONDS, batches=(1,)
    ).prefix_seconds
    pairs = [(first, last) for first in range(partition.last) for last in range(first + 1, partition.last + 1)]
    chosen = random.Random(source.name).sample(pairs, count)
    direct = _direct(partition, chosen)
    return [
        100.0 * abs(profile[last] - profile[first] - seconds) / seconds
        for (first, last), seconds in zip(chosen, direct, strict=True)
    ]


def _direct(partition: Partition, chosen: list[tuple[int, int]]) -> list[float]:
    inputs = sample(partition.graph.inputs)
    given = {first: partition.run(0, first, inputs) if first else inputs for first, _ in chosen}
    times: list[list[float]] = [[] for _ in chosen]
    for number in range(ROUNDS + 1):
        for (first, last), series in zip(chosen, times, strict=True):
            started = time.perf_counter()
            partition.run(first, last, given[first])
            if number:  # the first compiles the range
                series.append(time.perf_counter() - started)
    return levelled_medians(times)

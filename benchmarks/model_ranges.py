"""How true a profile is: random ranges run by themselves, against the difference of the profile's prefixes.

One profile of each model, by the wall clock and in the time that a job has for it, as the operator keeps it.
"""

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
from splitplane.model.timing import levelled_medians
from splitplane.runtime.profiling import wire_codecs

ROUNDS = 21
"""How often each range is run."""
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
    measured = measure(partition, codecs=wire_codecs(), progress=lambda _share, _text: None)
    given = {first: partition.run(0, first, measured.inputs) if first else measured.inputs for first, _ in chosen}
    seconds, profile = _direct(partition, chosen, given), measured.prefix_seconds
    return [
        100.0 * abs((profile[last] - profile[first]) / direct - 1.0)
        for (first, last), direct in zip(chosen, seconds, strict=True)
    ]


def _direct(
    partition: Partition, chosen: list[tuple[int, int]], given: Mapping[int, Mapping[str, torch.Tensor]]
) -> list[float]:
    times: list[list[float]] = [[] for _ in chosen]
    for turn in range(ROUNDS + 1):
        for (first, last), series in zip(chosen, times, strict=True):
            started = time.perf_counter()
            partition.run(first, last, given[first])
            if turn:  # the first compiles the range
                series.append(time.perf_counter() - started)
    return levelled_medians(times)

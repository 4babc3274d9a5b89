"""Traces: what arrives, and what a link passes, over time. Generated families, and readers of public formats."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from splitplane.planner.arrays import Array, Ints

DAY_SECONDS = 86_400.0
BIN_SECONDS = 30.0
MOST_DAYS = 366.0
"""Of a file: what is longer counts in other units than the format's."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A quantity that is constant within bins of ``bin_seconds``: requests per second, or bytes per second."""

    values: Array
    bin_seconds: float = BIN_SECONDS

    def __len__(self) -> int:
        return len(self.values)


def arrivals(kind: str, mean: float, *, seed: int, bins: int) -> Trace:
    """Requests per second of a generated family, with this mean.

    ``steady``: constant. ``diurnal``: a sine over the day between 0.2 and 1.8 times the mean, with log-normal noise of
    10 %. ``bursty``: two states, of 0.5 and 4 times a base, that last 30 and 5 minutes in the mean, exponentially.
    Raises ``ValueError`` for other names.
    """
    rng = np.random.default_rng(seed)
    if kind == "steady":
        shape = np.ones(bins)
    elif kind == "diurnal":
        day = np.arange(bins) * (BIN_SECONDS * 2.0 * np.pi / DAY_SECONDS)
        shape = (1.0 - 0.8 * np.cos(day)) * rng.lognormal(0.0, 0.1, bins)
    elif kind == "bursty":
        shape = _states(rng, bins, (0.5, 4.0), (1800.0, 300.0))
    else:
        raise ValueError(f"no family of arrivals is named {kind!r}: name one of steady, diurnal, bursty")
    return Trace(mean * shape / shape.mean())


def bandwidths(kind: str, median: float, *, seed: int, bins: int) -> Trace:
    """Bytes per second of a generated family, with this median.

    ``steady``: constant. ``wandering``: the logarithm is an AR(1) process with a standard deviation of 0.5 and a
    correlation time of 10 minutes. ``outages``: the same, but for times of a fiftieth of it, which last 2 minutes in
    the mean and come every 60 minutes in the mean, exponentially. Raises ``ValueError`` for other names.
    """
    rng = np.random.default_rng(seed)
    if kind not in ("steady", "wandering", "outages"):
        raise ValueError(f"no family of links is named {kind!r}: name one of steady, wandering, outages")
    shape = np.ones(bins)
    if kind != "steady":
        memory = float(np.exp(-BIN_SECONDS / 600.0))
        noise = rng.normal(0.0, 0.5 * np.sqrt(1.0 - memory**2), bins)
        level = 0.0
        for place in range(bins):
            level = memory * level + noise[place]
            shape[place] = np.exp(level)
    if kind == "outages":
        shape *= _states(rng, bins, (1.0, 0.02), (3600.0, 120.0))
    return Trace(median * shape / float(np.median(shape)))


def _states(rng: np.random.Generator, bins: int, levels: tuple[float, float], means: tuple[float, float]) -> Array:
    shape = np.empty(bins)
    at, state = 0, 0
    while at < bins:
        stay = max(1, round(rng.exponential(means[state]) / BIN_SECONDS))
        shape[at : at + stay] = levels[state]
        at, state = at + stay, 1 - state
    return shape


def read_arrivals(path: Path) -> Trace:
    """Requests per second from a public format, told by its header or its name.

    Azure's LLM inference traces (CSV with ``TIMESTAMP``, a request per row), Azure's functions (CSV with columns ``1``
    to ``1440``: requests per minute, summed over the rows), Mooncake's JSONL (``timestamp`` in milliseconds). Raises
    ``ValueError`` for anything else.
    """
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if not all(isinstance(line, dict) and "timestamp" in line for line in lines):
            raise ValueError(f"{path} has a line without a timestamp (milliseconds)")
        return _counted(path, [float(line["timestamp"]) / 1e3 for line in lines])
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        names = rows.fieldnames or ()
        if "TIMESTAMP" in names:
            # Seven digits of a second are one more than Python reads.
            times = [datetime.fromisoformat(row["TIMESTAMP"].strip()[:26]).timestamp() for row in rows]
            return _counted(path, times)
        if "1" in names and "1440" in names:
            minutes = np.zeros(1440)
            for row in rows:
                minutes += [float(row[str(minute)] or 0.0) for minute in range(1, 1441)]
            return Trace(np.repeat(minutes / 60.0, round(60.0 / BIN_SECONDS)))
    raise ValueError(f"{path} is none of: Azure LLM inference CSV, Azure functions CSV, Mooncake JSONL")


def read_bandwidths(path: Path) -> Trace:
    """Bytes per second from lines of ``seconds Mbit/s``: means over bins; a bin without a line is like the one before.

    Raises ``ValueError`` for anything else.
    """
    numbers = np.array([line.split() for line in path.read_text().splitlines() if line.strip()], dtype=np.float64)
    if numbers.ndim != 2 or numbers.shape[1] != 2:
        raise ValueError(f"{path} has not two columns: seconds and Mbit/s")
    if not (np.isfinite(numbers).all() and (numbers[:, 1] >= 0.0).all()):
        raise ValueError(f"{path} holds what is no time, or no bandwidth of at least 0 Mbit/s")
    place = _bins(path, numbers[:, 0])
    values = np.full(int(place.max()) + 1, np.nan)
    for each in np.unique(place):
        values[each] = numbers[place == each, 1].mean()
    known = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return Trace(values[known] * 125_000.0)


def _counted(path: Path, times: Sequence[float]) -> Trace:
    return Trace(np.bincount(_bins(path, np.array(times))) / BIN_SECONDS)


def _bins(path: Path, seconds: Array) -> Ints:
    """The bin of each moment, from the first on. Raises ``ValueError`` where there is none, or for too long a time."""
    if not len(seconds):
        raise ValueError(f"{path} holds a header only: there is nothing to replay")
    seconds = seconds - seconds.min()
    if not seconds.max() <= MOST_DAYS * DAY_SECONDS:
        raise ValueError(f"{path} spans {seconds.max() / DAY_SECONDS:.0f} days, more than {MOST_DAYS:.0f}")
    return (seconds / BIN_SECONDS).astype(np.int64)

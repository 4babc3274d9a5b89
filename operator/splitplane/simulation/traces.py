"""Traces: what arrives, and what a link passes, over time; and generated families of them."""

from dataclasses import dataclass

import numpy as np

from splitplane.planner.arrays import Array

DAY_SECONDS = 86_400.0
BIN_SECONDS = 30.0


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

"""How many samples a stage computes at once, and whether it may: learnt from what it runs, within what a route allows.

Batching pays where a device is the faster per sample the more it gets (weights are read once, operators are called
once), which differs by model, range, shape and device. A profile says where to begin, and the rest is learnt: each
power of two is tried when the load offers it, one step beyond what is known to pay, and used while it saves a notable
share of the time per sample. Nothing waits at low load: a batch waits for more only where the one before it held more
than one request.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from splitplane.domain.batches import MISSES, PAYS
from splitplane.domain.profiles import Cut
from splitplane.model.samples import sample
from splitplane.runtime.routes import Limits

KNOWN_SECONDS = 60.0
"""Older timings are forgotten, so that what did not pay is tried again now and then."""
TIMINGS, TRIES = 7, 3
"""How many timings of a size are kept, and how many it takes to judge a larger one: its first run sets kernels up."""
WAIT_SHARE, LIMIT_SHARE = 0.25, 0.1
"""The wait for others, unless it is given: of the time of one sample, and of the longest that a batch may take."""
EXPECTED_WITHIN = 4.0
"""How many runs of one sample ago the last batch may be for its size to be expected again."""
MOST_KEYS = 64
TOLERANCE = 1e-3
"""Of a tensor's largest value: what kernels for other shapes may round differently."""


class Sizes:
    """Timings of one kind of work by the number of samples; ``clock`` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._timings: dict[int, deque[tuple[float, float]]] = {}
        self._last: tuple[float, int] = (0.0, 1)

    def ran(self, samples: int, seconds: float, *, requests: int) -> None:
        """So many samples, of so many requests, took so long together."""
        now = self._clock()
        self._timings.setdefault(_step(samples), deque(maxlen=TIMINGS)).append((now, seconds / samples))
        self._last = (now, samples if requests > 1 else 1)

    def most(self, limits: Limits) -> int:
        """The size that pays best, or the next one to try."""
        best, seconds = 1, self._per_sample(1)
        if seconds is None:
            return 1
        size, missed, first = 2, 0, self._first(limits, seconds)
        while size <= limits.samples:
            each = self._per_sample(size)
            if each is None and size < first:
                size *= 2
                continue
            if each is None and size == first:
                return size  # the profile has also said that it takes no longer than it may
            guess = seconds if each is None else each
            if limits.seconds is not None and guess * size > limits.seconds:
                return best
            if each is None:
                return size
            if each <= PAYS * seconds:
                best, seconds, missed = size, each, 0
            elif (missed := missed + 1) == MISSES:
                return best
            size *= 2
        return limits.samples if 2 * best > limits.samples else best

    def _first(self, limits: Limits, alone: float) -> int:
        """The size to begin at, if it is not yet known to be no good; 1 then, so that all sizes are tried in order."""
        each = self._per_sample(limits.first)
        return 1 if each is not None and each > PAYS * alone else limits.first

    def patience(self, limits: Limits) -> tuple[int, float]:
        """As ``worker.Batch`` has it: the last batch's size is expected again, if that was just now."""
        at, size = self._last
        alone = self._per_sample(1)
        if size == 1 or alone is None or self._clock() - at > EXPECTED_WITHIN * max(alone, 1e-3):
            return 1, 0.0
        if limits.wait_seconds is not None:
            return size, limits.wait_seconds
        return size, min(WAIT_SHARE * alone, LIMIT_SHARE * (limits.seconds or 1.0))

    def gain(self, samples: int) -> float:
        """How many times longer a sample takes alone than among so many; 1 while that is not known.

        At most so many times: a batch takes no less than one of its samples does, whatever slowed that one down.
        """
        alone, among = self._per_sample(1), self._per_sample(_step(samples))
        return min(alone / among, float(samples)) if alone and among else 1.0

    def _per_sample(self, size: int) -> float | None:
        newest = self._clock() - KNOWN_SECONDS
        found = [seconds for at, seconds in self._timings.get(size, ()) if at >= newest]
        # The quickest, since what slows a run is others who want the core.
        return min(found) if len(found) >= (1 if size == 1 else TRIES) else None


def _step(samples: int) -> int:
    """The largest power of two that is not above it."""
    return 1 << (samples.bit_length() - 1)


@dataclass
class Book:
    """:class:`Sizes` by what is run, the least recently used ones forgotten. For one thread."""

    clock: Callable[[], float] = time.monotonic
    _sizes: OrderedDict[Hashable, Sizes] = field(default_factory=OrderedDict)

    def of(self, key: Hashable) -> Sizes:
        sizes = self._sizes.get(key)
        if sizes is None:
            sizes = self._sizes[key] = Sizes(self.clock)
            if len(self._sizes) > MOST_KEYS:
                self._sizes.popitem(last=False)
        self._sizes.move_to_end(key)
        return sizes


Tensors = Mapping[str, torch.Tensor]


def joined(parts: Sequence[Tensors]) -> Tensors:
    """The samples of all parts, in order, along the first dimension; one part is passed on as it is."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def parted(whole: Tensors, samples: Sequence[int]) -> list[Tensors]:
    """The reverse, as views. Raises ``ValueError`` when an output has another number of samples."""
    if len(samples) == 1:
        return [whole]
    for name, tensor in whole.items():
        if tensor.ndim == 0 or tensor.shape[0] != sum(samples):
            raise ValueError(f"output '{name}' has shape {list(tensor.shape)} for {sum(samples)} samples")
    pieces = {name: torch.split(tensor, list(samples)) for name, tensor in whole.items()}
    return [{name: piece[index] for name, piece in pieces.items()} for index in range(len(samples))]


class Runnable(Protocol):
    """What is asked of a resident range here."""

    def run(self, first: int, last: int, tensors: Tensors) -> Tensors: ...


def keeps_samples_apart(partition: Runnable, cuts: Sequence[Cut], first: int, last: int) -> bool:
    """Whether two samples give together what each gives alone.

    A model may look at its whole batch (a condition on all of it, a norm over it); then requests must not share one.
    Tried on made-up samples, which differ in all but numbers of their own, such as sizes.
    """
    two = [sample(cuts[first].tensors, seed=seed) for seed in (1, 2)]
    try:
        alone = [partition.run(first, last, each) for each in two]
        together = parted(partition.run(first, last, joined(two)), (1, 1))
    except (IndexError, RuntimeError, ValueError):
        return False
    return all(_alike(each[name], other[name]) for each, other in zip(alone, together, strict=True) for name in each)


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    largest = float(torch.nan_to_num(one, 0.0, 0.0, 0.0).abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True)

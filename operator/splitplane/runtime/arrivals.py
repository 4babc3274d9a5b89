"""How bursty arrivals are, as queues feel it: the squared coefficient of variation (SCV) of inter-arrival times.

It is 0 for a metronome, 1 for Poisson arrivals, k - 1 for batches of k at regular times. Measured over a minute it is
also large for what is no burst: one pause of 90 s before a steady 10 requests/s makes 200 of it. So two estimates are
made, each of which errs upward, for causes of its own, and the lower one counts:

- of n gaps x the SCV itself, ``n * sum(x^2) / sum(x)^2 - 1``, which takes a change of the rate for a burst. One gap
  much longer than all others is left out: it is a pause.
- the Allan factor (Lowen and Teich, "Fractal-Based Point Processes", 2005), each pair weighed alike:
  ``mean((M - N)^2 / (M + N))`` over neighbouring intervals with N and M arrivals, 1 for Poisson arrivals at any rate.
  It takes no slow change of the rate for a burst, and of a sudden one the two pairs that it leaves far above all
  others are left out; but sparse arrivals look like Poisson's. A burst shows in intervals about as long as itself, so
  several lengths are tried and the largest factor counts. That such an index of dispersion stands in for the SCV where
  arrivals depend on each other is from Fendick and Whitt, Proceedings of the IEEE 77 (1989).

Few arrivals prove little: the estimate begins at 1, as if ``PRIOR_GAPS`` gaps of Poisson arrivals had been seen.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from splitplane.domain.measurements import MOST_SCV

WINDOW_SECONDS = 60
BINS_PER_SECOND = 16
INTERVALS = (1, 4, 16, 64)
"""Lengths of intervals in bins: from what one request takes to what a queue drains in."""
OUTLIER = 10.0
"""What is that many times as large as the rest is no part of it."""
PRIOR_GAPS = 10


@dataclass(slots=True)
class _Bin:
    """Arrivals within a sixteenth of a second, and the gaps that end there."""

    index: int
    arrivals: int = 0
    gaps: int = 0
    total: float = 0.0
    squares: float = 0.0
    longest: float = 0.0


class Burstiness:
    """Arrivals of the last minute. Times are seconds of any clock that does not go back. Not thread-safe."""

    def __init__(self) -> None:
        self._bins: deque[_Bin] = deque()
        self._last: float | None = None

    def arrived(self, now: float) -> None:
        index = int(now * BINS_PER_SECOND)
        if not self._bins or self._bins[-1].index < index:
            self._bins.append(_Bin(index))
            self._forget(index)
        last, self._last = self._last, now
        bin_ = self._bins[-1]
        bin_.arrivals += 1
        if last is not None:
            gap = now - last
            bin_.gaps += 1
            bin_.total += gap
            bin_.squares += gap * gap
            bin_.longest = max(bin_.longest, gap)

    def scv(self, now: float) -> float:
        """The estimate, from 0 to ``MOST_SCV``. The bin that has not ended yet is left out."""
        end = int(now * BINS_PER_SECOND)
        self._forget(end)
        bins = [bin_ for bin_ in self._bins if bin_.index < end]
        gaps = sum(bin_.gaps for bin_ in bins)
        counts = [0] * (WINDOW_SECONDS * BINS_PER_SECOND)
        for bin_ in bins:
            counts[bin_.index - end] = bin_.arrivals
        allan = max(
            _allan_factor([sum(counts[at : at + length]) for at in range(0, len(counts), length)])
            for length in INTERVALS
        )
        seen = min(_scv_of_gaps(bins), allan)
        return min(MOST_SCV, (gaps * seen + PRIOR_GAPS) / (gaps + PRIOR_GAPS))

    def _forget(self, end: int) -> None:
        while self._bins and self._bins[0].index < end - WINDOW_SECONDS * BINS_PER_SECOND:
            self._bins.popleft()


def _scv_of_gaps(bins: Sequence[_Bin]) -> float:
    number = sum(bin_.gaps for bin_ in bins)
    total = sum(bin_.total for bin_ in bins)
    squares = sum(bin_.squares for bin_ in bins)
    longest = sorted(bin_.longest for bin_ in bins)[-2:]
    if number > 2 and longest[-1] > OUTLIER * longest[0]:
        number -= 1
        total -= longest[-1]
        squares -= longest[-1] ** 2
    return max(0.0, squares / total * number / total - 1.0) if total > 0.0 else 1.0


def _allan_factor(counts: Sequence[int]) -> float:
    terms = sorted((after - before) ** 2 / (after + before) for before, after in pairwise(counts) if after + before)
    if len(terms) > 2:
        usual, largest = terms[:-2], terms[-2:]
        limit = OUTLIER * max(fmean(usual), 0.01)
        terms = [*usual, *(term for term in largest if term <= limit)]
    return fmean(terms) if terms else 1.0

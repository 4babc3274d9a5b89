"""What a linear attacker draws: ridge regression (Hoerl and Kennard 1970) of the input on all numbers that cross.

Unlike the direct part of a decoder, which draws each place alike from what lies around it, this gives each number a
weight of its own in each place: what a stride folded into channels, or a layer without places mixed, is told as well.
Solved in the dual form (Saunders, Gammerman and Vovk 1998), whose unknowns are as many as samples, however much
crosses.
"""

import math
from collections.abc import Iterator, Mapping

import torch

_TOGETHER = 1 << 20
"""So many numbers of all samples are looked at together."""
_MOST_PRODUCTS = 2e11
"""So many products of two numbers, some seconds' worth, are summed up at most."""
_RIDGES = tuple(10.0 ** (power / 2) for power in range(-10, 8))
"""In parts of the mean square of a sample that crosses."""
_CHOSEN_BY, _MOST_JUDGED, _JUDGED = 1024, 128, 8
"""A ridge is chosen by what as many samples at most tell of one in eight of the others, as many at most."""
_FURTHEST = 100.0
"""Deviations that a number is from its mean at most, such as one that was the same in all known samples."""
_BYTES = 4 * 8
"""Of each number of samples by samples, which is held in double precision four times."""


class Linear:
    """Ridge regression on what crosses for the ``known`` samples, the first ones, of all that cross.

    Learnt from are as many of the known ones as that a matrix of samples by samples can be worked on in about
    ``memory_bytes``.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], known: int, memory_bytes: float = math.inf) -> None:
        samples = len(next(iter(tensors.values())))
        room = math.isqrt(int(min(memory_bytes, 2**50) / _BYTES))
        self._first = max(0, known - max(2, room - (samples - known)))
        self._known = known - self._first
        self._products = _products({name: value[self._first :] for name, value in tensors.items()}, self._known)
        judged = min(_MOST_JUDGED, -(-self._known // _JUDGED))
        self._judged = slice(self._known - judged, self._known)
        self._fitted = slice(max(0, self._judged.start - _CHOSEN_BY), self._judged.start)
        # The ridge that is best depends little on how many samples it is best for, and each costs the cube of these.
        self._tried = {ridge: self._weights(self._fitted, self._judged, ridge) for ridge in _RIDGES}

    def draw(self, targets: torch.Tensor) -> torch.Tensor:
        """The targets ``[samples, ...]``, in 0..1, of all but the known samples.

        The ridge is the one by which the last of the known samples are told best by others, which then all are learnt
        from; where the mean of these tells more than any, that is drawn.
        """
        truth = targets[self._first :].flatten(1)
        mean = truth[self._fitted].mean(0)
        wanted, meant = truth[self._fitted] - mean, truth[self._judged] - mean
        errors = {ridge: float((weights @ wanted - meant).pow(2).sum()) for ridge, weights in self._tried.items()}
        best = min(errors, key=errors.__getitem__)
        asked, known = slice(self._known, len(truth)), slice(0, self._known)
        mean = truth[known].mean(0)
        drawn = mean.expand(asked.stop - asked.start, -1)
        if errors[best] < float(meant.pow(2).sum()):
            drawn = mean + self._weights(known, asked, best) @ (truth[known] - mean)
        return drawn.clamp(0, 1).reshape(len(drawn), *targets.shape[1:])

    def _weights(self, known: slice, asked: slice, ridge: float) -> torch.Tensor:
        """``[asked, known]``: by how much each known target counts in each that is drawn."""
        square = self._products[known, known].clone()
        square.diagonal().add_(ridge * square.diagonal().mean().clamp_min(1e-12))
        return torch.cholesky_solve(self._products[known, asked], torch.linalg.cholesky(square)).T.float()


def _products(tensors: Mapping[str, torch.Tensor], known: int) -> torch.Tensor:
    """``[samples, samples]`` of what crosses, each number in deviations from its mean over the known samples.

    Of more numbers than there is time for, sums with random signs stand for several (feature hashing, Weinberger et al.
    2009), whose products are the same on average.
    """
    samples = len(next(iter(tensors.values())))
    numbers = sum(value[0].numel() for value in tensors.values())
    share = min(1.0, _MOST_PRODUCTS / (samples**2 * numbers))
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(samples, samples, dtype=torch.double)
    for given in _parts(tensors, max(1, _TOGETHER // samples)):
        deviations = (given - given[:known].mean(0)) / given[:known].std(0, correction=0).clamp_min(1e-6)
        part = deviations.clamp(-_FURTHEST, _FURTHEST).float()
        if share < 1.0:
            sums = torch.zeros(samples, math.ceil(share * part.shape[1]))
            into = torch.randint(sums.shape[1], (part.shape[1],), generator=generator)
            signs = 2.0 * torch.randint(2, (part.shape[1],), generator=generator) - 1.0
            part = sums.index_add_(1, into, part * signs)
        found += part @ part.T
    return found


def _parts(tensors: Mapping[str, torch.Tensor], width: int) -> Iterator[torch.Tensor]:
    """``[samples, width]`` at most; what is no number is 0. In double precision, or the squares of masks overflow."""
    for value in tensors.values():
        for part in torch.split(value.reshape(len(value), -1), width, 1):
            yield part.double().nan_to_num(0.0, 0.0, 0.0)

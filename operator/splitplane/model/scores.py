"""How alike two batches are: structural similarity, signal to noise, explained variance, distance correlation.

And what a score is worth beside that of a blind guess.
"""

import torch
from torch.nn import functional

_WINDOW, _SIGMA = 11, 1.5
_FEW_NUMBERS = 16
_COLUMNS = 8192
"""Numbers of a sample that are looked at together, in double precision."""


def ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) of each image of two batches ``[n, channels, h, w]`` in 0..1.

    With a Gaussian window of 11 pixels, or the largest odd one that fits; the mean over channels and places.
    """
    channels = first.shape[1]
    size = min(_WINDOW, *(side - 1 + side % 2 for side in first.shape[2:]))
    places = torch.arange(size, dtype=first.dtype) - size // 2
    line = torch.exp(-(places**2) / (2 * _SIGMA**2))
    window = (line[:, None] * line[None]).div(line.sum() ** 2).expand(channels, 1, size, size)

    def mean(image: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(image, window, groups=channels)

    one, two = mean(first), mean(second)
    variances = mean(first**2) - one**2, mean(second**2) - two**2
    covariance = mean(first * second) - one * two
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * one * two + c1) * (2 * covariance + c2) / ((one**2 + two**2 + c1) * (sum(variances) + c2))
    return value.flatten(1).mean(1)


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio of each sample in 0..1, in dB; at most 100."""
    return -10 * torch.log10((first - second).flatten(1).pow(2).mean(1).clamp_min(1e-10))


def explained(guess: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Share of how far each sample is from the mean of all that a guess explains, 0 where it explains nothing.

    So what all samples have in common, which anybody knows, counts for nothing. Of few numbers, which may be near the
    mean by chance, the distance is that of all samples on average.
    """
    guess, truth = guess.flatten(1), truth.flatten(1)
    spread = (truth - truth.mean(0)).pow(2).sum(1)
    if truth.shape[1] < _FEW_NUMBERS:
        spread = spread.mean()
    return (1 - (guess - truth).pow(2).sum(1) / spread.clamp_min(1e-12)).clamp(0, 1)


def determined(guess: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Of each sample a share whose mean is the share of variance explained of all (coefficient of determination).

    Below 0 where a guess is further off than samples are from their mean. So a sample that is far from it, such as
    silence among speech, counts for as much as it differs.
    """
    guess, truth = guess.flatten(1), truth.flatten(1)
    spread = (truth - truth.mean(0)).pow(2).sum(1).mean()
    return 1 - (guess - truth).pow(2).sum(1) / spread.clamp_min(1e-12)


def recovered(guess: torch.Tensor, truth: torch.Tensor, common: int) -> torch.Tensor:
    """Of each sample ``[n, places]`` the share of its classes that a guess has right.

    The ``common`` one isn't asked for; samples of nothing else are left out, but where all are such.
    """
    asked = truth != common
    each: torch.Tensor = ((guess == truth) & asked).sum(1) / asked.sum(1).clamp_min(1)
    return each[asked.any(1)] if bool(asked.any()) else each


def skill(score: float, blind: float) -> float:
    """Skill score (Murphy 1988): how much of what a blind guess lacks of 1 a score has made up, 0 where nothing.

    Both scores are from 0 to 1. Where a blind guess is right already, whatever is better than it counts as all.
    """
    return min(1.0, max(0.0, (score - blind) / max(1e-9, 1.0 - blind)))


def distance_correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Bias-corrected squared distance correlation of paired samples (Szekely and Rizzo 2013), about 0 if independent.

    At least four samples; it may be below 0.
    """
    one, two = _centred(first), _centred(second)
    norm = float((one * one).sum() * (two * two).sum()) ** 0.5
    return float((one * two).sum()) / norm if norm > 0 else 0.0


def _centred(samples: torch.Tensor) -> torch.Tensor:
    """The U-centred matrix of distances."""
    flat = samples.flatten(1)
    squares = torch.zeros(len(flat), len(flat), dtype=torch.double)
    for part in torch.split(flat, _COLUMNS, dim=1):
        squares += torch.cdist(part.double(), part.double(), compute_mode="donot_use_mm_for_euclid_dist").pow(2)
    distances = squares.sqrt()
    n = len(distances)
    sums = distances.sum(0)
    centred = distances - sums[None] / (n - 2) - sums[:, None] / (n - 2) + distances.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0.0)


def rank_correlation(first: list[float], second: list[float]) -> float | None:
    """Spearman's; ``None`` for fewer than three values, or where all of one side are equal."""
    if len(first) < 3:
        return None
    ranks = torch.stack([_ranks(first), _ranks(second)])
    ranks -= ranks.mean(1, keepdim=True)
    norm = float(ranks.pow(2).sum(1).prod()) ** 0.5
    return float((ranks[0] * ranks[1]).sum()) / norm if norm > 0 else None


def _ranks(values: list[float]) -> torch.Tensor:
    given = torch.tensor(values, dtype=torch.double)
    # Equal values share the mean of their ranks.
    return (given[:, None] > given[None]).sum(1).double() + 0.5 * (given[:, None] == given[None]).sum(1)

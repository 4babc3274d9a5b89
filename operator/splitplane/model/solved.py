"""What is told by a linear map that is solved for and not trained, where the direct part of a decoder does not see it.

From each place of a coarse grid the block of the input that became of it, as patches are embedded; and of tokens, by
discriminants.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from splitplane.model.scores import recovered

_OPERATIONS_A_SECOND, _SHARE_OF_TIME = 5e9, 0.15
"""What one slow core does, and the share of an attack's time that may be spent on each of these."""
_NUMBERS_TOGETHER = 1 << 21
_MOST_MIXED = 1024
"""More numbers of a place or a token are mixed at random to as many."""
_ROWS_FOR_EACH = 20, 2
"""Places for each unknown by which a map of places is solved for, and fewest."""
_REACHES = (3, 1)
_PENALTIES = (1e-6, 1e-4, 1e-2, 1.0)
_SHRUNK = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the covariance of all tokens, what is added to that within their classes."""


def unfold(
    grid: Callable[[torch.Tensor], torch.Tensor], targets: torch.Tensor, judging: torch.Tensor, held_out: int,
    *, seconds: float = math.inf, memory_bytes: float = math.inf,
) -> tuple[torch.Tensor, float] | None:  # fmt: skip
    """From each place of a grid, and those around it, the block of the target there, by one linear map for all places.

    ``grid`` makes ``[chosen, channels, *places]`` of chosen samples. Returns the held-out ones in
    0..1, and the mean square error of the judging ones; ``None`` where time or memory is not enough.
    """
    one = grid(torch.zeros(1, dtype=torch.long))
    coarse, places, flat = tuple(one.shape[2:]), tuple(targets.shape[2:]), one.ndim == 3
    block = tuple(-(-p // c) for p, c in zip(places, coarse, strict=True))
    fine = tuple(c * b for c, b in zip(coarse, block, strict=True))
    mixing = _mixing(one.shape[1])
    channels = min(one.shape[1], _MOST_MIXED)
    reach = next(reach for reach in _REACHES if channels * reach ** len(coarse) <= _MOST_MIXED)
    unknowns, drawn = channels * reach ** len(coarse), targets.shape[1] * math.prod(block)
    most, least = (each * unknowns for each in _ROWS_FOR_EACH)
    able = _SHARE_OF_TIME * seconds * _OPERATIONS_A_SECOND / (2 * unknowns * (unknowns + drawn))
    fitted = min(int(judging[0]), math.ceil(min(able, most) / math.prod(coarse)))
    if fitted * math.prod(coarse) < least or 32 * unknowns * (unknowns + drawn) > memory_bytes or able < least:
        return None
    together = max(1, _NUMBERS_TOGETHER // (math.prod(coarse) * max(unknowns, drawn, one.shape[1])))
    # Of what is the same place in all samples, such as an embedding of it, the map need not know.
    known = torch.split(torch.arange(fitted), together)
    mean, centre = targets[:fitted].mean(0), sum((grid(part).sum(0) for part in known), torch.zeros(())) / fitted
    kernel, blocks = (1, reach) if flat else (reach, reach), (1, *block) if flat else block

    def seen(chosen: torch.Tensor) -> torch.Tensor:
        found = grid(chosen) - centre
        found = found if mixing is None else (found.movedim(1, -1) @ mixing).movedim(-1, 1)
        found = found[:, :, None] if flat else found
        return functional.unfold(found, kernel, padding=(kernel[0] // 2, kernel[1] // 2)).movedim(1, 2).flatten(0, 1)

    def wanted(chosen: torch.Tensor) -> torch.Tensor:
        found = targets[chosen] - mean
        if fine != places:
            found = functional.interpolate(found, fine, mode="linear" if flat else "bilinear", align_corners=False)
        found = found[:, :, None] if flat else found
        return functional.unfold(found, blocks, stride=blocks).movedim(1, 2).flatten(0, 1)

    def guesses(chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in torch.split(chosen, together):
            found = (seen(part) @ weights).reshape(len(part), -1, drawn).movedim(1, 2)
            whole = functional.fold(found, (1, *fine) if flat else fine, blocks, stride=blocks)
            whole = whole[:, :, 0] if flat else whole
            parts.append(whole if fine == places else functional.interpolate(whole, places, mode="area"))
        return (torch.cat(parts) + mean).clamp(0, 1)

    products = torch.zeros(unknowns, unknowns, dtype=torch.double)
    sums = torch.zeros(unknowns, drawn, dtype=torch.double)
    for part in known:
        rows = seen(part)
        products += (rows.T @ rows).double()
        sums += (rows.T @ wanted(part)).double()
    best: tuple[float, torch.Tensor] = math.inf, torch.zeros(())
    for penalty in _PENALTIES:
        ridge = penalty * products.diagonal().mean().clamp_min(1e-12) * torch.eye(unknowns, dtype=torch.double)
        weights = torch.linalg.solve(products + ridge, sums).float()
        error = float((guesses(judging, weights) - targets[judging]).pow(2).mean())
        if error < best[0]:
            best = error, weights
    return guesses(torch.arange(len(targets) - held_out, len(targets)), best[1]), best[0]


def _mixing(numbers: int) -> torch.Tensor | None:
    if numbers <= _MOST_MIXED:
        return None
    return torch.randn(numbers, _MOST_MIXED, generator=torch.Generator().manual_seed(0)) / math.sqrt(numbers)


def discriminate(
    given: Callable[[torch.Tensor], torch.Tensor], classes: torch.Tensor, judging: torch.Tensor, held_out: int,
    *, common: int, seconds: float = math.inf, memory_bytes: float = math.inf,
) -> tuple[torch.Tensor, float] | None:  # fmt: skip
    """Fisher's linear discriminant of tokens ``[n, places]`` by the samples before the ``judging`` ones.

    ``given`` makes ``[chosen, places, numbers]`` of chosen samples; the ``common`` class isn't asked for. Returns the
    classes of the held-out ones, and the share of the judging ones (the first of them where time is short) that was
    right, by :func:`recovered`; ``None`` where time or memory is not enough.
    """
    count, places = int(classes.max()) + 1, classes.shape[1]
    numbers = given(torch.zeros(1, dtype=torch.long)).shape[2]
    mixing = _mixing(numbers)
    size = min(numbers, _MOST_MIXED)
    able = _SHARE_OF_TIME * seconds * _OPERATIONS_A_SECOND
    fitted = min(int(judging[0]), int(min(able / (2 * places * size * max(size, numbers)), 1e9)))
    # To guess takes a product with each class, at several times that speed: fewer are judged where time is short.
    judged = int(min((4 * able / (2 * places * size * count) - held_out) / len(_SHRUNK), len(judging)))
    if fitted < 2 or judged < 1 or 32 * size * (count + size) > memory_bytes:
        return None
    judging = judging[:judged]
    together = max(1, _NUMBERS_TOGETHER // (places * max(numbers, count)))

    def seen(chosen: torch.Tensor) -> torch.Tensor:
        found = given(chosen)
        return (found if mixing is None else found @ mixing).flatten(0, 1)

    sums, counts = torch.zeros(count, size), torch.zeros(count)
    squares = torch.zeros(size, size, dtype=torch.double)
    for part in torch.split(torch.arange(fitted), together):
        found, of = seen(part), classes[part].flatten()
        sums.index_add_(0, of, found)
        counts += of.bincount(minlength=count)
        squares += (found.T @ found).double()
    means = (sums / counts.clamp_min(1)[:, None]).double()
    within = squares - (means * counts[:, None]).T @ means
    among = squares.diagonal().mean()

    def guesses(chosen: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        parts = [(seen(part) @ weights + bias).argmax(1) for part in torch.split(chosen, together)]
        return torch.cat(parts).reshape(-1, places)

    best: tuple[float, Sequence[torch.Tensor]] = -1.0, ()
    for shrunk in _SHRUNK:
        covariance = within + shrunk * among * torch.eye(size, dtype=torch.double)
        weights = torch.linalg.solve(covariance, means.T)
        # A class that was never seen is never guessed.
        bias = torch.where(counts > 0, -0.5 * (means.T * weights).sum(0), -torch.inf)
        form = weights.float(), bias.float()
        right = float(recovered(guesses(judging, *form), classes[judging], common).mean())
        if right > best[0]:
            best = right, form
    return guesses(torch.arange(len(classes) - held_out, len(classes)), *best[1]), best[0]

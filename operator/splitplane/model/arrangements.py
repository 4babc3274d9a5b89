"""How an attacker may read what crosses: which dimensions are places, which channels, and what belongs to no place.

Images and their features come with channels first or last, transformers' as ``[n, tokens, channels]`` or
``[n, heads, tokens, numbers]``, with tokens for the class or registers beside those of the patches.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
from torch.nn import functional

_MOST_BESIDE = 16
"""Tokens beside those of an image's patches, such as that for the class, and registers."""
_MOST_OBLONG = 2
"""Grids of patches, and of features that are surely an image's, are at most so many times as long as wide."""
_MOST_KEPT = 3
_SLACK = 0.02
"""What tells so little more of the target, or less than a tenth more, isn't told apart from the best."""
_FITTED, _JUDGED, _PLACES, _CHANNELS = 32, 16, 256, 64
"""Of the probe: samples to fit, samples to judge by, places and channels (mixed at random) of each."""
_NUMBERS_TOGETHER = 1 << 21
_CODED, _MOST_IDS = 32, 1 << 19
"""Numbers that stand for an id, and ids that are told apart: of more, none is seen often enough to learn from."""
MOST_ANYWHERE, _AVERAGED = 8192, 1024
"""Of what belongs to a place, or to none, so many numbers are looked at when tokens are guessed; more are averaged, to
as many as that each step is short."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``[n, channels, *places]`` of a tensor ``[n, ...]``, or ``[n, numbers]`` where ``along`` is empty.

    ``along`` are the dimensions of places. Patches are those of one dimension from ``start`` on, in rows of ``grid``.
    """

    along: tuple[int, ...] = ()
    grid: tuple[int, int] | None = None
    start: int = 0

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        if not self.along:
            return value.reshape(len(value), -1)
        moved = self._moved(value)
        if self.grid is None:
            return moved
        patches = moved[:, :, self.start : self.start + math.prod(self.grid)]
        return patches.reshape(len(value), moved.shape[1], *self.grid)

    def beside(self, value: torch.Tensor) -> torch.Tensor:
        """``[n, numbers]`` of what belongs to no patch."""
        moved, end = self._moved(value), self.start + math.prod(self.grid or ())
        return torch.cat([moved[:, :, : self.start], moved[:, :, end:]], 2).reshape(len(value), -1)

    def leaves(self, value: torch.Tensor) -> bool:
        """Whether something belongs to no patch."""
        return self.grid is not None and value.shape[self.along[0]] > math.prod(self.grid)

    def _moved(self, value: torch.Tensor) -> torch.Tensor:
        moved = value.movedim(self.along, tuple(range(-len(self.along), 0)))
        sizes = moved.shape[-len(self.along) :]
        return moved.reshape(len(value), value[0].numel() // math.prod(sizes), *sizes)


NUMBERS = Reading()


@dataclass(frozen=True, slots=True)
class Readings:
    """Those of which the best are looked for, and whether one of them is surely how such a tensor is meant."""

    grids: tuple[Reading, ...]
    numbers: bool
    sure: bool


def readings(shape: Sequence[int], dims: int) -> Readings:
    """How samples of a shape may be read for a target of one or two dimensions of places; the usual way first."""
    long = [index + 1 for index, size in enumerate(shape) if size > 1]
    if len(long) < 2:
        in_places = dims == 1 and len(shape) > 1 and shape[-1] > 1
        return Readings((Reading((len(shape),)),), False, True) if in_places else Readings((), True, True)
    if dims == 1:
        # Small images are targets of one dimension, too.
        return Readings(tuple(Reading((index,)) for index in reversed(long)), len(long) > 2, True)
    pairs = [Reading(pair) for pair in reversed(list(combinations(long, 2)))]
    patches = [each for index in long for each in _patches(index, shape[index - 1])]
    usual = long[-2]  # [n, tokens, channels], [n, heads, tokens, numbers]
    sure = any(each.along == (usual,) and shape[usual - 1] - math.prod(each.grid or ()) <= 1 for each in patches)
    if len(long) > 2:
        sizes = [sorted(shape[index - 1] for index in pair.along) for pair in pairs]
        sure = sure or any(most <= _MOST_OBLONG * least for least, most in sizes)
    return Readings(tuple(pairs + patches if len(long) > 2 else patches + pairs), not sure, sure)


def _patches(index: int, size: int) -> Iterator[Reading]:
    for beside in range(min(_MOST_BESIDE + 1, size - 3)):
        side = math.isqrt(size - beside)
        if side**2 == size - beside:
            for start in dict.fromkeys((beside, 0)):
                yield Reading((index,), (side, side), start)
            break
    for beside in (0, 1):
        count = size - beside
        for side in range(2, math.isqrt(max(0, count)) + 1):
            other = count // side
            if side * other == count and side < other <= _MOST_OBLONG * side:
                yield Reading((index,), (side, other), beside)
                yield Reading((index,), (other, side), beside)


def best_of(
    grids: Sequence[Reading], value: torch.Tensor, targets: torch.Tensor, judging: torch.Tensor
) -> list[Reading]:
    """The readings of which the target's places are told best, by a linear probe of each; all first where none tells.

    ``targets`` are ``[n, channels, *places]`` of samples to fit, and those of ``judging``, by number, to judge by.
    """
    if len(grids) < 2:
        return list(grids)
    gains = [_told(each, value, targets, judging[:_JUDGED]) for each in grids]
    best = max(gains)
    if best < _SLACK:
        return list(grids[:_MOST_KEPT])
    order = sorted(range(len(grids)), key=lambda index: -gains[index])
    return [grids[index] for index in order if gains[index] >= best - max(_SLACK, best / 10)][:_MOST_KEPT]


def _told(reading: Reading, value: torch.Tensor, targets: torch.Tensor, judging: torch.Tensor) -> float:
    """Share of the judging samples' variance that each place of a tensor tells, linearly, of that place."""
    fitted = torch.arange(min(_FITTED, int(judging[0])))
    chosen = torch.cat([fitted, judging])
    dims = targets.ndim - 2
    most = math.isqrt(_PLACES) if dims == 2 else _PLACES
    places = tuple(min(size, most) for size in targets.shape[2:])
    truth = functional.interpolate(targets[chosen], places, mode="area")
    truth = (truth - truth[: len(fitted)].mean(0)).flatten(2)
    seen = _seen(reading, value, chosen, places).flatten(2)
    seen = torch.cat([seen, torch.ones(len(seen), 1, seen.shape[2])], 1).double()
    known, asked = (each.movedim(1, 2).flatten(0, 1) for each in (seen[: len(fitted)], seen[len(fitted) :]))
    wanted, meant = (each.movedim(1, 2).flatten(0, 1).double() for each in (truth[: len(fitted)], truth[len(fitted) :]))
    products = known.T @ known
    ridge = 1e-6 * products.diagonal().mean() * torch.eye(len(products), dtype=torch.double)
    solved = torch.linalg.solve(products + ridge, known.T @ wanted)
    return 1.0 - float((asked @ solved - meant).pow(2).sum() / meant.pow(2).sum().clamp_min(1e-12))


def _seen(reading: Reading, value: torch.Tensor, chosen: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
    """``[samples, channels, *places]``, no more channels than the probe looks at."""
    found: list[torch.Tensor] = []
    mixing = mean = deviation = torch.zeros(())
    for part in torch.split(chosen, max(1, _NUMBERS_TOGETHER // value[0].numel())):
        grid = reading(value[part]).float().nan_to_num(0.0, 0.0, 0.0)
        grid = functional.interpolate(grid, places, mode="area").movedim(1, -1)
        if not found:
            channels = grid.shape[-1]
            flat = grid.reshape(-1, channels)
            mean, deviation = flat.mean(0), flat.std(0, correction=0).clamp_min(1e-6)
            generator = torch.Generator().manual_seed(0)
            mixing = (
                torch.eye(channels)
                if channels <= _CHANNELS
                else torch.randn(channels, _CHANNELS, generator=generator) / math.sqrt(channels)
            )
        found.append((((grid - mean) / deviation).clamp(-100, 100) @ mixing).movedim(-1, 1))
    return torch.cat(found)


def at_places(value: torch.Tensor, places: int, most: int) -> tuple[list[Reading], bool]:
    """Readings ``[n, channels, places]`` of a tensor for as many tokens, and whether that is surely what it holds.

    Where a dimension is longer, by tokens for the class and the like, the places are its first or its last ones. A
    tensor without places is sure where it has but one dimension, and not too many (``most``) numbers.
    """
    sizes = {index: size for index, size in enumerate(value.shape) if index > 0}
    if places == 1:
        return [], True
    exact = [Reading((index,)) for index, size in sizes.items() if size == places]
    if exact:
        return exact, True
    longer = [
        Reading((index,), (1, places), start)
        for index, size in sizes.items()
        if places < size <= places + _MOST_BESIDE
        for start in (0, size - places)
    ]
    return longer, len([size for size in sizes.values() if size > 1]) < 2 and value[0].numel() <= most


def coded(
    value: torch.Tensor, readings: Sequence[Reading], places: int
) -> tuple[torch.Tensor, list[Callable[[torch.Tensor], torch.Tensor]]]:
    """Ids by their ranks, and forms that give random numbers for each, as two that are near have nothing in common.

    As :func:`at_each`, in those readings that need not be averaged. No forms where that says no more than the number.
    """
    fitting = [each for each in readings if each(value[:1]).shape[1] * _CODED <= MOST_ANYWHERE]
    if not fitting or value.is_floating_point():
        return value, []
    ids, ranks = value.long().unique(return_inverse=True)  # type: ignore[no-untyped-call]
    if not 2 < len(ids) <= _MOST_IDS:
        return value, []
    codes = torch.randn(len(ids), _CODED, generator=torch.Generator().manual_seed(0))

    def form(part: torch.Tensor, reading: Reading) -> torch.Tensor:
        found = at_each(part, reading=reading, places=places)
        return codes[found.long()].permute(0, 1, 3, 2).flatten(1, 2)

    return ranks, [partial(form, reading=each) for each in fitting]


def at_each(value: torch.Tensor, *, reading: Reading, places: int) -> torch.Tensor:
    """``[n, numbers, places]``: what belongs to a place, or to none and so to each; of too many numbers, averages."""
    found = reading(value)
    found = found[:, :, None].expand(-1, -1, places) if found.ndim == 2 else found.reshape(*found.shape[:2], places)
    if found.shape[1] <= MOST_ANYWHERE:
        return found
    averaged = functional.interpolate(found.movedim(1, 2).float(), (_AVERAGED,), mode="area")
    return averaged.movedim(1, 2)

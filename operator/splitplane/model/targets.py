"""What an attacker is after: an image, a signal, or tokens; and how well it was got."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from splitplane.model import scores
from splitplane.model.calibration import Calibration
from splitplane.model.inversion import draw, guess_tokens

LARGEST_IMAGE, LONGEST_SIGNAL = 64, 1024
"""Finer inputs are reconstructed at this size."""
EMBEDDED = 16
"""Numbers by which a token stands where distances are wanted."""


@dataclass(frozen=True, slots=True)
class Got:
    """Of each held-out sample, a score from 0 to 1; ``psnr`` in dB where there is one, on average."""

    scores: torch.Tensor
    psnr: float | None
    steps: int


class Target(Protocol):
    """The secret of every sample; the last ``held_out`` are scored, the others trained on."""

    score: str
    """What it is scored by."""

    @property
    def numbers(self) -> torch.Tensor:
        """The secret itself, as numbers ``[samples, ...]``."""

    def attack(
        self, tensors: Mapping[str, torch.Tensor], held_out: int, *, width: int, seconds: float, steps: int
    ) -> Got:
        """Train a decoder on what crosses a cut."""


class Drawing:
    """The largest input of floating numbers, ``[n, channels, *places]`` in 0..1."""

    def __init__(self, values: torch.Tensor) -> None:
        if values.ndim == 4 and min(values.shape[2:]) >= 8:
            places = tuple(min(size, LARGEST_IMAGE) for size in values.shape[2:])
            if places != tuple(values.shape[2:]):
                values = functional.interpolate(values, places, mode="area")
        else:
            values = values.flatten(1)[:, None]
            if values.shape[2] > LONGEST_SIGNAL:
                values = functional.interpolate(values, LONGEST_SIGNAL, mode="linear", align_corners=False)
        low, high = values.amin(), values.amax()
        self.numbers = (values - low) / (high - low).clamp_min(1e-12)
        self.score = "SSIM" if values.ndim == 4 else "share of variance explained"

    def attack(
        self, tensors: Mapping[str, torch.Tensor], held_out: int, *, width: int, seconds: float, steps: int
    ) -> Got:
        drawn = draw(tensors, self.numbers, held_out, width=width, seconds=seconds, steps=steps)
        truth = self.numbers[-held_out:]
        each = (scores.ssim if truth.ndim == 4 else scores.explained)(drawn.guesses, truth)
        return Got(each, float(scores.psnr(drawn.guesses, truth).mean()), drawn.steps)


class Tokens:
    """The integer input of most different values, ``[n, places]``; the commonest one (padding) is not asked for."""

    score = "share of tokens recovered"

    def __init__(self, values: torch.Tensor) -> None:
        known, self._classes = values.flatten(1).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        self._common = int(self._classes.flatten().bincount().argmax())
        generator = torch.Generator().manual_seed(0)
        self.numbers = torch.randn(len(known), EMBEDDED, generator=generator)[self._classes]

    def attack(
        self, tensors: Mapping[str, torch.Tensor], held_out: int, *, width: int, seconds: float, steps: int
    ) -> Got:
        drawn = guess_tokens(tensors, self._classes, held_out, width=width, seconds=seconds, steps=steps)
        truth = self._classes[-held_out:]
        asked = truth != self._common
        right = ((drawn.guesses == truth) & asked).sum(1) / asked.sum(1).clamp_min(1)
        return Got(right[asked.any(1)] if bool(asked.any()) else right, None, drawn.steps)


def target_of(calibration: Calibration) -> Target:
    """An input of floating numbers is the secret where there is one, else one of integers."""
    values = [value for value in calibration.inputs.values() if value.ndim > 1]
    floating = [value for value in values if value.is_floating_point()]
    if floating:
        return Drawing(max(floating, key=lambda value: value[0].numel()).float())
    chosen = max(values or list(calibration.inputs.values()), key=_different)
    return Tokens(chosen.long().reshape(len(chosen), -1))


def _different(values: torch.Tensor) -> int:
    return int(values.unique().numel())  # type: ignore[no-untyped-call]

"""What an attacker is after: every input of the model, as an image, a signal, or tokens; and how well it was got."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from splitplane.model import scores
from splitplane.model.calibration import Calibration
from splitplane.model.inversion import draw, guess_tokens
from splitplane.model.linear import Linear
from splitplane.model.spectra import SHORTEST, spectrogram

LARGEST_IMAGE, LONGEST_SIGNAL = 64, 1024
"""Finer inputs are reconstructed at this size, averaged over what falls together."""
MOST_CHANNELS = 128
"""Rows of a signal in several, such as the bands of a spectrogram, or channels of an image, beyond which they are
averaged as well."""
SMALLEST_IMAGE = 8
RAW_ERROR = 0.02
"""What is as near as this to the input, in parts of the input's range, is the input: all codecs but int4 are nearer."""
_NUMBERS_TOGETHER = 1 << 21
"""So many numbers of several samples, or one sample, are compared at once."""
EMBEDDED = 16
"""Numbers by which a token stands where distances are wanted."""


@dataclass(frozen=True, slots=True)
class Got:
    """Of each held-out sample, a score from 0 to 1; ``psnr`` in dB where there is one, on average.

    ``blind`` is the mean score of who draws the same each time: the mean of the known samples, or the commonest tokens.
    ``sure`` is whether what crosses was surely read in a way that it may be meant in.
    """

    scores: torch.Tensor
    blind: float
    psnr: float | None
    steps: int
    sure: bool = True


class Target(Protocol):
    """The secret of every sample. Of as many samples as are given, the last ``held_out`` are scored."""

    score: str
    """What it is scored by."""

    @property
    def numbers(self) -> torch.Tensor:
        """The secret itself, as numbers ``[samples, ...]``."""

    def crosses(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether one of the tensors is the secret as it is, or all but."""

    def attack(
        self, tensors: Mapping[str, torch.Tensor], held_out: int, *, width: int, seconds: float, steps: int,
        memory_bytes: float = math.inf,
    ) -> Got:  # fmt: skip
        """Train a decoder on what crosses a cut. A step of that takes about ``memory_bytes`` at most."""


@dataclass(frozen=True, slots=True)
class _View:
    """A form in which an input is drawn, ``[n, channels, *places]`` in 0..1, and what is compared with what by."""

    numbers: torch.Tensor
    compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Drawing:
    """An input of numbers, ``[n, channels, *places]`` in 0..1 once it is as coarse as it is drawn.

    A signal is drawn as its spectrogram as well, and counts as got as well as the better one of the two is.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self.numbers = self._coarse(values)
        pictures = self.numbers.ndim == 4
        self._views = [_View(self.numbers, scores.ssim if pictures else scores.explained)]
        self.score = "SSIM" if pictures else "share of variance explained"
        heard = None if pictures else spectrogram(_in_rows(_finite(values.float())))
        if heard is not None:
            self._views.append(_View(heard, scores.determined))
            self.score = "share of variance explained of the wave or its spectrum"

    def crosses(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        return any(_is(value, self._values) for value in tensors.values())

    def attack(
        self, tensors: Mapping[str, torch.Tensor], held_out: int, *, width: int, seconds: float, steps: int,
        memory_bytes: float = math.inf,
    ) -> Got:  # fmt: skip
        samples = len(next(iter(tensors.values())))
        # What has the input's shape is looked at in the form in which that is drawn, too; grids are by themselves.
        alike = {
            f"{name}, as drawn": self._coarse(value.nan_to_num(0.0, 0.0, 0.0))
            for name, value in tensors.items()
            if value.shape[1:] == self._values.shape[1:] and value.shape[1:-1] != self.numbers.shape[1:-1]
            if self.numbers.ndim == 3
        }
        began, steps_done, sure = time.monotonic(), steps, True
        drawn: list[torch.Tensor] = []
        for index, view in enumerate(self._views):
            left = (seconds - (time.monotonic() - began)) / (len(self._views) - index)
            got = draw(
                {**tensors, **alike}, view.numbers[:samples], held_out, width=width, seconds=max(0.0, left),
                steps=steps, memory_bytes=memory_bytes,
            )  # fmt: skip
            drawn.append(got.guesses)
            steps_done, sure = min(steps_done, got.steps), sure and got.sure
        return self._got(drawn, samples, steps_done, sure=sure)

    def tell(self, linear: Linear, samples: int) -> Got:
        """Let a linear attacker, of what crosses for as many samples, draw it."""
        # How the numbers are arranged is nothing to it; that it gets nothing says nothing of who reads them rightly.
        return self._got([linear.draw(view.numbers[:samples]) for view in self._views], samples, 0, sure=False)

    def _got(self, drawn: list[torch.Tensor], samples: int, steps: int, *, sure: bool) -> Got:
        """Of what was drawn of each view, by the one that was got best; the PSNR is that of the input itself."""
        found: list[Got] = []
        for guesses, view in zip(drawn, self._views, strict=True):
            known, truth = view.numbers[: samples - len(guesses)], view.numbers[samples - len(guesses) : samples]
            blind = view.compare(known.mean(0).expand_as(truth), truth).mean().clamp_min(0)
            psnr = scores.psnr(drawn[0], self.numbers[samples - len(guesses) : samples])
            found.append(Got(view.compare(guesses, truth), float(blind), float(psnr.mean()), steps, sure))
        return max(found, key=lambda got: float(got.scores.mean().nan_to_num(math.inf)))

    def _coarse(self, values: torch.Tensor) -> torch.Tensor:
        values = _finite(values.float())
        pictures = _pictures(values)
        if pictures is not None:
            values = pictures
            if values.shape[1] > MOST_CHANNELS:
                rows = _averaged(values.flatten(2).transpose(1, 2), (MOST_CHANNELS,)).transpose(1, 2)
                values = rows.reshape(len(values), MOST_CHANNELS, *values.shape[2:])
            places = tuple(min(size, LARGEST_IMAGE) for size in values.shape[2:])
        else:
            values = _in_rows(_by_columns(values))
            if values.shape[1] > MOST_CHANNELS:
                values = _averaged(values.transpose(1, 2), (MOST_CHANNELS,)).transpose(1, 2)
            places = (min(values.shape[2], LONGEST_SIGNAL),)
        values = _averaged(values, places)
        low, high = values.amin(), values.amax()
        return (values - low) / (high - low).clamp_min(1e-12)


def _by_columns(values: torch.Tensor) -> torch.Tensor:
    """A table ``[n, columns]``, each in its own deviations: a time in seconds beside shares would be all that counts.

    What has as many columns as a signal has places is left as it is.
    """
    if values.ndim != 2 or values.shape[1] >= SHORTEST:
        return values
    exact = values.double()
    varied = exact.amax(0) > exact.amin(0)
    return torch.where(varied, (exact - exact.mean(0)) / exact.std(0, correction=0), 0.0).float()


def _in_rows(values: torch.Tensor) -> torch.Tensor:
    """``[n, rows, places]`` of what is no image: the longer one of two dimensions is that of places."""
    if values.ndim != 3 or min(values.shape[1:]) < 2:
        return values.reshape(len(values), 1, -1)
    # Maybe in steps of several numbers each, as transformers take them.
    return values.transpose(1, 2) if values.shape[1] > values.shape[2] else values


def _finite(values: torch.Tensor) -> torch.Tensor:
    """Values with what is infinite or no number, as in additive masks, at the ends of the range of the others."""
    known = values.isfinite()
    if bool(known.all()):
        return values
    low, high = (float(end) for end in values[known].aminmax()) if bool(known.any()) else (0.0, 0.0)
    return values.nan_to_num(low, high, low)


def _averaged(values: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
    return values if places == tuple(values.shape[2:]) else functional.interpolate(values, places, mode="area")


class Tokens:
    """An input of integers, ``[n, places]``; the commonest one (padding) is not asked for."""

    score = "share of tokens recovered"

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values.reshape(len(values), -1)
        known, self._classes = self._values.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        self._common = int(self._classes.flatten().bincount().argmax())
        generator = torch.Generator().manual_seed(0)
        self.numbers = torch.randn(len(known), EMBEDDED, generator=generator)[self._classes]

    def crosses(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        return any(_is(value, self._values) for value in tensors.values())

    def attack(
        self, tensors: Mapping[str, torch.Tensor], held_out: int, *, width: int, seconds: float, steps: int,
        memory_bytes: float = math.inf,
    ) -> Got:  # fmt: skip
        classes = self._classes[: len(next(iter(tensors.values())))]
        drawn = guess_tokens(
            tensors, classes, held_out, common=self._common, width=width, seconds=seconds, steps=steps,
            memory_bytes=memory_bytes,
        )  # fmt: skip
        truth = classes[-held_out:]
        blind = torch.stack([self._commonest(place) for place in classes[:-held_out].T])
        right, by_chance = (scores.recovered(guesses, truth, self._common) for guesses in (drawn.guesses, blind))
        return Got(right, float(by_chance.mean()), None, drawn.steps, drawn.sure)

    def _commonest(self, place: torch.Tensor) -> torch.Tensor:
        """Of a place's tokens the commonest that is asked for."""
        counts = place.bincount(minlength=self._common + 1)
        counts[self._common] = 0
        return counts.argmax()


def targets_of(calibration: Calibration) -> dict[str, Target]:
    """By name, the inputs that are a secret: all but those that are the same in every sample, and masks of padding.

    Integers of many places, such as the pixels of an image, are drawn, and not guessed one by one.
    """
    found: dict[str, Target] = {}
    for name, value in calibration.inputs.items():
        if bool((value == value[:1]).all()) or _marks_padding(name, calibration.inputs):
            continue
        drawn = value.is_floating_point() or _pictures(value) is not None or value[0].numel() > LONGEST_SIGNAL
        found[name] = Drawing(value.float()) if drawn else Tokens(value.long())
    return found


def _pictures(values: torch.Tensor) -> torch.Tensor | None:
    """``[n, channels, height, width]`` of images with channels first or last, or of videos, whose frames are channels.

    ``None`` of what is too small along two dimensions.
    """
    if values.ndim in (4, 5) and min(values.shape[-2:]) >= SMALLEST_IMAGE:
        return values.flatten(1, -3)
    if values.ndim in (4, 5) and min(values.shape[-3:-1]) >= SMALLEST_IMAGE:
        return values.movedim(-1, 1).flatten(1, -3)
    return None


def _marks_padding(name: str, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether an input only tells how long another one of its shape is: by ones, then zeros, or the other way round."""
    value = inputs[name]
    others = (other for called, other in inputs.items() if called != name and not other.is_floating_point())
    if value.ndim != 2 or value.is_floating_point() or all(other.shape != value.shape for other in others):
        return False
    steps = value.long().diff(dim=1)
    return set(value.unique().tolist()) <= {0, 1} and (bool((steps <= 0).all()) or bool((steps >= 0).all()))  # type: ignore[no-untyped-call]


def _is(value: torch.Tensor, secret: torch.Tensor) -> bool:
    """Whether a tensor holds the first of the secret's samples, whatever its shape."""
    if value[0].numel() != secret[0].numel():
        return False
    exact = not secret.is_floating_point()
    margin = 0.0 if exact else RAW_ERROR * float(secret.max() - secret.min())
    together = max(1, _NUMBERS_TOGETHER // secret[0].numel())
    for got, truth in zip(*(torch.split(each, together) for each in (value, secret[: len(value)])), strict=True):
        error = (got.reshape(len(got), -1).double() - truth.reshape(len(truth), -1).double()).abs().max()
        if not float(error) <= margin:
            return False
    return True

"""By what an answer is judged: the metric that the user names, or the one that labels and outputs call for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from splitplane.model.errors import CalibrationError

Tensors = Mapping[str, torch.Tensor]

IGNORED = -100
"""Label of a place that does not count, as ``torch.nn.CrossEntropyLoss`` has it."""
_BESIDE = 0.5
"""How far beside 0 to 1 a regression to these may lie."""
_MOST = {"top1": 1, "top5": 5}
_IMAGES = 4
"""Dimensions of a batch of images, whose classes are the second one."""
_ONE_SIDED_95 = 1.645


class Metric(Protocol):
    """A measure of one output, by errors of each sample: 0 is right, the more the worse."""

    @property
    def name(self) -> str: ...

    @property
    def by_variance(self) -> bool:
        """Whether errors are squares, in parts of what the best constant answer's would be; else they end at 1."""

    def truth(self, outputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        """What counts as right: the labels, or else what the unsplit model's ``outputs`` say."""

    def errors(self, outputs: Tensors, truth: torch.Tensor) -> torch.Tensor:
        """``[samples]``. What is no number is wrong."""

    def bound(self, losses: torch.Tensor) -> float:
        """What the mean stays below with 95 % confidence, of samples drawn at random."""


@dataclass(frozen=True, slots=True)
class TopClass:
    """``top1`` and ``top5``: the share of places where the right class is not among the highest scores.

    ``classes`` is the dimension of the scores; without it the output is the class itself, or the ``logit`` of the
    second of two.
    """

    name: str
    output: str
    classes: int | None
    by_variance: bool = False
    logit: bool = False

    def truth(self, outputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        answers = outputs[self.output]
        if labels is None:
            return answers if self.classes is None else answers.argmax(self.classes)
        places = answers.shape if self.classes is None else answers.select(self.classes, 0).shape
        return labels.reshape(places).long()  # small unsigned ones cannot be compared with IGNORED

    def errors(self, outputs: Tensors, truth: torch.Tensor) -> torch.Tensor:
        answers = outputs[self.output]
        if self.logit:
            wrong = ((answers > 0) != truth) | answers.isnan()
        elif self.classes is None:
            wrong = answers != truth
        else:
            scores = answers.movedim(self.classes, -1)
            highest = scores.topk(_MOST[self.name], -1).indices
            wrong = (highest != truth[..., None]).all(-1) | scores.isnan().any(-1)
        counted = (truth != IGNORED).reshape(len(truth), -1)
        wrong = wrong.reshape(counted.shape) & counted
        return wrong.sum(1).double() / counted.sum(1).clamp_min(1)

    def bound(self, losses: torch.Tensor) -> float:
        # Of numbers in 0..1 none vary more than those that are 0 or 1, which Wilson's interval is for.
        worse, better = (float(each.clamp_min(0).mean()) for each in (losses, -losses))
        return wilson(worse, len(losses)) - (wilson(better, len(losses), upper=False) if better else 0.0)


@dataclass(frozen=True, slots=True)
class Explained:
    """``r2``: one less the coefficient of determination."""

    output: str
    name: str = "r2"
    by_variance: bool = True

    def truth(self, outputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        return outputs[self.output] if labels is None else labels.reshape(outputs[self.output].shape)

    def errors(self, outputs: Tensors, truth: torch.Tensor) -> torch.Tensor:
        difference = differences(outputs[self.output], truth)
        return difference.reshape(len(difference), -1).pow(2).sum(1).nan_to_num(math.inf)

    def bound(self, losses: torch.Tensor) -> float:
        return _bound_of_mean(losses)


@dataclass(frozen=True, slots=True)
class Cosine:
    """``cosine``: one less the cosine between an output and that of the unsplit model, whatever the labels."""

    output: str
    name: str = "cosine"
    by_variance: bool = False

    def truth(self, outputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG002
        return outputs[self.output]

    def errors(self, outputs: Tensors, truth: torch.Tensor) -> torch.Tensor:
        return 1.0 - cosines(outputs[self.output], truth)

    def bound(self, losses: torch.Tensor) -> float:
        return _bound_of_mean(losses)


def differences(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Element by element, in float64; 0 where both are the same infinity."""
    got, want = got.double(), want.double()
    return torch.where(got == want, 0.0, got - want)


def cosines(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Of each sample; 1 of what is the same, be it all zeros, and 0 of what is no number.

    Places where both are the same infinity, such as scores that are masked, are left out.
    """
    got, want = (each.double().reshape(len(each), -1) for each in (got, want))
    masked = want.isinf() & (got == want)
    got, want = got.masked_fill(masked, 0.0), want.masked_fill(masked, 0.0)
    found = torch.nn.functional.cosine_similarity(got, want, dim=1).nan_to_num(0.0)
    return torch.where((got == want).all(1), 1.0, found)


def choose(name: str, outputs: Tensors, labels: torch.Tensor | None) -> list[Metric]:
    """The metrics of which the worst counts, for a batch of ``outputs`` and its ``labels``.

    ``name`` is the user's, or empty: then labels that are whole numbers call for ``top1``, others for ``r2``. Without
    labels an output ``[n, k]`` may hold scores or an embedding, and is judged by both ``top1`` and ``cosine``; one
    number per sample by ``r2``, integers by ``top1``, all else by ``cosine``. Raises :class:`CalibrationError` where
    nothing fits.
    """
    outputs = {output: value for output, value in outputs.items() if value[0].numel()}  # the others say nothing
    if name in ("", "cosine") and (labels is None or name):
        found = [each for output in outputs for each in _unlabelled(name, output, outputs[output])]
    else:
        wanted = name or ("r2" if labels is not None and labels.is_floating_point() else "top1")
        each_of = [_fitting(wanted, output, value, labels) for output, value in outputs.items()]
        found = [metric for metric in each_of if metric is not None]
        if labels is not None:  # one number may be anything, beside an output with a score for each class
            found = sorted(found, key=lambda metric: isinstance(metric, TopClass) and metric.logit)[:1]
    if not found:
        raise CalibrationError(_misfit(name, outputs, labels))
    return found


def labelled(metric: Metric, labels: torch.Tensor) -> torch.Tensor:
    """``[samples]``: which of them have a label that counts.

    Raises :class:`CalibrationError` where none has, and where labels name no class, by which nothing would ever be
    right, so that nothing could be lost, or do not vary where errors are in parts of their variance.
    """
    if metric.by_variance and bool((labels == labels[:1]).all()):
        raise CalibrationError("all labels are the same number, which a constant answers as well: give others")
    if not isinstance(metric, TopClass):
        return torch.ones(len(labels), dtype=torch.bool)
    places = labels.reshape(len(labels), -1).long()
    counted = places != IGNORED
    if metric.classes is not None and bool((places[counted] < 0).any()):
        raise CalibrationError(
            f"there are labels of {int(places[counted].min())}: classes count from 0, and what has no label is "
            f"{IGNORED}. Correct the file's labels"
        )
    if not bool(counted.any()):
        raise CalibrationError(
            f"all labels are {IGNORED}, which leaves out what has none: give labels, or a file without the tensor, to "
            "be judged by the unsplit model's answers"
        )
    return counted.any(1)


def _unlabelled(name: str, output: str, value: torch.Tensor) -> list[Metric]:
    if name:
        return [Cosine(output)] if value[0].numel() > 1 else []
    if not value.is_floating_point():
        return [TopClass("top1", output, None)]
    if value[0].numel() == 1:
        return [Explained(output)]
    return [TopClass("top1", output, 1), Cosine(output)] if value.ndim == 2 else [Cosine(output)]


def _fitting(name: str, output: str, value: torch.Tensor, labels: torch.Tensor | None) -> Metric | None:
    numbers = labels is not None and labels.is_floating_point()
    same_size = labels is None or labels[0].numel() == value[0].numel()
    if name == "r2":
        return Explained(output) if value.is_floating_point() and same_size and (numbers or labels is None) else None
    if numbers:
        return None
    if not value.is_floating_point():
        return TopClass(name, output, None) if name == "top1" and same_size else None
    if name == "top1" and labels is not None and value[0].numel() == 1 and same_size and _are_logits(value, labels):
        return TopClass(name, output, None, logit=True)
    largest = -1 if labels is None else int(labels.max())
    for dimension in (1,) if value.ndim == _IMAGES else (value.ndim - 1, 1):
        if value.ndim < 2 or value.shape[dimension] <= max(_MOST[name], largest):
            continue
        if labels is None or _places(labels) == _places(value.select(dimension, 0)):
            return TopClass(name, output, dimension)
    return None


def _are_logits(values: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether one number tells of two classes by its sign. Numbers from 0 to 1 may be probabilities, which do not; and
    those that lie just beside that are of a regression to 0 and 1."""
    far = (values < -_BESIDE) | (values > 1 + _BESIDE)
    return set(labels.flatten().tolist()) <= {0, 1, IGNORED} and bool(far.any())


def _places(value: torch.Tensor) -> list[int]:
    return [size for size in value.shape[1:] if size > 1]


def _misfit(name: str, outputs: Tensors, labels: torch.Tensor | None) -> str:
    shapes = ", ".join(
        f"{output} {str(value.dtype).removeprefix('torch.')} {['n', *value.shape[1:]]}".replace("'", "")
        for output, value in outputs.items()
    )
    given = "no labels"
    if labels is not None:
        span = f"from {labels.min().item():g} to {labels.max().item():g}"
        given = f"labels {str(labels.dtype).removeprefix('torch.')} {['n', *labels.shape[1:]]} {span}".replace("'", "")
    asked = f"the metric {name} does not fit" if name else "no metric fits"
    return (
        f"{asked} the outputs {shapes} with {given}: top1 and top5 want a score for each of more classes than that"
        " and whole numbers as labels, or one logit (no probability) and labels of 0 and 1, r2 numbers and labels of"
        " their shape, cosine more than one number per sample."
        " Correct spec.model.calibration.metric (--metric) or the file's labels"
    )


def wilson(share: float, samples: int, *, upper: bool = True) -> float:
    """Wilson's bound of a share at 95 %, one-sided."""
    z, sign = _ONE_SIDED_95, 1.0 if upper else -1.0
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    return (share + z * z / (2 * samples) + sign * half) / (1 + z * z / samples)


def _bound_of_mean(losses: torch.Tensor) -> float:
    """Of numbers that vary as they do, by the normal distribution; of one nothing is known."""
    if len(losses) < 2:
        return 1.0
    return float(losses.mean() + _ONE_SIDED_95 * losses.std() / len(losses) ** 0.5)

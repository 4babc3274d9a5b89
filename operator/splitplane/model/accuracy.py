"""What a model's answers lose where it is cut and crosses with a lossy codec, on real inputs.

Each sample is encoded apart, as a request of one is, decoded, and run to the end; its outputs are compared with those
of the unsplit fp32 model.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from splitplane.model.calibration import Calibration
from splitplane.model.partitions import Partition
from splitplane.model.profile import Codec

Tensors = Mapping[str, torch.Tensor]

BATCH = 16


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the outputs of one (cut, codec) are from the whole model's.

    ``top1`` is the share of samples with the same highest score, where there are scores (an output ``[batch,
    classes]``). ``cosine`` is the mean similarity of a sample's output, of several outputs the least. ``max_error`` is
    relative to the largest absolute value of the output. ``metric`` is the share of samples of the right class, and
    ``whole_metric`` that of the whole model, where there are labels.
    """

    cut: int
    codec: str
    samples: int
    top1: float | None
    cosine: float
    max_error: float
    metric: float | None
    whole_metric: float | None

    @property
    def loss(self) -> float:
        """From 0 to 1: of the metric, else of agreement in the highest score, else of the cosine."""
        if self.metric is not None and self.whole_metric is not None:
            return max(0.0, self.whole_metric - self.metric)
        return min(1.0, max(0.0, 1.0 - (self.cosine if self.top1 is None else self.top1)))


def compare_codecs(
    partition: Partition,
    calibration: Calibration,
    codecs: Mapping[str, Codec],
    cuts: Iterable[int],
    *,
    end: float = math.inf,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Agreement]:
    """Compare every (cut, codec), by rising cut. The model must be wholly resident.

    Once ``end`` (on ``time.monotonic``) has passed, no further samples are taken.
    """
    wanted, last = sorted(set(cuts)), partition.last
    sums = {(cut, codec): _Sums() for cut in wanted for codec in codecs}
    whole_right, samples, done = 0.0, calibration.samples, 0
    for start in range(0, samples, BATCH):
        if start and time.monotonic() > end:
            break
        batch = {name: value[start : start + BATCH] for name, value in calibration.inputs.items()}
        labels = None if calibration.labels is None else calibration.labels[start : start + BATCH]
        expected = partition.run(0, last, batch)
        whole_right += _right(expected, labels)
        here, tensors = 0, batch
        for cut in wanted:
            if cut > here:
                tensors, here = partition.run(here, cut, tensors), cut
            for name, codec in codecs.items():
                outputs = partition.run(cut, last, crossed(tensors, codec))
                sums[cut, name].add(outputs, expected, labels)
        done = min(start + BATCH, samples)
        progress(f"accuracy: {done} of {samples} samples")
    labelled = calibration.labels is not None
    return [each.result(cut, name, done, whole_right if labelled else None) for (cut, name), each in sums.items()]


def crossed(tensors: Tensors, codec: Codec) -> dict[str, torch.Tensor]:
    """What arrives of a batch whose samples cross one by one."""
    size = len(next(iter(tensors.values())))
    arrived = [
        codec.decode(codec.encode({name: value[index : index + 1] for name, value in tensors.items()}))
        for index in range(size)
    ]
    return {name: torch.cat([each[name] for each in arrived]) for name in tensors}


@dataclass(slots=True)
class _Sums:
    """Sums over samples, output by output where that matters."""

    right: float = 0.0
    same: float | None = None
    cosine: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)

    def add(self, outputs: Tensors, expected: Tensors, labels: torch.Tensor | None) -> None:
        self.right += _right(outputs, labels)
        scores = _scores(expected)
        if scores is not None:
            same = outputs[scores].argmax(1) == expected[scores].argmax(1)
            self.same = (self.same or 0.0) + float(same.sum())
        for name, value in expected.items():
            got, want = outputs[name].double().flatten(1), value.double().flatten(1)
            # A NaN is as far off as can be.
            cosine = torch.nn.functional.cosine_similarity(got, want, dim=1).nan_to_num(0.0)
            self.cosine[name] = self.cosine.get(name, 0.0) + float(cosine.sum())
            error = float((got - want).abs().nan_to_num(float("inf")).max())
            self.error[name] = max(self.error.get(name, 0.0), error)
            self.scale[name] = max(self.scale.get(name, 0.0), float(want.abs().max()))

    def result(self, cut: int, codec: str, samples: int, whole_right: float | None) -> Agreement:
        return Agreement(
            cut=cut,
            codec=codec,
            samples=samples,
            top1=None if self.same is None else self.same / samples,
            cosine=min(self.cosine.values()) / samples,
            max_error=max(error / (self.scale[name] or 1.0) for name, error in self.error.items()),
            metric=None if whole_right is None else self.right / samples,
            whole_metric=None if whole_right is None else whole_right / samples,
        )


def _scores(outputs: Tensors) -> str | None:
    """The first output that has a score for each of several classes."""
    return next((name for name, value in outputs.items() if value.ndim == 2 and value.shape[1] > 1), None)


def _right(outputs: Tensors, labels: torch.Tensor | None) -> float:
    scores = _scores(outputs)
    if labels is None or scores is None:
        return 0.0
    return float((outputs[scores].argmax(1) == labels.reshape(-1)).sum())

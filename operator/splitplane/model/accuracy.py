"""What a model's answers lose where it is cut and crosses with a lossy codec, on real inputs.

Each sample is encoded apart, as a request of one is, decoded, and run to the end; its outputs are compared with those
of the unsplit fp32 model.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from splitplane.model.calibration import Calibration, run_on
from splitplane.model.errors import CalibrationError
from splitplane.model.memory import available_bytes, grown
from splitplane.model.metrics import Metric, Tensors, choose, cosines, differences, labelled
from splitplane.model.partitions import Partition
from splitplane.model.profile import Codec

BATCH = 16
TELLING, MOST_TELLING, TELLING_SHARE = 70, 700, 0.25
"""Of so many samples a model that is right once in ten, or in a hundred, gets one, but for one file in a thousand. The
second are looked at unless that takes more than a share of the time. Of fewer than the first without a right answer the
bound is above 0.03 in any case."""
COPIES = 4
"""Of the largest tensors, that are held at once, beside what a run takes: what left, what arrived, what both give."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the answers of one (cut, codec) are from the whole model's.

    ``loss`` is from 0 to 1, by the metric: of rightness where there are labels, else of agreement with the whole model;
    ``bound`` is what it stays below with 95 % confidence, as not all inputs were tried. ``top1`` is the share of
    samples with the same highest score, where there is an output ``[batch, scores]``; ``cosine`` is the mean
    similarity, of several outputs the least; ``max_error`` is relative to the largest absolute value of the output.
    """

    cut: int
    codec: str
    samples: int
    loss: float
    bound: float
    top1: float | None
    cosine: float
    max_error: float


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """``metric`` is what was judged by; ``whole`` is the unsplit model's share by it, where there are ``labels``."""

    metric: str
    labels: bool
    whole: float | None
    samples: int
    agreements: tuple[Agreement, ...]


def compare_codecs(
    partition: Partition,
    calibration: Calibration,
    codecs: Mapping[str, Codec],
    cuts: Iterable[int],
    *,
    metric: str = "",
    end: float = math.inf,
    memory_bytes: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> AccuracyReport:
    """Compare every (cut, codec), by rising cut. The model must be wholly resident.

    Samples are taken in random order, the same each time, but for the first only as many as can be compared before
    ``end`` (on ``time.monotonic``), and so many at once as ``memory_bytes`` hold (by default half of what is there).
    ``metric`` is a ``domain.calibrations.Metric``, or empty (``metrics.choose``). Samples without a label that counts
    are left out. Raises :class:`CalibrationError` where the metric, the labels or the inputs do not fit.
    """
    wanted, last = sorted(set(cuts)), partition.last
    memory = available_bytes() // 2 if memory_bytes is None else memory_bytes
    one = {name: value[:1] for name, value in calibration.inputs.items()}
    taken = grown(lambda: run_on(partition, 0, last, one))
    largest = max(cut.wire_bytes["fp32"] for cut in partition.graph.cuts)
    together = max(1, min(BATCH, memory // (taken + COPIES * largest)))
    few = {name: value[calibration.order()[:together]] for name, value in calibration.inputs.items()}
    judged = [Judged(each) for each in choose(metric, run_on(partition, 0, last, few), calibration.labels)]
    if calibration.labels is not None:
        calibration = calibration.at(labelled(judged[0].metric, calibration.labels))
    by_labels = calibration.labels is not None and any(each.metric.name != "cosine" for each in judged)
    samples, order = calibration.samples, calibration.order()
    if by_labels and not judged[0].metric.by_variance:
        began = time.monotonic()
        _check_labels(partition, judged[0].metric, calibration, together, began + TELLING_SHARE * (end - began))
    sums = {(cut, codec): _Sums(tuple([] for _ in judged)) for cut in wanted for codec in codecs}
    done, began = 0, time.monotonic()
    while done < samples:
        # A few to begin with, by which the time of the others is told.
        size = min(together, samples - done, max(1, done))
        if done and end < math.inf:
            size = min(size, int((end - time.monotonic()) * done / (time.monotonic() - began)))
        if size <= 0:
            break
        some = order[done : done + size]
        batch = {name: value[some] for name, value in calibration.inputs.items()}
        labels = None if calibration.labels is None else calibration.labels[some]
        expected = run_on(partition, 0, last, batch)
        for each in judged:
            each.take(expected, labels)
        here, tensors = 0, batch
        for cut in wanted:
            if cut > here:
                tensors, here = run_on(partition, here, cut, tensors), cut
            for name, codec in codecs.items():
                outputs = run_on(partition, cut, last, crossed(tensors, codec))
                sums[cut, name].add(outputs, expected, judged)
        done += size
        progress(f"accuracy: {done} of {samples} samples")
    if by_labels and judged[0].metric.by_variance and done >= TELLING and not judged[0].whole() > 0.0:
        raise CalibrationError(
            f"the unsplit model tells {done} labels no better than one number for all of them would, so that no loss"
            " could show: correct the weights, or the file's inputs or labels, and the unit of these"
        )
    return AccuracyReport(
        metric=" and ".join(sorted({each.metric.name for each in judged}, reverse=True)),
        labels=by_labels,
        whole=judged[0].whole() if by_labels else None,
        samples=done,
        agreements=tuple(each.result(cut, name, done, judged) for (cut, name), each in sums.items()),
    )


def _check_labels(
    partition: Partition, metric: Metric, calibration: Calibration, together: int, end: float
) -> None:  # fmt: skip
    """Raises :class:`CalibrationError` where none of the first ``MOST_TELLING`` labels is right, before time is spent.

    It looks on only while none of them is; from ``TELLING`` on, no further than it comes until ``end``.
    """
    assert calibration.labels is not None
    order, seen, judged = calibration.order(), 0, Judged(metric)
    while seen < min(MOST_TELLING, calibration.samples) and (not seen or time.monotonic() < end):
        some = order[seen : min(MOST_TELLING, seen + together)]
        batch = {name: value[some] for name, value in calibration.inputs.items()}
        judged.take(run_on(partition, 0, partition.last, batch), calibration.labels[some])
        seen += len(some)
        if judged.whole() > 0.0:
            return
    if seen >= TELLING:
        raise CalibrationError(
            f"the unsplit model gets none of {seen} labels right, so that no loss could show: correct the weights, or "
            "the file's inputs or labels, whose classes count from 0"
        )


def crossed(tensors: Tensors, codec: Codec) -> dict[str, torch.Tensor]:
    """What arrives of a batch whose samples cross one by one."""
    size = len(next(iter(tensors.values())))
    arrived = [
        codec.decode(codec.encode({name: value[index : index + 1] for name, value in tensors.items()}))
        for index in range(size)
    ]
    return {name: torch.cat([each[name] for each in arrived]) for name in tensors}


class Judged:
    """A metric, with what is right in the batch at hand, and what the whole model's errors were."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.errors: list[torch.Tensor] = []
        self._samples, self._sum, self._squares = 0, torch.zeros(()), 0.0

    def take(self, expected: Tensors, labels: torch.Tensor | None) -> None:
        self.truth = self.metric.truth(expected, labels)
        self.errors.append(self.metric.errors(expected, self.truth))
        if self.metric.by_variance:
            truth = self.truth.double()
            self._samples += len(truth)
            self._sum = self._sum + truth.sum(0)
            self._squares += float(truth.pow(2).sum())

    @property
    def scale(self) -> float:
        """The mean squared error of the best constant answer, where errors are in parts of that."""
        if not self.metric.by_variance:
            return 1.0
        mean = self._sum / self._samples
        return max(1e-30, self._squares / self._samples - float(mean.pow(2).sum()))

    def whole(self) -> float:
        return max(0.0, 1.0 - float(torch.cat(self.errors).mean()) / self.scale)


@dataclass(slots=True)
class _Sums:
    """Of one (cut, codec): losses of each sample by metric, and sums over samples, output by output."""

    losses: Sequence[list[torch.Tensor]]
    same: float | None = None
    cosine: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)

    def add(self, outputs: Tensors, expected: Tensors, judged: Sequence[Judged]) -> None:
        for losses, each in zip(self.losses, judged, strict=True):
            losses.append(each.metric.errors(outputs, each.truth) - each.errors[-1])
        scores = next((name for name, value in expected.items() if value.ndim == 2 and value.shape[1] > 1), None)
        if scores is not None:
            same = outputs[scores].argmax(1) == expected[scores].argmax(1)
            self.same = (self.same or 0.0) + float(same.sum())
        for name, want in expected.items():
            if not want.numel():
                continue
            self.cosine[name] = self.cosine.get(name, 0.0) + float(cosines(outputs[name], want).sum())
            errors = differences(outputs[name], want).abs()
            self.error[name] = max(self.error.get(name, 0.0), float(errors.nan_to_num(math.inf).max()))
            scale = float(want[want.isfinite()].abs().max()) if bool(want.isfinite().any()) else 0.0
            self.scale[name] = max(self.scale.get(name, 0.0), scale)

    def result(self, cut: int, codec: str, samples: int, judged: Sequence[Judged]) -> Agreement:
        found = [
            (each.metric, torch.cat(losses) / each.scale) for losses, each in zip(self.losses, judged, strict=True)
        ]
        loss = max(_share(float(losses.mean())) for _, losses in found)
        return Agreement(
            cut=cut,
            codec=codec,
            samples=samples,
            loss=loss,
            bound=max(loss, *(_share(metric.bound(losses)) for metric, losses in found)),
            top1=None if self.same is None else self.same / samples,
            cosine=min(self.cosine.values()) / samples,
            max_error=max(error / (self.scale[name] or 1.0) for name, error in self.error.items()),
        )


def _share(value: float) -> float:
    """From 0 to 1; what is no number is all."""
    return 1.0 if math.isnan(value) else min(1.0, max(0.0, value))

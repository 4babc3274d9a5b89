"""Accuracy losses and leaks that were found, into the profile of their model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from splitplane.api.fields import decimal_string
from splitplane.api.profiles import (
    MAX_ATTACKED,
    AccuracyMeasurement,
    CodecShare,
    LeakMeasurement,
    ModelProfileSpec,
    codec_shares,
    share_string,
)
from splitplane.domain.calibrations import AccuracyFound, LeakFound
from splitplane.domain.leaks import spread


def with_accuracy(spec: ModelProfileSpec, found: AccuracyFound) -> ModelProfileSpec:
    """The profile with these accuracy losses beside those known; in their stead if they are by another metric, or on
    another file of inputs."""
    measurement = AccuracyMeasurement.model_validate(
        {
            "metric": found.metric,
            "samples": found.samples,
            "whole": None if found.whole is None else share_string(found.whole),
            "calibrationSha256": found.sha256,
        }
    )
    before = spec.accuracy_measurement
    kept = before is not None and (before.metric, before.calibration_sha256) == (found.metric, found.sha256)
    losses: list[dict[str, float]] = [
        {each.codec: float(each.share) for each in cut.accuracy_loss} if kept else {} for cut in spec.cuts
    ]
    for (cut, codec), loss in found.losses.items():
        losses[cut][codec] = loss
    return _with_shares(spec, "accuracy_loss", losses).model_copy(update={"accuracy_measurement": measurement})


def with_leakage(spec: ModelProfileSpec, found: LeakFound) -> ModelProfileSpec:
    """The profile with what an attack got. What earlier ones got of the same (cut, codec), on the same file of inputs,
    stands where it is more: a weaker attack makes no cut safer."""
    before, scores = spec.leak_measurement, dict(found.scores)
    if before is not None and found.sha256 and before.calibration_sha256 == found.sha256:
        for each in sorted(before.attacked, key=lambda each: -float(each.score)):
            key = each.cut, each.codec
            if key in scores or len(scores) < MAX_ATTACKED:
                scores[key] = max(scores.get(key, 0.0), float(each.score))
    leaks = spread(scores, len(spec.cuts), defended=spec.defence is not None)
    measurement = _leak_measurement(replace(found, scores=scores))
    return _with_shares(spec, "leakage", leaks).model_copy(update={"leak_measurement": measurement})


def _leak_measurement(found: LeakFound) -> LeakMeasurement:
    """How a leak was measured, and what of by (cut, codec)."""
    return LeakMeasurement.model_validate(
        {
            "attack": found.attack, "score": found.score, "samples": found.samples,
            "inputControl": decimal_string(found.input_control, digits=4),
            "shuffledControl": decimal_string(found.shuffled_control, digits=4),
            "shuffledSkill": decimal_string(found.shuffled_skill, digits=4),
            "calibrationSha256": found.sha256,
            "attacked": [
                {"cut": cut, "codec": codec, "score": share_string(value)}
                for (cut, codec), value in sorted(found.scores.items())
            ],
        }
    )  # fmt: skip


def _with_shares(spec: ModelProfileSpec, field: str, shares: Sequence[Mapping[str, float]]) -> ModelProfileSpec:
    cuts = tuple(
        cut.model_copy(update={field: tuple(CodecShare.model_validate(each) for each in codec_shares(found))})
        for cut, found in zip(spec.cuts, shares, strict=True)
    )
    return spec.model_copy(update={"cuts": cuts})

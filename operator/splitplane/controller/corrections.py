"""How much slower tiers are than profiled, as the loop learns it, and how a restarted operator knows it again. Pure."""

import hashlib
import math
from collections.abc import Mapping

from splitplane.adapters.metrics import PipelineMetrics
from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.control import Control, Learnt
from splitplane.domain.measurements import Missing, known
from splitplane.domain.profiles import DeviceProfile, Profile
from splitplane.planner.learning import UNKNOWN, Correction, learn

Subject = tuple[str, DeviceProfile | None]
"""Of what something was learnt: a model's fingerprint, and a device as it was profiled."""

# Ranges so short that the clock's and the queue's own noise would pass for the device's speed.
_LEAST_RANGE_SECONDS = 1e-4
# Factors, and seconds per request, that differ by less are not worth a write.
_NOTABLE_FACTOR, _NOTABLE_SECONDS = 0.05, 0.005


def speeds(
    pipeline: InferencePipeline, profile: Profile, control: Control, measured: PipelineMetrics
) -> dict[str, tuple[float, float]]:
    """Seconds that the profile says and that were observed of the range that each tier runs now."""
    if control.active is None:
        return {}
    classes = {tier.name: tier.device_class for tier in pipeline.spec.tiers}
    found = {}
    for stage in control.active.plan.stages:
        device = profile.devices.get(classes.get(stage.tier, ""))
        observed = known(measured.stage_seconds.get((stage.tier, stage.first, stage.last), Missing("")))
        if device is None or not observed or stage.last > profile.segments:
            continue
        profiled = device.range_seconds(stage.first, stage.last)
        if profiled >= _LEAST_RANGE_SECONDS:
            found[stage.tier] = profiled, observed
    return found


def learnt(
    before: Mapping[str, Correction], observed: Mapping[str, tuple[float, float]], control: Control, now: float
) -> dict[str, Correction]:
    """Corrections by tier after what was observed; nothing is learnt while a switch is on, whose pods warm up."""
    if control.pending is not None or control.switching_since is not None or control.draining:
        return dict(before)
    return {**before, **{tier: learn(before.get(tier, UNKNOWN), *seconds, now) for tier, seconds in observed.items()}}


def recalled(control: Control, subjects: Mapping[str, Subject]) -> dict[str, Correction]:
    """What another operator has learnt by tier, as far as it is about the same model and devices."""
    return {
        each.tier: each.correction
        for each in control.learnt
        if each.tier in subjects and each.subject == _digest(subjects[each.tier])
    }


def remembered(
    before: tuple[Learnt, ...], corrections: Mapping[str, Correction], subjects: Mapping[str, Subject], now: float
) -> tuple[Learnt, ...]:
    """``Control.learnt`` after this round: as before until something differs notably, so that calm causes no writes."""
    after = tuple(Learnt(tier, _digest(subjects[tier]), correction) for tier, correction in sorted(corrections.items()))
    about = ([(each.tier, each.subject) for each in some] for some in (before, after))
    same = next(about) == next(about)
    if same and all(_alike(old.correction, new.correction, now) for old, new in zip(before, after, strict=True)):
        return before
    return after


def _alike(old: Correction, new: Correction, now: float) -> bool:
    factor, seconds = math.log(new.factor(now) / old.factor(now)), new.offset(now) - old.offset(now)
    return abs(factor) <= _NOTABLE_FACTOR and abs(seconds) <= _NOTABLE_SECONDS


def _digest(subject: Subject) -> str:
    return hashlib.sha256(repr(subject).encode()).hexdigest()[:10]

"""Which accuracy losses and leaks a pipeline's limits need that were not measured, and what to do about it. Pure."""

import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from splitplane.api.defences import to_defence
from splitplane.api.measured import with_accuracy, with_leakage
from splitplane.api.pipelines import InferencePipeline, TierSpec
from splitplane.api.profiles import AccuracyMeasurement, LeakMeasurement, ModelProfileSpec
from splitplane.controller.pods import CALIBRATION_PATH, compute_threads
from splitplane.domain.addresses import without_secrets
from splitplane.domain.calibrations import CalibrationRequest, CalibrationResult
from splitplane.domain.leaks import MOST_CUTS, choose_cuts
from splitplane.domain.plans import Plan
from splitplane.domain.profiles import BASE_CODECS, Profile, base_codec
from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner import frontier

_MOST_ACCURACY_CUTS = 16
_MOST_ATTACKED = 2 * MOST_CUTS
"""(cut, codec) that are attacked: with more, the budget would leave each attack too little time."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Of which of the two something is said: accuracy loss, leak."""

    accuracy: bool
    leak: bool

    def __bool__(self) -> bool:
        return self.accuracy or self.leak

    def __str__(self) -> str:
        return " and ".join(name for name, told in (("accuracy loss", self.accuracy), ("leak", self.leak)) if told)


def limited(pipeline: InferencePipeline) -> Shares:
    """What the pipeline sets a limit on that some plan could break."""
    spec = pipeline.spec
    return Shares(
        accuracy=spec.objectives.max_accuracy_loss is not None and bool(_lossy(pipeline)),
        leak=spec.objectives.max_leakage is not None and not all(tier.trusted for tier in spec.tiers),
    )


def missing(pipeline: InferencePipeline, profile: ModelProfileSpec, named: Collection[str]) -> Shares:
    """What was not measured of that, or is outdated; of a model that cannot be split there is nothing to measure."""
    wanted, inner, old = limited(pipeline), profile.cuts[1:-1], outdated(pipeline, profile, named)
    known = [{each.codec for each in cut.accuracy_loss} for cut in inner] if _by_its_metric(pipeline, profile) else []
    lossy = _lossy(pipeline)
    return Shares(
        accuracy=old.accuracy
        or bool(wanted.accuracy and inner and any(all(codec not in held for held in known) for codec in lossy)),
        leak=old.leak or bool(wanted.leak and inner and profile.leak_measurement is None),
    )


def outdated(pipeline: InferencePipeline, profile: ModelProfileSpec, named: Collection[str]) -> Shares:
    """What was measured on another file of inputs than the pipeline names now.

    ``named`` are the SHA-256 of the files that any pipeline with this model names: a model is measured on one of them,
    or pipelines that name different ones would have it measured in turns for ever.
    """
    given, wanted = pipeline.spec.model.calibration, limited(pipeline)
    known = {*named, given.sha256} if given is not None else set()

    def is_old(found: AccuracyMeasurement | LeakMeasurement | None) -> bool:
        return bool(known) and found is not None and found.calibration_sha256 not in known

    return Shares(
        accuracy=wanted.accuracy and is_old(profile.accuracy_measurement),
        leak=wanted.leak and is_old(profile.leak_measurement),
    )


def _by_its_metric(pipeline: InferencePipeline, profile: ModelProfileSpec) -> bool:
    """Whether accuracy was judged by what the pipeline names; where it names nothing, anything will do."""
    calibration, found = pipeline.spec.model.calibration, profile.accuracy_measurement
    wanted = None if calibration is None else calibration.metric
    return found is not None and wanted in (None, found.metric)


def trusted_tiers(pipeline: InferencePipeline) -> list[TierSpec]:
    """Where real inputs may be looked at."""
    return [tier for tier in pipeline.spec.tiers if tier.trusted]


def asked_for(pipeline: InferencePipeline, profile: ModelProfileSpec) -> list[Any]:
    """What tells one measurement from another: of which model, on which inputs, of which limits, with which codecs."""
    calibration = pipeline.spec.model.calibration
    bases = sorted({base_codec(codec) for codec in pipeline.spec.partitioning.codecs})
    return [
        profile.fingerprint, calibration.dump() if calibration is not None else None, str(limited(pipeline)), bases,
    ]  # fmt: skip


def request(
    pipeline: InferencePipeline, tier: TierSpec, wanted: Shares, asked: tuple[Snapshot, Policy]
) -> CalibrationRequest:
    """What a job on ``tier`` is to measure: the cuts of the plans worth having, were there no such limits."""
    calibration, codecs = pipeline.spec.model.calibration, pipeline.spec.partitioning.codecs
    assert calibration is not None
    snapshot, policy = asked
    untrusted = {each.name for each in pipeline.spec.tiers if not each.trusted}
    cuts, shown = _crossings(_plans(snapshot, policy), untrusted)
    inner = range(1, snapshot.profile.segments)
    # Losses on another file fall away with the first result: those of codecs that only others asked for are made again.
    held = {codec for cut in snapshot.profile.cuts for codec in cut.accuracy_loss}
    lossy = [codec for codec in BASE_CODECS if codec in {*_lossy(pipeline), *held}]
    tried = choose_cuts(sorted(cuts), _MOST_ACCURACY_CUTS)
    # Other pipelines of this model, or this one under another load, may want other cuts.
    others = [cut for cut in inner if cut not in tried]
    tried = sorted({*tried, *choose_cuts(others, _MOST_ACCURACY_CUTS - len(tried))})
    # Only fp32 tells of deeper cuts, so it is attacked, too, where it never crosses; behind a defence nothing does.
    used = {base_codec(each) for each in codecs} | ({"fp32"} if pipeline.spec.objectives.defence is None else set())
    bases = [codec for codec in BASE_CODECS if codec in used]
    attacked = choose_cuts(sorted(shown) or inner, max(2, min(MOST_CUTS, _MOST_ATTACKED // len(bases))))
    uri = calibration.uri
    if uri.startswith("pvc://"):
        uri = f"file://{CALIBRATION_PATH}/{uri.removeprefix('pvc://')}"
    return CalibrationRequest(
        uri=uri,
        sha256=calibration.sha256,
        defence=to_defence(pipeline.spec.objectives.defence),
        seconds=calibration.budget_core_seconds / compute_threads(tier),
        accuracy=tuple((cut, codec) for cut in tried for codec in lossy) if wanted.accuracy else (),
        leak=tuple((cut, codec) for cut in attacked for codec in bases) if wanted.leak else (),
        metric=calibration.metric or "",
    )


def with_result(profile: ModelProfileSpec, result: CalibrationResult) -> ModelProfileSpec:
    """The profile with what was measured. A leak found by attacks that are too weak is left out.

    Raises ``ValueError`` when the result is of another model.
    """
    if result.fingerprint != profile.fingerprint:
        raise ValueError(
            f"accuracy and leak were measured of fingerprint {result.fingerprint}, the profile is of"
            f" {profile.fingerprint}: let all tiers run one runtime image, or delete the ModelProfile to measure anew"
        )
    if result.accuracy is not None:
        profile = with_accuracy(profile, result.accuracy)
    leak = result.leak
    if leak is not None and not leak.weakness:
        profile = with_leakage(profile, leak)
    return profile


def with_unknown_losses(profile: Profile) -> Profile:
    """The planner's view of a model that is defended: fp32 loses accuracy, too, all where that was not measured."""
    cuts = [
        cut if cut.index in (0, profile.segments) else replace(cut, accuracy_loss={"fp32": 1.0, **cut.accuracy_loss})
        for cut in profile.cuts
    ]
    return replace(profile, cuts=tuple(cuts))


def told_of(pipeline: InferencePipeline, profile: ModelProfileSpec, what: Shares) -> str:
    """How it was measured, and what that is worth."""
    told, given = list[str](), pipeline.spec.model.calibration

    def file(sha256: str) -> str:
        if not sha256:
            return "a file that is not known"
        others = "" if given is None or given.sha256 == sha256 else ", which another pipeline with this model names"
        return f"the file with sha256 {sha256[:12]}{others}"

    loss, leak = profile.accuracy_measurement, profile.leak_measurement
    if what.accuracy and loss is not None:
        against = (
            "the unsplit model's answers" if loss.whole is None else f"labels, of which it gets {loss.whole} unsplit"
        )
        told.append(
            f"Accuracy loss is what {loss.metric} falls by at most, with 95 % confidence, against {against}, on"
            f" {loss.samples} inputs drawn at random from {file(loss.calibration_sha256)}."
        )
    if what.leak and leak is not None:
        beyond = "" if leak.shuffled_skill is None else f", {leak.shuffled_skill} beyond a blind guess"
        told.append(
            f"Leak is a lower bound, by this attack: {leak.attack}; a stronger one may see more. {leak.score} on"
            f" {leak.samples} inputs of {file(leak.calibration_sha256)}; controls: {leak.input_control} of the input"
            f" itself, {leak.shuffled_control} of"
            f" other inputs' activations{beyond}."
        )
    return " ".join(told)


def commands(pipeline: InferencePipeline, profile_name: str, what: Shares) -> str:
    """What to run by hand, where the weights and real inputs are."""
    model, metadata = pipeline.spec.model, pipeline.metadata
    weights = without_secrets(model.weights.uri)
    if weights.startswith("pvc://"):
        weights = f"file:///PATH/{weights.rpartition('/')[2]}"
    words = [model.factory]
    for tensor in model.inputs:
        data = tensor.dump()
        names = {each["dimension"]: f"{each['name']}=" for each in data.get("freeDimensions", ())}
        sizes = ",".join(f"{names.get(index, '')}{size}" for index, size in enumerate(data["shape"]))
        words += ["--input", f"{data['name']}:{data['datatype']}:{sizes}"]
    words += ["--weights", weights, "--sha256", model.weights.sha256, "--calibration", "FILE"]
    if pipeline.spec.objectives.defence is not None:
        defence = to_defence(pipeline.spec.objectives.defence)
        words += ["--noise", f"{defence.noise:g}", "--dropout", f"{defence.dropout:g}"]
    words += ["--profile", profile_name, "--namespace", metadata.namespace]
    kinds = (("accuracy", what.accuracy), ("leak", what.leak))
    return "; ".join(f"splitplane model {kind} {shlex.join(words)}" for kind, asked in kinds if asked)


def _lossy(pipeline: InferencePipeline) -> list[str]:
    """The base codecs that may be used and lose accuracy, by falling fidelity: behind a defence all of them."""
    bases = {base_codec(codec) for codec in pipeline.spec.partitioning.codecs}
    harmless = {"fp32"} if pipeline.spec.objectives.defence is None else set()
    return [codec for codec in BASE_CODECS if codec in bases - harmless]


def _plans(snapshot: Snapshot, policy: Policy) -> list[Plan]:
    unlimited = replace(policy, max_leak=None, max_accuracy_loss=None)
    return [candidate.plan for candidate in frontier(snapshot, unlimited)]


def _crossings(plans: Iterable[Plan], untrusted: set[str]) -> tuple[set[int], set[int]]:
    """Cuts that plans cross, and those of them by which something reaches an untrusted tier."""
    crossed, shown = set(), set()
    for plan in plans:
        for cut, stage in zip(plan.cuts, plan.stages[1:], strict=True):
            crossed.add(cut)
            if stage.tier in untrusted:
                shown.add(cut)
    return crossed, shown

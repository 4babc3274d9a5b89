"""Carrying out what ``calibrating.py`` finds missing: a job on a trusted tier, and its result into the ModelProfile.

No other job measures on the machine meanwhile; what it finds is shared by all pipelines with the same model.
Attacks that were too weak are told and not tried again, until the file, the budget, or what is asked for changes.
"""

from collections.abc import Mapping
from dataclasses import replace

from splitplane.adapters.cluster import Cluster
from splitplane.api.pipelines import TierSpec
from splitplane.api.profiles import ModelProfileSpec
from splitplane.controller.calibrating import (
    Shares,
    asked_for,
    commands,
    limited,
    missing,
    outdated,
    request,
    told_of,
    trusted_tiers,
    with_result,
)
from splitplane.controller.children import calibration_objects, calibration_template
from splitplane.controller.conditions import LIMITS, Verdict
from splitplane.controller.machines import Running
from splitplane.controller.naming import calibration_job_name
from splitplane.controller.objects import Object, is_true, key_of
from splitplane.controller.profiles import Profiles
from splitplane.controller.profiling import Collect, Create, Failed, Wait, job_step, read_json
from splitplane.controller.rounds import Memory, Round
from splitplane.controller.settings import Settings
from splitplane.controller.view import View
from splitplane.domain.calibrations import READ_FORMS, UNREAD, CalibrationResult, LeakFound


class Calibrations:
    """Sees to it that limits on accuracy loss and leak rest on measurements, where real inputs are given."""

    def __init__(self, *, cluster: Cluster, view: View, settings: Settings, profiles: Profiles) -> None:
        self._cluster = cluster
        self._view = view
        self._settings = settings
        self._profiles = profiles

    async def ensure(self, this: Round, memory: Memory, *, name: str, profile: ModelProfileSpec) -> None:
        """Bring measuring a step further, and note in ``this`` how far it is. ``name`` is the ModelProfile's."""
        pipeline = this.pipeline
        named = self._profiles.calibrations((this.key[0], name))
        wanted, lacking = limited(pipeline), missing(pipeline, profile, named)
        state = _state(lacking, outdated(pipeline, profile, named))
        jobs = self._view.jobs_of(this.key, "calibration")
        if not lacking or pipeline.spec.model.calibration is None:
            if lacking:
                this.limits = Verdict(
                    LIMITS, "False", "NotMeasured", f"{state} Give spec.model.calibration, or run: "
                    f"{commands(pipeline, name, lacking)}",
                )  # fmt: skip
            elif wanted:
                this.limits = Verdict(LIMITS, "True", "Measured", told_of(pipeline, profile, wanted))
            await self._remove_all(this, jobs)
            return
        names = {
            tier.name: calibration_job_name(
                pipeline.metadata.name, tier, name, asked_for(pipeline, profile),
                calibration_template(pipeline, tier, self._settings),
            )
            for tier in trusted_tiers(pipeline)
        }  # fmt: skip
        ready = [tier for tier in trusted_tiers(pipeline) if this.tiers[tier.name].capacity.ready]
        # What has ended is looked at wherever it ran: its node may be gone, and it is not measured again elsewhere.
        ended = [tier for tier in trusted_tiers(pipeline) if is_true(jobs.get(names[tier.name], {}), "Complete")]
        started = [tier for tier in ready if names[tier.name] in jobs]
        tier = next(iter((*ended, *started, *ready)), None)
        if tier is None:
            text = f"{state} It is measured on a tier with trusted: true only, and none has a ready node."
            this.limits = Verdict(LIMITS, "False", "NoTrustedNode", text)
            return
        job_name = names[tier.name]
        await self._remove_all(this, {other: job for other, job in jobs.items() if other != job_name})
        await self._step(this, memory, tier, job_name, jobs.get(job_name), name, profile, lacking, state)

    async def _step(
        self, this: Round, memory: Memory, tier: TierSpec, job_name: str, job: Object | None, name: str,
        profile: ModelProfileSpec, lacking: Shares, state: str,
    ) -> None:  # fmt: skip
        what = f"measuring {lacking} on real inputs, on tier {tier.name}"
        if job is None:
            step: object = Create(tier, job_name, attempt=1)
        else:
            config_map = self._view.config_map((this.key[0], job_name))
            pods = self._view.pods_of(this.key, "calibration")
            step = job_step(
                tier, job_name, job, pods, config_map, what=what, nodes=self._profiles.nodes(), now=this.now
            )
        others: list[Running] = []
        if isinstance(step, Create):
            others = self._profiles.ahead_of_calibration((this.key[0], job_name), tier, profile=name, now=this.now)
        if isinstance(step, Create) and (memory.asked is None or others or self._profiles.queued(this.now, tier)):
            waits = f"once {key_of(others[0].body)[1]} has ended" if others else "once all profiles are measured"
            if memory.asked is None:
                waits = "once plans can be made"
            this.limits = Verdict(LIMITS, "False", "Measuring", f"{state} It is about to be, {waits}.")
            return
        match step:
            case Create(attempt=attempt):
                await self._start(this, memory, tier, job_name, name, attempt, lacking, replaces=job is not None)
                this.limits = Verdict(LIMITS, "False", "Measuring", f"{state} Now {what}")
            case Wait(message=message):
                this.waiting.append(("Calibrating", message))
                this.limits = Verdict(LIMITS, "False", "Measuring", f"{state} Now {message}")
            case Failed(message=message):
                text = f"{what} failed: {message.rstrip('.')}. Mend spec.model.calibration or what the message names"
                this.limits = Verdict(LIMITS, "False", "MeasuringFailed", f"{text}; it is tried again by itself.")
            case Collect():
                await self._collect(this, tier, job_name, name, profile, lacking)

    async def _start(
        self, this: Round, memory: Memory, tier: TierSpec, job_name: str, name: str, attempt: int, lacking: Shares,
        *, replaces: bool,
    ) -> None:  # fmt: skip
        assert memory.asked is not None
        namespace = this.key[0]
        if replaces:
            await self._profiles.clear(namespace, job_name)
        asked = request(this.pipeline, tier, lacking, memory.asked)
        bodies = calibration_objects(
            this.pipeline, tier, asked, name=job_name, profile=name, attempt=attempt, settings=self._settings
        )
        for body in bodies:
            self._view.remember(await self._cluster.apply(body))

    async def _collect(
        self, this: Round, tier: TierSpec, job_name: str, name: str, profile: ModelProfileSpec, lacking: Shares
    ) -> None:  # fmt: skip
        """Write what was found into the ModelProfile. A job that could not measure all stays, to tell why."""
        namespace = this.key[0]
        try:
            result = CalibrationResult.from_dict(read_json(self._view.config_map((namespace, job_name))))
            # What a job that stays has found was written before, and may since be of another file.
            result = replace(
                result,
                accuracy=result.accuracy if lacking.accuracy else None,
                leak=result.leak if lacking.leak else None,
            )
            changed = with_result(profile, result)
        except ValueError as error:
            this.limits = Verdict(LIMITS, "False", "ResultUnusable", str(error))
            return
        if changed != profile:
            await self._profiles.write((namespace, name), changed)
        refused = ""
        if result.refusal and lacking.accuracy:
            refused = f"Accuracy loss was not measured: {result.refusal.rstrip('.')}."
        weak = _weak(result.leak, tier, counted=profile.leak_measurement is not None)
        if refused or weak:
            reason = "MeasuringFailed" if refused else "AttackTooWeak"
            this.limits = Verdict(LIMITS, "False", reason, " ".join(filter(None, (refused, weak))))
            return
        this.limits = Verdict(LIMITS, "True", "Measured", told_of(this.pipeline, changed, limited(this.pipeline)))
        await self._profiles.remove(namespace, job_name)

    async def _remove_all(self, this: Round, jobs: Mapping[str, Object]) -> None:
        for name in jobs:
            await self._profiles.remove(this.key[0], name)


def _weak(leak: LeakFound | None, tier: TierSpec, *, counted: bool) -> str:
    """Why no limit may rest on attacks, and what to do; empty if one may. ``counted`` is whether others were made."""
    if leak is None or not leak.weakness:
        return ""
    advice = (
        "Raise spec.model.calibration.budgetCoreSeconds, or give more inputs; if memory holds no more of them,"
        f" raise that of tier {tier.name}."
    )
    if leak.weakness == UNREAD:
        advice = f"No budget mends that: attack other cuts by splitplane model leak --cut, or {READ_FORMS}."
    counts = "counts as before" if counted else "counts as unmeasured"
    return f"The leak {counts}: on {leak.samples} inputs, {leak.weakness}; no limit may rest on it. {advice}"


def _state(lacking: Shares, old: Shares) -> str:
    """What is not known, or known of other inputs, and what that means for plans."""
    never = Shares(lacking.accuracy and not old.accuracy, lacking.leak and not old.leak)
    kept = []
    if never.accuracy:
        kept.append("no codec that loses accuracy is used where that was not measured")
    if never.leak:
        kept.append("nothing leaves the trusted tiers")
    told = [f"{str(never).capitalize()} of the model not measured, so {' and '.join(kept)}."] if never else []
    if old:
        told.append(
            f"{str(old).capitalize()} of the model measured on another file than spec.model.calibration names; plans go"
            " by that until the new one is measured."
        )
    return " ".join(told)

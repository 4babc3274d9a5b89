"""Getting a model measured on each tier's device class: which job runs next, and what its end means. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitplane.api.pipelines import InferencePipeline, TierSpec
from splitplane.api.profiles import ModelProfileSpec, from_device, from_profile
from splitplane.api.tensors import Tensor
from splitplane.controller.children import (
    ATTEMPT_ANNOTATION,
    DEVICE_CLASS_LABEL,
    PROFILE_LABEL,
    profile_template,
)
from splitplane.controller.machines import Machines, Nodes, Running, belongs, share
from splitplane.controller.naming import profile_job_name
from splitplane.controller.objects import (
    COMPONENT_LABEL,
    Key,
    Object,
    annotations_of,
    condition_of,
    is_true,
    key_of,
    labels_of,
)
from splitplane.controller.settings import Settings
from splitplane.domain.profiles import TensorSpec
from splitplane.domain.profiles_io import PROGRESS, RESULT, ProfileResult, from_dict
from splitplane.domain.times import instant

QUEUED = "ProfileQueued"
_NO_RESULT = f"the job ended without writing {RESULT}; its runtime image may be of another release"
_FIRST_RETRY_SECONDS = 30.0
_LAST_RETRY_SECONDS = 900.0
_TAKEN_OVER_SECONDS = 30.0
"""In which the result of a job that is done may still be on its way into the profile."""


@dataclass(frozen=True, slots=True)
class Create:
    """Start the job for ``tier``; with ``replaces`` the one before must go first, and ``why`` it did not do."""

    tier: TierSpec
    name: str
    attempt: int
    replaces: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Collect:
    """The job has ended well: take its result over."""

    tier: TierSpec
    name: str


@dataclass(frozen=True, slots=True)
class Wait:
    """A job is under way, or stands in line behind ``others``; ``attempt`` counts from 1."""

    tier: TierSpec
    reason: str
    message: str
    attempt: int = 1
    others: tuple[Running, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The job failed; ``message`` is its own last words. It is tried again at ``retry`` (seconds since the epoch)."""

    tier: TierSpec
    name: str
    message: str
    retry: float


Step = Create | Collect | Wait | Failed


def has_failed(step: Step) -> bool:
    """Whether measuring a class has failed before: it may never succeed, as where the whole model does not fit."""
    return isinstance(step, Failed) or (isinstance(step, Create | Wait) and step.attempt > 1)


def next_steps(
    pipeline: InferencePipeline, *, profile_name: str, profiled: frozenset[str],
    jobs: Mapping[str, Object], pods: Sequence[Object], config_maps: Mapping[str, Object], others: Sequence[Running],
    nodes: Nodes, ready_nodes: Mapping[str, int], now: float, settings: Settings,
) -> list[Step]:  # fmt: skip
    """One step for each tier whose device class is not ``profiled`` yet; jobs that it creates share no machine.

    ``jobs`` are this pipeline's profile jobs by name, ``pods`` and ``config_maps`` (by the job's name) theirs;
    ``others`` is all that measures now.
    """
    steps: list[Step] = []
    created: list[Machines] = []
    for name, tier in wanted_jobs(pipeline, profile_name, profiled, settings).items():
        job = jobs.get(name)
        step: Step = Create(tier, name, attempt=1)
        if job is not None:
            what = f"measuring the model on tier {tier.name} (device class {tier.device_class})"
            step = job_step(tier, name, job, pods, config_maps.get(name), what=what, nodes=nodes, now=now)
        elif not ready_nodes.get(tier.name):
            continue  # nothing can be measured there; the pipeline's conditions say so
        if isinstance(step, Create):
            machines = nodes.behind(tier.node_selector)
            ahead, why = ahead_of(others, machines, pipeline.metadata.namespace, profile_name, tier.device_class)
            if ahead or any(share(machines, other) for other in created):
                who = key_of(ahead[0].body)[1] if ahead else "the job before it"
                text = f"measuring on tier {tier.name} waits for {who}, {why}"
                step = Wait(tier, QUEUED, text, step.attempt, tuple(ahead))
            else:
                created.append(machines)
        steps.append(step)
    return steps


def wanted_jobs(
    pipeline: InferencePipeline, profile_name: str, profiled: frozenset[str], settings: Settings
) -> dict[str, TierSpec]:
    """Names of the jobs that measure what is not ``profiled`` yet: one for each device class, on its first tier."""
    tiers = {tier.device_class: tier for tier in reversed(pipeline.spec.tiers) if tier.device_class not in profiled}
    return {
        profile_job_name(pipeline.metadata.name, tier, profile_name, profile_template(pipeline, tier, settings)): tier
        for tier in pipeline.spec.tiers
        if tiers.get(tier.device_class) is tier
    }


def ahead_of(
    others: Sequence[Running], machines: Machines, namespace: str, profile_name: str, device_class: str | None
) -> tuple[list[Running], str]:
    """What a job on these machines waits for, and why: whatever measures the same, else what it may share one with.

    Without a ``device_class`` the job measures accuracy loss and leak.
    """
    same = [
        other
        for other in others
        if key_of(other.body)[0] == namespace
        and labels_of(other.body).get(PROFILE_LABEL) == profile_name
        and labels_of(other.body).get(DEVICE_CLASS_LABEL) == device_class
    ]
    if same:
        return same, "which measures the same"
    return [other for other in others if share(machines, other.machines)], "as they may share a machine"


def measuring(
    jobs: Sequence[Object], pods: Sequence[Object], nodes: Nodes, *, but: Key, now: float
) -> list[Running]:  # fmt: skip
    """Those of the jobs that may be measuring, and pods that are left of deleted ones (``Profiles._measuring``).

    A profile job that is just done counts too, lest others measure the same before its result is in the profile.
    """
    own: dict[Key, list[Object]] = {}
    for pod in pods:
        own.setdefault(_job_key(pod), []).append(pod)
    stuck = {_job_key(pod) for pod in pods if condition_of(pod, "PodScheduled").get("status") == "False"}
    known = {key_of(job) for job in jobs}
    found = [
        job
        for job in jobs
        if labels_of(job).get(COMPONENT_LABEL) in ("profile", "calibration")
        and (not is_true(job, "Complete") or now < _profiled(job) + _TAKEN_OVER_SECONDS)
        and not is_true(job, "Failed")
        and key_of(job) not in stuck | {but}
        and not nodes.lost(job, own.get(key_of(job), ()))
    ]
    left = [
        pod
        for pod in pods
        if _job_key(pod) not in known | stuck and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        if not nodes.lost(pod, ())
    ]
    return [Running(body, nodes.of(body, own.get(key_of(body), ()))) for body in (*found, *left)]


def _profiled(job: Object) -> float:
    """When a profile job was done (seconds since the epoch); the results of calibrations are its pipeline's alone."""
    done = (job.get("status") or {}).get("completionTime") if labels_of(job).get(COMPONENT_LABEL) == "profile" else None
    return instant(done) or 0.0


def queued_first(steps: Sequence[Step]) -> list[Wait]:
    """First profiles that wait for their turn; one that has failed before is in no hurry."""
    return [step for step in steps if isinstance(step, Wait) and step.reason == QUEUED and step.attempt == 1]


def in_the_way(others: Sequence[Running]) -> list[Object]:
    """Calibration jobs that are stopped, to start anew later, where they are all that a first profile waits for.

    Without a profile nothing is served, and a calibration may take long.
    """
    bodies = [each.body for each in others]
    calibrations = [each for each in bodies if labels_of(each).get(COMPONENT_LABEL) == "calibration"]
    return [each for each in calibrations if each["kind"] == "Job"] if len(calibrations) == len(bodies) else []


def _job_key(pod: Object) -> Key:
    return pod["metadata"].get("namespace", ""), job_of(pod)


def job_step(
    tier: TierSpec, name: str, job: Object, pods: Sequence[Object], config_map: Object | None,
    *, what: str, nodes: Nodes, now: float,
) -> Step:  # fmt: skip
    """What a job's state means; ``what`` it does is told while it is under way. One whose node is lost is made anew."""
    own = [pod for pod in pods if belongs(pod, job)]
    if is_true(job, "Complete") and RESULT in _data(config_map):
        return Collect(tier, name)
    attempt = int(annotations_of(job).get(ATTEMPT_ANNOTATION, "1"))
    if is_true(job, "Failed") or is_true(job, "Complete"):
        failed = condition_of(job, "Failed") or {**condition_of(job, "Complete"), "message": _NO_RESULT}
        since = instant(failed.get("lastTransitionTime")) or now
        retry = since + min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** (attempt - 1))
        words = next((text for pod in own if (text := last_words(pod))), "")
        if now >= retry:
            return Create(tier, name, attempt=attempt + 1, replaces=True, why=words)
        return Failed(tier, name, words or failed.get("message") or "the job gave no reason", retry)
    if node := nodes.lost(job, own):
        return Create(tier, name, attempt=attempt + 1, replaces=True, why=f"the node {node} was lost")
    detail = next((text for pod in own if (text := pod_trouble(pod))), "") or _data(config_map).get(PROGRESS, "")
    return Wait(tier, "Profiling", f"{what}: {detail}" if detail else what, attempt)


def job_of(pod: Object) -> str:
    """Name of the Job that a pod belongs to."""
    labels = labels_of(pod)
    return labels.get("batch.kubernetes.io/job-name") or labels.get("job-name") or ""


def last_words(pod: Object) -> str:
    """The last line that a failed container logged (its termination message)."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        for state in (status.get("state") or {}, status.get("lastState") or {}):
            ended = state.get("terminated") or {}
            if ended.get("exitCode"):
                lines = [line.strip() for line in (ended.get("message") or "").splitlines() if line.strip()]
                return lines[-1] if lines else f"exit code {ended['exitCode']} ({ended.get('reason', 'Error')})"
    return ""


def pod_trouble(pod: Object) -> str:
    """Why a pod does not get ready, as scheduler or kubelet say it; empty when nothing is wrong."""
    scheduled = condition_of(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return str(scheduled.get("message") or scheduled.get("reason") or "not scheduled")
    words = last_words(pod)
    if words:
        return words
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    return ""


def read_result(config_map: Object | None) -> ProfileResult:
    """The result that a job left. Raises ``ValueError`` that says what is wrong with it."""
    return from_dict(read_json(config_map))


def read_json(config_map: Object | None) -> Mapping[str, Any]:
    """What a job left. Raises ``ValueError`` that says what is wrong with it."""
    text = _data(config_map).get(RESULT)
    if not text:
        raise ValueError(_NO_RESULT)
    found: Mapping[str, Any] = json.loads(text)
    return found


def _data(config_map: Object | None) -> Mapping[str, str]:
    return (config_map or {}).get("data") or {}


def merged(pipeline: InferencePipeline, known: ModelProfileSpec | None, result: ProfileResult) -> ModelProfileSpec:
    """The profile with the result's device added or renewed.

    Raises ``ValueError`` when the tiers disagree about what the model is: they run different library versions.
    """
    model = pipeline.spec.model
    fresh = from_profile(
        result.profile,
        factory=model.factory,
        weights_sha256=model.weights.sha256,
        inputs=tuple(_tensor(spec) for spec in result.inputs),
        outputs=tuple(_tensor(spec) for spec in result.outputs),
        segment_names=result.segment_names,
    )
    if known is None:
        return fresh.model_copy(update={"defence": pipeline.spec.objectives.defence})
    if known.fingerprint != result.profile.fingerprint:
        raise ValueError(
            f"the model measured on device class {result.device.device_class} has fingerprint"
            f" {result.profile.fingerprint}, other tiers {known.fingerprint}: let all tiers run one runtime image, or"
            " delete the ModelProfile to measure anew"
        )
    device = from_device(result.device)
    others = [known_device for known_device in known.devices if known_device.device_class != device.device_class]
    devices = tuple(sorted([*others, device], key=lambda d: d.device_class))
    # The same graph ties the same weights; an older version did not tell.
    return known.model_copy(update={"devices": devices, "tied_weights": fresh.tied_weights or known.tied_weights})


def _tensor(spec: TensorSpec) -> Tensor:
    return Tensor.model_validate({"name": spec.name, "datatype": spec.datatype, "shape": list(spec.declared_shape)})

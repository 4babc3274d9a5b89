"""Carrying out what ``profiling.py`` decides: jobs, their results, and the ModelProfile that pipelines share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from splitplane.adapters.cluster import Cluster, Conflict
from splitplane.adapters.kinds import CONFIG_MAP, JOB, MODEL_PROFILE, ROLE, ROLE_BINDING, SERVICE_ACCOUNT
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.profiles import ModelProfileSpec
from splitplane.controller.children import profile_objects
from splitplane.controller.control import load
from splitplane.controller.naming import image_of, profile_name
from splitplane.controller.objects import (
    APP,
    NAME_LABEL,
    Key,
    Object,
    condition_of,
    is_terminating,
    is_true,
    key_of,
)
from splitplane.controller.pods import owner
from splitplane.controller.profiling import (
    Collect,
    Create,
    Failed,
    Wait,
    job_of,
    merged,
    next_steps,
    read_result,
    stale_jobs,
)
from splitplane.controller.settings import Settings
from splitplane.controller.view import View


@dataclass(slots=True)
class Outcome:
    """What is known of a model. ``version`` tells two states of the profile apart; ``spec`` is absent at first."""

    spec: ModelProfileSpec | None = None
    version: str = ""
    problems: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[tuple[str, str]] = field(default_factory=list)


class Profiles:
    """Sees to it that each model is measured on each tier that uses it."""

    def __init__(self, *, cluster: Cluster, view: View, settings: Settings) -> None:
        self._cluster = cluster
        self._view = view
        self._settings = settings
        self._parsed: dict[Key, tuple[str, ModelProfileSpec]] = {}

    async def ensure(
        self, pipeline: InferencePipeline, *, name: str, active: str, ready_nodes: Mapping[str, int],
        pods: Sequence[Object], now: float,
    ) -> Outcome:  # fmt: skip
        """Bring measuring a step further. ``active`` names the profile of the plan that serves, if any."""
        namespace = pipeline.metadata.namespace
        pipeline_key = namespace, pipeline.metadata.name
        outcome = self._known((namespace, name))
        profiled = frozenset(device.device_class for device in outcome.spec.devices) if outcome.spec else frozenset()
        jobs = self._view.jobs_of(pipeline_key)
        if not pipeline.spec.suspend:
            steps = next_steps(
                pipeline, profile_name=name, profiled=profiled, jobs=jobs, pods=pods,
                config_maps={job: body for job in jobs if (body := self._view.config_map((namespace, job)))},
                other_jobs=self._measuring(),
                ready_nodes=ready_nodes, now=now, settings=self._settings,
            )  # fmt: skip
            for step in steps:
                await self._carry_out(step, pipeline, name, outcome)
        for job in stale_jobs(jobs, profile_name=name):
            await self._remove(namespace, job)
        mine = {
            key_of(body)[1]
            for body in self._view.profiles_in(namespace)
            if any(ref["uid"] == pipeline.metadata.uid for ref in body["metadata"].get("ownerReferences") or ())
        }
        for used in mine | {name, active} - {""}:
            await self._share((namespace, used))
        return outcome

    def _measuring(self) -> list[Object]:
        """Jobs of all pipelines that may be measuring now; one that no node takes does not keep others waiting."""
        stuck = {
            (pod["metadata"].get("namespace", ""), job_of(pod))
            for pod in self._view.profile_pods()
            if condition_of(pod, "PodScheduled").get("status") == "False"
        }
        return [
            job
            for job in self._view.jobs()
            if not is_true(job, "Complete") and not is_true(job, "Failed") and key_of(job) not in stuck
        ]

    def _known(self, key: Key) -> Outcome:
        body = self._view.profile(key)
        if body is None or is_terminating(body):
            return Outcome()
        version = f"{body['metadata']['uid']}/{body['metadata']['generation']}"
        cached = self._parsed.get(key)
        if cached is None or cached[0] != version:
            cached = self._parsed[key] = (version, ModelProfileSpec.parse(body["spec"]))
        return Outcome(spec=cached[1], version=version)

    async def _carry_out(
        self, step: Create | Collect | Wait | Failed, pipeline: InferencePipeline, name: str,
        outcome: Outcome,
    ) -> None:  # fmt: skip
        tier = step.tier
        match step:
            case Create():
                await self._start(pipeline, step, name)
                message = f"measuring the model on tier {tier.name} (device class {tier.device_class})"
                outcome.waiting.append(("Profiling", message))
            case Collect(name=job):
                outcome.waiting.append(("Profiling", f"taking over what was measured on tier {tier.name}"))
                try:
                    await self._collect(pipeline, job, name)
                except ValueError as error:
                    outcome.problems.append(("ProfileUnusable", f"tier {tier.name}: {error}"))
                    outcome.waiting.pop()
            case Wait(reason=reason, message=message):
                outcome.waiting.append((reason, message))
            case Failed(message=message):
                failed = f"measuring the model on tier {tier.name} failed: {message.rstrip('.')}."
                advice = "Mend spec.model or what the message names; it is tried again by itself."
                outcome.problems.append(("ProfileFailed", f"{failed} {advice}"))

    async def _start(self, pipeline: InferencePipeline, step: Create, name: str) -> None:
        namespace = pipeline.metadata.namespace
        if step.replaces:  # a Job cannot be changed, only made again
            await self._cluster.delete(JOB, step.name, namespace)
            self._view.forget("Job", (namespace, step.name))
        for body in profile_objects(
            pipeline, step.tier, name=step.name, profile=name, attempt=step.attempt, settings=self._settings
        ):
            self._view.remember(await self._cluster.apply(body))

    async def _collect(self, pipeline: InferencePipeline, job: str, name: str) -> None:
        """Write a job's result into the ModelProfile and clear the job away. Raises ``ValueError`` if unusable."""
        namespace = pipeline.metadata.namespace
        result = read_result(self._view.config_map((namespace, job)))
        known = self._known((namespace, name)).spec
        await self._write((namespace, name), merged(pipeline, known, result))
        await self._remove(namespace, job)

    async def _write(self, key: Key, spec: ModelProfileSpec) -> None:
        seen = self._view.profile(key)
        metadata: Object = {
            "name": key[1],
            "namespace": key[0],
            "labels": {NAME_LABEL: APP},
            "ownerReferences": self._owners(key),
        }
        body: Object = {
            "apiVersion": "splitplane.dev/v1alpha1",
            "kind": "ModelProfile",
            "metadata": metadata,
            "spec": spec.dump(),
        }
        try:
            if seen is None:
                self._view.remember(await self._cluster.create(body))
            else:
                metadata["resourceVersion"] = seen["metadata"]["resourceVersion"]
                self._view.remember(await self._cluster.apply(body))
        except Conflict:
            self._view.forget("ModelProfile", key)
            raise

    async def _share(self, key: Key) -> None:
        """Let the profile belong to all pipelines that use it, so that it goes with the last of them.

        One that none of its owners uses any more is deleted: they have other models now.
        """
        seen = self._view.profile(key)
        if seen is None or is_terminating(seen):
            return
        have = {reference["uid"] for reference in seen["metadata"].get("ownerReferences") or ()}
        wanted = {reference["uid"] for reference in self._owners(key)}
        if have == wanted:
            return
        if not wanted:
            await self._cluster.delete(MODEL_PROFILE, key[1], key[0], uid=seen["metadata"]["uid"])
            self._view.forget("ModelProfile", key)
            return
        known = self._known(key).spec
        if known is not None:
            await self._write(key, known)

    def _owners(self, key: Key) -> list[Object]:
        namespace, name = key
        found = []
        for body in self._view.pipelines():
            if body["metadata"].get("namespace") != namespace or is_terminating(body):
                continue
            pipeline = InferencePipeline.parse({part: body[part] for part in ("metadata", "spec")})
            wanted = profile_name(pipeline.spec.model, image_of(pipeline.spec.model, self._settings.runtime_image))
            active = load(self._view.route_table(key_of(body))).active
            if name in (wanted, active.model if active else ""):
                found.append(owner(pipeline, controller=False))
        return found

    async def _remove(self, namespace: str, name: str) -> None:
        """Delete a job and what was made for it."""
        for kind in (JOB, CONFIG_MAP, ROLE_BINDING, ROLE, SERVICE_ACCOUNT):
            await self._cluster.delete(kind, name, namespace)
        self._view.forget("Job", (namespace, name))
        self._view.forget("ConfigMap", (namespace, name))

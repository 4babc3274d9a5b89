"""Carrying out what ``profiling.py`` decides: jobs, their results, and the ModelProfile that pipelines share.

A device class whose measurement is late or has failed is planned for with an estimate, until it is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from splitplane.adapters.cluster import Cluster, Conflict
from splitplane.adapters.kinds import CONFIG_MAP, JOB, MODEL_PROFILE, ROLE, ROLE_BINDING, SERVICE_ACCOUNT
from splitplane.api.pipelines import InferencePipeline, TierSpec
from splitplane.api.profiles import ModelProfileSpec, to_profile
from splitplane.controller.children import profile_objects
from splitplane.controller.control import Serving, load
from splitplane.controller.machines import Machines, Nodes, Running, share
from splitplane.controller.naming import profile_name
from splitplane.controller.objects import (
    APP,
    NAME_LABEL,
    Key,
    Object,
    is_terminating,
    key_of,
    version_of,
)
from splitplane.controller.pods import owner
from splitplane.controller.profiling import (
    Collect,
    Create,
    Failed,
    Step,
    Wait,
    ahead_of,
    has_failed,
    in_the_way,
    measuring,
    merged,
    next_steps,
    queued_first,
    read_result,
    wanted_jobs,
)
from splitplane.controller.settings import Settings
from splitplane.controller.switching import Note
from splitplane.controller.view import View
from splitplane.domain.estimates import Estimate, estimate
from splitplane.domain.profiles import Profile

_PATIENCE_SECONDS = 120.0
"""How long a measurement is waited for, from when it was first missed, before an estimate stands in for it."""

_QUEUED_SECONDS = 30.0
"""A pipeline that was not seen for so long is gone."""


@dataclass(slots=True)
class Outcome:
    """What is known of a model. ``version`` tells two states of the profile apart; ``spec`` is absent at first.

    ``estimates`` stand in for device classes that it lacks; ``pending`` are classes that lack even these, and are about
    to be measured.
    """

    spec: ModelProfileSpec | None = None
    version: str = ""
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()
    problems: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[tuple[str, str]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Use:
    """Which profiles a pipeline's spec and the plan that serves it need, at some version of both."""

    version: tuple[str, int, int]
    owner: Object
    profiles: frozenset[str]
    calibration: str
    """SHA-256 of the inputs that the spec names; empty without."""


class Profiles:
    """Sees to it that each model is measured on each tier that uses it."""

    def __init__(self, *, cluster: Cluster, view: View, settings: Settings) -> None:
        self._cluster = cluster
        self._view = view
        self._settings = settings
        self._parsed: dict[Key, tuple[str, ModelProfileSpec]] = {}
        self._profiles: dict[Key, tuple[str, Profile]] = {}
        self._uses: dict[Key, _Use] = {}
        """By pipeline."""
        self._queued: dict[Key, tuple[float, list[Machines]]] = {}
        """When pipelines were seen last whose first profiles wait for what else measures, and for which machines."""
        self._missed: dict[tuple[Key, str], float] = {}
        """Since when a profile has lacked a device class that its pipelines have nodes of."""

    def keep_only(self, keys: set[Key]) -> None:
        """Forget pipelines that are gone."""
        self._uses = {key: use for key, use in self._uses.items() if key in keys}

    async def ensure(
        self, pipeline: InferencePipeline, *, name: str, active: Serving | None, ready_nodes: Mapping[str, int],
        pods: Sequence[Object], now: float,
    ) -> Outcome:  # fmt: skip
        """Bring measuring a step further. ``active`` is the plan that serves, if any."""
        namespace = pipeline.metadata.namespace
        pipeline_key = namespace, pipeline.metadata.name
        outcome = self._known((namespace, name))
        profiled = frozenset(device.device_class for device in outcome.spec.devices) if outcome.spec else frozenset()
        jobs = self._view.jobs_of(pipeline_key)
        steps: list[Step] = []
        self._queued.pop(pipeline_key, None)
        if not pipeline.spec.suspend and any(tier.device_class not in profiled for tier in pipeline.spec.tiers):
            nodes = self.nodes()
            steps = next_steps(
                pipeline, profile_name=name, profiled=profiled, jobs=jobs, pods=pods,
                config_maps={job: body for job in jobs if (body := self._view.config_map((namespace, job)))},
                others=self._measuring(now), nodes=nodes,
                ready_nodes=ready_nodes, now=now, settings=self._settings,
            )  # fmt: skip
            if waiting := queued_first(steps):
                self._queued[pipeline_key] = now, [nodes.behind(step.tier.node_selector) for step in waiting]
                for stopped in (job for step in waiting for job in in_the_way(step.others)):
                    await self.remove(*key_of(stopped))
            for step in steps:
                await self._carry_out(step, pipeline, name, outcome)
        self._estimate(pipeline, name, steps, outcome, active=active, ready_nodes=ready_nodes, now=now)
        # Of another model, for other pods than the spec asks for now, or of a class that others measured meanwhile.
        for job in sorted(jobs.keys() - wanted_jobs(pipeline, name, profiled, self._settings).keys()):
            await self.remove(namespace, job)
        mine = {
            key_of(body)[1]
            for body in self._view.profiles_in(namespace)
            if any(ref["uid"] == pipeline.metadata.uid for ref in body["metadata"].get("ownerReferences") or ())
        }
        for used in mine | {name, active.model if active else ""} - {""}:
            await self._share((namespace, used))
        return outcome

    def _estimate(
        self, pipeline: InferencePipeline, name: str, steps: Sequence[Step], outcome: Outcome,
        *, active: Serving | None, ready_nodes: Mapping[str, int], now: float,
    ) -> None:  # fmt: skip
        """Estimate what is not measured, where nobody should wait for that any longer."""
        key = pipeline.metadata.namespace, name
        measured = {device.device_class for device in outcome.spec.devices} if outcome.spec else set()
        # A result that was not taken over is of another model: pods of that class would refuse to serve.
        unusable = {step.tier.device_class for step in steps if isinstance(step, Collect)}
        missing = (
            {tier.device_class for tier in pipeline.spec.tiers if ready_nodes.get(tier.name)} - measured - unusable
        )
        self._missed = {
            (other, missed): since
            for (other, missed), since in self._missed.items()
            if other != key or (outcome.spec is not None and missed not in measured)
        }
        failed = {step.tier.device_class for step in steps if has_failed(step)}
        if outcome.spec is None or not missing:
            outcome.pending = frozenset(missing)
            return
        classes = {tier.name: tier.device_class for tier in pipeline.spec.tiers}
        stages = active.plan.stages if active is not None and active.model == name else ()
        relied_on = {classes.get(stage.tier, "") for stage in stages}  # as after a restart
        estimates = {}
        for device_class in sorted(missing):
            since = self._missed.setdefault((key, device_class), now)
            late = now - since > _PATIENCE_SECONDS
            if device_class in failed | relied_on or late:
                found = estimate(self._profile(key), device_class, self._others(key))
                if found is not None:
                    estimates[device_class] = found
        outcome.estimates = estimates
        outcome.pending = frozenset(missing - estimates.keys())

    def _profile(self, key: Key) -> Profile:
        """A known profile as the planner sees it, made anew only when it changed."""
        known = self._known(key)
        assert known.spec is not None
        cached = self._profiles.get(key)
        if cached is None or cached[0] != known.version:
            cached = self._profiles[key] = (known.version, to_profile(known.spec))
        return cached[1]

    def _others(self, key: Key) -> list[Profile]:
        """Profiles of the namespace's other models, in the order of their names."""
        others = sorted(key_of(body) for body in self._view.profiles_in(key[0]))
        return [self._profile(other) for other in others if other != key and self._known(other).spec is not None]

    def queued(self, now: float, tier: TierSpec) -> bool:
        """Whether a first profile of any pipeline waits for machines of this tier; calibrations let it go first."""
        machines = self.nodes().behind(tier.node_selector)
        return any(
            now - since < _QUEUED_SECONDS and any(share(machines, wanted) for wanted in waited_for)
            for since, waited_for in self._queued.values()
        )

    def ahead_of_calibration(self, job: Key, tier: TierSpec, *, profile: str, now: float) -> list[Running]:
        """What a calibration job on a tier waits for, as what runs beside a measurement takes of its time."""
        machines = self.nodes().behind(tier.node_selector)
        return ahead_of(self._measuring(now, but=job), machines, job[0], profile, None)[0]

    def _measuring(self, now: float, *, but: Key = ("", "")) -> list[Running]:
        """What may be measuring now, of all pipelines: jobs and, where a job was deleted, the pods that it left.

        A job that no node takes does not keep others waiting. ``but`` is a job that is not looked at.
        """
        return measuring(self._view.jobs(), self._view.measuring_pods(), self.nodes(), but=but, now=now)

    def nodes(self) -> Nodes:
        """The cluster's nodes as they are now."""
        return Nodes(self._view.nodes(), self._settings.machine_label)

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
        self, step: Step, pipeline: InferencePipeline, name: str,
        outcome: Outcome,
    ) -> None:  # fmt: skip
        tier = step.tier
        match step:
            case Create():
                await self._start(pipeline, step, name)
                message = f"measuring the model on tier {tier.name} (device class {tier.device_class})"
                outcome.waiting.append(("Profiling", message))
                again = f", attempt {step.attempt}{f': {step.why}' if step.why else ''}" if step.attempt > 1 else ""
                outcome.notes.append(Note("Normal", "Profiling", f"{message}{again}"))
            case Collect(name=job):
                try:
                    outcome.notes.append(await self._collect(pipeline, tier, job, name))
                except ValueError as error:
                    outcome.problems.append(("ProfileUnusable", f"tier {tier.name}: {error}"))
                known = self._known((pipeline.metadata.namespace, name))
                outcome.spec, outcome.version = known.spec, known.version
            case Wait(reason=reason, message=message):
                outcome.waiting.append((reason, message))
            case Failed(message=message):
                failed = f"measuring the model on tier {tier.name} failed: {message.rstrip('.')}."
                advice = "Mend spec.model or what the message names; it is tried again by itself."
                outcome.problems.append(("ProfileFailed", f"{failed} {advice}"))

    async def _start(self, pipeline: InferencePipeline, step: Create, name: str) -> None:
        namespace = pipeline.metadata.namespace
        if step.replaces:
            await self.clear(namespace, step.name)
        for body in profile_objects(
            pipeline, step.tier, name=step.name, profile=name, attempt=step.attempt, settings=self._settings
        ):
            self._view.remember(await self._cluster.apply(body))

    async def _collect(self, pipeline: InferencePipeline, tier: TierSpec, job: str, name: str) -> Note:
        """Write a job's result into the ModelProfile and clear the job away. Raises ``ValueError`` if unusable."""
        namespace = pipeline.metadata.namespace
        result = read_result(self._view.config_map((namespace, job)))
        known = self._known((namespace, name)).spec
        await self.write((namespace, name), merged(pipeline, known, result))
        await self.remove(namespace, job)
        whole = result.device.prefix_seconds[-1]
        cuts = len(result.profile.cuts) - 2
        return Note(
            "Normal", "Profiled", f"measured the model on tier {tier.name} (device class {tier.device_class}):"
            f" {1000 * whole:.3g} ms for the whole of it, which has {cuts or 'no'} {'cut' if cuts == 1 else 'cuts'}",
        )  # fmt: skip

    async def write(self, key: Key, spec: ModelProfileSpec) -> None:
        """Write a ModelProfile over the one that was seen last. Raises :class:`Conflict` if it has changed since."""
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
            await self.write(key, known)

    def calibrations(self, key: Key) -> frozenset[str]:
        """SHA-256 of the files of inputs that the pipelines name which share a profile."""
        return frozenset(use.calibration for use in self._uses_of(key)) - {""}

    def _owners(self, key: Key) -> list[Object]:
        return [use.owner for use in self._uses_of(key)]

    def _uses_of(self, key: Key) -> list[_Use]:
        namespace, name = key
        uses = [
            self._use(body)
            for body in self._view.pipelines()
            if body["metadata"].get("namespace") == namespace and not is_terminating(body)
        ]
        return [use for use in uses if name in use.profiles]

    def _use(self, body: Object) -> _Use:
        """Looked at again only when spec or plan have changed: each of many sites asks for all of them."""
        key = key_of(body)
        table = self._view.route_table(key)
        metadata = body["metadata"]
        version = metadata.get("uid", ""), metadata.get("generation", 0), version_of(table) if table else 0
        known = self._uses.get(key)
        if known is None or known.version != version:
            pipeline = InferencePipeline.parse({part: body[part] for part in ("metadata", "spec")})
            active = load(table).active
            names = {profile_name(pipeline.spec, self._settings.runtime_image), active.model if active else ""}
            given = pipeline.spec.model.calibration
            known = self._uses[key] = _Use(
                version, owner(pipeline, controller=False), frozenset(names), "" if given is None else given.sha256
            )
        return known

    async def clear(self, namespace: str, name: str) -> None:
        """Delete a job, which cannot be changed but only made again, and what it has told."""
        for kind in (JOB, CONFIG_MAP):
            await self._cluster.delete(kind, name, namespace)
            self._view.forget(kind.name, (namespace, name))

    async def remove(self, namespace: str, name: str) -> None:
        """Delete a job and what was made for it."""
        await self.clear(namespace, name)
        for kind in (ROLE_BINDING, ROLE, SERVICE_ACCOUNT):
            await self._cluster.delete(kind, name, namespace)

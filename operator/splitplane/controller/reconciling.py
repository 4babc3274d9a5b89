"""One pipeline brought one step closer to what it should be. Idempotent: the loop calls it again and again.

The order of writes makes it safe to stop anywhere: first the RouteTable, which carries the intent and fails if
somebody else was faster; then the pods that the intent needs; last the status, which only tells.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from splitplane.adapters.clock import Clock
from splitplane.adapters.cluster import Cluster, Conflict, Forbidden, Invalid
from splitplane.adapters.kinds import DEPLOYMENT, PIPELINE
from splitplane.adapters.metrics import MetricsSnapshot
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.policies import to_policy
from splitplane.api.profiles import ModelProfileSpec, to_profile
from splitplane.api.routes import LinkEstimate, RouteTableSpec, RouteTableStatus
from splitplane.controller import control as controls
from splitplane.controller import route_tables, statuses
from splitplane.controller.children import (
    DESIRED_ANNOTATION,
    gateway_objects,
    stage_deployment,
)
from splitplane.controller.conditions import Facts
from splitplane.controller.control import Control, Serving
from splitplane.controller.naming import gateway_name, image_of, profile_name
from splitplane.controller.objects import (
    STAGE_LABEL,
    Key,
    Object,
    annotations_of,
    is_terminating,
    labels_of,
    seconds,
    timestamp,
)
from splitplane.controller.profiles import Profiles
from splitplane.controller.profiling import pod_trouble
from splitplane.controller.realising import realise
from splitplane.controller.settings import Settings
from splitplane.controller.snapshots import TierState, snapshot, tier_states
from splitplane.controller.switching import Note, Observed, abandon, advance, begin, make_room
from splitplane.controller.telemetry import Telemetry
from splitplane.controller.view import View
from splitplane.domain.measurements import Missing, known
from splitplane.domain.profiles import Profile
from splitplane.domain.snapshots import Action, Decision
from splitplane.planner import plan

_log = logging.getLogger(__name__)

# How long the first plan waits for a new gateway to measure the links, and the reach of a change that is worth a new
# generation of routes.
_LINK_PATIENCE_SECONDS = 30.0
_RATE_CHANGE = 0.1
_OBSERVED_EVERY_SECONDS = 10.0
_RETRY_FIRST_PLAN_SECONDS = 3.0
_REAPPLY_SECONDS = 300.0


@dataclass(slots=True)
class Memory:
    """What the operator may forget about a pipeline: after a restart it is found out again."""

    uid: str
    planned_at: float = 0.0
    planned_for: object = None
    decision: Decision | None = None
    applied: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    status_at: float = 0.0
    parsed: tuple[str, InferencePipeline] | None = None
    profile: tuple[str, ModelProfileSpec, Profile] | None = None
    contradiction: str = ""
    """Why the planner refused spec and snapshot together, as long as it does."""


@dataclass(slots=True)
class Round:
    """What is found out and changed about one pipeline in one round."""

    pipeline: InferencePipeline
    body: Object
    metrics: MetricsSnapshot
    now: float
    tiers: dict[str, TierState]
    table: Object | None
    control: Control
    observed: Observed
    reported: Sequence[LinkEstimate]
    decisions: list[Object]
    publish: bool = False
    notes: list[Note] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[tuple[str, str]] = field(default_factory=list)


class Reconciler:
    """Reconciles pipelines against the cluster. One round at a time: it is called by one loop."""

    def __init__(self, *, cluster: Cluster, view: View, clock: Clock, settings: Settings, telemetry: Telemetry) -> None:
        self._cluster = cluster
        self._view = view
        self._clock = clock
        self._settings = settings
        self._telemetry = telemetry
        self._profiles = Profiles(cluster=cluster, view=view, settings=settings)
        self._memories: dict[Key, Memory] = {}

    def keep_only(self, keys: set[Key]) -> None:
        """Forget pipelines that are gone."""
        for key in self._memories.keys() - keys:
            del self._memories[key]

    def is_due(self, key: Key, now: float) -> bool:
        """Whether this pipeline is to be planned on fresh metrics in the coming round."""
        memory = self._memories.get(key)
        if memory is None or memory.parsed is None:
            return True
        return now >= memory.planned_at + memory.parsed[1].spec.replanning.interval_seconds

    async def reconcile(self, key: Key, metrics: MetricsSnapshot) -> None:
        """Bring one pipeline a step further. Raises :class:`ClusterError`; the next round tries again."""
        body = self._view.pipeline(key)
        if body is None or is_terminating(body):
            return
        memory = self._memories.get(key)
        if memory is None or memory.uid != body["metadata"].get("uid", ""):
            memory = self._memories[key] = Memory(uid=body["metadata"].get("uid", ""))
        try:
            pipeline = _parsed(memory, body)
        except ValidationError as error:
            # The CRD's schema refuses what the models refuse, so the CRD is older than the operator.
            first = error.errors()[0]
            raise ValueError(f"spec.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        this = self._look(key, body, pipeline, metrics)
        try:
            if not await self._act(this, memory):
                return
        except (Forbidden, Invalid) as error:
            this.problems.insert(0, ("ApiRefused", str(error)))
            self._telemetry.errors.labels(type(error).__name__).inc()
        await self._tell(this, memory)

    async def _act(self, this: Round, memory: Memory) -> bool:
        """Everything but the telling. False when somebody else was faster: nothing is true any more then."""
        pipeline = this.pipeline
        if not (pipeline.spec.suspend and this.table is None):
            await self._apply_gateway(pipeline, memory)
        this.problems += [_no_nodes(state) for state in this.tiers.values() if not state.capacity.ready]
        model = await self._profile(this, memory)
        step = advance(this.control, this.observed, now=this.now, drain_seconds=self._settings.drain_deadline)
        this.control, this.publish = step.control, step.publish
        this.notes += step.notes
        if model is not None and not pipeline.spec.suspend:
            self._plan(this, memory, model)
        if this.table is None and (model is None or pipeline.spec.suspend):
            return True
        served = model[0] if model is not None else None
        if not await self._write_routes(this, served):
            return False
        await self._apply_stages(this, model[1].fingerprint if model is not None else "")
        return True

    # What is so

    def _look(self, key: Key, body: Object, pipeline: InferencePipeline, metrics: MetricsSnapshot) -> Round:
        nodes = self._view.nodes()
        tiers = tier_states(pipeline, nodes=nodes, pods_by_node=self._view.pods_by_node(nodes), metrics=metrics)
        table = self._view.route_table(key)
        if table is not None and (is_terminating(table) or not _belongs(table, pipeline)):
            table = None
        status = RouteTableStatus.parse((table or {}).get("status") or {})
        pods = self._view.pods_of(key, "stage")
        troubles: dict[str, str] = {}
        for pod in pods:
            trouble = "" if is_terminating(pod) else pod_trouble(pod)
            if trouble:
                troubles.setdefault(labels_of(pod).get(STAGE_LABEL, ""), trouble)
        observed = Observed(
            generation=_generation(table),
            acknowledged=status.acknowledged_generation,
            ready={stage.name: stage.ready for stage in status.stages},
            in_flight={entry.generation: entry.requests for entry in status.in_flight},
            troubles=troubles,
            free_slots={name: state.capacity.free for name, state in tiers.items()},
            lost_tiers=frozenset(name for name, state in tiers.items() if not state.capacity.ready),
        )
        return Round(
            pipeline=pipeline, body=body, metrics=metrics, now=self._clock.now(), tiers=tiers, table=table,
            control=controls.load(table), observed=observed, reported=status.links,
            decisions=list((body.get("status") or {}).get("decisions") or ()),
        )  # fmt: skip

    def _profile_name(self, pipeline: InferencePipeline) -> str:
        return profile_name(pipeline.spec.model, image_of(pipeline.spec.model, self._settings.runtime_image))

    # The gateway

    async def _apply_gateway(self, pipeline: InferencePipeline, memory: Memory) -> None:
        key = pipeline.metadata.namespace, pipeline.metadata.name
        present = self._view.deployments_of(key, "gateway")
        for body in gateway_objects(pipeline, self._settings):
            kind, name = body["kind"], body["metadata"]["name"]
            desired = annotations_of(body)[DESIRED_ANNOTATION]
            if kind == "Deployment":
                seen = present.get(name)
                fresh = seen is not None and annotations_of(seen).get(DESIRED_ANNOTATION) == desired
            else:
                # These are not indexed; a copy that somebody has changed or deleted is mended after a while.
                digest, since = memory.applied.get((kind, name), ("", 0.0))
                fresh = digest == desired and time.monotonic() - since < _REAPPLY_SECONDS
            if not fresh:
                self._view.remember(await self._cluster.apply(body))
                memory.applied[kind, name] = (desired, time.monotonic())

    # The profile

    async def _profile(self, this: Round, memory: Memory) -> tuple[ModelProfileSpec, Profile] | None:
        pipeline = this.pipeline
        name = self._profile_name(pipeline)
        outcome = await self._profiles.ensure(
            pipeline, name=name, active=this.control.active.model if this.control.active else "",
            ready_nodes={tier: len(state.capacity.ready) for tier, state in this.tiers.items()},
            pods=self._view.pods_of((pipeline.metadata.namespace, pipeline.metadata.name), "profile"), now=this.now,
        )  # fmt: skip
        this.problems += outcome.problems
        this.waiting += outcome.waiting
        if outcome.spec is None:
            return None
        if memory.profile is None or memory.profile[0] != outcome.version:
            memory.profile = (outcome.version, outcome.spec, to_profile(outcome.spec))
        if outcome.waiting and (this.control.active is None or this.control.active.model != name):
            return None  # the first plan for a model waits until all tiers that can be measured are
        return memory.profile[1], memory.profile[2]

    # The plan

    def _plan(self, this: Round, memory: Memory, model: tuple[ModelProfileSpec, Profile]) -> None:
        """Plan if it is time to, and head for the plan if it is another one."""
        now, control, pipeline = this.now, this.control, this.pipeline
        name = self._profile_name(pipeline)
        situation = (
            pipeline.metadata.generation,
            name,
            memory.profile[0] if memory.profile else "",
            tuple(sorted((tier, state.capacity.ready) for tier, state in this.tiers.items())),
            control.aside_now(now),
        )
        if memory.contradiction:
            this.problems.append(("InvalidSpec", memory.contradiction))
        if control.active is None and self._links_pending(this):
            return
        changed = memory.planned_for != situation
        interval: float = pipeline.spec.replanning.interval_seconds
        if control.active is None:
            interval = min(interval, _RETRY_FIRST_PLAN_SECONDS)
        if not changed and now < memory.planned_at + interval:
            return
        if control.pending is not None and not changed:
            return
        if control.pending is not None and memory.planned_for is not None:
            control = abandon(control)
        seen = snapshot(
            pipeline, profile=model[1], profile_name=name, tiers=this.tiers, metrics=this.metrics,
            reported=this.reported, control=control, generation=this.observed.generation, now=now,
        )  # fmt: skip
        memory.planned_at, memory.planned_for = now, situation
        try:
            with self._telemetry.planning.time():
                decision = plan(seen, to_policy(pipeline.spec), now)
        except ValueError as error:
            if not memory.contradiction:
                this.problems.append(("InvalidSpec", str(error)))
            memory.contradiction = str(error)
            return
        memory.contradiction = ""
        memory.decision = decision
        self._telemetry.decisions.labels(str(decision.action), decision.reason).inc()
        if decision.gate:
            self._telemetry.holds.labels(decision.gate).inc()
        this.decisions = statuses.with_decision(this.decisions, statuses.decision_entry(decision, control, now))
        this.control = replace(control, low_demand_since=decision.low_demand_since)
        if decision.target is None:
            return
        target = realise(
            decision.target, decision.routes, pipeline=pipeline, fingerprint=model[1].fingerprint, model=name,
            inputs=decision.inputs, settings=self._settings,
        )  # fmt: skip
        self._head_for(this, target, decision)

    def _head_for(self, this: Round, target: Serving, decision: Decision) -> None:
        """Begin a switch to ``target``, unless it is what serves, or is being prepared, already."""
        control = this.control
        active = control.active
        if active is not None and (active.plan, active.stages, active.model) == (
            target.plan, target.stages, target.model,
        ):  # fmt: skip
            this.control = replace(control, pending=None)
            if _routes_differ(active, target):
                this.control = replace(this.control, active=replace(active, routes=target.routes))
            return
        pending = control.pending
        if pending is not None and (pending.serving.plan, pending.serving.stages) == (target.plan, target.stages):
            return
        if decision.action is Action.HOLD and active is not None:
            target = replace(target, inputs=active.inputs)
        step = begin(
            control, target, reason=decision.reason, now=this.now, observed=this.observed,
            prepare_seconds=self._settings.prepare_deadline, drain_seconds=self._settings.drain_deadline,
        )  # fmt: skip
        this.control = step.control
        this.publish = this.publish or step.publish
        this.notes += step.notes
        if decision.action is not Action.HOLD:
            this.notes.append(Note("Normal", f"Plan{decision.action}", f"{decision.reason}: {decision.message}"))

    def _links_pending(self, this: Round) -> bool:
        """Whether the gateway may still find out how fast the links are, so that the first plan can count on them."""
        source = this.pipeline.spec.gateway.tier
        measured = this.metrics.of((this.pipeline.metadata.namespace, this.pipeline.metadata.name)).bandwidth
        live = {(link.source, link.target) for link in this.reported if link.bandwidth_bytes_per_second is not None}
        missing = [
            name
            for name, state in this.tiers.items()
            if name != source
            and state.capacity.ready
            and known(measured.get((source, name), _NOTHING)) is None
            and (source, name) not in live
        ]
        if not missing:
            return False
        if this.table is None:
            return True
        since = seconds(this.table["metadata"].get("creationTimestamp")) or this.now
        if this.now - since > _LINK_PATIENCE_SECONDS:
            return False
        text = f"waiting for the gateway to measure the link to {', '.join(missing)}"
        this.waiting.append(("MeasuringLinks", text))
        return True

    # Routes and pods

    async def _write_routes(self, this: Round, model: ModelProfileSpec | None) -> bool:
        """Write the RouteTable if anything about it changed. False when somebody else was faster.

        The model that clients see is that of the plan that serves: another one (``model``) is published with its plan.
        """
        key = this.pipeline.metadata.namespace, this.pipeline.metadata.name
        links = route_tables.links(this.pipeline, link_targets=self._view.link_targets(), nodes=self._view.nodes())
        routes = route_tables.live_routes(this.control, this.observed.lost_tiers)
        table = this.table
        generation = this.observed.generation
        before = (table or {}).get("spec") or {}
        if model is not None and (table is None or this.publish or not before.get("routes")):
            served = route_tables.served_model(this.pipeline, model)
        else:
            served = before["model"]
        wanted = route_tables.route_table(
            this.pipeline, this.control, generation=generation, routes=routes, model=served, links=links,
            version="" if table is None else table["metadata"]["resourceVersion"],
        )  # fmt: skip
        if table is not None and (this.publish or wanted["spec"]["routes"] != (before.get("routes") or [])):
            generation = max(generation, _status_generation(this.body)) + 1
            wanted["spec"]["generation"] = generation
        if (
            table is not None
            and _same_spec(before, wanted["spec"])
            and annotations_of(table).get(controls.CONTROL_ANNOTATION) == controls.dump(this.control)
        ):
            return True
        try:
            if table is None:
                written = await self._cluster.create(wanted)
            else:
                written = await self._cluster.apply(wanted)
        except Conflict:
            self._telemetry.lost_races.inc()
            self._view.forget("RouteTable", key)
            _log.info("%s/%s: the RouteTable has changed meanwhile; deciding again", *key)
            return False
        self._view.remember(written)
        this.table = written
        this.observed = replace(this.observed, generation=generation)
        return True

    async def _apply_stages(self, this: Round, fingerprint: str) -> None:
        """Create, scale and delete stage Deployments until they are what the written state wants."""
        pipeline, control = this.pipeline, this.control
        namespace = pipeline.metadata.namespace
        present = self._view.deployments_of((namespace, pipeline.metadata.name), "stage")
        wanted = make_room(control, this.observed)
        keys = {stage.name: stage.key for serving in _servings(control) for stage in serving.stages}
        for name, replicas in sorted(wanted.items()):
            seen = present.get(name)
            if seen is None or is_terminating(seen):
                key = keys.get(name)
                if key is None or key.fingerprint != fingerprint:
                    continue  # of a model that the spec no longer has: it cannot be made again, only replaced
                body = stage_deployment(pipeline, key, replicas=replicas, settings=self._settings)
                if body["metadata"]["name"] == name:
                    self._view.remember(await self._cluster.apply(body))
            elif seen["spec"].get("replicas", 1) != replicas:
                scaled = await self._cluster.merge(DEPLOYMENT, name, namespace, {"spec": {"replicas": replicas}})
                self._view.remember(scaled)
        for name, seen in sorted(present.items()):
            if name not in wanted and not is_terminating(seen):
                await self._cluster.delete(DEPLOYMENT, name, namespace, uid=seen["metadata"]["uid"])
                self._view.forget("Deployment", (namespace, name))

    # Telling

    async def _tell(self, this: Round, memory: Memory) -> None:
        pipeline, key = this.pipeline, (this.pipeline.metadata.namespace, this.pipeline.metadata.name)
        gateway = self._view.deployments_of(key, "gateway").get(gateway_name(pipeline.metadata.name))
        measured = this.metrics.of(key)
        for note in this.notes:
            if note.reason == "SwitchRolledBack":
                entry = {
                    "time": timestamp(this.now), "action": "RollBack", "reason": note.reason,
                    "message": note.message[:4096],
                }  # fmt: skip
                this.decisions = statuses.with_decision(this.decisions, entry)
        facts = Facts(
            observed=this.observed,
            control=this.control,
            decision=memory.decision,
            gateway_ready=bool(((gateway or {}).get("status") or {}).get("readyReplicas")),
            metrics_failure=this.metrics.failure,
            arrival_rate=measured.arrival_rate,
            p95=measured.p95_seconds,
            problems=tuple(this.problems),
            waiting=tuple(this.waiting),
            suspended=pipeline.spec.suspend,
        )
        before = this.body.get("status") or {}
        name = self._profile_name(pipeline)
        current = memory.profile if self._view.profile((key[0], name)) is not None else None
        served = this.control.active.model if this.control.active else ""
        status = statuses.build(
            pipeline, before, facts, profile_name=name, profile_known=current is not None,
            cut_names=[cut.name for cut in current[1].cuts] if current is not None and served == name else [],
            decisions=this.decisions, now=this.now,
        )  # fmt: skip
        await self._announce(this, memory, status)
        if not _worth_writing(before, status, elapsed=time.monotonic() - memory.status_at):
            return
        try:
            written = await self._cluster.patch_status(
                PIPELINE, pipeline.metadata.name, pipeline.metadata.namespace, status,
                resource_version=this.body["metadata"]["resourceVersion"],
            )  # fmt: skip
        except Conflict:
            self._telemetry.lost_races.inc()
            self._view.forget("InferencePipeline", key)
            return
        memory.status_at = time.monotonic()
        self._view.remember(written)

    async def _announce(self, this: Round, memory: Memory, status: Object) -> None:
        """Events: switches as they happen, and conditions when they turn or change their reason."""
        for note in this.notes:
            await self._cluster.create_event(this.body, type=note.type, reason=note.reason, message=note.message)
        before = {condition["type"]: condition for condition in (this.body.get("status") or {}).get("conditions") or ()}
        for condition in status["conditions"]:
            kind, reason = condition["type"], condition["reason"]
            bad = _BAD.get(kind)
            if bad is None:
                continue
            old = before.get(kind, {})
            was_bad, is_bad = old.get("status") == bad, condition["status"] == bad
            news = f"{condition['status']}/{reason}"
            same_reason = old.get("reason") == reason and was_bad == is_bad
            if same_reason or (not is_bad and not was_bad) or memory.told.get(kind) == news:
                continue
            memory.told[kind] = news
            if is_bad:
                await self._cluster.create_event(this.body, type="Warning", reason=reason, message=condition["message"])
            else:
                message = f"{kind} is {condition['status']} again"
                await self._cluster.create_event(this.body, type="Normal", reason=reason, message=message)


_NOTHING = Missing("")
_BAD = {"Degraded": "True", "MetricsAvailable": "False", "PlanFeasible": "False", "Stalled": "True"}


def _no_nodes(state: TierState) -> tuple[str, str]:
    """Why a tier cannot be used, and what to do about it."""
    tier = state.spec
    selector = ",".join(f"{key}={value}" for key, value in sorted(tier.node_selector.items()))
    if not state.capacity.matching:
        advice = "Label a node so, or mend nodeSelector in spec.tiers."
        return "NoNodesForTier", f"tier {tier.name}: no node has the labels {selector}. {advice}"
    advice = "Bring one back, uncordon one, or tolerate its taints in spec.tiers."
    return "TierLost", f"tier {tier.name}: none of {state.capacity.matching} nodes takes pods. {advice}"


def _parsed(memory: Memory, body: Object) -> InferencePipeline:
    """The pipeline as a model, parsed anew only when its spec changed."""
    version = f"{body['metadata'].get('uid')}/{body['metadata'].get('generation')}"
    if memory.parsed is None or memory.parsed[0] != version:
        stripped = {key: value for key, value in body.items() if key != "status"}
        memory.parsed = (version, InferencePipeline.parse(stripped))
    return memory.parsed[1]


def _belongs(table: Object, pipeline: InferencePipeline) -> bool:
    """Whether a RouteTable was made for this pipeline, not for one of the same name that was deleted."""
    return any(
        reference.get("uid") == pipeline.metadata.uid for reference in table["metadata"].get("ownerReferences") or ()
    )


def _generation(table: Object | None) -> int:
    return int(((table or {}).get("spec") or {}).get("generation", 0))


def _status_generation(body: Object) -> int:
    """The generation last reported: it must not come again although the RouteTable was deleted by hand."""
    return int((((body.get("status") or {}).get("plan")) or {}).get("generation", 0))


def _servings(control: Control) -> list[Serving]:
    found = [control.active] if control.active else []
    return [*found, control.pending.serving] if control.pending else found


def _routes_differ(old: Serving, new: Serving) -> bool:
    """Whether routes are worth publishing again: others, in another order, or with a markedly different limit."""
    if [(route.name, route.steps) for route in old.routes] != [(route.name, route.steps) for route in new.routes]:
        return True
    return any(
        abs(after.max_rate_per_second - before.max_rate_per_second) > _RATE_CHANGE * before.max_rate_per_second
        for before, after in zip(old.routes, new.routes, strict=True)
    )


def _same_spec(before: Object, wanted: Object) -> bool:
    """Whether two RouteTable specs say the same; the API server may order keyed lists and sets as it likes."""

    def sorted_out(spec: Object) -> Object:
        full = RouteTableSpec.parse(spec).dump()
        full["stages"] = sorted(full.get("stages", ()))
        full["links"] = sorted(full.get("links", ()), key=lambda link: (link["source"], link["target"]))
        return full

    return sorted_out(before) == sorted_out(wanted)


def _worth_writing(before: Object, status: Object, *, elapsed: float) -> bool:
    """Whether the status says something new; observed numbers alone are written now and then only."""
    now = _without_nothing(status)
    if now == {key: value for key, value in before.items() if key in status}:
        return False
    return elapsed >= _OBSERVED_EVERY_SECONDS or _lasting(now) != _lasting(before)


def _without_nothing(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nothing(item) for item in value]
    return value


_OBSERVED = frozenset({
    "observedP95Milliseconds", "requestsPerSecond", "costPerThousandRequests", "predictedP95Milliseconds",
    "maxRatePerSecond", "costPerHour", "message", "slo", "recommendation",
})  # fmt: skip


def _lasting(value: object) -> object:
    """A status without numbers and texts that change all the time."""
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in _OBSERVED}
    if isinstance(value, list | tuple):
        return [_lasting(item) for item in value]
    return value

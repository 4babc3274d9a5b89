"""One pipeline brought one step closer to what it should be. Idempotent: the loop calls it again and again.

The order of writes makes it safe to stop anywhere: first the RouteTable, which carries the intent and fails if
somebody else was faster; then the pods that the intent needs; last the status, which only tells.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from splitplane.adapters.clock import Clock
from splitplane.adapters.cluster import Cluster, Conflict, Forbidden, Invalid, NotFound, Unavailable
from splitplane.adapters.kinds import ROUTE_TABLE
from splitplane.adapters.metrics import MetricsSnapshot
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.profiles import ModelProfileSpec, to_profile
from splitplane.api.routes import RouteTableSpec
from splitplane.controller import control as controls
from splitplane.controller import route_tables
from splitplane.controller.applying import Applying
from splitplane.controller.arbitrating import Arbiter
from splitplane.controller.budgets import Budgets
from splitplane.controller.calibrating import limited, with_unknown_losses
from splitplane.controller.calibrations import Calibrations
from splitplane.controller.children import gateway_objects
from splitplane.controller.conditions import LIMITS, Verdict
from splitplane.controller.deciding import Deciding
from splitplane.controller.naming import profile_name
from splitplane.controller.network_policies import stages_policy
from splitplane.controller.objects import Key, Object, annotations_of, is_terminating, key_of
from splitplane.controller.pools import Pools
from splitplane.controller.profiles import Profiles
from splitplane.controller.rounds import Memory, Round, look, parsed
from splitplane.controller.settings import Settings
from splitplane.controller.sites import Sites
from splitplane.controller.snapshots import TierState
from splitplane.controller.switching import advance, make_room
from splitplane.controller.telemetry import Telemetry
from splitplane.controller.telling import Telling
from splitplane.controller.view import View
from splitplane.domain.profiles import Profile

if TYPE_CHECKING:
    from splitplane.controller.certificates import Certificates  # only imported where it is used

# How often a write is tried over what gateways report meanwhile.
_WRITES = 5


class Reconciler:
    """Reconciles pipelines against the cluster. One round at a time: it is called by one loop."""

    def __init__(
        self, *, cluster: Cluster, view: View, clock: Clock, settings: Settings, telemetry: Telemetry,
        certificates: "Certificates | None" = None,
    ) -> None:  # fmt: skip
        self._cluster = cluster
        self._view = view
        self._clock = clock
        self._settings = settings
        self._telemetry = telemetry
        self._profiles = Profiles(cluster=cluster, view=view, settings=settings)
        self._calibrations = Calibrations(cluster=cluster, view=view, settings=settings, profiles=self._profiles)
        self._arbiter = Arbiter(view=view, telemetry=telemetry)
        self._applying = Applying(cluster=cluster, view=view, settings=settings)
        self._pools = Pools(view=view, settings=settings, applying=self._applying, arbiter=self._arbiter)
        self._budgets = Budgets(view)
        self._deciding = Deciding(
            settings=settings, telemetry=telemetry, arbiter=self._arbiter, pools=self._pools, budgets=self._budgets
        )
        self._telling = Telling(cluster=cluster, view=view, telemetry=telemetry, arbiter=self._arbiter)
        self._sites = Sites(
            cluster=cluster, view=view, telemetry=telemetry, telling=self._telling, pools=self._pools,
            arbiter=self._arbiter,
        )  # fmt: skip
        self._certificates = certificates
        self._memories: dict[Key, Memory] = {}

    def keep_only(self, keys: set[Key]) -> None:
        """Forget pipelines that are gone."""
        for key in self._memories.keys() - keys:
            del self._memories[key]
        if self._certificates is not None:
            self._certificates.keep_only({memory.uid for memory in self._memories.values()})
        self._arbiter.keep_only(keys)
        self._sites.keep_only(keys)
        self._pools.keep_only(keys)
        self._budgets.keep_only(keys)
        self._profiles.keep_only(keys)

    async def arbitrate(self) -> None:
        """Settle between pipelines that want more of the same nodes than there are."""
        await self._arbiter.settle(self._clock.now())

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
            pipeline = parsed(memory, body)
        except ValidationError as error:
            # The CRD's schema refuses what the models refuse, so the CRD is older than the operator.
            first = error.errors()[0]
            raise ValueError(f"spec.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if pipeline.spec.sites is not None:
            if self._certificates is not None and pipeline.spec.sites.shared_tier:
                await self._certificates.ensure(pipeline)
            await self._sites.reconcile(body, pipeline, memory, metrics, now=self._clock.now())
            return
        sharing = self._pools.sharing_of(body, pipeline)
        this = look(self._view, body, pipeline, metrics, now=self._clock.now(), sharing=sharing)
        try:
            await self._act(this, memory)
        except (Forbidden, Invalid) as error:
            this.problems.insert(0, ("ApiRefused", str(error)))
            self._telemetry.errors.labels(type(error).__name__).inc()
        await self._telling.tell(this, memory, name=self._profile_name(pipeline))

    async def _act(self, this: Round, memory: Memory) -> None:
        """Everything but the telling. Raises :class:`Conflict` when somebody else was faster: nothing is true then."""
        pipeline = this.pipeline
        if limited(pipeline):
            this.limits = Verdict(LIMITS, "Unknown", "NotPlanned", "the model is not profiled yet, or suspended")
        if not (pipeline.spec.suspend and this.table is None):
            await self._apply_gateway(pipeline, memory)
        this.problems += [_no_nodes(state) for state in this.tiers.values() if not state.capacity.ready]
        model = await self._profile(this, memory)
        step = advance(this.control, this.observed, now=this.now, drain_seconds=self._settings.drain_deadline)
        this.control, this.publish = step.control, step.publish
        this.notes += step.notes
        before = memory.planned_at, memory.planned_for, memory.corrections, memory.learnt_of
        if pipeline.spec.suspend:
            self._arbiter.forget(this.key)
        elif model is not None:
            self._deciding.decide(this, memory, name=self._profile_name(pipeline), model=model)
        if this.table is None and (model is None or pipeline.spec.suspend):
            return
        try:
            await self._write_routes(this, model)
        except (Conflict, NotFound, Unavailable):
            # What is not written is decided again in the next round, on a minute that is not to be learnt of twice.
            memory.planned_at, memory.planned_for, memory.corrections, memory.learnt_of = before
            raise
        if this.record is not None:
            this.record()
        await self._forget_gateways(this)
        await self._apply_stages(this, memory, model[1].fingerprint if model is not None else "")
        if model is not None and not pipeline.spec.suspend:
            await self._calibrations.ensure(this, memory, name=self._profile_name(pipeline), profile=model[0])

    def _profile_name(self, pipeline: InferencePipeline) -> str:
        return profile_name(pipeline.spec, self._settings.runtime_image)

    # The gateway

    async def _apply_gateway(self, pipeline: InferencePipeline, memory: Memory) -> None:
        if self._certificates is not None:
            await self._certificates.ensure(pipeline)
        objects = [stages_policy(pipeline), *gateway_objects(pipeline, self._settings)]
        await self._applying.all(pipeline, objects, memory)

    # The profile

    async def _profile(self, this: Round, memory: Memory) -> tuple[ModelProfileSpec, Profile] | None:
        pipeline = this.pipeline
        name = self._profile_name(pipeline)
        outcome = await self._profiles.ensure(
            pipeline, name=name, active=this.control.active,
            ready_nodes={tier: len(state.capacity.ready) for tier, state in this.tiers.items()},
            pods=self._view.pods_of((pipeline.metadata.namespace, pipeline.metadata.name), "profile"), now=this.now,
        )  # fmt: skip
        this.problems += outcome.problems
        this.waiting += outcome.waiting
        this.notes += outcome.notes
        if outcome.spec is None:
            return None
        this.estimates = outcome.estimates
        devices = {name: each.device for name, each in outcome.estimates.items()}
        version = f"{outcome.version} {[(name, each.prefix_seconds[-1]) for name, each in devices.items()]}"
        if memory.profile is None or memory.profile[0] != version:
            profile = to_profile(outcome.spec)
            profile = replace(profile, devices={**profile.devices, **devices})
            if pipeline.spec.objectives.defence and pipeline.spec.objectives.max_accuracy_loss:
                profile = with_unknown_losses(profile)
            memory.profile = (version, outcome.spec, profile)
        if outcome.pending and (this.control.active is None or this.control.active.model != name):
            return None  # the first plan for a model waits a while for tiers that can be measured
        return memory.profile[1], memory.profile[2]

    # Routes and pods

    async def _write_routes(self, this: Round, model: tuple[ModelProfileSpec, Profile] | None) -> None:
        """Write the RouteTable if anything about it changed. Raises :class:`Conflict` when somebody else was faster.

        The model that clients see is that of the plan that serves: another one (``model``) is published with its plan.
        """
        key = this.key
        links = route_tables.links(this.pipeline, link_targets=self._view.link_targets(), nodes=self._view.nodes())
        routes = route_tables.live_routes(this.control, this.observed.lost_tiers)
        table = this.table
        generation = this.observed.generation
        before = (table or {}).get("spec") or {}
        if model is not None and (table is None or this.publish or not before.get("routes")):
            served = route_tables.served_model(this.pipeline, model[0])
        else:
            served = before["model"]
        batching = before.get("batching") or {}
        if model is not None:
            batching = route_tables.batching(this.pipeline, this.control, model[1])
        wanted = route_tables.route_table(
            this.pipeline, this.control, generation=generation, routes=routes, model=served, links=links,
            batching=batching, version="" if table is None else table["metadata"]["resourceVersion"],
        )  # fmt: skip
        if table is not None and (this.publish or wanted["spec"]["routes"] != (before.get("routes") or [])):
            generation = max(generation, _status_generation(this.body)) + 1
            wanted["spec"]["generation"] = generation
        if (
            table is not None
            and _same_spec(before, wanted["spec"])
            and annotations_of(table).get(controls.CONTROL_ANNOTATION) == controls.dump(this.control)
        ):
            return
        try:
            written = await (self._cluster.create(wanted) if table is None else self._replace(table, wanted))
        except Conflict:
            self._view.forget("RouteTable", key)
            raise
        self._view.remember(written)
        this.table = written
        this.observed = replace(this.observed, generation=generation)

    async def _replace(self, table: Object, wanted: Object) -> Object:
        """Write ``wanted`` over ``table``. Raises :class:`Conflict` if more of it has changed than gateways report.

        Their reports are no reason to decide again: others may come at any time, after the write as well.
        """
        namespace, name = key_of(table)
        for _ in range(_WRITES - 1):
            try:
                return await self._cluster.apply(wanted)
            except Conflict:
                found = await self._cluster.list(ROUTE_TABLE, namespace, name=name)  # needs no right to ``get``
                if not found or _decided(found[0]) != _decided(table):
                    raise
                wanted["metadata"]["resourceVersion"] = found[0]["metadata"]["resourceVersion"]
        return await self._cluster.apply(wanted)

    async def _forget_gateways(self, this: Round) -> None:
        """Take away what gateways reported whose pods have gone."""
        if this.gone_gateways:
            gone = {"gateways": dict.fromkeys(this.gone_gateways)}
            namespace, name = this.key
            self._view.remember(await self._cluster.patch_status(ROUTE_TABLE, name, namespace, gone))

    async def _apply_stages(self, this: Round, memory: Memory, fingerprint: str) -> None:
        """Bring the stages' Deployments closer to what the written state wants, but those that sites share."""
        shared = this.sharing.tier if this.sharing else ""
        others = {stage.name for stage in this.control.needed if stage.key.tier == shared}
        aim = make_room(this.control, this.observed)
        wanted = {name: replicas for name, replicas in aim.items() if name not in others}
        keys = {stage.name: stage.key for stage in this.control.coming}
        await self._applying.stages(this.pipeline, wanted, keys, memory, fingerprint)


def _no_nodes(state: TierState) -> tuple[str, str]:
    """Why a tier cannot be used, and what to do about it."""
    tier = state.spec
    selector = ",".join(f"{key}={value}" for key, value in sorted(tier.node_selector.items()))
    if not state.capacity.matching:
        advice = "Label a node so, or mend nodeSelector in spec.tiers."
        return "NoNodesForTier", f"tier {tier.name}: no node has the labels {selector}. {advice}"
    advice = "Bring one back, uncordon one, or tolerate its taints in spec.tiers."
    return "TierLost", f"tier {tier.name}: none of {state.capacity.matching} nodes takes pods. {advice}"


def _status_generation(body: Object) -> int:
    """The generation last reported: it must not come again although the RouteTable was deleted by hand."""
    return int((((body.get("status") or {}).get("plan")) or {}).get("generation", 0))


def _decided(table: Object) -> object:
    """What an operator, or anybody but a gateway, writes of a RouteTable that a decision rests on."""
    return table["metadata"]["uid"], table["spec"], annotations_of(table).get(controls.CONTROL_ANNOTATION)


def _same_spec(before: Object, wanted: Object) -> bool:
    """Whether two RouteTable specs say the same; the API server may order keyed lists and sets as it likes."""

    def sorted_out(spec: Object) -> Object:
        full = RouteTableSpec.parse(spec).dump()
        full["stages"] = sorted(full.get("stages", ()))
        full["links"] = sorted(full.get("links", ()), key=lambda link: (link["source"], link["target"]))
        return full

    return sorted_out(before) == sorted_out(wanted)

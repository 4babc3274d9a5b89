"""Replicas that the sites of a pipeline share: sized for all sites together, made once, named by each site's own plan.

The user's pipeline owns their Deployment, and nothing else of them is kept: there is what the sites' RouteTables name.
Sizes are settled here, from what each site was planned on last, whenever a site is planned whose turn it is.
"""

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from splitplane.adapters.metrics import MetricsSnapshot
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.policies import to_policy
from splitplane.controller import control as controls
from splitplane.controller.applying import Applying
from splitplane.controller.arbitrating import Arbiter
from splitplane.controller.children import StageKey, stage_deployment
from splitplane.controller.control import CONTROL_ANNOTATION, Control, Serving, StageSet
from splitplane.controller.naming import shared_tier
from splitplane.controller.network_policies import stages_policy
from splitplane.controller.objects import PIPELINE_LABEL, Key, Object, annotations_of
from splitplane.controller.rounds import Memory
from splitplane.controller.settings import Settings
from splitplane.controller.sharing import Sharing
from splitplane.controller.site_pipelines import is_owned, of_sites
from splitplane.controller.snapshots import TierState, tier_states
from splitplane.controller.switching import Note
from splitplane.controller.view import View
from splitplane.domain.measurements import known
from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner import ContradictionError, Kept
from splitplane.planner.context import build_context
from splitplane.planner.pooling import Pooling, load_on, resized, seen_by, share, size_pool
from splitplane.planner.pools import Pool
from splitplane.planner.shared_replay import Sizing, dump_sizing

_log = logging.getLogger(__name__)

# How long sites wait for each other before they are planned on what is known of those that were heard.
_PATIENCE_SECONDS = 30.0
# Planning all sites takes no more than this share of the time while something about them changes.
_MOST_OF_THE_TIME = 0.1


@dataclass(slots=True)
class _State:
    """What is known of one pipeline's sites since ``since``, each by the name of its pipeline. ``actual`` are the
    replicas that each keeps busy with the plan that it has."""

    uid: str
    fingerprint: str
    since: float
    seen: dict[str, Snapshot] = field(default_factory=dict)
    actual: dict[str, float] = field(default_factory=dict)
    pooling: Pooling = field(default_factory=Pooling)
    kept: Kept | None = None
    granted: int | None = None
    """What other pipelines on the same nodes leave of the tier; ``None`` while nobody has to give way."""
    granted_at: float = -math.inf
    claimed_at: float = -math.inf
    """When that was settled which the arbitration knows of."""
    urgent: bool = False
    settled_at: float = -math.inf
    took: float = 0.0
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Held:
    """The Deployment that sites share now, how it stands, and the price of one of its replicas per hour."""

    stage: StageSet
    ready: int
    price: float | None


class Pools:
    """Settles what sites share, and keeps its pods."""

    def __init__(self, *, view: View, settings: Settings, applying: Applying, arbiter: Arbiter) -> None:
        self._view = view
        self._arbiter = arbiter
        self._settings = settings
        self._applying = applying
        self._states: dict[Key, _State] = {}
        self._parsed: dict[Key, tuple[str, InferencePipeline]] = {}
        self._controls: dict[Key, tuple[str, Control | None]] = {}

    def keep_only(self, keys: set[Key]) -> None:
        """Forget pipelines that are gone."""
        held: tuple[dict[Key, Any], ...] = (self._states, self._parsed, self._controls)
        for each in held:
            for key in each.keys() - keys:
                del each[key]
        for (namespace, _), state in self._states.items():
            for site in state.seen.keys() | state.actual.keys():
                if (namespace, site) not in keys:
                    state.seen.pop(site, None)
                    state.actual.pop(site, None)
                    state.urgent = True

    def sharing_of(self, body: Object, pipeline: InferencePipeline) -> Sharing | None:
        """What the pipeline of a site shares; ``None`` for any other."""
        tier = shared_tier(pipeline)
        if not tier:
            return None
        key = pipeline.metadata.namespace, pipeline.metadata.labels[PIPELINE_LABEL]
        users = self._view.pipeline(key)
        if users is None or not is_owned(body, users["metadata"].get("uid", "")):
            return None
        version = f"{users['metadata']['uid']}/{users['metadata'].get('generation')}"
        read = self._parsed.get(key)
        if read is None or read[0] != version:
            stripped = {name: value for name, value in users.items() if name != "status"}
            read = self._parsed[key] = version, InferencePipeline.parse(stripped)
        return Sharing(read[1], tier)

    def pool_of(self, sharing: Sharing) -> Pool | None:
        """What there is to share, as settled last."""
        state = self._states.get(sharing.key)
        return None if state is None else state.pooling.pool

    def cost_of(self, sharing: Sharing, tiers: Mapping[str, TierState]) -> float:
        """What that costs per hour; 0 where no price is known."""
        pool = self.pool_of(sharing)
        return pool.replicas * (known(tiers[sharing.tier].price) or 0.0) if pool else 0.0

    def snapshot(
        self, sharing: Sharing, site: str, seen: Snapshot, policy: Policy, *, now: float, urgent: bool
    ) -> Snapshot | None:
        """What a site is planned on: ``seen``, with what is shared in the place of the nodes that it is on; ``None``
        while others have to be heard first, so that the first settlement is about all.

        Settles anew if it is time to; ``urgent``: what the site rests on has changed. Raises ``ContradictionError``.
        """
        state = self._state(sharing, seen, policy, now)
        state.seen[site] = _granted(seen, sharing.tier, state.granted)
        state.urgent |= urgent
        state.actual[site] = self._load(state, seen, policy, sharing, seen.active.plan if seen.active else None)
        if self._unheard(state, sharing, now):
            return None
        self._settle(state, sharing, policy, now)
        here = share(state.pooling, site, state.actual, ceiling=policy.max_utilization)
        return seen_by(seen, sharing.tier, state.pooling, here)

    def chosen(self, sharing: Sharing, site: str, policy: Policy, plan: Plan) -> None:
        """A site heads for a plan: it counts with what keeps more replicas busy, that or the one which it has."""
        state = self._states[sharing.key]
        load = self._load(state, state.seen[site], policy, sharing, plan)
        state.actual[site] = max(state.actual.get(site, 0.0), load)

    def resized(self, sharing: Sharing, control: Control) -> Control:
        """A site's state with as many shared replicas as there are."""
        pool, pending = self.pool_of(sharing), control.pending
        if pool is None:
            return control
        if pending is not None:
            pending = replace(pending, serving=_resized(pending.serving, sharing.tier, pool))
        active = None if control.active is None else _resized(control.active, sharing.tier, pool)
        return replace(control, active=active, pending=pending)

    async def keep(
        self, pipeline: InferencePipeline, memory: Memory, metrics: MetricsSnapshot, notes: list[Note], *, now: float
    ) -> Held | None:
        """Make the pods that sites share what they should be, and take away those that no site needs any more."""
        assert pipeline.spec.sites is not None
        tier = pipeline.spec.sites.shared_tier
        if tier is None:
            return None
        key, policy = (pipeline.metadata.namespace, pipeline.metadata.name), to_policy(pipeline.spec)
        sharing, state = Sharing(pipeline, tier), self._states.get(key)
        serving = self._serving(pipeline)
        await self._applying.all(pipeline, [stages_policy(pipeline, sites=serving)], memory)
        states = list(serving.values())
        needed = {
            stage.name: stage
            for control in states
            for stage in (control.needed if control is not None else ())
            if stage.key.tier == tier
        }
        nodes = self._view.nodes()
        owners = {name.name: key for name in pipeline.spec.tiers}
        held = tier_states(
            pipeline, nodes=nodes, pods_by_node=self._view.pods_by_node(nodes), metrics=metrics, owners=owners
        )[tier]
        current: StageSet | None = None
        if pipeline.spec.suspend:
            self._arbiter.forget(key)
        if state is not None:
            if not pipeline.spec.suspend:
                self._grant(state, sharing, held.capacity.slots, now)
                self._settle(state, sharing, policy, now)
                self._claim(state, sharing, policy, held)
            notes += state.notes
            state.notes = []
            current = self._current(pipeline, tier, state)
        present = self._view.deployments_of(key, "stage")
        kept = present.keys() if None in states else present.keys() & needed.keys()
        wanted = {name: present[name]["spec"].get("replicas", 1) for name in kept}
        keys = {stage.name: stage.key for stage in needed.values()}
        if current is not None and state is not None:
            busy = math.ceil(sum(state.actual.values()) / policy.max_utilization - 1e-9)
            # Those that leave as there is less to share still send what they send.
            leaving = min(wanted.get(current.name, 0), busy)
            if state.granted is not None and now - state.granted_at > self._settings.prepare_deadline:
                leaving = min(leaving, state.granted)  # others wait for the rest
            room = held.capacity.slots - current.replicas
            wanted = {name: max(1, min(count, room)) for name, count in wanted.items()}
            wanted[current.name] = max(current.replicas, leaving)
            keys[current.name] = current.key
        fingerprint = state.fingerprint if state is not None else ""
        await self._applying.stages(pipeline, wanted, keys, memory, fingerprint)
        return None if current is None else self._held(key, current, held)

    def _held(self, key: Key, stage: StageSet, tier: TierState) -> Held:
        status = self._view.deployments_of(key, "stage").get(stage.name, {}).get("status") or {}
        return Held(stage, status.get("readyReplicas", 0), known(tier.price))

    def _current(self, pipeline: InferencePipeline, tier: str, state: _State) -> StageSet | None:
        """The Deployment that sites are planned on now."""
        pool = state.pooling.pool
        if pool is None:
            return None
        key = StageKey(tier, pool.first, pool.last, state.fingerprint)
        body = stage_deployment(pipeline, key, replicas=pool.replicas, settings=self._settings)
        return StageSet(body["metadata"]["name"], key, pool.replicas)

    def _unheard(self, state: _State, sharing: Sharing, now: float) -> bool:
        """Whether there are sites that have not been planned since, and may soon be."""
        if now - state.since >= _PATIENCE_SECONDS:
            return False
        return any(key[1] not in state.seen for key in of_sites(sharing.pipeline, self._view.pipelines()))

    def _state(self, sharing: Sharing, seen: Snapshot, policy: Policy, now: float) -> _State:
        """What is known of the pipeline's sites; of another model than ``seen`` is about, nothing."""
        uid, fingerprint = sharing.pipeline.metadata.uid, seen.profile.fingerprint
        state = self._states.get(sharing.key)
        if state is None or (state.uid, state.fingerprint) != (uid, fingerprint):
            context = build_context(seen, policy)
            state = self._states[sharing.key] = _State(uid, fingerprint, now)
            serving: dict[str, tuple[Serving, StageSet]] = {}
            for name, control in self._serving(sharing.pipeline).items():
                active = control.active if control is not None else None
                for stage in active.stages if active is not None else ():
                    if active is not None and (stage.key.tier, stage.key.fingerprint) == (sharing.tier, fingerprint):
                        serving[name] = active, stage
            # What was batched is not kept: if all requests come alike, they are.
            kinds = {_arrival(active.plan, sharing.tier) for active, _ in serving.values()}
            batched = kinds.pop() if len(kinds) == 1 and context.samples > 1 else None
            for name, (active, stage) in serving.items():
                there = replace(context, rate=active.inputs.rate_per_second) if active.inputs else context
                state.actual[name] = load_on(there, active.plan, sharing.tier, batched=batched)
                pool = Pool(stage.key.resident_first, stage.key.resident_last, stage.replicas, batched)
                state.pooling = Pooling(pool, dict(state.actual))
        return state

    def _grant(self, state: _State, sharing: Sharing, slots: int, now: float) -> None:
        """Take over what the arbitration leaves of the tier, of which the nodes can hold so many ``slots`` now."""
        grant = self._arbiter.grant(sharing.key)
        granted = grant.replicas.get(sharing.tier) if grant else None
        # Room that others make for what is granted counts as a change, too.
        room = None if granted is None else slots
        for site, seen in state.seen.items():
            fresh = _granted(seen, sharing.tier, granted, slots=room)
            state.urgent |= fresh != seen
            state.seen[site] = fresh
        if granted != state.granted:
            state.granted, state.granted_at = granted, now

    def _claim(self, state: _State, sharing: Sharing, policy: Policy, tier: TierState) -> None:
        """Tell the arbitration what all sites together would do with how much of the tier."""
        if state.kept is None or state.claimed_at == state.settled_at:
            return
        state.claimed_at = state.settled_at
        with contextlib.suppress(ContradictionError):  # each site's own plan says so
            self._arbiter.note_pool(
                sharing.key, sharing.pipeline, dict(state.seen), policy, state.kept, tier, state.pooling.pool
            )

    def _settle(self, state: _State, sharing: Sharing, policy: Policy, now: float) -> None:
        """Plan all sites together, if one asks for it or it is time to."""
        interval = sharing.pipeline.spec.replanning.interval_seconds
        age = now - state.settled_at
        if age < (state.took / _MOST_OF_THE_TIME if state.urgent else interval):
            return
        if not state.seen or self._unheard(state, sharing, now):
            return
        profile = next(iter(state.seen.values())).profile
        if state.kept is None or not state.kept.fits(profile):
            state.kept = Kept(profile)
        started = time.perf_counter()
        before = state.pooling
        # Where policy and snapshots contradict each other, each site's own plan says so.
        with contextlib.suppress(ContradictionError):
            state.pooling = size_pool(state.seen, policy, now, shared=sharing.tier, before=before, kept=state.kept)
        state.took, state.settled_at, state.urgent = time.perf_counter() - started, now, False
        if state.pooling.pool != before.pool:
            sites = f"{len(state.pooling.loads)} of {len(state.seen)} sites are planned to use them"
            text = f"tier {sharing.tier}: {_told(before.pool)} -> {_told(state.pooling.pool)}; {sites}"
            state.notes.append(Note("Normal", "SharedReplicasChanged", text))
            sizing = Sizing(state.seen, policy, now, sharing.tier, before, state.pooling)
            _log.info("Pool of %s: %s", "/".join(sharing.key), dump_sizing(sizing))

    def _load(self, state: _State, seen: Snapshot, policy: Policy, sharing: Sharing, plan: Plan | None) -> float:
        if plan is None:
            return 0.0
        batched = state.pooling.pool.batched if state.pooling.pool else None
        return load_on(build_context(seen, policy, state.kept), plan, sharing.tier, batched=batched)

    def _serving(self, pipeline: InferencePipeline) -> dict[str, Control | None]:
        """The states of its sites' pipelines, by name; ``None`` for what cannot be read."""
        found = {}
        for key in of_sites(pipeline, self._view.pipelines()):
            table = self._view.route_table(key)
            text = annotations_of(table).get(CONTROL_ANNOTATION, "") if table is not None else ""
            read = self._controls.get(key)
            if read is None or read[0] != text:
                read = self._controls[key] = text, _loaded(table)
            found[key[1]] = read[1]
        return found


def _arrival(plan: Plan, tier: str) -> tuple[int, str] | None:
    """How a plan's requests come to a tier: at which cut, with which codec (``Pool.batched``)."""
    for place, stage in enumerate(plan.stages):
        if stage.tier == tier:
            return stage.first, plan.codecs[place - 1] if place else "fp32"
    return None


def _granted(seen: Snapshot, tier: str, granted: int | None, *, slots: int | None = None) -> Snapshot:
    """What a site is planned on, with what is granted of a tier, and as many slots, if that is given."""
    tiers = tuple(
        replace(each, granted=granted, slots=each.slots if slots is None else slots) if each.name == tier else each
        for each in seen.tiers
    )
    return replace(seen, tiers=tiers)


def _loaded(table: Object | None) -> Control | None:
    try:
        return controls.load(table)
    except ValueError:
        return None  # its own round tells of it


def _resized(serving: Serving, tier: str, pool: Pool) -> Serving:
    stages = tuple(
        replace(stage, replicas=pool.replicas) if pool.has(stage.key, tier) else stage for stage in serving.stages
    )
    return replace(serving, plan=resized(serving.plan, tier, pool), stages=stages)


def _told(pool: Pool | None) -> str:
    if pool is None:
        return "nothing shared"
    text = f"{pool.replicas} replicas of cuts {pool.first}-{pool.last}"
    return text if pool.batched is None else f"{text} for batches from cut {pool.batched[0]} in {pool.batched[1]}"

"""Planning one pipeline when it is time to, and heading for the plan that comes of it."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

from splitplane.adapters.metrics import PipelineMetrics
from splitplane.api.policies import to_policy
from splitplane.api.profiles import ModelProfileSpec
from splitplane.controller import statuses
from splitplane.controller.arbitrating import Arbiter
from splitplane.controller.budgets import Budgets
from splitplane.controller.control import Pending, Serving
from splitplane.controller.corrections import learnt, recalled, remembered, speeds
from splitplane.controller.pods import is_downloaded
from splitplane.controller.pools import Pools
from splitplane.controller.realising import realise
from splitplane.controller.rounds import Memory, Round
from splitplane.controller.settings import Settings
from splitplane.controller.snapshots import snapshot
from splitplane.controller.switching import Note, abandon, begin
from splitplane.controller.telemetry import Telemetry
from splitplane.domain.measurements import Missing, known
from splitplane.domain.profiles import Profile
from splitplane.domain.snapshots import Action, Decision
from splitplane.domain.times import instant
from splitplane.planner import ContradictionError, Kept, dump_call, plan

_log = logging.getLogger(__name__)

# How long the first plan waits for a new gateway to measure the links.
_LINK_PATIENCE_SECONDS = 30.0
_RETRY_FIRST_PLAN_SECONDS = 3.0
# Bytes per second of weights that a pod needs before it can be ready, of the thinnest line and slowest volume that are
# waited for.
_SLOWEST_DOWNLOAD, _SLOWEST_VOLUME = 1e6, 20e6
# A change of a route's highest rate, or of where it is the best, that is worth a new generation.
_NUMBER_CHANGE = 0.1
# Of a load above what the plan bears, a further rise that is planned for at once.
_SURGE_STEP = 0.2
_NOTHING = Missing("")


class Deciding:
    """Calls the planner: once per interval, and at once when what a plan rests on has changed."""

    def __init__(
        self, *, settings: Settings, telemetry: Telemetry, arbiter: Arbiter, pools: Pools, budgets: Budgets
    ) -> None:  # fmt: skip
        self._settings = settings
        self._arbiter = arbiter
        self._budgets = budgets
        self._pools = pools
        self._telemetry = telemetry

    def decide(self, this: Round, memory: Memory, *, name: str, model: tuple[ModelProfileSpec, Profile]) -> None:
        """Plan if it is time to, and head for the plan if it is another one. ``name`` is the ModelProfile's."""
        now, pipeline, sharing = this.now, this.pipeline, this.sharing
        if sharing is not None:
            this.control = self._pools.resized(sharing, this.control)
        control = this.control
        grant = self._arbiter.grant(this.key)
        granted = grant.replicas if grant else {}
        situation = (
            pipeline.metadata.generation,
            name,
            memory.profile[0] if memory.profile else "",
            tuple(sorted((tier, state.capacity.ready) for tier, state in this.tiers.items())),
            control.aside_now(pipeline.metadata.generation, now),
            self._surge(this, memory),
            # Room that others make for what is granted counts as a change, too.
            tuple((tier, count, min(count, this.tiers[tier].capacity.slots)) for tier, count in granted.items()),
            None if sharing is None else self._pools.pool_of(sharing),
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
        given_up = control.pending if memory.planned_for is not None else None
        if given_up is not None:
            control = abandon(control)
        # What was learnt of an estimate is no news of the measurement that has replaced it.
        learnt_of = {
            tier.name: (model[1].fingerprint, model[1].devices.get(tier.device_class)) for tier in pipeline.spec.tiers
        }
        if memory.learnt_of:
            memory.corrections = {
                tier: correction
                for tier, correction in memory.corrections.items()
                if memory.learnt_of.get(tier) == learnt_of.get(tier)
            }
        else:
            memory.corrections = recalled(control, learnt_of)
        memory.learnt_of = learnt_of
        observed = speeds(pipeline, model[1], control, self._measured(this))
        memory.corrections = learnt(memory.corrections, observed, control, now)
        seen = snapshot(
            pipeline, profile=model[1], profile_name=name, tiers=this.tiers, metrics=this.metrics,
            reported=this.reported, control=control, generation=this.observed.generation, now=now,
            granted=granted, corrections=memory.corrections,
        )  # fmt: skip
        memory.planned_at, memory.planned_for = now, situation
        competing = this.tiers
        if memory.kept is None or not memory.kept.fits(seen.profile):
            memory.kept = Kept(seen.profile)
        policy = to_policy(pipeline.spec)
        try:
            with self._telemetry.planning.time():
                if sharing is not None:
                    site = pipeline.metadata.name
                    together = self._pools.snapshot(sharing, site, seen, policy, now=now, urgent=changed)
                    if together is None:
                        memory.planned_for = None
                        if control.active is None:
                            this.waiting.append(("PlanningTogether", "waiting for the links of the other sites"))
                        return
                    seen = together
                    memory.planned_for = (*situation[:-1], self._pools.pool_of(sharing))
                    control = self._pools.resized(sharing, control)
                    competing = {name: state for name, state in competing.items() if name != sharing.tier}
                spent = self._pools.cost_of(sharing, this.tiers) if sharing is not None else 0.0
                part = self._budgets.part(this.body, seen, policy, memory.kept, spent=spent, now=now)
                seen = replace(seen, budget=part)
                self._arbiter.note(this.key, pipeline, seen, policy, memory.kept, competing)
                decision = plan(seen, policy, now, kept=memory.kept)
        except ContradictionError as error:
            if not memory.contradiction:
                this.problems.append(("InvalidSpec", str(error)))
            memory.contradiction = str(error)
            return
        memory.contradiction = ""
        memory.decision, memory.asked = decision, (seen, policy)
        this.record = lambda: _record(this.key, memory, decision, lambda: dump_call(seen, policy, now))
        self._telemetry.decisions.labels(str(decision.action), decision.reason).inc()
        if decision.gate:
            self._telemetry.holds.labels(decision.gate).inc()
        this.entries.append(statuses.decision_entry(decision, control, now))
        this.control = replace(
            control,
            low_demand_since=decision.low_demand_since,
            learnt=remembered(control.learnt, memory.corrections, learnt_of, now),
        )
        if decision.target is None:
            if given_up is not None:
                self._tell_given_up(this, given_up, decision)
            return
        if sharing is not None:
            self._pools.chosen(sharing, pipeline.metadata.name, policy, decision.target.plan)
        target = realise(
            decision.target, decision.routes, decision.steps, pipeline=pipeline, fingerprint=model[1].fingerprint,
            model=name, inputs=decision.inputs, left=decision.left, settings=self._settings, sharing=sharing,
        )  # fmt: skip
        slowest = _SLOWEST_DOWNLOAD if is_downloaded(pipeline.spec.model) else _SLOWEST_VOLUME
        self._head_for(this, target, decision, load_seconds=model[1].held_bytes(0, model[1].segments) / slowest)
        if given_up is not None and this.control.pending is None:
            self._tell_given_up(this, given_up, decision)

    @staticmethod
    def _tell_given_up(this: Round, given_up: Pending, decision: Decision) -> None:
        text = f"plan {given_up.serving.plan} is prepared no longer: {decision.message}"
        this.notes.append(Note("Normal", "SwitchAbandoned", text))

    def _head_for(self, this: Round, target: Serving, decision: Decision, *, load_seconds: float) -> None:
        """Begin a switch to ``target``, unless it is what serves, or is being prepared, already."""
        control = this.control
        active = control.active
        if active is not None and (active.plan, active.stages, active.model) == (
            target.plan, target.stages, target.model,
        ):  # fmt: skip
            this.control = replace(control, pending=None)
            if _routes_differ(active, target):
                served = replace(active, routes=target.routes, link=target.link)
                this.control = replace(this.control, active=served)
            return
        pending = control.pending
        if pending is not None and (pending.serving.plan, pending.serving.stages) == (target.plan, target.stages):
            return
        tried = target.plan.digest in control.aside_now(this.pipeline.metadata.generation, this.now)
        if tried:
            return  # the planner leaves such plans out, but for the one that serves, whose pods may have to change
        if decision.action is Action.HOLD and active is not None:
            target = replace(target, inputs=active.inputs, left=active.left)
        step = begin(
            control, target, reason=decision.reason, spec_generation=this.pipeline.metadata.generation,
            now=this.now, observed=this.observed,
            prepare_seconds=self._settings.prepare_deadline, drain_seconds=self._settings.drain_deadline,
            load_seconds=load_seconds,
        )  # fmt: skip
        this.control = step.control
        this.publish = this.publish or step.publish
        this.notes += step.notes
        if decision.action is not Action.HOLD:
            this.notes.append(Note("Normal", f"Plan{decision.action}", f"{decision.reason}: {decision.message}"))

    def _measured(self, this: Round) -> PipelineMetrics:
        """What was measured of the pipeline, and of the replicas that it shares."""
        own, sharing = this.metrics.of(this.key), this.sharing
        if sharing is None:
            return own
        theirs = this.metrics.of(sharing.key).stage_seconds
        shared = {stage: seconds for stage, seconds in theirs.items() if stage[0] == sharing.tier}
        return replace(own, stage_seconds={**own.stage_seconds, **shared})

    def _surge(self, this: Round, memory: Memory) -> int:
        """How far the arrival rate is above what the plan that serves bears, in steps; 0 while it bears it.

        A leap of the load is planned for at once and not at the end of the interval. While pods are being prepared it
        counts as it did before: they are not given up for it, unless they load for long.
        """
        active = this.control.active
        if active is None:
            return 0
        pending = this.control.pending
        if pending is None or this.now >= pending.deadline:
            rate = known(this.metrics.of(this.key).arrival_rate) or 0.0
            most = active.predicted.max_rate_per_second
            over = rate / most if most > 0.0 else 1.0
            memory.surge = 1 + int(math.log(over) / math.log1p(_SURGE_STEP)) if over > 1.0 else 0
        return memory.surge

    def _links_pending(self, this: Round) -> bool:
        """Whether the gateway may still find out how fast the links are, so that the first plan can count on them."""
        source = this.pipeline.spec.gateway.tier
        measured = this.metrics.of(this.key).bandwidth
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
        since = instant(this.table["metadata"].get("creationTimestamp")) or this.now
        if this.now - since > _LINK_PATIENCE_SECONDS:
            return False
        text = f"waiting for the gateway to measure the link to {', '.join(missing)}"
        this.waiting.append(("MeasuringLinks", text))
        return True


def _record(key: tuple[str, str], memory: Memory, decision: Decision, call: Callable[[], str]) -> None:
    """Log all that a decision rests on, so that it can be made and explained again (`splitplane explain --call`): each
    that changes the plan, and of those that hold it back the first with that reason and gate."""
    told = decision.reason, decision.gate
    if decision.action is not Action.HOLD or (told != memory.told and decision.reason != "UpToDate"):
        _log.info("%s of %s: %s", decision.action, "/".join(key), call())
    memory.told = told


def _routes_differ(old: Serving, new: Serving) -> bool:
    """Whether routes are worth publishing again: others, in another order, or with a markedly different limit, or best
    at markedly different bandwidths."""

    def outline(serving: Serving) -> object:
        return serving.link, [(route.name, route.steps, len(route.best)) for route in serving.routes]

    def numbers(serving: Serving) -> list[float]:
        edges = [edge for route in serving.routes for span in route.best for edge in span if math.isfinite(edge)]
        return [*(limit for route in serving.routes for limit in (route.max_rate_per_second, route.link_bytes)), *edges]

    if outline(old) != outline(new) or len(numbers(old)) != len(numbers(new)):
        return True
    pairs = zip(numbers(old), numbers(new), strict=True)
    return any(abs(after - before) > _NUMBER_CHANGE * before for before, after in pairs)

"""Make before break: how one plan's pods take over from another's without a request lost. Pure.

``begin`` decides how to get to a new plan, ``advance`` moves a switch on by what is observed; both return the new
:class:`Control` and what to tell the user. Nothing here is triggered by an edge that could be missed: the same
observation leads to the same step, before and after a restart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from splitplane.controller.control import Control, Draining, Pending, Serving, StageSet


@dataclass(frozen=True, slots=True)
class Observed:
    """What the cluster and the gateway say of a pipeline now.

    ``ready`` counts, by Deployment, the endpoints that the *gateway* has admitted. ``in_flight`` counts requests by
    plan generation. ``troubles`` says, by Deployment, why a pod of it does not get ready. ``free_slots`` counts, by
    tier, the replicas that would still fit. ``lost_tiers`` have no node that takes pods.
    """

    generation: int
    acknowledged: int
    ready: Mapping[str, int] = field(default_factory=dict)
    in_flight: Mapping[int, int] = field(default_factory=dict)
    troubles: Mapping[str, str] = field(default_factory=dict)
    free_slots: Mapping[str, int] = field(default_factory=dict)
    lost_tiers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Note:
    """Something to tell the user once, as an event and, for roll-backs, in the list of decisions."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Step:
    """A new state, and whether routes must be published with a new generation because of it."""

    control: Control
    publish: bool = False
    notes: tuple[Note, ...] = ()


def begin(
    control: Control, target: Serving, *, reason: str, now: float, prepare_seconds: float, drain_seconds: float,
    observed: Observed,
) -> Step:  # fmt: skip
    """Head for ``target``: at once when all it needs is ready, else by preparing it beside what serves."""
    pending = Pending(serving=target, reason=reason, started=now, deadline=now + prepare_seconds)
    control = replace(control, pending=pending)
    return advance(control, observed, now=now, drain_seconds=drain_seconds)


def advance(control: Control, observed: Observed, *, now: float, drain_seconds: float) -> Step:
    """Move preparation and draining on as far as ``observed`` allows."""
    notes: list[Note] = []
    publish = False
    pending = control.pending
    if pending is not None:
        if is_ready(pending.serving, observed):
            control = _take_over(control, observed, now=now, drain_seconds=drain_seconds)
            publish = True
        elif now >= pending.deadline:
            control, note = _roll_back(control, observed, now=now)
            notes.append(note)
    if not publish:
        control = _acknowledge(control, observed, now=now)
    control = _drain(control, observed, now=now, drain_seconds=drain_seconds)
    return Step(control, publish, tuple(notes))


def is_ready(serving: Serving, observed: Observed) -> bool:
    """Whether the gateway has admitted every replica that the plan counts on."""
    return all(observed.ready.get(stage.name, 0) >= stage.replicas for stage in serving.stages)


def abandon(control: Control) -> Control:
    """Forget a switch that is under way: what it rests on has changed. What served goes on serving."""
    return replace(control, pending=None)


def make_room(control: Control, observed: Observed) -> dict[str, int]:
    """Replicas to aim for now, by Deployment, where a tier cannot hold the old and the new plan side by side.

    Old replicas are taken away one for one, the last of a Deployment only when the plan that comes leaves no other
    way: where it serves another model, or nothing serves now.
    """
    wanted = control.wanted()
    pending, active = control.pending, control.active
    if pending is None or active is None:
        return wanted
    for tier in {stage.key.tier for stage in pending.serving.stages}:
        short = _missing_slots(pending.serving, observed, tier) - observed.free_slots.get(tier, 0)
        for stage in active.stages:
            if short <= 0:
                break
            if stage.key.tier != tier or stage.name in pending.serving.names:
                continue
            least = 0 if pending.serving.model != active.model or not observed.ready.get(stage.name) else 1
            freed = min(short, max(0, wanted[stage.name] - least))
            wanted[stage.name] -= freed
            short -= freed
    return wanted


def _missing_slots(serving: Serving, observed: Observed, tier: str) -> int:
    return sum(
        max(0, stage.replicas - observed.ready.get(stage.name, 0)) for stage in serving.stages if stage.key.tier == tier
    )


def _take_over(control: Control, observed: Observed, *, now: float, drain_seconds: float) -> Control:
    pending = control.pending
    assert pending is not None
    new = pending.serving
    draining = [
        replace(drain, stages=tuple(stage for stage in drain.stages if stage.name not in new.names))
        for drain in control.draining
    ]
    old = () if control.active is None else control.active.stages
    leaving = tuple(stage for stage in old if stage.name not in new.names)
    if leaving:
        deadline = now + drain_seconds
        draining.append(Draining(generation=observed.generation, stages=leaving, since=now, deadline=deadline))
    same_plan = control.active is not None and control.active.plan == new.plan
    return replace(
        control,
        active=new,
        # A change of template or routes alone is no change of plan: cool-down counts from the latter.
        since=control.since if same_plan else now,
        pending=None,
        draining=tuple(drain for drain in draining if drain.stages),
        switching_since=pending.started,
        low_demand_since=None,
    )


def _roll_back(control: Control, observed: Observed, *, now: float) -> tuple[Control, Note]:
    pending = control.pending
    assert pending is not None
    waiting = [stage for stage in pending.serving.stages if observed.ready.get(stage.name, 0) < stage.replicas]
    why = "; ".join(_why(stage, observed) for stage in waiting)
    control = control.with_aside(pending.serving.plan, reason="NotReadyInTime", now=now)
    aside = control.set_aside[-1]
    message = (
        f"plan {pending.serving.plan} was not ready within {pending.deadline - pending.started:.0f} s and is set"
        f" aside for {aside.until - now:.0f} s: {why}"
    )
    return replace(control, pending=None), Note("Warning", "SwitchRolledBack", message)


def _why(stage: StageSet, observed: Observed) -> str:
    ready = observed.ready.get(stage.name, 0)
    trouble = observed.troubles.get(stage.name)
    return f"{stage.name} has {ready} of {stage.replicas} replicas ready" + (f" ({trouble})" if trouble else "")


def _acknowledge(control: Control, observed: Observed, *, now: float) -> Control:
    if control.switching_since is None or observed.acknowledged < observed.generation:
        return control
    return replace(control, switching_since=None, last_switch_seconds=max(0.0, now - control.switching_since))


def _drain(control: Control, observed: Observed, *, now: float, drain_seconds: float) -> Control:
    """Let go of stages whose last request has ended, or whose time is up.

    A gateway that has not acknowledged yet may still send to them, so time alone ends only a drain that it knows of;
    without a word from it for ten times as long, it is taken for gone.
    """
    kept = []
    for drain in control.draining:
        acknowledged = observed.acknowledged > drain.generation
        busy = any(count for generation, count in observed.in_flight.items() if generation <= drain.generation)
        expired = now >= drain.deadline
        gone = now >= drain.since + 10 * drain_seconds
        if (acknowledged and (not busy or expired)) or gone:
            continue
        kept.append(drain)
    return replace(control, draining=tuple(kept))

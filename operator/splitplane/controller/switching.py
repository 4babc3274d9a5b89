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
    plan generation. ``troubles`` says, by Deployment, why a pod of it does not get ready. ``slots`` counts, by tier,
    the replicas that its nodes can hold in all. ``lost_tiers`` have no node that takes pods.
    """

    generation: int
    acknowledged: int
    ready: Mapping[str, int] = field(default_factory=dict)
    in_flight: Mapping[int, int] = field(default_factory=dict)
    troubles: Mapping[str, str] = field(default_factory=dict)
    slots: Mapping[str, int] = field(default_factory=dict)
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
    control: Control, target: Serving, *, reason: str, spec_generation: int, now: float, prepare_seconds: float,
    drain_seconds: float, observed: Observed, load_seconds: float = 0.0,
) -> Step:  # fmt: skip
    """Head for ``target``: at once when all it needs is ready, else by preparing it beside what serves.

    Pods that nothing is wrong with get ``load_seconds`` beyond ``prepare_seconds``.
    """
    deadline = now + prepare_seconds
    pending = Pending(
        serving=target, reason=reason, spec_generation=spec_generation, started=now, deadline=deadline,
        loaded_by=deadline + load_seconds,
    )  # fmt: skip
    control = replace(control, pending=pending)
    return advance(control, observed, now=now, drain_seconds=drain_seconds)


def advance(control: Control, observed: Observed, *, now: float, drain_seconds: float) -> Step:
    """Move preparation and draining on as far as ``observed`` allows."""
    notes: list[Note] = []
    publish = False
    pending = control.pending
    if pending is not None:
        if is_ready(pending.serving, observed, required(control, observed)):
            control = _take_over(control, observed, now=now, drain_seconds=drain_seconds)
            publish = True
        elif now >= (pending.deadline if _is_troubled(pending, observed) else max(pending.deadline, pending.loaded_by)):
            control, note = _roll_back(control, observed, now=now)
            notes.append(note)
    if not publish:
        control = _acknowledge(control, observed, now=now)
    control = _drain(control, observed, now=now, drain_seconds=drain_seconds)
    return Step(control, publish, tuple(notes))


def is_ready(serving: Serving, observed: Observed, needed: Mapping[str, int]) -> bool:
    """Whether the gateway has admitted as many replicas of each stage as are ``needed``."""
    return all(observed.ready.get(stage.name, 0) >= needed[stage.name] for stage in serving.stages)


def _is_troubled(pending: Pending, observed: Observed) -> bool:
    return any(stage.name in observed.troubles for stage in pending.serving.stages)


def abandon(control: Control) -> Control:
    """Forget a switch that is under way: what it rests on has changed. What served goes on serving."""
    return replace(control, pending=None)


def make_room(control: Control, observed: Observed) -> dict[str, int]:
    """Replicas to aim for now, by Deployment, where a tier cannot hold the old and the new plan side by side.

    Old replicas are taken away as far as the new ones need their slots; the last of a Deployment only where nothing
    is lost by it, or where there is no other way: it serves nothing now, or the plan that comes serves another model.
    """
    wanted = control.wanted()
    pending, active = control.pending, control.active
    if pending is None or active is None:
        return wanted
    for tier, coming in _replicas_by_tier(pending.serving).items():
        room = observed.slots.get(tier, 0) - coming
        for stage in active.stages:
            if stage.key.tier != tier or stage.name in pending.serving.names:
                continue
            dispensable = pending.serving.model != active.model or not observed.ready.get(stage.name)
            kept = max(0 if dispensable else 1, min(stage.replicas, room))
            wanted[stage.name] = kept
            room -= kept
    return wanted


def required(control: Control, observed: Observed) -> dict[str, int]:
    """Replicas, by Deployment, that must be ready before routes move to the plan being prepared: all of them.

    Where the last old replicas hold slots that the new ones need, as many as fit beside them, at least one: the rest
    starts once the old ones have drained.
    """
    pending, active = control.pending, control.active
    if pending is None:
        return {}
    aim = make_room(control, observed)
    needed = {}
    for stage in pending.serving.stages:
        tier = stage.key.tier
        held = sum(
            aim[old.name]
            for old in (active.stages if active is not None else ())
            if old.key.tier == tier and old.name not in pending.serving.names
        )
        fit = observed.slots.get(tier, stage.replicas) - held if held else stage.replicas
        needed[stage.name] = max(1, min(stage.replicas, fit))
    return needed


def _replicas_by_tier(serving: Serving) -> dict[str, int]:
    found: dict[str, int] = {}
    for stage in serving.stages:
        found[stage.key.tier] = found.get(stage.key.tier, 0) + stage.replicas
    return found


def _take_over(control: Control, observed: Observed, *, now: float, drain_seconds: float) -> Control:
    pending = control.pending
    assert pending is not None
    new = pending.serving
    draining = [
        replace(drain, stages=tuple(stage for stage in drain.stages if stage.name not in new.names))
        for drain in control.draining
    ]
    old = () if control.active is None else control.active.stages
    # No request will come to them any more, so none of them that is not there needs to be made.
    leaving = tuple(
        replace(stage, replicas=max(1, min(stage.replicas, observed.ready.get(stage.name, 0))))
        for stage in old
        if stage.name not in new.names
    )
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
    control = control.with_aside(
        pending.serving.plan, generation=pending.spec_generation, reason="NotReadyInTime", now=now
    )
    aside = control.set_aside[-1]
    message = (
        f"plan {pending.serving.plan} was not ready within {now - pending.started:.0f} s and is set"
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

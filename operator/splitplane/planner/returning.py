"""What was left stays left until something has changed: no plan is taken up again for numbers on which it was left.

Limits and gains are judged at the edges of a dead band (``bands``), where all numbers move one way. Measured ones each
wander by themselves, so a rare pair of plans still trades places there, and back. While each number stays within
``NOISE`` of one value, those of two moments differ by no more than ``_SAME`` allows, so no plan comes back.
"""

from collections.abc import Iterator

from splitplane.domain.plans import Candidate, Plan
from splitplane.domain.snapshots import Active, Inputs, Left
from splitplane.planner.bands import WANDERING
from splitplane.planner.context import Context

NOISE = 0.05
"""How far from its true value a measured number may be."""

_SAME = (1.0 + NOISE) / (1.0 - NOISE) * (1.0 + 1e-9)
_LEAST = 1e-4
"""Numbers below count as this: a delay of nothing, a price of nothing."""

_MOST = 16
"""How many plans are remembered at most."""


def left_since(context: Context, active: Active, current: Candidate) -> tuple[Left, ...]:
    """What ``Active.left`` is to be once another plan serves than ``current``, which is the active one.

    One that had to go, as its nodes or what the user allows had gone, was not left by choice and may come back; so may
    all that were left before, as what they were left for is not to be had.
    """
    if not by_choice(current):
        return ()
    now = context.inputs
    still = [each for each in active.left if not _same(each.plan, active.plan) and not _differ(each.inputs, now)]
    return tuple([*still, Left(active.plan, now)][-_MOST:])


def by_choice(current: Candidate) -> bool:
    """Whether the active plan breaks no limit but those that hang on measured numbers."""
    return set(current.violations) <= set(WANDERING)


def comes_back(context: Context, active: Active, plan: Plan) -> bool:
    """Whether ``plan`` was left for the active one, or for one before, on numbers that noise makes of today's."""
    now = context.inputs
    return any(_same(each.plan, plan) and not _differ(each.inputs, now) for each in active.left)


def _same(one: Plan, other: Plan) -> bool:
    """Whether plans answer in the same way with as many replicas, whatever they keep resident beside."""
    replicas = ([stage.replicas for stage in plan.stages] for plan in (one, other))
    return (one.variant, one.routing) == (other.variant, other.routing) and next(replicas) == next(replicas)


def _differ(then: Inputs, now: Inputs) -> bool:
    before, after = dict(_numbers(then)), dict(_numbers(now))
    return before.keys() != after.keys() or any(
        not 1.0 / _SAME <= max(after[name], _LEAST) / max(value, _LEAST) <= _SAME for name, value in before.items()
    )


def _numbers(inputs: Inputs) -> Iterator[tuple[object, float]]:
    """All that a decision rested on, by name; what has no size is told by its name alone."""
    yield "rate", inputs.rate_per_second
    yield "waiting", 1.0 + inputs.arrival_scv  # what waits are in proportion to
    for source, target, bandwidth, delay in inputs.links:
        yield (source, target, "bandwidth"), bandwidth
        yield (source, target, "delay"), delay
    for name, price in inputs.prices:
        yield (name, "price"), price
    for name, seconds in inputs.seconds:
        yield (name, "seconds"), seconds
    for name, replicas in inputs.busy:
        yield (name, "busy"), replicas
    for name in inputs.tiers:
        yield name, 1.0
    if inputs.policy is not None and inputs.policy.max_cost_per_hour is not None:
        yield "cost", inputs.policy.max_cost_per_hour  # part of the rules, too, but where sites share a limit
    yield inputs.rules, 1.0

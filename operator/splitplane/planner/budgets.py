"""The limit on cost of a pipeline at many sites, divided among them: each plans by itself, so each needs a part of it.

Parts are in proportion to what sites need at least. So where all can keep the limit together each can with its part,
and what is left above that is spent where most is needed. A part changes where a site needs more than it has, where
sites come or go, and once another division has been notably better for the whole scale-down window.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from splitplane.domain.snapshots import Policy, Preference, Snapshot
from splitplane.planner.context import Context, build_context
from splitplane.planner.gates import DEAD_BAND, stress
from splitplane.planner.keeping import Kept
from splitplane.planner.selecting import best_plan

_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Spending:
    """What a site's cheapest plan costs per hour that keeps the other limits, now and at the far edge of the dead band;
    0 where nothing can serve it, or a price is not known."""

    least: float
    roomy: float


@dataclass(frozen=True, slots=True)
class Division:
    """Money per hour by site, in sum the whole limit. Another division would have been better ``other_since``."""

    parts: Mapping[str, float]
    other_since: float | None = None


def spending(snapshot: Snapshot, policy: Policy, *, kept: Kept | None = None) -> Spending:
    """What a site would spend at least, whatever its limit on cost. Raises ``ContradictionError`` as ``plan`` does."""
    frugal = replace(policy, prefer=Preference.COST, max_cost_per_hour=None)
    context = build_context(replace(snapshot, budget=None), frugal, kept)
    return Spending(_cost(context), _cost(stress(context)))


def divide(
    needs: Mapping[str, Spending], limit: float, before: Division | None, *, now: float, window_seconds: float
) -> Division:  # fmt: skip
    """The parts of ``limit`` that sites may spend; ``before`` is how it was divided last, perhaps another limit."""
    fresh = _parts(needs, limit)
    if before is None or before.parts.keys() != needs.keys():
        return Division(fresh)
    whole = sum(before.parts.values())
    held = {site: limit * part / whole for site, part in before.parts.items()} if whole > 0.0 else fresh
    if any(needs[site].least > part * (1.0 + _SLACK) for site, part in held.items()):
        return Division(fresh)
    if all(abs(held[site] - part) <= DEAD_BAND * part for site, part in fresh.items()):
        return Division(held)
    since = now if before.other_since is None else before.other_since
    return Division(fresh) if now - since >= window_seconds else Division(held, since)


def _parts(needs: Mapping[str, Spending], limit: float) -> dict[str, float]:
    weights = {site: need.roomy for site, need in needs.items()}
    if sum(weights.values()) > limit:  # without room for noise, at least what is needed now
        weights = {site: need.least for site, need in needs.items()}
    whole = sum(weights.values())
    if whole <= 0.0:
        return dict.fromkeys(needs, limit / max(1, len(needs)))
    return {site: limit * weight / whole for site, weight in weights.items()}


def _cost(context: Context) -> float:
    best = best_plan(context)
    cost = best.predicted.cost_per_hour if best is not None else 0.0
    return cost if math.isfinite(cost) else 0.0

"""What a pipeline would do with fewer replicas on nodes that it shares: its offers to the arbitration."""

import math
from collections.abc import Sequence
from dataclasses import replace

from splitplane.domain.plans import Candidate
from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner.bands import WANDERING, Edges, relieves
from splitplane.planner.choice import gain
from splitplane.planner.claims import Offer
from splitplane.planner.context import Context, build_context
from splitplane.planner.evaluation import assess
from splitplane.planner.gates import relax
from splitplane.planner.keeping import Kept
from splitplane.planner.keys import weighed_by
from splitplane.planner.selecting import best_plan

_GRADES = 3
"""Ways to break limits that wander: that on cost, that on p95, both."""


def offers(snapshot: Snapshot, policy: Policy, shared: Sequence[str], *, kept: Kept | None = None) -> tuple[Offer, ...]:
    """The best plan with as many replicas as the tiers' slots allow, and those with fewer on each ``shared`` tier that
    it uses, down to none; what serves now. Dearest in replicas first, then what serves, none twice.

    While nothing has changed that they rest on, those ``kept`` are the answer. Raises ``ContradictionError`` as
    ``plan`` does.
    """
    context = build_context(_ungranted(snapshot), policy, kept)
    if not context.set_aside:  # what pods keep resident tells plans apart, but no offers
        context = context.changed(lambda each: replace(each, pasts={}))
    active = context.active.plan if context.active else None
    weighed = tuple((each.kept, weighed_by(each)) for each in context.variants)
    key = ("offers", weighed, context.set_aside, tuple(context.pasts.items()), active, tuple(shared))
    known: tuple[Offer, ...] | None = context.kept.result(key)
    if known is None:
        known = _offers(context, sorted(shared))
        context.kept.keep(key, known, plans=1)
    return known


def _offers(context: Context, shared: Sequence[str]) -> tuple[Offer, ...]:
    first = best_plan(context)
    if first is None:
        return ()
    plans = {_taken(first, shared): (first, _offer(context, first, shared, first))}
    for tier in shared:
        best: Candidate | None = first
        while best is not None and (count := best.plan.replicas(tier)):
            # A plan that needs fewer than it may have stands for all numbers down to what it needs.
            fewer = _with_slots(context, tier, count - 1)
            best = best_plan(fewer)
            if best is not None:
                plans.setdefault(_taken(best, shared), (best, _offer(fewer, best, shared, first)))
    running = _running(context, shared, first)
    found = {taken: offer for taken, (_, offer) in plans.items()}
    if running is None:
        return tuple(found.values())
    taken, held, current = running
    edges = Edges(context)
    for place, (candidate, offer) in plans.items():
        # Nor is what keeps its limits left for what may break them at the next breath.
        unsure = held.keeps_limits and offer.keeps_limits and edges.far(candidate.plan).violations
        found[place] = replace(
            offer,
            keeps_limits=offer.keeps_limits and not unsure,
            mends=place != taken and relieves(edges, current, candidate),
        )
    found[taken] = _better(held, found[taken]) if taken in found else held
    return tuple(found.values())


def _running(
    context: Context, shared: Sequence[str], first: Candidate
) -> tuple[tuple[int, ...], Offer, Candidate] | None:  # fmt: skip
    """What serves now, as an offer and as it is, unless it breaks a limit that does not wander, as a failing node's.

    The offer is looked at from the near edge of the band, and all else as things are: noise of 5 % does not turn round
    whether it is left for another, so that what was left for more worth is not come back to.
    """
    active = context.active
    if active is None or active.plan.digest in context.set_aside:
        return None
    current = assess(context, active.plan)
    if not set(current.violations) <= set(WANDERING):
        return None
    near = relax(context)
    offer = _offer(near, assess(near, active.plan), shared, first)
    return _taken(current, shared), replace(offer, held=True), current


def _better(one: Offer, other: Offer) -> Offer:
    """Two plans with as many replicas: who is granted these may have either."""
    return replace(
        one,
        carried=max(one.carried, other.carried),
        keeps_limits=one.keeps_limits or other.keeps_limits,
        behind=min(one.behind, other.behind),
    )


def wish(snapshot: Snapshot, policy: Policy, *, kept: Kept | None = None) -> Candidate | None:
    """What a pipeline would choose with all slots; ``None`` if nothing can serve it. Raises as ``offers`` does."""
    return best_plan(build_context(_ungranted(snapshot), policy, kept))


def _ungranted(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, tiers=tuple(replace(tier, granted=None) for tier in snapshot.tiers))


def _with_slots(context: Context, tier: str, count: int) -> Context:
    """The context with at most ``count`` replicas on a tier."""

    def limited(each: Context) -> Context:
        fewer = {
            name: site if name != tier else replace(site, low=min(site.low, count), high=count)
            for name, site in each.sites.items()
            if name != tier or count
        }
        return replace(each, sites=fewer)

    return context.changed(limited)


def _taken(candidate: Candidate, shared: Sequence[str]) -> tuple[int, ...]:
    return tuple(candidate.plan.replicas(tier) for tier in shared)


def _offer(context: Context, candidate: Candidate, shared: Sequence[str], first: Candidate) -> Offer:
    predicted = candidate.predicted
    replicas = {tier: candidate.plan.replicas(tier) for tier in shared}
    cost = predicted.cost_per_hour
    return Offer(
        replicas={tier: count for tier, count in replicas.items() if count},
        carried=min(1.0, predicted.max_rate_per_second / context.rate),
        keeps_limits=not candidate.violations,
        cost=math.nan if math.isinf(cost) else cost,
        behind=behind(context, first, candidate),
    )


def behind(context: Context, first: Candidate, candidate: Candidate) -> float:
    """How far a plan is behind the first wish in the planner's own order, from 0 to 1.

    Where it keeps all limits: by what share the wish is better in what is preferred. Else by the limits that it
    breaks, as ``choice.pick`` grades them (cost, p95, both), and within a grade by how much it is over.
    """
    policy, predicted = context.policy, candidate.predicted
    if not candidate.violations:
        loss = max(0.0, -gain(context, first, candidate))
        return loss / (1.0 + loss)
    slow, dear = "p95" in candidate.violations, "cost" in candidate.violations
    if slow and policy.max_p95_seconds is not None:
        over = 1.0 - policy.max_p95_seconds / predicted.p95_seconds
    elif dear and policy.max_cost_per_hour is not None:
        over = 1.0 - policy.max_cost_per_hour / predicted.cost_per_hour
    else:
        return 1.0  # it does not carry the load: what share it does tells more
    return (2 * slow + dear - 1 + over) / _GRADES

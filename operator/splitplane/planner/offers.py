"""What a pipeline would do with fewer replicas on nodes that it shares: its offers to the arbitration."""

import math
from collections.abc import Sequence
from dataclasses import replace

from splitplane.domain.plans import Candidate
from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner.claims import Offer
from splitplane.planner.context import Context, build_context
from splitplane.planner.evaluation import assess
from splitplane.planner.frontier import weighed_by
from splitplane.planner.keeping import Kept
from splitplane.planner.selecting import best_plan


def offers(snapshot: Snapshot, policy: Policy, shared: Sequence[str], *, kept: Kept | None = None) -> tuple[Offer, ...]:
    """The best plan with as many replicas as the tiers' slots allow, and those with fewer on each ``shared`` tier that
    it uses, down to none; what serves now, if it still keeps all limits. Dearest in replicas first, none twice.

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
    found = {_taken(first, shared): _offer(context, first, shared)}
    for tier in shared:
        best: Candidate | None = first
        while best is not None and (count := best.plan.replicas(tier)):
            # A plan that needs fewer than it may have stands for all numbers down to what it needs.
            fewer = _with_slots(context, tier, count - 1)
            best = best_plan(fewer)
            if best is not None:
                found.setdefault(_taken(best, shared), _offer(fewer, best, shared))
    if context.active is not None:
        current = assess(context, context.active.plan)
        taken = _taken(current, shared)
        if not current.violations or taken in found:
            found[taken] = replace(found.get(taken) or _offer(context, current, shared), held=True)
    return tuple(found.values())


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


def _offer(context: Context, candidate: Candidate, shared: Sequence[str]) -> Offer:
    predicted = candidate.predicted
    replicas = {tier: candidate.plan.replicas(tier) for tier in shared}
    cost = predicted.cost_per_hour
    return Offer(
        replicas={tier: count for tier, count in replicas.items() if count},
        carried=min(1.0, predicted.max_rate_per_second / context.rate),
        keeps_limits=not candidate.violations,
        cost=math.nan if math.isinf(cost) else cost,
    )

"""Replicas that a pipeline's sites share: how many there are, and what each keeps resident.

They come of the plans of all sites together (``planner.sites``), by gates of their own: more are had at once, if a
limit asks for it or all together gain enough; fewer
once all sites would have been served by fewer at the far edge of the dead band for the whole scale-down window; and
another resident range only where a site needs what the present one lacks, so that a site that cuts elsewhere within it
touches no pod. A site then plans for itself (``planner.planning``), with what the pool has and what the others are
planned to send there (``Shared``).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from splitplane.domain.measurements import Value
from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import Mode, Policy, Preference, Shared, Snapshot
from splitplane.planner.context import Context
from splitplane.planner.gates import stress
from splitplane.planner.keeping import Kept
from splitplane.planner.pools import Pool
from splitplane.planner.residency import allowed, grown
from splitplane.planner.site_answers import SitesPlan
from splitplane.planner.sites import contexts_of, plan_together
from splitplane.planner.stations import stage_seconds, together

_STEPS = 20
"""What others keep busy is rounded up to so many parts of a pool: what moves less is no news to a site."""
_AMPLE = 256
"""More replicas than this are not thought of while there are fewer."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """What to keep (``None``: nothing). ``loads`` are the replicas that each site is planned to keep busy; fewer would
    have sufficed since ``low_since``."""

    pool: Pool | None = None
    loads: Mapping[str, float] = field(default_factory=dict)
    low_since: float | None = None


@dataclass(frozen=True, slots=True)
class Sized:
    """A pool, and why it is that large.

    ``found`` is the plan of all sites that it rests on (``None`` where nothing can run there). The best one would take
    ``wanted`` replicas; ``enough`` serve all sites at the far edge of the dead band, too. ``gates`` names what kept the
    pool from what the best one takes: ``granted`` (other pipelines got the tier), ``unavailable`` (nothing can run
    there), ``advisory`` (the mode), ``gain`` (more, or other batches, would gain too little), ``headroom`` (fewer would
    do, but not under more load), ``scale-down`` (they would, but not for the whole window yet), ``cost`` (the limit
    leaves no money for as many), ``room`` (the nodes have none for more, or for another range beside this one).
    """

    pooling: Pooling
    found: SitesPlan | None = None
    wanted: int = 0
    enough: int = 0
    gates: tuple[str, ...] = ()


def size_pool(
    snapshots: Mapping[str, Snapshot], policy: Policy, now: float, *, shared: str, before: Pooling,
    kept: Kept | None = None,
) -> Pooling:  # fmt: skip
    """The pool that sites should share on the tier ``shared``, which all ``snapshots`` hold as if it were theirs alone.

    Pure. While nothing can run there it stays as it was ``before``, but where other pipelines were granted all of the
    tier there is none. Raises as ``plan_sites`` does, which see.
    """
    return explain_size(snapshots, policy, now, shared=shared, before=before, kept=kept).pooling


def explain_size(
    snapshots: Mapping[str, Snapshot], policy: Policy, now: float, *, shared: str, before: Pooling,
    kept: Kept | None = None,
) -> Sized:  # fmt: skip
    """The same with the reasons."""
    contexts = contexts_of(snapshots, policy, kept)
    there = [context for context in contexts.values() if shared in context.sites]
    if not there:
        if _refused(snapshots, shared):
            return Sized(Pooling(), gates=("granted",))
        return Sized(replace(before, loads={}), gates=("unavailable",))
    held = before.pool
    most = min(context.sites[shared].high for context in there)
    gates: list[str] = []
    found = best = serving_all(contexts, shared, most)
    if any(snapshot.active is not None for snapshot in snapshots.values()):
        found = _worth_it(best, contexts, shared, policy, held)
        gates += ["gain"] if found is not best else []
    stressed = {name: stress(context) for name, context in contexts.items()}
    roomy = plan_together(stressed, shared, apart=False, alike=found.pool)
    stays = policy.mode is Mode.ADVISORY and all(snapshot.active is not None for snapshot in snapshots.values())
    made = held if stays and held is not None else found.pool
    batched = made.batched if made is not None else None
    wanted = replicas_of(found, shared)
    count = min(most, wanted)
    borne = borne_by(found, contexts, count)
    loads = {
        name: borne * load
        for name, each in found.plans.items()
        if (load := load_on(contexts[name], each.plan, shared, batched=batched))
    }
    bounds = _range(there[0], shared, found, held)
    low_since, spare = None, replicas_of(roomy, shared)
    enough = max(count, min(most, spare))
    gates += ["room"] if wanted > most else []

    def sized(pool: Pool | None) -> Sized:
        return Sized(
            Pooling(pool, loads, low_since), found, replicas_of(best, shared), max(wanted, spare), tuple(gates)
        )

    if held is None:
        return sized(Pool(*bounds, count, batched) if bounds and count else None)
    held = replace(held, replicas=min(most, held.replicas))
    if stays:
        gates.append("advisory")
        return sized(held)
    if count < held.replicas <= enough:
        gates.append("headroom")
    least, count = count, max(count, held.replicas)
    if enough < held.replicas:
        low_since = now if before.low_since is None else before.low_since
        if now - low_since >= policy.scale_down_window_seconds:
            count, low_since = enough, None  # the next step down needs a window of its own
        else:
            gates.append("scale-down")
    affordable = max(least, _affordable(there[0], shared, found, count))
    if affordable < count:
        # What would hold replicas that are not needed gives way to the limit.
        gates = [gate for gate in gates if affordable > least or gate not in ("headroom", "scale-down")] + ["cost"]
    count = affordable
    if bounds != (held.first, held.last) and count >= most:
        # Old and new replicas have no room side by side.
        gates += ["room"] if bounds and "room" not in gates else []
        bounds = held.first, held.last
    return sized(Pool(*bounds, count, batched) if bounds and count else None)


def share(pooling: Pooling, site: str, actual: Mapping[str, float], *, ceiling: float) -> Shared:
    """The pool as one site sees it. ``actual`` are the replicas that each site's present plan keeps busy.

    Others count with what they send or are planned to send, whichever is more, rounded up; but as much is left as the
    site is planned to send, with a replica busy for the share ``ceiling`` of the time. So a site that sends more than
    was planned uses what is left, and gives it back where another is planned to have it.
    """
    pool = pooling.pool
    if pool is None:
        return Shared()
    planned = sum(load for name, load in pooling.loads.items() if name != site)
    sent = sum(
        max(pooling.loads.get(name, 0.0), actual.get(name, 0.0)) for name in {*pooling.loads, *actual} - {site}
    )  # fmt: skip
    step = pool.replicas / _STEPS
    room = ceiling * pool.replicas - pooling.loads.get(site, 0.0)
    busy = max(planned, min(room, math.ceil(sent / step - 1e-9) * step))
    return Shared(pool.first, pool.last, busy, pool.batched)


def seen_by(snapshot: Snapshot, shared: str, pooling: Pooling, here: Shared) -> Snapshot:
    """A site's snapshot with the pool on its tier ``shared``. The replicas cost the site nothing: they are there.

    A site that uses the pool has as many of them as there are now, however many there were when it was planned.
    """
    pool = pooling.pool
    count = pool.replicas if pool else 0
    active = snapshot.active
    if active is not None and pool is not None:
        active = replace(active, plan=resized(active.plan, shared, pool))
    return replace(
        snapshot,
        active=active,
        tiers=tuple(
            replace(
                tier, min_replicas=count, max_replicas=count, slots=count, granted=None,
                price_per_hour=Value(0.0), shared=here,
            ) if tier.name == shared else tier
            for tier in snapshot.tiers
        ),
    )  # fmt: skip


def resized(plan: Plan, shared: str, pool: Pool) -> Plan:
    """The plan with as many replicas of the pool as there are, if it uses that."""
    return replace(
        plan,
        stages=tuple(
            replace(stage, replicas=pool.replicas) if pool.has(stage, shared) else stage for stage in plan.stages
        ),
    )


def load_on(context: Context, plan: Plan, tier: str, *, batched: tuple[int, str] | None = None) -> float:
    """Replicas of a tier that the requests of a plan keep busy, in the mean; 0 where nothing can run there. Requests
    that come as those do that are ``batched`` (``Pool.batched``) count as in full batches."""
    busy = 0.0
    for place, stage in enumerate(plan.stages):
        if stage.tier == tier and tier in context.sites and stage.last <= context.profile.segments:
            decoded = np.array([context.table.codecs.index(plan.codecs[place - 1])]) if place else None
            first, last, site = np.array([stage.first]), np.array([stage.last]), context.sites[tier]
            seconds = stage_seconds(context, site, first, last, decoded=decoded)
            among = None
            if batched == (stage.first, plan.codecs[place - 1] if place else "fp32"):
                alone = replace(site, tier=replace(site.tier, shared=None))
                among = together(context, alone, first, last, seconds)
            busy += context.rate * float((seconds if among is None else among.at_least(seconds))[0])
    return busy


def serving_all(contexts: Mapping[str, Context], shared: str, most: int) -> SitesPlan:
    """The best plans of all sites with ``most`` replicas on the tier ``shared``, or where these do not bear what some
    site must send there, with as many as do."""
    best = plan_together(contexts, shared, apart=False, most=most)
    found, count = best, most
    while _unserved(found, contexts) and 0 < count < _AMPLE:
        count *= 2
        ample = {
            name: replace(context, sites={**context.sites, shared: replace(context.sites[shared], high=count)})
            if shared in context.sites else context
            for name, context in contexts.items()
        }  # fmt: skip
        found = plan_together(ample, shared, apart=False)
    return found if carried(found, contexts, most) > carried(best, contexts, most) else best


def borne_by(found: SitesPlan, contexts: Mapping[str, Context], replicas: int) -> float:
    """How much of what sites are planned to send to a pool so many replicas bear."""
    ceiling = next(iter(contexts.values())).policy.max_utilization
    return min(1.0, ceiling * replicas / found.load) if found.load > 0.0 else 1.0


def carried(found: SitesPlan, contexts: Mapping[str, Context], replicas: int) -> float:
    """The share of the load of all sites together that is served while a pool has ``replicas`` at most."""
    borne = borne_by(found, contexts, replicas)
    served = (
        min(contexts[name].rate, each.predicted.max_rate_per_second) * (borne if name in found.sharing else 1.0)
        for name, each in found.plans.items()
    )
    return sum(served) / sum(context.rate for context in contexts.values())


def _unserved(found: SitesPlan, contexts: Mapping[str, Context]) -> int:
    """Sites whose load nothing bears."""
    overloaded = sum("utilization" in each.violations for each in found.plans.values())
    return len(contexts) - len(found.plans) + overloaded


def _worth_it(
    found: SitesPlan, contexts: Mapping[str, Context], shared: str, policy: Policy, held: Pool | None
) -> SitesPlan:
    """``found``, or the best with no more replicas than there are, or that computes the same requests together, where
    that keeps limits as well and costs not much more: what would be a site's own gain is one of all here."""

    def nearly_as_good(other: SitesPlan) -> bool:
        saved = other.cost_per_hour - found.cost_per_hour
        return _broken(other) <= _broken(found) and saved < policy.min_gain * other.cost_per_hour

    alike = None
    if held is not None and found.pool is not None and found.pool.batched != held.batched:
        same = plan_together(contexts, shared, apart=False, alike=held)
        if nearly_as_good(same):
            found, alike = same, held
    most = held.replicas if held else 0
    if policy.prefer is Preference.COST and replicas_of(found, shared) > most:
        less = plan_together(contexts, shared, apart=False, most=most, alike=alike)
        found = less if nearly_as_good(less) else found
    return found


def _affordable(context: Context, shared: str, found: SitesPlan, count: int) -> int:
    """How many of ``count`` replicas the limit on cost leaves money for, beside what sites cost that is their own."""
    limit, price = context.policy.max_cost_per_hour, context.sites[shared].price
    own = found.cost_per_hour - price * replicas_of(found, shared)
    if limit is None or not math.isfinite(own) or price <= 0.0:
        return count
    return min(count, math.floor((limit - own) / price + 1e-9))


def _refused(snapshots: Mapping[str, Snapshot], shared: str) -> bool:
    """Whether all of the tier was granted to others."""
    tiers = [tier for snapshot in snapshots.values() for tier in snapshot.tiers if tier.name == shared]
    return any(tier.granted == 0 and tier.ready_nodes > 0 for tier in tiers)


def _broken(found: SitesPlan) -> tuple[int, int]:
    """Sites, the more the fewer are served, and limits that are not kept."""
    return -len(found.plans), sum(len(each.violations) for each in found.plans.values())


def replicas_of(found: SitesPlan, shared: str) -> int:
    """On the tier ``shared``: those of the pool, and those that sites would have to themselves as nothing keeps their
    limits."""
    alone = [each.plan.replicas(shared) for name, each in found.plans.items() if name not in found.sharing]
    return sum(alone) + (found.pool.replicas if found.pool else 0)


def _range(context: Context, shared: str, found: SitesPlan, held: Pool | None) -> tuple[int, int] | None:
    """What replicas keep resident to serve all these plans: what they keep now, if that does."""
    firsts = [
        stage.first for each in found.plans.values() for stage in each.plan.stages if stage.tier == shared
    ]  # fmt: skip
    end = context.profile.segments
    serves = held is not None and held.last == end and held.first <= min(firsts, default=held.first)
    if held is not None and serves and allowed(context, shared, held.first, end):
        return held.first, end
    return grown(context, shared, min(firsts), end) if firsts else None

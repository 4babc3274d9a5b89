"""What a pipeline's sites would do with fewer shared replicas: the pool's offers to the arbitration, as one claim."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner.claims import Offer
from splitplane.planner.context import Context
from splitplane.planner.gates import relax, stress
from splitplane.planner.keeping import Kept
from splitplane.planner.offers import behind
from splitplane.planner.pooling import borne_by, carried, replicas_of, serving_all
from splitplane.planner.pools import Pool
from splitplane.planner.site_answers import SitesPlan
from splitplane.planner.sites import contexts_of

MOST_OFFERS = 9
"""Each takes planning all sites once: of a large pool not every number of replicas is offered."""


def pool_offers(
    snapshots: Mapping[str, Snapshot], policy: Policy, shared: str, *, held: Pool | None, kept: Kept | None = None
) -> tuple[Offer, ...]:
    """The best plans of all sites with as many replicas on the tier ``shared`` as its slots allow, then with fewer,
    down to none; among them what is ``held``. None twice.

    Whatever was granted before is left out of account. Raises ``ContradictionError`` as ``plan_sites`` does.
    """
    contexts = _ungranted(snapshots, policy, shared, kept)
    wanted, now = _wish(contexts, shared), held.replicas if held else 0
    found: dict[int, Offer] = {}
    first: SitesPlan | None = None
    steps = {round(wanted * part / (MOST_OFFERS - 1)) for part in range(MOST_OFFERS)}
    for count in sorted(steps, reverse=True):
        planned = serving_all(contexts, shared, count)
        first = first or planned
        offer = replace(_offer(contexts, planned, shared, count), behind=_behind(contexts, first, planned))
        found.setdefault(offer.replicas.get(shared, 0), offer)
    if held is None or first is None or now > _most(contexts, shared):
        return tuple(found.values())
    running = _running(contexts, shared, now, first)
    current = found.get(now) or _offer(contexts, serving_all(contexts, shared, now), shared, now)
    enough = _enough(contexts, shared, sorted(found)) if running.keeps_limits else 0
    for taken, offer in found.items():
        mends = offer.keeps_limits and not current.keeps_limits
        found[taken] = replace(offer, keeps_limits=offer.keeps_limits and taken >= enough, mends=mends)
    found[now] = running
    return tuple(found.values())


def pool_wish(
    snapshots: Mapping[str, Snapshot], policy: Policy, shared: str, *, kept: Kept | None = None
) -> int:  # fmt: skip
    """How many replicas the sites would share with all slots of the tier. Raises as ``pool_offers`` does."""
    return _wish(_ungranted(snapshots, policy, shared, kept), shared)


def _wish(contexts: Mapping[str, Context], shared: str) -> int:
    most = _most(contexts, shared)
    return min(most, replicas_of(serving_all(contexts, shared, most), shared))


def _most(contexts: Mapping[str, Context], shared: str) -> int:
    return min((context.sites[shared].high for context in contexts.values() if shared in context.sites), default=0)


def _running(contexts: Mapping[str, Context], shared: str, count: int, first: SitesPlan) -> Offer:
    """As many replicas as there are, from the near edge of the band (``offers.offers``)."""
    near = {name: relax(context) for name, context in contexts.items()}
    planned = serving_all(near, shared, count)
    offer = _offer(near, planned, shared, count)
    replicas = {shared: count} if count else {}
    return replace(offer, replicas=replicas, held=True, behind=_behind(near, first, planned))


def _enough(contexts: Mapping[str, Context], shared: str, counts: Sequence[int]) -> int:
    """The fewest of these numbers of replicas, which rise, that keep all limits at the far edge of the band, too; more
    than all where none does."""
    far = {name: stress(context) for name, context in contexts.items()}

    def keeps(count: int) -> bool:
        return _offer(far, serving_all(far, shared, count), shared, count).keeps_limits

    place = bisect_left(counts, True, key=keeps)
    return counts[place] if place < len(counts) else counts[-1] + 1


def _ungranted(
    snapshots: Mapping[str, Snapshot], policy: Policy, shared: str, kept: Kept | None
) -> dict[str, Context]:  # fmt: skip
    alone = {
        name: replace(
            snapshot,
            tiers=tuple(replace(tier, granted=None) if tier.name == shared else tier for tier in snapshot.tiers),
        )
        for name, snapshot in snapshots.items()
    }
    return contexts_of(alone, policy, kept)


def _offer(contexts: Mapping[str, Context], found: SitesPlan, shared: str, most: int) -> Offer:
    taken = min(most, replicas_of(found, shared))
    served = borne_by(found, contexts, taken) == 1.0 and len(found.plans) == len(contexts)
    kept = served and not any(each.violations for each in found.plans.values())
    cost = found.cost_per_hour
    return Offer(
        replicas={shared: taken} if taken else {},
        carried=carried(found, contexts, taken),
        keeps_limits=kept,
        cost=math.nan if math.isinf(cost) else cost,
    )


def _behind(contexts: Mapping[str, Context], first: SitesPlan, found: SitesPlan) -> float:
    """How far sites are behind their plans in the first wish, in the mean (``offers.behind``); one that is not served
    is all the way."""
    return statistics.fmean(
        behind(context, first.plans[name], found.plans[name]) if name in first.plans and name in found.plans else 1.0
        for name, context in contexts.items()
    )

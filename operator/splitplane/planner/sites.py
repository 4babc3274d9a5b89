"""One pipeline at many edge sites: a plan for each, and one pool of replicas that all share on a tier behind them.

Every site has a link, a load and edge nodes of its own. A partition that runs to the model's output on the shared tier
can serve every site whose cut lies in what it keeps resident, so one pool of ``N`` replicas serves them all: it rounds
up to whole replicas once, not once for each site, and waits are shorter in it.

Sites are planned with the waits that the pool has *at a ceiling* of its load, all requests being as long as the longest
that it may be asked for: whatever other sites send below that, nobody's limit breaks. It makes the sites independent
but for the pool's capacity, so the problem is a multiple-choice knapsack for each first cut, ``N`` and ceiling
(docs/planner.md, "Sites"), solved exactly (``planner.knapsack``).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from splitplane.domain.plans import Candidate, Plan, Prediction, Stage
from splitplane.domain.snapshots import Policy, Preference, Snapshot
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.choice import LATENCY_TIE
from splitplane.planner.columns import joined
from splitplane.planner.context import Context, ContradictionError, build_context
from splitplane.planner.evaluation import leak_of
from splitplane.planner.keeping import Kept
from splitplane.planner.knapsack import Menu, Relaxed, pack
from splitplane.planner.queueing import Cumulants, damp, wait
from splitplane.planner.residency import resident_range
from splitplane.planner.selecting import best_plan
from splitplane.planner.site_rows import rows_of

CEILINGS = (0.25, 0.5, 0.75, 1.0)
"""How much of the utilisation ceiling a pool may be planned to be busy for: the less, the shorter are its waits."""

NO_WAIT: Cumulants = (np.zeros(1), np.zeros(1), np.zeros(1))
_MISSED, _BROKEN, _OVERLOADED, _UNSERVED = 0.1, 1.0, 10.0, 100.0
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas that sites share: each keeps ``[first, last)`` resident. In the mean ``load`` of them are busy, and what
    is planned holds while ``most`` are."""

    tier: str
    first: int
    last: int
    replicas: int
    load: float
    most: float


@dataclass(frozen=True, slots=True)
class _Case:
    """A pool of so many replicas from cut ``first`` on, that bears a ``load``: the busy replicas at its ceiling."""

    first: int
    replicas: int
    load: float


@dataclass(frozen=True, slots=True)
class SitesPlan:
    """``plans`` by site; one that nothing can serve is missing. A site's cost holds its share of the pool by load.

    A plan that uses the pool has all of the pool's replicas on the shared tier; ``sharing`` names the sites that do.
    ``gap`` is how much less all might cost at most, in money per hour.
    """

    plans: Mapping[str, Candidate]
    pool: Pool | None
    sharing: frozenset[str]
    cost_per_hour: float
    gap: float

    def __str__(self) -> str:
        pool = "no shared replicas" if self.pool is None else f"{self.pool.replicas} shared on {self.pool.tier}"
        return f"{len(self.plans)} sites, {pool}, {self.cost_per_hour:.2f}/h"


def plan_sites(
    snapshots: Mapping[str, Snapshot], policy: Policy, *, shared: str, kept: Kept | None = None
) -> SitesPlan:
    """Plan all sites of a pipeline together. Pure: equal arguments give equal answers.

    ``snapshots`` are by site, of one model; each has the site's own links, load and edge nodes, and the tier
    ``shared`` as it is for all. The cheapest answer in which every site keeps its limits; where fast or private plans
    are preferred, the cheapest of those in which each site has nearly the best that it can have. A site whose limits
    nothing keeps gets the plan that it would get alone, and takes nothing from the others. The limit on cost is one
    for all sites together.

    Raises ``ContradictionError`` as ``plan`` does, and ``ValueError`` for sites of different models.
    """
    profiles = {snapshot.profile.fingerprint for snapshot in snapshots.values()}
    if len(profiles) > 1:
        raise ValueError(f"sites of one pipeline run one model, not {sorted(profiles)}")
    if not snapshots:
        return SitesPlan({}, None, frozenset(), 0.0, 0.0)
    return plan_together(contexts_of(snapshots, policy, kept), shared)


def contexts_of(snapshots: Mapping[str, Snapshot], policy: Policy, kept: Kept | None) -> dict[str, Context]:
    """Each site's, in order of names, for ``plan_together``. The pool's waits know no batches."""
    if kept is None and snapshots:
        kept = Kept(next(iter(snapshots.values())).profile)
    policy = replace(policy, max_batch=1)
    return {name: build_context(snapshots[name], policy, kept) for name in sorted(snapshots)}


def plan_together(
    contexts: Mapping[str, Context], shared: str, *, apart: bool = True, most: int | None = None
) -> SitesPlan:
    """The same of contexts (``contexts_of``), at least one. Without ``apart`` only a site whose limits
    nothing keeps has replicas of its own on the shared tier, which holds ``most`` at most. Raises
    ``ContradictionError``."""
    policy = next(iter(contexts.values())).policy
    if shared == policy.gateway_tier:
        raise ContradictionError(f"the gateway's tier {shared!r} is each site's own: sites share another one")
    problem = _Problem(contexts, shared, apart=apart, most=most)
    found = problem.solve(problem.targets())
    if policy.prefer is Preference.LATENCY and _over(policy, found):
        relaxed = problem.solve(_Targets.limits(policy, len(contexts)))
        found = min(found, relaxed, key=lambda each: each.cost_per_hour)
    if _over(policy, found):
        plans = {name: replace(each, violations=(*each.violations, "cost")) for name, each in found.plans.items()}
        found = replace(found, plans=plans)
    return found


def _over(policy: Policy, found: SitesPlan) -> bool:
    return policy.max_cost_per_hour is not None and found.cost_per_hour > policy.max_cost_per_hour * (1.0 + _SLACK)


@dataclass(frozen=True, slots=True)
class _Targets:
    """What each site's plan must keep: seconds of p95, and leak."""

    p95: Array
    leak: Array

    @classmethod
    def limits(cls, policy: Policy, sites: int) -> "_Targets":
        p95 = math.inf if policy.max_p95_seconds is None else policy.max_p95_seconds * (1.0 + _SLACK)
        return cls(np.full(sites, p95), np.full(sites, math.inf))


@dataclass(frozen=True, slots=True)
class _Choice:
    """A site's plan outside the pool, with ``taken`` replicas of its own on the shared tier: a row, or a candidate, or
    nothing that serves."""

    site: int
    cost: float
    penalty: float
    taken: int = 0
    row: int | None = None
    candidate: Candidate | None = None


class _Problem:
    """The rows of all sites side by side; a row belongs to the site ``rows.site``."""

    def __init__(self, contexts: Mapping[str, Context], shared: str, *, apart: bool, most: int | None) -> None:
        self.apart = apart
        self.contexts = list(contexts.values())
        self.names = list(contexts)
        self.shared = shared
        self.rows = joined([rows_of(context, shared, n) for n, context in enumerate(self.contexts)])
        sharing = [context for context in self.contexts if shared in context.sites]
        self.least, self.most = 1, 0
        self.price, self.ceiling, self.scv, self.cv = 0.0, 1.0, 1.0, 0.0
        if sharing:
            site = sharing[0].sites[shared]
            self.least, self.most = site.low, min(context.sites[shared].high for context in sharing)
            self.price, self.cv = sharing[0].weight(site), site.device.time_cv
            self.ceiling = sharing[0].policy.max_utilization
            # Many streams together are nearly Poisson, however even each is.
            self.scv = max(1.0, *(context.arrival_scv for context in sharing))
        self.most = self.most if most is None else min(self.most, most)
        pooled = self.rows.pooled
        self.firsts: Ints = np.unique(self.rows.cut[pooled])
        self.longest = {
            int(first): float(self.rows.pool_seconds[pooled & (self.rows.cut >= first)].max()) for first in self.firsts
        }
        self._known: dict[tuple[int, bool], Candidate | None] = {}

    def targets(self) -> _Targets:
        """The policy's limits, or what is nearly the best that each site can have within them."""
        policy = self.contexts[0].policy
        targets = _Targets.limits(policy, len(self.contexts))
        if policy.prefer is Preference.COST:
            return targets
        # What the fullest pool gives that starts where any may start, every site can have at the same time.
        fullest = _Case(int(self.firsts[0]), self.most, self.ceiling * self.most) if len(self.firsts) else None
        waits = None if fullest is None else self._waits(fullest)
        p95 = self.rows.p95(waits)
        able = p95 <= targets.p95[self.rows.site]
        able &= ~self.rows.pooled | (self.rows.load <= self.ceiling * self.most)
        best = np.full(len(self.contexts), math.inf)
        if policy.prefer is Preference.LATENCY:
            np.minimum.at(best, self.rows.site[able], p95[able])
            return replace(targets, p95=np.minimum(best * (1.0 + LATENCY_TIE), targets.p95))
        np.minimum.at(best, self.rows.site[able], self.rows.leak[able])
        return replace(targets, leak=best)

    def solve(self, targets: _Targets) -> SitesPlan:
        """The cheapest answer within the targets."""
        choices = list(self._outside(targets))
        best = self._pack(None, self._menu(choices, self._within(targets, None, None)))
        cases: list[tuple[float, _Case]] = []
        for first in map(int, self.firsts):
            free = Relaxed(self._menu(choices, self._within(targets, NO_WAIT, first)))
            for count, part in product(range(self.least, self.most + 1), CEILINGS):
                case = _Case(first, count, part * self.ceiling * count)
                cases.append((self._floor(free, case), case))
        unknown = best.value - best.gap
        for floor, case in sorted(cases, key=lambda each: each[0]):
            if floor >= best.value - _SLACK:
                break
            menu = self._menu(choices, self._within(targets, self._waits(case), case.first))
            if self._floor(Relaxed(menu), case) < best.value - _SLACK:
                found = self._pack(case, menu)
                unknown = min(unknown, found.value - found.gap)
                best = min(best, found, key=lambda each: each.value)
        gap = best.value - unknown
        return self._assemble(best, choices, gap if gap > _SLACK else 0.0)

    def _within(self, targets: _Targets, waits: Cumulants | None, first: int | None) -> Bools:
        """Rows that keep their site's targets with these waits in a pool that starts at ``first``, or without one."""
        able = self.rows.p95(waits) <= targets.p95[self.rows.site]
        able &= self.rows.leak <= targets.leak[self.rows.site]
        able &= ~self.rows.pooled if first is None else ~self.rows.pooled | (self.rows.cut >= first)
        return able

    def _waits(self, case: _Case) -> Cumulants:
        """Of the pool at its ceiling, every request being the longest: requests of other lengths wait less there."""
        service, servers = np.array([self.longest[case.first]]), np.array([float(case.replicas)])
        mean, variance, third = wait(service, self.cv**2, servers, case.load / self.longest[case.first], self.scv)
        return (mean, *damp(variance, third))

    def _menu(self, choices: Sequence[_Choice], able: Bools) -> Menu:
        rows = np.flatnonzero(able)
        site, cost, penalty, taken = (
            np.array([getattr(choice, name) for choice in choices]) for name in ("site", "cost", "penalty", "taken")
        )
        none = np.zeros(len(rows))
        return Menu(
            site=np.concatenate([self.rows.site[rows], site]),
            cost=np.concatenate([self.rows.cost[rows], cost]),
            penalty=np.concatenate([none, penalty]),
            load=np.concatenate([self.rows.load[rows], np.zeros(len(site))]),
            taken=np.concatenate([none, taken]),
            label=np.concatenate([rows, -1 - np.arange(len(site))]),
        ).thinned()

    def _floor(self, relaxed: Relaxed, case: _Case) -> float:
        return relaxed.bound(case.load) + case.replicas * self.price

    def _pack(self, case: _Case | None, menu: Menu) -> "_Packed":
        replicas, load = (0, 0.0) if case is None else (case.replicas, case.load)
        packed = pack(menu, load=load, taken=float(max(0, self.most - replicas)))
        return _Packed(case, packed.labels, packed.value + replicas * self.price, packed.gap)

    def _outside(self, targets: _Targets) -> Iterator[_Choice]:
        """What each site can do without the pool, besides its own rows: with replicas of its own on the shared tier;
        short of what is preferred; with broken limits; not at all."""
        rows, sites = self.rows, len(self.contexts)
        limits = _Targets.limits(self.contexts[0].policy, sites)
        within = np.flatnonzero(self._within(limits, None, None))
        cheapest: list[int | None] = [None] * sites
        for row in within[np.argsort(-rows.cost[within], kind="stable")]:
            cheapest[rows.site[row]] = int(row)
        hopeful = np.zeros(sites, dtype=np.bool_)
        hopeful[rows.site[self._within(limits, NO_WAIT, 0)]] = True
        if self.apart:
            yield from self._dedicated(targets)
        for site, context in enumerate(self.contexts):
            row = cheapest[site]
            if row is not None:
                yield _Choice(site, float(rows.cost[row]), _MISSED, row=row)
            further = len(context.sites.keys() - {context.gateway, self.shared}) > 0
            for whole in (False, True):
                if (row is None and not whole) or (whole and (further or not hopeful[site])):
                    yield from self._best_effort(targets, site, whole=whole)
            yield _Choice(site, 0.0, _UNSERVED)

    def _dedicated(self, targets: _Targets) -> Iterator[_Choice]:
        """The cheapest way of each site to use the shared tier by itself, with the waits of its own load."""
        rows = self.rows
        best: dict[int, tuple[float, int, int]] = {}
        places = np.flatnonzero(self._within(targets, NO_WAIT, 0) & rows.pooled)
        for count in range(self.least, self.most + 1):
            dearest = np.array([best.get(int(site), (math.inf,))[0] for site in rows.site[places]])
            places = places[rows.cost[places] + count * self.price < dearest]
            if not len(places):
                break
            bears = places[rows.load[places] <= self.ceiling * count * (1.0 + _SLACK)]
            p95 = rows.where(bears).p95(self._own_waits(bears, count))
            for row in bears[p95 <= targets.p95[rows.site[bears]]].tolist():
                site, cost = int(rows.site[row]), float(rows.cost[row]) + count * self.price
                best[site] = min(best.get(site, (math.inf, 0, 0)), (cost, row, count))
        yield from (_Choice(site, cost, 0.0, count, row) for site, (cost, row, count) in sorted(best.items()))

    def _own_waits(self, places: Ints, replicas: int) -> Cumulants:
        """Of a site's own ``replicas`` on the shared tier, by row."""
        found = np.zeros((3, len(places)))
        scv = np.array([context.arrival_scv for context in self.contexts])[self.rows.site[places]]
        rate = np.array([context.rate for context in self.contexts])[self.rows.site[places]]
        service = self.rows.pool_seconds[places]
        for each in np.unique(scv):
            alike = scv == each
            servers = np.full(np.count_nonzero(alike), float(replicas))
            mean, variance, third = wait(service[alike], np.array(self.cv**2), servers, rate[alike], float(each))
            found[:, alike] = np.stack([mean, *damp(variance, third)])
        return found[0], found[1], found[2]

    def _best_effort(self, targets: _Targets, site: int, *, whole: bool) -> Iterator[_Choice]:
        """The plan that the site would get alone, on the ``whole`` of its tiers or without the shared one."""
        context = self.contexts[site]
        if (site, whole) not in self._known:
            own = {name: each for name, each in context.sites.items() if name != self.shared}
            self._known[site, whole] = best_plan(context if whole else replace(context, sites=own))
        candidate = self._known[site, whole]
        if candidate is None:
            return
        broken = set(candidate.violations) - {"cost"}
        penalty = _OVERLOADED if "utilization" in broken else _BROKEN if broken else 0.0
        missed = candidate.predicted.p95_seconds > targets.p95[site]
        missed |= leak_of(context, candidate.plan) > targets.leak[site]
        cost = candidate.predicted.cost_per_hour
        yield _Choice(
            site, cost if math.isfinite(cost) else 0.0, penalty or _MISSED * missed,
            taken=candidate.plan.replicas(self.shared), candidate=candidate,
        )  # fmt: skip

    def _assemble(self, best: "_Packed", choices: Sequence[_Choice], gap: float) -> SitesPlan:
        labels = best.labels
        rows = np.array([label for label in labels if label >= 0 and self.rows.pooled[label]], dtype=np.int64)
        load = float(self.rows.load[rows].sum())
        pool = None
        waits: Cumulants | None = None
        if len(rows) and best.case is not None:
            first = int(self.rows.cut[rows].min())
            context = self.contexts[int(self.rows.site[rows[0]])]
            kept = resident_range(context, self.shared, first, context.profile.segments)
            pool = Pool(self.shared, *kept, best.case.replicas, load, best.case.load)
            waits = self._waits(best.case)
        plans: dict[str, Candidate] = {}
        for name, label in zip(self.names, labels, strict=True):
            choice = choices[-1 - label] if label < 0 else None
            if choice is None:
                plans[name] = self._candidate(label, pool, waits)
            elif choice.candidate is not None:
                plans[name] = choice.candidate
            elif choice.row is not None:
                plans[name] = self._candidate(choice.row, None, None, own=choice.taken)
        total = sum(each.predicted.cost_per_hour for each in plans.values())
        sharing = frozenset(self.names[int(self.rows.site[row])] for row in rows)
        return SitesPlan(plans, pool, sharing, total, gap)

    def _candidate(self, row: int, pool: Pool | None, waits: Cumulants | None, *, own: int = 0) -> Candidate:
        """A row as a plan, with the pool or with ``own`` replicas on the shared tier."""
        rows, context = self.rows, self.contexts[int(self.rows.site[row])]
        end = context.profile.segments
        stages = []
        split = int(rows.cut[row]) if rows.pooled[row] else end
        cost, capacity = float(rows.cost[row]), float(rows.capacity[row])
        if split:
            kept = resident_range(context, context.gateway, 0, split)
            stages.append(Stage(context.gateway, 0, split, *kept, int(rows.replicas[row])))
        if own:
            kept = resident_range(context, self.shared, split, end)
            stages.append(Stage(self.shared, split, end, *kept, own))
            cost += own * self.price
            capacity = min(capacity, self.ceiling * own / float(rows.pool_seconds[row]))
            waits = self._own_waits(np.array([row]), own)
        elif rows.pooled[row] and pool is not None:
            stages.append(Stage(self.shared, split, end, pool.first, pool.last, pool.replicas))
            cost += pool.replicas * self.price * float(rows.load[row]) / pool.load
            spare = pool.most - (pool.load - float(rows.load[row]))
            capacity = min(capacity, spare / float(rows.pool_seconds[row]))
        priced = not any(math.isnan(context.sites[stage.tier].price) for stage in stages)
        mean, p95 = rows.where(np.array([row])).response(waits)
        predicted = Prediction(
            p95_seconds=p95, mean_seconds=mean, cost_per_hour=cost if priced else math.nan,
            max_rate_per_second=capacity,
            leak=float(rows.leak[row]) if rows.leak_measured[row] else None,
            accuracy_loss=float(rows.loss[row]) if rows.loss_measured[row] else None,
        )  # fmt: skip
        codecs = (context.table.codecs[int(rows.codec[row])],) if len(stages) == 2 else ()
        return Candidate(Plan(tuple(stages), codecs), predicted)


@dataclass(frozen=True, slots=True)
class _Packed:
    """The choice for a pool (``None``: without one) by label, what it is worth, and its gap."""

    case: _Case | None
    labels: tuple[int, ...]
    value: float
    gap: float

"""What planning the sites of a pipeline together rests on: the rows of all, the shared tier, and the pool's waits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from splitplane.domain.snapshots import Policy, Preference
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.choice import LATENCY_TIE
from splitplane.planner.columns import joined
from splitplane.planner.context import Context
from splitplane.planner.queueing import Cumulants, damp, wait
from splitplane.planner.site_rows import SiteRows, rows_of

NO_WAIT: Cumulants = (np.zeros(1), np.zeros(1), np.zeros(1))
SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Case:
    """A pool of so many replicas from cut ``first`` on, that bears a ``load``: the busy replicas at its ceiling."""

    first: int
    replicas: int
    load: float


@dataclass(frozen=True, slots=True)
class Targets:
    """What each site's plan must keep: seconds of p95, and leak."""

    p95: Array
    leak: Array

    @classmethod
    def limits(cls, policy: Policy, sites: int) -> "Targets":
        p95 = math.inf if policy.max_p95_seconds is None else policy.max_p95_seconds * (1.0 + SLACK)
        return cls(np.full(sites, p95), np.full(sites, math.inf))


@dataclass(frozen=True, slots=True)
class Problem:
    """The ``rows`` of all sites side by side; a row belongs to the site ``rows.site``, a place in ``contexts``.

    The tier ``shared`` takes ``least`` to ``most`` replicas at ``price``, each busy for the share ``ceiling`` of the
    time at most. ``firsts`` are the cuts from which rows run there, ``longest`` the seconds of the longest request
    that a pool may get which keeps everything from such a cut on.
    """

    contexts: tuple[Context, ...]
    names: tuple[str, ...]
    shared: str
    rows: SiteRows
    least: int
    most: int
    price: float
    ceiling: float
    scv: float
    cv: float
    firsts: Ints
    longest: Mapping[int, float]

    @property
    def policy(self) -> Policy:
        return self.contexts[0].policy

    def within(self, targets: Targets, waits: Cumulants | None, first: int | None) -> Bools:
        """Rows that keep their site's targets with these waits in a pool that starts at ``first``, or without one."""
        able = self.rows.p95(waits) <= targets.p95[self.rows.site]
        able &= self.rows.leak <= targets.leak[self.rows.site]
        able &= ~self.rows.pooled if first is None else ~self.rows.pooled | (self.rows.cut >= first)
        return able

    def waits(self, case: Case) -> Cumulants:
        """Of the pool at its ceiling, every request being the longest: requests of other lengths wait less there."""
        service, servers = np.array([self.longest[case.first]]), np.array([float(case.replicas)])
        mean, variance, third = wait(service, self.cv**2, servers, case.load / self.longest[case.first], self.scv)
        return (mean, *damp(variance, third))

    def own_waits(self, places: Ints, replicas: int) -> Cumulants:
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


def problem_of(contexts: Mapping[str, Context], shared: str, most: int | None) -> Problem:
    """The problem of these sites, of which there is one at least. The tier holds ``most`` replicas, if that is given
    and less than it has."""
    rows = joined([rows_of(context, shared, number) for number, context in enumerate(contexts.values())])
    sharing = [context for context in contexts.values() if shared in context.sites]
    least, held = 1, 0
    price, ceiling, scv, cv = 0.0, 1.0, 1.0, 0.0
    if sharing:
        site = sharing[0].sites[shared]
        least, held = site.low, min(context.sites[shared].high for context in sharing)
        price, cv = sharing[0].weight(site), site.device.time_cv
        ceiling = sharing[0].policy.max_utilization
        # Many streams together are nearly Poisson, however even each is.
        scv = max(1.0, *(context.arrival_scv for context in sharing))
    firsts = np.unique(rows.cut[rows.pooled])
    longest = {int(cut): float(rows.pool_seconds[rows.pooled & (rows.cut >= cut)].max()) for cut in firsts}
    return Problem(
        contexts=tuple(contexts.values()), names=tuple(contexts), shared=shared, rows=rows, least=least,
        most=held if most is None else min(held, most), price=price, ceiling=ceiling, scv=scv, cv=cv,
        firsts=firsts, longest=longest,
    )  # fmt: skip


def targets_of(problem: Problem) -> Targets:
    """The policy's limits, or what is nearly the best that each site can have within them."""
    policy, rows = problem.policy, problem.rows
    targets = Targets.limits(policy, len(problem.contexts))
    if policy.prefer is Preference.COST:
        return targets
    # What the fullest pool gives that starts where any may start, every site can have at the same time.
    fullest = problem.ceiling * problem.most
    there = len(problem.firsts) > 0 and problem.most > 0
    p95 = rows.p95(problem.waits(Case(int(problem.firsts[0]), problem.most, fullest)) if there else None)
    able = p95 <= targets.p95[rows.site]
    able &= ~rows.pooled | (rows.load <= fullest)
    best = np.full(len(problem.contexts), math.inf)
    if policy.prefer is Preference.LATENCY:
        np.minimum.at(best, rows.site[able], p95[able])
        return replace(targets, p95=np.minimum(best * (1.0 + LATENCY_TIE), targets.p95))
    np.minimum.at(best, rows.site[able], rows.leak[able])
    return replace(targets, leak=best)

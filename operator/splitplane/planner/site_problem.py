"""What planning the sites of a pipeline together rests on: the rows of all, the shared tier, and the pool's waits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from splitplane.domain.snapshots import Policy, Preference
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.bars import LATENCY_TIE
from splitplane.planner.batching import Together
from splitplane.planner.columns import joined
from splitplane.planner.context import Context
from splitplane.planner.queueing import Cumulants, damp, delay
from splitplane.planner.site_rows import SiteRows, rows_of

NO_WAIT: Cumulants = (np.zeros(1), np.zeros(1), np.zeros(1))
SLACK = 1e-9


Kind = tuple[int, int]
"""How requests come to the shared tier: at a cut, with a codec (row of the cut table)."""


@dataclass(frozen=True, slots=True)
class Case:
    """A pool of so many replicas from cut ``first`` on, that bears a ``load``: the busy replicas at its ceiling. All
    requests are of one ``kind`` and computed together, or else of any, and served one by one."""

    first: int
    replicas: int
    load: float
    kind: Kind | None = None


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
    """The ``rows`` of all sites side by side; a row belongs to the site ``rows.site``, a place in ``contexts``. They
    are ``together`` in a pool whose requests are all of one kind; ``kinds`` are those that this pays for.

    The tier ``shared`` takes ``least`` to ``most`` replicas at ``price``, each busy for the share ``ceiling`` of the
    time at most. ``firsts`` are the cuts from which rows run there, ``longest`` the seconds of the longest request
    that a pool may get which keeps everything from such a cut on.
    """

    contexts: tuple[Context, ...]
    names: tuple[str, ...]
    shared: str
    rows: SiteRows
    together: SiteRows
    least: int
    most: int
    price: float
    ceiling: float
    scv: float
    cv: float
    firsts: Ints
    longest: Mapping[int, float]
    kinds: tuple[Kind, ...]

    @property
    def policy(self) -> Policy:
        return self.contexts[0].policy

    def rows_of(self, kind: Kind | None) -> SiteRows:
        """The rows as they are in a pool for requests of this kind, or for any."""
        return self.rows if kind is None else self.together

    def within(
        self, targets: Targets, waits: Cumulants | None, first: int | None, kind: Kind | None = None
    ) -> Bools:  # fmt: skip
        """Rows that keep their site's targets with these waits in a pool that starts at ``first``, or without one. In
        a pool for one kind of requests, only such."""
        rows = self.rows_of(kind)
        able = rows.p95(waits) <= targets.p95[rows.site]
        able &= rows.leak <= targets.leak[rows.site]
        able &= ~rows.pooled if first is None else ~rows.pooled | (rows.cut >= first)
        if kind is not None:
            able &= ~rows.pooled | self._of(kind)
        return able

    def waits(self, case: Case) -> Cumulants:
        """Of the pool at its ceiling, every request being the longest: requests of other lengths wait less there."""
        servers = np.array([float(case.replicas)])
        if case.kind is None:
            service, together = np.array([self.longest[case.first]]), None
            rate = case.load / service
        else:
            rows, alike = self.rows, np.flatnonzero(self._of(case.kind))
            longest = alike[[rows.pool_seconds[alike].argmax()]]
            service, together = rows.pool_seconds[longest], Together(rows.fixed[longest], rows.most[longest])
            rate = case.load / together.at_least(service)
        mean, variance, third = delay(service, self.cv**2, servers, rate, self.scv, together)
        return (mean, *damp(variance, third))

    def _of(self, kind: Kind) -> Bools:
        alike: Bools = self.rows.pooled & (self.rows.cut == kind[0]) & (self.rows.codec == kind[1])
        return alike

    def own_waits(self, places: Ints, replicas: int) -> Cumulants:
        """Of a site's own ``replicas`` on the shared tier, by row: all its requests are of one kind."""
        found = np.zeros((3, len(places)))
        scv = np.array([context.arrival_scv for context in self.contexts])[self.rows.site[places]]
        rate = np.array([context.rate for context in self.contexts])[self.rows.site[places]]
        service = self.rows.pool_seconds[places]
        for each in np.unique(scv):
            alike = scv == each
            servers = np.full(np.count_nonzero(alike), float(replicas))
            among = Together(self.rows.fixed[places[alike]], self.rows.most[places[alike]])
            mean, variance, third = delay(
                service[alike], np.array(self.cv**2), servers, rate[alike], float(each),
                among if (among.most > 1).any() else None,
            )  # fmt: skip
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
    batched = np.flatnonzero(rows.pooled & (rows.most > 1))
    return Problem(
        contexts=tuple(contexts.values()), names=tuple(contexts), shared=shared, rows=rows,
        together=rows.together(), least=least,
        most=held if most is None else min(held, most), price=price, ceiling=ceiling, scv=scv, cv=cv,
        firsts=firsts, longest=longest,
        kinds=tuple(sorted(set(zip(rows.cut[batched].tolist(), rows.codec[batched].tolist(), strict=True)))),
    )  # fmt: skip


def targets_of(problem: Problem) -> Targets:
    """The policy's limits, or what is nearly the best that each site can have within them."""
    policy, rows = problem.policy, problem.rows
    targets = Targets.limits(policy, len(problem.contexts))
    if policy.prefer is Preference.COST:
        return targets
    # What the fullest pool gives that starts where any may start, every site can have at the same time.
    fullest = problem.ceiling * problem.most
    pools: list[Case | None] = []
    if problem.most:
        pools += [Case(int(first), problem.most, fullest) for first in problem.firsts[:1]]
        pools += [Case(kind[0], problem.most, fullest, kind) for kind in problem.kinds]
    best = np.full(len(problem.contexts), math.inf)
    fast = policy.prefer is Preference.LATENCY
    for case in pools or [None]:
        kind, first, waits = (case.kind, case.first, problem.waits(case)) if case else (None, None, None)
        able = problem.within(targets, waits, first, kind)
        able &= ~rows.pooled | (problem.rows_of(kind).load <= fullest)
        wanted = problem.rows_of(kind).p95(waits) if fast else rows.leak
        np.minimum.at(best, rows.site[able], wanted[able])
    if fast:
        return replace(targets, p95=np.minimum(best * (1.0 + LATENCY_TIE), targets.p95))
    return replace(targets, leak=best)

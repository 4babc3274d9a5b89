"""What a site can do besides sharing replicas: by itself, with some of its own on the shared tier, with broken limits,
or not at all."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from splitplane.domain.plans import Candidate
from splitplane.planner.evaluation import leak_of
from splitplane.planner.selecting import best_plan
from splitplane.planner.site_problem import NO_WAIT, SLACK, Problem, Targets

_MISSED, _BROKEN, _OVERLOADED, _UNSERVED = 0.1, 1.0, 10.0, 100.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A site's plan outside the pool, with ``taken`` replicas of its own on the shared tier: a row, or a candidate, or
    nothing that serves."""

    site: int
    cost: float
    penalty: float
    taken: int = 0
    row: int | None = None
    candidate: Candidate | None = None


class Outside:
    """What the sites of one problem can do outside the pool, besides their own rows. With ``apart`` a site may have
    replicas of its own on the shared tier where that is cheaper; without, only where nothing keeps its limits."""

    def __init__(self, problem: Problem, *, apart: bool) -> None:
        self._problem = problem
        self._apart = apart
        self._known: dict[tuple[int, bool], Candidate | None] = {}

    def choices(self, targets: Targets) -> Iterator[Choice]:
        """Each site has one at least: not to serve."""
        problem, rows = self._problem, self._problem.rows
        sites = len(problem.contexts)
        limits = Targets.limits(problem.policy, sites)
        within = np.flatnonzero(problem.within(limits, None, None))
        cheapest: list[int | None] = [None] * sites
        for row in within[np.argsort(-rows.cost[within], kind="stable")]:
            cheapest[rows.site[row]] = int(row)
        hopeful = np.zeros(sites, dtype=np.bool_)
        hopeful[rows.site[problem.within(limits, NO_WAIT, 0)]] = True
        if self._apart:
            yield from self._dedicated(targets)
        for site, context in enumerate(problem.contexts):
            row = cheapest[site]
            if row is not None:
                yield Choice(site, float(rows.cost[row]), _MISSED, row=row)
            further = len(context.sites.keys() - {context.gateway, problem.shared}) > 0
            for whole in (False, True):
                if (row is None and not whole) or (whole and (further or not hopeful[site])):
                    yield from self._best_effort(targets, site, whole=whole)
            yield Choice(site, 0.0, _UNSERVED)

    def _dedicated(self, targets: Targets) -> Iterator[Choice]:
        """The cheapest way of each site to use the shared tier by itself, with the waits of its own load."""
        problem, rows = self._problem, self._problem.together  # a site's own requests are all of one kind
        best: dict[int, tuple[float, int, int]] = {}
        places = np.flatnonzero((rows.p95(NO_WAIT) <= targets.p95[rows.site]) & rows.pooled)
        places = places[rows.leak[places] <= targets.leak[rows.site[places]]]
        for count in range(problem.least, problem.most + 1):
            dearest = np.array([best.get(int(site), (math.inf,))[0] for site in rows.site[places]])
            places = places[rows.cost[places] + count * problem.price < dearest]
            if not len(places):
                break
            bears = places[rows.load[places] <= problem.ceiling * count * (1.0 + SLACK)]
            p95 = rows.where(bears).p95(problem.own_waits(bears, count))
            for row in bears[p95 <= targets.p95[rows.site[bears]]].tolist():
                site, cost = int(rows.site[row]), float(rows.cost[row]) + count * problem.price
                best[site] = min(best.get(site, (math.inf, 0, 0)), (cost, row, count))
        yield from (Choice(site, cost, 0.0, count, row) for site, (cost, row, count) in sorted(best.items()))

    def _best_effort(self, targets: Targets, site: int, *, whole: bool) -> Iterator[Choice]:
        """The plan that the site would get alone, on the ``whole`` of its tiers or without the shared one."""
        context = self._problem.contexts[site]
        if (site, whole) not in self._known:
            own = {name: each for name, each in context.sites.items() if name != self._problem.shared}
            self._known[site, whole] = best_plan(context if whole else replace(context, sites=own))
        candidate = self._known[site, whole]
        if candidate is None:
            return
        broken = set(candidate.violations) - {"cost"}
        penalty = _OVERLOADED if "utilization" in broken else _BROKEN if broken else 0.0
        missed = candidate.predicted.p95_seconds > targets.p95[site]
        missed |= leak_of(context, candidate.plan) > targets.leak[site]
        cost = candidate.predicted.cost_per_hour
        yield Choice(
            site, cost if math.isfinite(cost) else 0.0, penalty or _MISSED * missed,
            taken=candidate.plan.replicas(self._problem.shared), candidate=candidate,
        )  # fmt: skip

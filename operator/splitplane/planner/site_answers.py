"""The plans of all sites and the pool that they share, from the choice made for each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitplane.domain.plans import Candidate, Plan, Prediction, Stage
from splitplane.planner.pools import Pool
from splitplane.planner.queueing import Cumulants
from splitplane.planner.residency import resident_range
from splitplane.planner.site_choices import Choice
from splitplane.planner.site_problem import Case, Problem
from splitplane.planner.site_rows import SiteRows


@dataclass(frozen=True, slots=True)
class SitesPlan:
    """``plans`` by site; one that nothing can serve is missing. A site's cost holds its share of the pool by load.

    A plan that uses the pool has all of the pool's replicas on the shared tier; ``sharing`` names the sites that do.
    In the mean they keep ``load`` of these replicas busy. ``gap`` is how much less all might cost at most, in money
    per hour.
    """

    plans: Mapping[str, Candidate]
    pool: Pool | None
    sharing: frozenset[str]
    load: float
    cost_per_hour: float
    gap: float

    def __str__(self) -> str:
        pool = "no shared replicas" if self.pool is None else f"{self.pool.replicas} shared"
        return f"{len(self.plans)} sites, {pool}, {self.cost_per_hour:.2f}/h"


@dataclass(frozen=True, slots=True)
class _Used:
    """A pool that is used: what is planned holds while ``most`` of its replicas are busy, where requests take
    ``waits``. ``rows`` are as they are there."""

    pool: Pool
    load: float
    most: float
    waits: Cumulants
    rows: SiteRows


def assemble(
    problem: Problem, case: Case | None, labels: Sequence[int], choices: Sequence[Choice], gap: float
) -> SitesPlan:
    """The answer in which site ``n`` has the row ``labels[n]``, or where that is negative one of ``choices``: -1 is the
    first of them."""
    rows = problem.rows_of(case.kind if case else None)
    pooled = np.array([label for label in labels if label >= 0 and rows.pooled[label]], dtype=np.int64)
    load = float(rows.load[pooled].sum())
    used: _Used | None = None
    if len(pooled) and case is not None:
        context = problem.contexts[int(rows.site[pooled[0]])]
        kept = resident_range(context, problem.shared, int(rows.cut[pooled].min()), context.profile.segments)
        batched = None
        if case.kind is not None:
            batched = case.kind[0], context.table.codecs[case.kind[1]]
        used = _Used(Pool(*kept, case.replicas, batched), load, case.load, problem.waits(case), rows)
    plans: dict[str, Candidate] = {}
    for name, label in zip(problem.names, labels, strict=True):
        choice = choices[-1 - label] if label < 0 else None
        if choice is None:
            plans[name] = _candidate(problem, label, used)
        elif choice.candidate is not None:
            plans[name] = choice.candidate
        elif choice.row is not None:
            plans[name] = _candidate(problem, choice.row, None, own=choice.taken)
    total = sum(each.predicted.cost_per_hour for each in plans.values())
    sharing = frozenset(problem.names[int(rows.site[row])] for row in pooled)
    return SitesPlan(plans, used.pool if used else None, sharing, load, total, gap)


def _candidate(problem: Problem, row: int, used: _Used | None, *, own: int = 0) -> Candidate:
    """A row as a plan, with the pool or with ``own`` replicas on the shared tier."""
    rows, context = problem.rows, problem.contexts[int(problem.rows.site[row])]
    if own:
        rows = problem.together
    elif used is not None:
        rows = used.rows
    end = context.profile.segments
    stages = []
    split = int(rows.cut[row]) if rows.pooled[row] else end
    cost, capacity = float(rows.cost[row]), float(rows.capacity[row])
    waits: Cumulants | None = None
    if split:
        kept = resident_range(context, context.gateway, 0, split)
        stages.append(Stage(context.gateway, 0, split, *kept, int(rows.replicas[row])))
    if own:
        kept = resident_range(context, problem.shared, split, end)
        stages.append(Stage(problem.shared, split, end, *kept, own))
        cost += own * problem.price
        capacity = min(capacity, problem.ceiling * own / float(rows.load[row]) * context.rate)
        waits = problem.own_waits(np.array([row]), own)
    elif rows.pooled[row] and used is not None:
        pool, load = used.pool, float(rows.load[row])
        stages.append(Stage(problem.shared, split, end, pool.first, pool.last, pool.replicas))
        cost += pool.replicas * problem.price * load / used.load
        capacity = min(capacity, (used.most - (used.load - load)) / load * context.rate)
        waits = used.waits
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

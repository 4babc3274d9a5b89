"""One pipeline at many edge sites: a plan for each, and one pool of replicas that all share on a tier behind them.

Every site has a link, a load and edge nodes of its own. A partition that runs to the model's output on the shared tier
can serve every site whose cut lies in what it keeps resident, so one pool of ``N`` replicas serves them all: it rounds
up to whole replicas once, not once for each site, and waits are shorter in it.

Sites are planned with the waits that the pool has *at a ceiling* of its load, all requests being as long as the longest
that it may be asked for: whatever other sites send below that, nobody's limit breaks. It makes the sites independent
but for the pool's capacity, so the problem is a multiple-choice knapsack for each first cut, ``N`` and ceiling
(docs/planner.md, "Sites"), solved exactly (``planner.knapsack``). Where the profile has batches there is one more for
each way in which requests may come: in a pool for such alone they are computed together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from splitplane.domain.snapshots import Policy, Preference, Snapshot
from splitplane.planner.arrays import Bools
from splitplane.planner.context import Context, ContradictionError, build_context
from splitplane.planner.keeping import Kept
from splitplane.planner.knapsack import MOST_MONEY, Menu, Relaxed, pack
from splitplane.planner.pools import Pool
from splitplane.planner.site_answers import SitesPlan, assemble
from splitplane.planner.site_choices import Choice, Outside
from splitplane.planner.site_problem import NO_WAIT, SLACK, Case, Kind, Problem, Targets, problem_of, targets_of

CEILINGS = (0.25, 0.5, 0.75, 1.0)
"""How much of the utilisation ceiling a pool may be planned to be busy for: the less, the shorter are its waits."""


def plan_sites(
    snapshots: Mapping[str, Snapshot], policy: Policy, *, shared: str, kept: Kept | None = None
) -> SitesPlan:
    """Plan all sites of a pipeline together. Pure: equal arguments give equal answers.

    ``snapshots`` are by site, of one model; each has the site's own links, load and edge nodes, and the tier
    ``shared`` as it is for all. The cheapest answer in which every site keeps its limits; where fast or private plans
    are preferred, the cheapest of those in which each site has nearly the best that it can have. A site whose limits
    nothing keeps gets the plan that it would get alone, and takes nothing from the others. The limit on cost is one
    for all sites together.

    Raises ``ContradictionError`` as ``plan`` does, and for early exits, pay-per-use and variants, which sites that are
    planned together cannot have; ``ValueError`` for sites of different models.
    """
    profiles = {snapshot.profile.fingerprint for snapshot in snapshots.values()}
    if len(profiles) > 1:
        raise ValueError(f"sites of one pipeline run one model, not {sorted(profiles)}")
    if not snapshots:
        return SitesPlan({}, None, frozenset(), 0.0, 0.0, 0.0)
    return plan_together(contexts_of(snapshots, policy, kept), shared)


def contexts_of(snapshots: Mapping[str, Snapshot], policy: Policy, kept: Kept | None) -> dict[str, Context]:
    """Each site's, in order of names, for ``plan_together``."""
    if any(snapshot.variants for snapshot in snapshots.values()):
        raise ContradictionError("sites of a pipeline run the same model: leave out its variants")
    if kept is None and snapshots:
        kept = Kept(next(iter(snapshots.values())).profile)
    contexts = {name: build_context(snapshots[name], policy, kept) for name in sorted(snapshots)}
    # What a pool costs, and how long requests wait in it, counts neither.
    if any(context.passing for context in contexts.values()):
        raise ContradictionError("sites planned together have no early exits: leave out reach, or plan each alone")
    if paid := {each.name for snapshot in snapshots.values() for each in snapshot.tiers if each.pay_per_use}:
        tiers = ", ".join(sorted(paid))
        raise ContradictionError(f"sites planned together use no pay-per-use: {tiers} must not offer it")
    return contexts


def plan_together(
    contexts: Mapping[str, Context], shared: str, *, apart: bool = True, most: int | None = None,
    alike: Pool | None = None,
) -> SitesPlan:  # fmt: skip
    """The same of contexts (``contexts_of``), at least one. Without ``apart`` only a site whose limits
    nothing keeps has replicas of its own on the shared tier, which holds ``most`` at most. A pool computes together
    what ``alike`` does, if that is given. Raises ``ContradictionError``."""
    policy = next(iter(contexts.values())).policy
    if shared == policy.gateway_tier:
        raise ContradictionError(f"the gateway's tier {shared!r} is each site's own: sites share another one")
    problem = problem_of(contexts, shared, most)
    if alike is not None:
        problem = _restricted(problem, alike)
    solver = _Solver(problem, Outside(problem, apart=apart))
    found = solver.solve(targets_of(problem))
    if policy.prefer is Preference.LATENCY and _over(policy, found):
        relaxed = solver.solve(Targets.limits(policy, len(contexts)))
        found = min(found, relaxed, key=lambda each: each.cost_per_hour)
    if _over(policy, found):
        plans = {name: replace(each, violations=(*each.violations, "cost")) for name, each in found.plans.items()}
        found = replace(found, plans=plans)
    return found


def _restricted(problem: Problem, alike: Pool) -> Problem:
    """With pools alone that compute the same requests together, or none, as another does."""
    codecs = problem.contexts[0].table.codecs
    kinds = tuple(kind for kind in problem.kinds if (kind[0], codecs[kind[1]]) == alike.batched)
    return replace(problem, kinds=kinds, firsts=problem.firsts if alike.batched is None else problem.firsts[:0])


def _over(policy: Policy, found: SitesPlan) -> bool:
    return policy.max_cost_per_hour is not None and found.cost_per_hour > policy.max_cost_per_hour * (1.0 + SLACK)


@dataclass(frozen=True, slots=True)
class _Packed:
    """The choice for a pool (``None``: without one) by label, what it is worth, and its gap."""

    case: Case | None
    labels: tuple[int, ...]
    value: float
    gap: float


@dataclass(frozen=True, slots=True)
class _Solver:
    """Finds the cheapest answer to a problem among the rows of its sites and what they can do ``outside``."""

    problem: Problem
    outside: Outside
    unit: float = 1.0
    """What money is counted in."""

    def solve(self, targets: Targets) -> SitesPlan:
        """The cheapest answer within the targets."""
        choices = list(self.outside.choices(targets))
        return replace(self, unit=self._unit(choices))._solved(targets, choices)

    def _unit(self, choices: Sequence[Choice]) -> float:
        """1, or in small currencies a power of two, which rounds nothing: no saving outweighs a broken limit then."""
        dearest = np.zeros(len(self.problem.contexts))
        for rows in (self.problem.rows, self.problem.together):
            np.maximum.at(dearest, rows.site, rows.cost)
        np.maximum.at(dearest, [choice.site for choice in choices], [choice.cost for choice in choices])
        stake = float(dearest.sum()) + self.problem.most * self.problem.price
        return 2.0 ** max(0, math.ceil(math.log2(max(stake, 1.0) / MOST_MONEY)))

    def _solved(self, targets: Targets, choices: Sequence[Choice]) -> SitesPlan:
        problem = self.problem
        best = self._pack(None, self._menu(choices, problem.within(targets, None, None)))
        cases: list[tuple[float, Case]] = []
        pools: list[tuple[int, Kind | None]] = [(int(first), None) for first in problem.firsts]
        for first, kind in [*pools, *((kind[0], kind) for kind in problem.kinds)]:
            free = Relaxed(self._menu(choices, problem.within(targets, NO_WAIT, first, kind), kind))
            for count, part in product(range(problem.least, problem.most + 1), CEILINGS):
                case = Case(first, count, part * problem.ceiling * count, kind)
                cases.append((self._floor(free, case), case))
        unknown = best.value - best.gap
        for floor, case in sorted(cases, key=lambda each: each[0]):
            if floor >= best.value - SLACK:
                break
            able = problem.within(targets, problem.waits(case), case.first, case.kind)
            menu = self._menu(choices, able, case.kind)
            if self._floor(Relaxed(menu), case) < best.value - SLACK:
                found = self._pack(case, menu)
                unknown = min(unknown, found.value - found.gap)
                best = min(best, found, key=lambda each: each.value)
        gap = best.value - unknown
        return assemble(problem, best.case, best.labels, choices, gap * self.unit if gap > SLACK else 0.0)

    def _menu(self, choices: Sequence[Choice], able: Bools, kind: Kind | None = None) -> Menu:
        own, rows = self.problem.rows_of(kind), np.flatnonzero(able)
        site, cost, penalty, taken = (
            np.array([getattr(choice, name) for choice in choices]) for name in ("site", "cost", "penalty", "taken")
        )
        none = np.zeros(len(rows))
        return Menu(
            site=np.concatenate([own.site[rows], site]),
            cost=np.concatenate([own.cost[rows], cost]) / self.unit,
            penalty=np.concatenate([none, penalty]),
            load=np.concatenate([own.load[rows], np.zeros(len(site))]),
            taken=np.concatenate([none, taken]),
            label=np.concatenate([rows, -1 - np.arange(len(site))]),
        ).thinned()

    def _floor(self, relaxed: Relaxed, case: Case) -> float:
        return relaxed.bound(case.load) + case.replicas * self.problem.price / self.unit

    def _pack(self, case: Case | None, menu: Menu) -> _Packed:
        replicas, load = (0, 0.0) if case is None else (case.replicas, case.load)
        packed = pack(menu, load=load, taken=float(max(0, self.problem.most - replicas)))
        return _Packed(case, packed.labels, packed.value + replicas * self.problem.price / self.unit, packed.gap)

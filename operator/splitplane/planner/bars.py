"""What a search may leave out where only the best plan is wanted: what ``choice.pick`` would not take.

``pick`` looks at limits first, then at the plans within a band of the best in one axis. So a plan that breaks graver
limits than a known one, or that is worse than that by more than the band, is not in the running, nor is anything that
is at least as large in all axes. The search compares these before they are rounded as the choice sees them, so each
bar is a little higher than it would have to be.
"""

import math
from dataclasses import dataclass

import numpy as np

from splitplane.domain.snapshots import Policy, Preference
from splitplane.planner.arrays import Array, Bools, Ints, Singles

COST_TIE = 0.02
"""Plans within this share of the least cost count as equally cheap where cost is preferred."""

LATENCY_TIE = 0.03
"""Plans within this share of the lowest p95 count as equally fast where latency is preferred."""

_STEP, _CENT = 1.004, 1.0 + 1e-6
"""Two steps of a rounded percentile (``queueing.round_up``), and of sums of prices, lie less than this apart."""

_NOT_AT_ALL = -1.0


@dataclass(frozen=True, slots=True)
class Aim:
    """Which plan is wanted: the limits on p95 and cost per hour (infinite for none), and what is preferred."""

    p95: float
    cost: float
    prefer: Preference

    @classmethod
    def of(cls, policy: Policy) -> "Aim":
        p95, cost = policy.max_p95_seconds, policy.max_cost_per_hour
        return cls(math.inf if p95 is None else p95, math.inf if cost is None else cost, policy.prefer)


CHEAPEST = Aim(math.inf, math.inf, Preference.COST)
FASTEST = Aim(math.inf, math.inf, Preference.LATENCY)


class Bar:
    """How slow a plan may be at its cost to be in the running, by the plans known so far.

    Leaks are told by places in a cover, of which ``per_leak`` in a row have the same; the first shows the least.
    """

    def __init__(self, aim: Aim, per_leak: int) -> None:
        self._aim, self._per_leak = aim, per_leak
        self._grade = 4
        """Of the best known plan: 2 if it is too slow, and 1 more if it is too dear."""
        self._least = math.inf
        """The least that is known, at that grade, of what plans of the grade are compared by."""
        self._leak: int | None = None
        self._up_to, self._cheap, self._dear = math.inf, math.inf, math.inf

    def at(self, floor: Ints, cost: Array) -> Singles:
        """The highest p95 in the running for plans of this cost that show as much as at a place of the cover at least;
        negative where none is."""
        found = np.where(cost <= self._up_to, np.float32(self._cheap), np.float32(self._dear))
        if self._leak is None:
            return found
        return np.where(floor < (self._leak + 1) * self._per_leak, found, np.float32(_NOT_AT_ALL))

    def note(self, ceiling: Ints, cost: Array, p95: Array) -> None:
        """Take note of plans that show as much as at a place of the cover at most; those of an infinite p95 don't
        count."""
        slow = p95 > min(self._aim.p95 / _STEP, 1e300)
        dear = cost > self._aim.cost / _CENT
        kept = ~(slow | dear)
        if kept.any():
            self._keep_limits(ceiling, cost, p95, kept)
        elif self._grade > 0:
            grade = np.where(np.isfinite(p95), 2 * slow + 1 * dear, 4)
            least = int(grade.min(initial=4))
            if least <= self._grade and least < 4:
                among = grade == least
                self._break_limits(least, float((cost if least == 1 else p95)[among].min()))

    def _keep_limits(self, ceiling: Ints, cost: Array, p95: Array, kept: Bools) -> None:
        if self._grade > 0:
            self._grade, self._least = 0, math.inf
        slowest, dearest = self._aim.p95 * _STEP, self._aim.cost * _CENT
        match self._aim.prefer:
            case Preference.LATENCY:
                self._least = min(self._least, float(p95[kept].min()))
                slowest = min(slowest, self._least * (1.0 + LATENCY_TIE) * _STEP * _STEP)
            case Preference.COST:
                self._least = min(self._least, float(cost[kept].min()))
                dearest = min(dearest, self._least * (1.0 + COST_TIE) * _CENT)
            case Preference.PRIVACY:
                shown = int(ceiling[kept].min()) // self._per_leak
                self._leak = shown if self._leak is None else min(shown, self._leak)
                if self._leak == 0:  # nothing shows less, so what is cheaper counts
                    among = kept & (ceiling < self._per_leak)
                    self._least = min(self._least, float(cost[among].min(initial=math.inf)))
                    dearest = min(dearest, self._least * (1.0 + COST_TIE) * _CENT)
        self._up_to, self._cheap, self._dear = dearest, slowest, _NOT_AT_ALL

    def _break_limits(self, grade: int, least: float) -> None:
        self._least = least if grade < self._grade else min(least, self._least)
        self._grade = grade
        if grade == 1:  # too dear: the least cost counts
            self._up_to = self._least * (1.0 + COST_TIE) * _CENT
            self._cheap, self._dear = self._aim.p95 * _STEP, _NOT_AT_ALL
            return
        bar = self._least * (1.0 + LATENCY_TIE) * _STEP * _STEP
        self._up_to = self._aim.cost * _CENT
        # Of what is cheap enough, what is faster; of what is not, what is fast enough, or at last what is faster.
        self._cheap, self._dear = (bar, self._aim.p95 * _STEP) if grade == 2 else (math.inf, bar)

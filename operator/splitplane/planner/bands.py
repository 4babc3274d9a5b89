"""Whether a change of plan lasts, or the next breath of noise undoes it: limits at both edges of the dead band.

The limits on cost, p95 and utilisation hang on numbers that wander by a few per cent. At the *far* edge of the band
there is more load, links are slower and the limit on p95 is closer; at the *near* edge all is the other way round. A
plan keeps a limit for sure if it does at the far edge, and breaks it for sure if it does at the near one.
"""

from dataclasses import dataclass

from splitplane.domain.plans import Candidate
from splitplane.planner.choice import LIMITS
from splitplane.planner.context import Context
from splitplane.planner.evaluation import assess
from splitplane.planner.gates import is_scale_down, relax, stress

_WANDERING = ("cost", "p95", "utilization")
"""Limits that hang on such numbers, the gravest last (as in ``choice.LIMITS``)."""

_CLEARLY = 0.10
"""By how much of it a plan must have less than another, that noise of 5 % in each of its numbers does not turn that
round."""


@dataclass(frozen=True, slots=True)
class _Band:
    """One plan at both edges."""

    far: Candidate
    near: Candidate

    def keeps(self, limit: str) -> bool:
        return limit not in self.far.violations

    def breaks(self, limit: str) -> bool:
        return limit in self.near.violations

    def less(self, other: "_Band", limit: str) -> bool:
        """Whether the plan has clearly less of what the limit bounds than ``other`` at the far edge.

        The same stages with more replicas are never slower, whatever wanders.
        """
        if limit != "cost" and is_scale_down(self.far.plan, other.far.plan):
            return True
        match limit:
            case "cost":
                return self.far.predicted.cost_per_hour <= other.far.predicted.cost_per_hour * (1.0 - _CLEARLY)
            case "p95":
                return self.far.predicted.p95_seconds <= other.far.predicted.p95_seconds * (1.0 - _CLEARLY)
            case _:
                return (
                    self.far.predicted.max_rate_per_second * (1.0 - _CLEARLY) >= other.far.predicted.max_rate_per_second
                )


def relieves(context: Context, current: Candidate, best: Candidate) -> bool:
    """Whether ``best``, which breaks lesser limits than the active plan, is to be taken at once.

    It is where it mends a limit that does not wander, or carries a load that the active plan can't. Otherwise the one
    that it mends must be broken now or kept then for sure, or become clearly less, and no graver one may be put at
    risk for it.
    """
    mended = _gravest_mended(current, best)
    if mended is None:
        return False
    if mended not in _WANDERING or mended == _WANDERING[-1]:
        return True
    old, new = _band(context, current), _band(context, best)
    graver = _WANDERING[_WANDERING.index(mended) + 1 :]
    return (new.keeps(mended) or old.breaks(mended) or new.less(old, mended)) and not _endangers(old, new, graver)


def endangers(context: Context, current: Candidate, target: Candidate) -> bool:
    """Whether ``target`` is not sure to keep a limit that the active plan may keep, nor clearly further from it."""
    return _endangers(_band(context, current), _band(context, target), _WANDERING)


def _endangers(old: _Band, new: _Band, limits: tuple[str, ...]) -> bool:
    return any(not (new.keeps(limit) or old.breaks(limit) or new.less(old, limit)) for limit in limits)


def _gravest_mended(current: Candidate, best: Candidate) -> str | None:
    """The gravest limit that only one of the plans breaks, if that is the active one."""
    differing = set(current.violations) ^ set(best.violations)
    gravest = max(differing, key=LIMITS.index, default=None)
    return gravest if gravest in current.violations else None


def _band(context: Context, candidate: Candidate) -> _Band:
    return _Band(assess(stress(context), candidate.plan), assess(relax(context), candidate.plan))

"""What pipelines ask of nodes that they share, and what each is worth to its pipeline."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

NOTHING_WORTH = -1.0
"""Of a pipeline that serves nothing: worse than the smallest share of its load."""

_LEAST_SHARE = 0.01
_LIMITS_KEPT, _BEHIND, _HELD, _FIRST = 0.5, 0.1, 0.005, 0.001


@dataclass(frozen=True, slots=True)
class Room:
    """A node with what is free on it, by resource in base units (cores, bytes, pods)."""

    name: str
    free: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica asks of its node, and the names of the nodes that may take it, as the scheduler sees both."""

    requests: tuple[tuple[str, float], ...]
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Offer:
    """A way to serve a pipeline: replicas by tier (of shared nodes alone), the share of its load that these carry,
    whether it keeps all limits, its cost per hour (NaN where a price is unknown), whether it is what runs now, and how
    far it is ``behind`` the first wish, from 0 to 1: in what the pipeline prefers while it keeps all limits, else in
    which limits it breaks and how badly. One that ``mends`` is taken at once by the pipeline's own gates, as what runs
    breaks a limit now."""

    replicas: Mapping[str, int]
    carried: float
    keeps_limits: bool
    cost: float = 0.0
    held: bool = False
    behind: float = 0.0
    mends: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """Offers of a pipeline, the one that it would choose alone first; serving nothing is always possible, too.

    Claims of a higher ``priority`` are settled before lower ones. ``needs`` are those of a replica by tier, ``before``
    how many replicas were granted last.
    """

    pipeline: str
    priority: int
    needs: Mapping[str, Need]
    offers: tuple[Offer, ...]
    before: Mapping[str, int] = field(default_factory=dict)

    def worth(self, number: int) -> float:
        """What offer ``number`` is worth; one past the last is to serve nothing.

        The logarithm of the share of the load, from 0 for a hundredth of it to 1: the sum over pipelines of one
        priority is largest where no share can grow by some per cent without another falling by more (proportional
        fairness; Kelly 1997). Limits kept count half as much. How far an offer is behind the first wish counts a tenth
        at most; that something runs now, or is the first wish, settles what would tie.
        """
        if number == len(self.offers):
            return NOTHING_WORTH
        offer = self.offers[number]
        share = 1.0 - math.log(min(1.0, max(_LEAST_SHARE, offer.carried))) / math.log(_LEAST_SHARE)
        order = _BEHIND * (1.0 - offer.behind) + _HELD * offer.held + _FIRST * (number == 0)
        return share + _LIMITS_KEPT * offer.keeps_limits + order

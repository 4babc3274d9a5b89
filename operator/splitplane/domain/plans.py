"""Plans: who runs which segments, how tensors cross, and what that is predicted to give."""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stage:
    """A partition at its place in a route.

    Requests run the active range ``[first, last)``; pods keep the resident range
    ``[resident_first, resident_last)``, which contains it. With ``pay_per_use`` a request that finds every replica
    busy runs on capacity that is paid by the request; such a stage may do without replicas.
    """

    tier: str
    first: int
    last: int
    resident_first: int
    resident_last: int
    replicas: int
    pay_per_use: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not self.resident_first <= self.first < self.last <= self.resident_last:
            raise ValueError(f"active range [{self.first}, {self.last}) is empty or not inside the resident range")
        if self.replicas < (0 if self.pay_per_use else 1):
            raise ValueError(f"a stage needs at least one replica, not {self.replicas}")

    @property
    def capacity(self) -> str:
        """Its replicas, for people."""
        return f"{self.replicas} & pay-per-use" if self.pay_per_use else str(self.replicas)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan should give at the arrival rate it was made for.

    Seconds are infinite where the plan cannot carry that rate. The cost is NaN while a price that it needs is
    unknown and no limit or preference asks for it; leak and accuracy loss are ``None`` where the profile has not
    measured them.
    """

    p95_seconds: float
    mean_seconds: float
    cost_per_hour: float
    max_rate_per_second: float
    """Highest rate at which no stage or link exceeds the utilisation ceiling."""
    p50_seconds: float | None = None
    p99_seconds: float | None = None
    leak: float | None = None
    """Highest measured leak of a crossing into an untrusted tier: 0 if there is none, 1 for the input itself."""
    accuracy_loss: float | None = None
    """Sum over the crossings of what their codecs were measured to lose."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered stages that cover the model once; ``codecs[i]`` encodes what stage ``i`` hands to stage ``i + 1``.

    ``variant`` names the variant of the model that they run, and whose cuts they count; empty for the model itself.
    """

    stages: tuple[Stage, ...]
    codecs: tuple[str, ...] = ()
    variant: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if len(self.codecs) != len(self.stages) - 1:
            raise ValueError("a plan needs one codec for each crossing between neighbouring stages")
        for left, right in zip(self.stages, self.stages[1:], strict=False):
            if left.last != right.first:
                raise ValueError(f"stages do not meet: [{left.first}, {left.last}) then [{right.first}, {right.last})")

    @property
    def cuts(self) -> tuple[int, ...]:
        """Indices of the cuts that a request crosses between stages."""
        return tuple(stage.first for stage in self.stages[1:])

    @property
    def routing(self) -> tuple[tuple[str, int, int, str], ...]:
        """(tier, first, last, codec to the next stage) per stage: what a request sees of the plan."""
        return tuple(
            (stage.tier, stage.first, stage.last, codec)
            for stage, codec in zip(self.stages, (*self.codecs, ""), strict=True)
        )

    @property
    def revisits(self) -> str | None:
        """The tier that requests come back to from another."""
        return revisited([stage.tier for stage in self.stages])

    def replicas(self, tier: str) -> int:
        return sum(stage.replicas for stage in self.stages if stage.tier == tier)

    def __str__(self) -> str:
        text = "|".join(f"{stage.tier}:{stage.first}-{stage.last}" for stage in self.stages)
        return " ".join((f"{self.variant}/{text}" if self.variant else text, *self.codecs))

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits that name this plan: equal plans have equal names."""
        paid = [str(place) for place, stage in enumerate(self.stages) if stage.pay_per_use]
        variant = [f"variant {self.variant}"] if self.variant else []
        return hashlib.sha256(" ".join((repr(self), *paid, *variant)).encode()).hexdigest()[:10]


def revisited(tiers: Sequence[str]) -> str | None:
    """The tier that a request which visits these in turn comes back to from another; ``None`` where there is none."""
    return tiers[0] if len(tiers) == 3 and tiers[0] == tiers[2] != tiers[1] else None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan with its prediction; ``violations`` is empty when it satisfies every limit."""

    plan: Plan
    predicted: Prediction
    violations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a route bears: ``rate`` requests per second, or fewer where the link is too slow for as many.

    ``link_bytes`` of the link are to be counted for a request, with what the utilisation ceiling leaves free; 0 where
    it does not cross the link.
    """

    rate: float
    link_bytes: float = 0.0

    def at(self, bandwidth: float) -> float:
        """Requests per second at so many bytes per second."""
        return min(self.rate, bandwidth / self.link_bytes) if self.link_bytes > 0.0 else self.rate


@dataclass(frozen=True, slots=True)
class Steps:
    """Which of some routes is best at which bandwidth of the link from tier ``source`` to tier ``target``.

    From ``starts[i]`` bytes per second on, and below ``starts[i + 1]``, it is the route at place ``routes[i]``. The
    first step starts at 0, the last has no upper end. A route may have several steps, or none. ``capacities`` are those
    of all routes, by place.
    """

    source: str
    target: str
    starts: tuple[float, ...]
    routes: tuple[int, ...]
    capacities: tuple[Capacity, ...]

    def at(self, bandwidth: float) -> int:
        """The place of the best route."""
        return self.routes[bisect_right(self.starts, bandwidth) - 1]

    def ranges(self, route: int) -> tuple[tuple[float, float], ...]:
        """(from, below) in bytes per second where the route at this place is best; the last may be infinite."""
        ends = (*self.starts[1:], math.inf)
        return tuple(
            (start, end) for start, end, place in zip(self.starts, ends, self.routes, strict=True) if place == route
        )


def span_text(low: float, high: float) -> str:
    """Bandwidths from and below so many bytes per second, for people: ``0.08 to 1.76 Mbit/s``."""
    below, above = f"{high * 8e-6:.3g}", f"{low * 8e-6:.3g}"
    if math.isinf(high):
        return f"from {above} Mbit/s" if low > 0.0 else "any bandwidth"
    return f"below {below} Mbit/s" if low <= 0.0 else f"{above} to {below} Mbit/s"

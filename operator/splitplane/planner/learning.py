"""How much slower or faster a tier is than its profile says, learnt from what its stages take: bounded, never in leaps.

The logarithm of the factor is taken to wander about 0 and to return there within hours (an Ornstein-Uhlenbeck process);
each observation is weighed against what is known by the uncertainty of both (a Kalman filter). So noise moves little, a
lasting change is believed within a few observations, and a tier that no plan uses any more is not forgotten at once:
otherwise a plan would leave a slow tier, find it as fast as its profile the next minute, and return.
"""

import math
from dataclasses import dataclass

SPREAD = 0.35
"""Standard deviation of the factor's logarithm before anything was observed, and again long after."""

NOISE = 0.08
"""Standard deviation of the logarithm of one observation, the mean of a minute."""

MEMORY_SECONDS = 3600.0
"""Within this time an observation that is not repeated fades to a third."""

LEAST, MOST = 0.5, 2.0
"""Bounds of the factor: what lies beyond is taken for an error of measurement."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What is known of one tier at the time ``at``: mean and variance of log(observed time / profiled time)."""

    mean: float
    variance: float
    at: float

    def later(self, now: float) -> "Correction":
        """The same at a later time: nearer to 0, and less certain."""
        kept = math.exp(-max(0.0, now - self.at) / MEMORY_SECONDS)
        return Correction(self.mean * kept, self.variance * kept**2 + SPREAD**2 * (1.0 - kept**2), now)

    def factor(self, now: float) -> float:
        """By what the profile's times are to be multiplied."""
        return math.exp(self.later(now).mean)


UNKNOWN = Correction(0.0, SPREAD**2, 0.0)


def learn(before: Correction, observed: float, now: float) -> Correction:
    """What is known once a stage was ``observed`` to take so many times what the profile says."""
    prior = before.later(now)
    weight = prior.variance / (prior.variance + NOISE**2)
    seen = math.log(min(MOST, max(LEAST, observed)))
    return Correction(prior.mean + weight * (seen - prior.mean), (1.0 - weight) * prior.variance, now)

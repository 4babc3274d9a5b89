"""How much slower or faster a tier is than its profile says, learnt from what its stages take: bounded, never in leaps.

A stage is taken to need ``factor x profiled time + offset``. The factor tells a device that is slower or busier than
the one that was profiled. The offset is what each request takes more or less whatever the range: a container under a
CPU quota, for one, may use a period's share at once, which a profile of work without a pause does not show; read as a
factor, 20 ms saved on a short range would promise a fifth of a long one. Both are taken to wander about 1 and 0 and
to return there within hours (Ornstein-Uhlenbeck processes), and each observation is weighed against what is known by
the uncertainty of all (a Kalman filter of two states). So noise moves little, a lasting change is believed within a
few observations, and a tier that no plan uses any more is not forgotten at once: otherwise a plan would leave a slow
tier, find it as fast as its profile the next minute, and return.
"""

import math
from dataclasses import dataclass

SPREAD = 0.35
"""Standard deviation of the factor before anything was observed, and again long after."""

OFFSET_SPREAD = 0.05
"""The same of the offset, in seconds: half the period over which Linux enforces a container's CPU quota by default."""

NOISE = 0.08
"""Standard deviation of one observation, the mean of a minute, as a share of the profiled time."""

MEMORY_SECONDS = 3600.0
"""Within this time an observation that is not repeated fades to a third."""

LEAST, MOST, MOST_OFFSET = 0.5, 2.0, 0.1
"""Bounds of the factor and of the offset in seconds: what lies beyond is taken for an error of measurement."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What is known of one tier at the time ``at``: means of factor and offset (seconds), and their covariance matrix.

    The matrix is given by the ``variance`` of the factor, that of the offset, and ``shared`` beside the diagonal.
    """

    mean: float
    offset_mean: float
    variance: float
    offset_variance: float
    shared: float
    at: float

    def later(self, now: float) -> "Correction":
        """The same at a later time: nearer to the profile, and less certain."""
        kept = math.exp(-max(0.0, now - self.at) / MEMORY_SECONDS)
        return Correction(
            mean=1.0 + (self.mean - 1.0) * kept,
            offset_mean=self.offset_mean * kept,
            variance=self.variance * kept**2 + SPREAD**2 * (1.0 - kept**2),
            offset_variance=self.offset_variance * kept**2 + OFFSET_SPREAD**2 * (1.0 - kept**2),
            shared=self.shared * kept**2,
            at=now,
        )

    def factor(self, now: float) -> float:
        """By what the profile's times are to be multiplied."""
        return min(MOST, max(LEAST, self.later(now).mean))

    def offset(self, now: float) -> float:
        """Seconds to be added to what the profile says that each request takes beside its range."""
        return min(MOST_OFFSET, max(-MOST_OFFSET, self.later(now).offset_mean))


UNKNOWN = Correction(1.0, 0.0, SPREAD**2, OFFSET_SPREAD**2, 0.0, 0.0)


def learn(before: Correction, profiled: float, observed: float, now: float) -> Correction:
    """What is known once a range that the profile says to take ``profiled`` seconds was ``observed`` to take others."""
    prior = before.later(now)
    seen = min(MOST * profiled + MOST_OFFSET, max(LEAST * profiled - MOST_OFFSET, observed))
    surprise = seen - (prior.mean * profiled + prior.offset_mean)
    of_factor = prior.variance * profiled + prior.shared
    of_offset = prior.shared * profiled + prior.offset_variance
    variance = of_factor * profiled + of_offset + (NOISE * profiled) ** 2
    return Correction(
        mean=prior.mean + of_factor / variance * surprise,
        offset_mean=prior.offset_mean + of_offset / variance * surprise,
        variance=prior.variance - of_factor**2 / variance,
        offset_variance=prior.offset_variance - of_offset**2 / variance,
        shared=prior.shared - of_factor * of_offset / variance,
        at=now,
    )

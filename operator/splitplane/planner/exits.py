"""Models with early exits: requests that get their answer on the way, so that later stages and links see fewer.

Who stays is told by ``Snapshot.reach``. A stage serves those who come to it, some of whom leave within its range: its
service is the shorter for them, and the more variable. Nothing is said of which requests leave; that is taken to have
nothing to do with when they come.
"""

from dataclasses import dataclass

import numpy as np

from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.batching import Together
from splitplane.planner.context import Context, Site
from splitplane.planner.stations import codec_seconds, stage_seconds, together


@dataclass(frozen=True, slots=True)
class Seen:
    """What queues at a stage: the share of all requests that comes there, their mean service in seconds with its
    squared coefficient of variation, and how they are computed together where they are."""

    share: Array | float
    service: Array
    scv: Array | float
    together: Together | None = None

    @property
    def least(self) -> Array:
        """Seconds that a replica is busy at least for each request that comes."""
        return self.service if self.together is None else self.together.at_least(self.service)

    def coupling_square(self, service: Array, behind: Array | float) -> Array:
        """What a stage of this service, and the link ``behind`` it of that one, add to the ``square`` of
        ``queueing.coupling_of``."""
        square, link = service * service, behind * behind
        if self.together is not None:
            square, link = self.together.of_single(square), self.together.of_link_behind(np.asarray(link))
        return square + link

    def where(self, mask: Bools | Ints) -> "Seen":
        share, scv = (each[mask] if isinstance(each, np.ndarray) else each for each in (self.share, self.scv))
        return Seen(share, self.service[mask], scv, None if self.together is None else self.together.where(mask))


def seen(
    context: Context, site: Site, first: Ints, last: Ints, *, decoded: Ints | None = None, encoded: Ints | None = None
) -> Seen:
    """What a stage sees that runs segments ``[first, last)``; arguments as of ``stage_seconds``."""
    scv = site.device.time_cv**2
    if context.reach is None:
        service = stage_seconds(context, site, first, last, decoded=decoded, encoded=encoded)
        return Seen(1.0, service, scv, together(context, site, first, last, service, decoded))
    reach = context.reach
    prefix = np.array(site.device.prefix_seconds) * site.correction
    leave = np.append(-np.diff(reach), 0.0)
    moments = [np.append(0.0, np.cumsum(leave[:-1] * prefix[1:] ** power)) for power in range(3)]
    # Who leaves at a cut has run up to it; who leaves at the first cut of a range never came, at its last has run all.
    less = [moment[last] - moment[first] for moment in moments]
    whole, here, on = np.maximum(0.0, prefix[last] - prefix[first]), reach[first], reach[last]
    start = prefix[first]
    mean = (less[1] - start * less[0] + on * whole) / here
    square = (less[2] - 2.0 * start * less[1] + start**2 * less[0] + on * whole**2) / here
    encode, decode = codec_seconds(context, site)
    service = np.maximum(0.0, mean) + site.overhead_seconds
    if decoded is not None:
        service = service + decode[decoded, first]
    if encoded is not None:
        service = service + encode[encoded, last] * (on / here)
    return Seen(here, service, scv + np.maximum(0.0, square - mean**2) / np.maximum(service, 1e-12) ** 2)


def share_at(context: Context, cut: Ints) -> Array | float:
    """The share of all requests that crosses a cut."""
    return 1.0 if context.reach is None else context.reach[cut]

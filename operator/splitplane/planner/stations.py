"""What a request takes at a stage, alone and among others, and what its bytes cost on a link."""

import numpy as np

from splitplane.domain.batches import BATCH_SHARE
from splitplane.domain.snapshots import PayPerUse
from splitplane.planner.arrays import Array, Ints
from splitplane.planner.batching import Together, paying_size
from splitplane.planner.context import Context, Site

GIB = float(1 << 30)


def stage_seconds(
    context: Context, site: Site, first: Ints, last: Ints, *, decoded: Ints | None = None, encoded: Ints | None = None
) -> Array:
    """Mean service of a stage that runs segments ``[first, last)``, on a device that is as fast as observed.

    ``decoded`` and ``encoded`` are the codecs (rows of the cut table) of what arrives from another stage and of what
    is handed to one.
    """
    prefix = np.array(site.device.prefix_seconds)
    seconds: Array = np.maximum(0.0, prefix[last] - prefix[first]) * site.correction + site.overhead_seconds
    encode, decode = codec_seconds(context, site)
    if decoded is not None:
        seconds = seconds + decode[decoded, first]
    if encoded is not None:
        seconds = seconds + encode[encoded, last]
    return seconds


def codec_seconds(context: Context, site: Site) -> tuple[Array, Array]:
    """Seconds to encode and to decode one sample, by codec and cut; 0 for a codec that was not measured."""
    return context.kept.codec_seconds(site.device)


def batches(context: Context, site: Site) -> bool:
    """Whether stages on this tier may compute requests together, and it was measured what that gives."""
    return _largest(context, site) > 1


def together(
    context: Context, site: Site, first: Ints, last: Ints, service: Array, decoded: Ints | None = None
) -> Together | None:
    """How a stage computes together that runs segments ``[first, last)``, gets what was encoded so (``stage_seconds``)
    and takes ``service`` for a request alone.

    What a batch takes but once is compute; everything else is done for each request by itself. ``None`` where all are
    served one by one.
    """
    most = _largest(context, site)
    each = context.kept.batch_prefix(site.device)
    if most == 1 or each is None:
        return None
    prefix = np.array(site.device.prefix_seconds)
    alone = np.maximum(0.0, prefix[last] - prefix[first]) * site.correction
    more = np.clip((each[last] - each[first]) * site.correction, 0.0, alone)
    limit = context.policy.max_p95_seconds
    size = paying_size(alone, more, most=most, within_seconds=None if limit is None else limit * BATCH_SHARE)
    shared = site.tier.shared
    if shared is not None and shared.batched is not None:
        cut, codec = shared.batched
        came = context.table.codecs.index("fp32") if decoded is None else decoded
        size = np.where((first == cut) & (came == context.table.codecs.index(codec)), size, 1)
    if (size == 1).all():
        return None
    return Together(np.where(size > 1, (alone - more) / np.maximum(service, 1e-12), 0.0), size)


def _largest(context: Context, site: Site) -> int:
    """Most requests that a stage computes together, as far as the profile tells: no larger batch than was measured."""
    shared = site.tier.shared
    if context.samples == 1 or context.reach is not None or (shared is not None and shared.batched is None):
        return 1
    measured = [each.batch for each in site.device.timings if each.threads == site.device.threads]
    return min(context.samples, max(measured, default=1))


def egress_cost(context: Context, tier: str, sent: Array, rate: float | Array) -> Array:
    """Price per hour of ``sent`` bytes per request that leave ``tier``."""
    return sent * (rate * 3600.0 / GIB * context.tiers[tier].egress_price_per_gib)


def use_cost(terms: PayPerUse, seconds: Array, rate: float | Array) -> Array:
    """Price per hour of ``rate`` requests per second, which take ``seconds`` each, where all are paid by the use."""
    price: Array = rate * 3600.0 * (terms.price_per_request + terms.price_per_second * (seconds + terms.extra_seconds))
    return price


def round_cost(cost: Array) -> Array:
    """A cost to twelve decimals, so that sums of the same prices in another order are equal."""
    return np.round(cost, 12)

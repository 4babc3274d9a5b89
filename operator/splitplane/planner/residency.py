"""What pods keep resident, within memory and trust.

Residency depends on tier, memory limit and trust, not on measured times, so that noise never moves a pod: a plan that
runs another range within it is a change of routing only. What is chosen for new pods by the links' recent past
(``likely``) stays as long as it serves, too.
"""

from splitplane.planner.arrays import Bools, Ints
from splitplane.planner.context import Context


def resident_range(context: Context, tier: str, first: int, last: int) -> tuple[int, int]:
    """The range that a pod on ``tier`` keeps resident in order to run ``[first, last)``.

    The active plan's residency where it still serves; else the largest that memory and trust allow: grown from the
    active range towards the output first, since what runs there is nearest to the data, then towards the input.
    It is the active range itself where even that does not fit. Of shared replicas it is what they keep, if that serves.
    """
    shared = context.tiers[tier].shared
    if shared is not None:
        return (shared.first, shared.last) if shared.first <= first and last <= shared.last else (first, last)
    if context.running is not None:
        for stage in context.running.stages:
            kept = (stage.resident_first, stage.resident_last)
            serves = stage.tier == tier and kept[0] <= first and last <= kept[1] <= context.profile.segments
            if serves and allowed(context, tier, *kept):
                return kept
    return grown(context, tier, first, last)


def grown(context: Context, tier: str, first: int, last: int) -> tuple[int, int]:
    """The largest range around ``[first, last)`` that memory and trust allow, towards the output first."""
    low, high = first, last
    while high < context.profile.segments and allowed(context, tier, low, high + 1):
        high += 1
    while low > 0 and allowed(context, tier, low - 1, high):
        low -= 1
    return low, high


def allowed(context: Context, tier: str, first: int, last: int) -> bool:
    """Whether trust and memory let a pod on ``tier`` hold segments ``[first, last)``; shared ones hold what they do."""
    shared = context.tiers[tier].shared
    if shared is not None and not shared.first <= first <= last <= shared.last:
        return False
    return trusted(context, tier, first) and fits(context, tier, first, last)


def trusted(context: Context, tier: str, first: int) -> bool:
    """Whether ``tier`` may see cut ``first`` and hold the weights after it.

    While raw input must stay trusted, the range that takes it is private: segment 0, and all those that an input is yet
    to cross as it is. An untrusted tier starts after them.
    """
    return first >= context.earliest(tier)


def fits(context: Context, tier: str, first: int, last: int) -> bool:
    limit = context.tiers[tier].memory_limit_bytes
    device_class = context.tiers[tier].device_class
    if device_class not in context.profile.devices:
        return False
    return limit is None or context.profile.resident_bytes(device_class, first, last) <= limit


def holds(context: Context, tier: str, first: Ints, last: Ints) -> Bools:
    """``allowed`` for many ranges at once."""
    limit = context.tiers[tier].memory_limit_bytes
    able: Bools = first >= context.earliest(tier)
    if limit is not None:
        nothing = context.profile.resident_bytes(context.tiers[tier].device_class, 0, 0)
        able = able & (nothing + context.kept.held_bytes(first, last) <= limit)
    shared = context.tiers[tier].shared
    if shared is not None:
        able = able & (first >= shared.first) & (last <= shared.last)
    return able

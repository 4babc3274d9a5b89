"""What the results of searches are kept by (``Kept.result``): all that they depend on, besides the profile."""

from collections.abc import Hashable

from splitplane.planner.context import Context


def limits(context: Context) -> Hashable:
    """What rules out plans whatever the numbers, besides the profile."""
    policy = context.policy
    return (
        (policy.raw_input_stays_trusted, policy.max_leak, policy.max_accuracy_loss),
        (policy.codecs, policy.max_partitions, policy.allow_return, context.rules),
        tuple(tier.shared for tier in context.tiers.values()),
        tuple((site.name, site.low, site.high) for site in context.sites.values() if context.affordable(site)),
    )


def weighed_by(context: Context) -> Hashable:
    """All that predictions and their limits depend on, besides the profile."""
    policy = context.policy
    return numbers(context), context.rate, policy, tuple(context.tiers.values()), tuple(context.sites)


def numbers(context: Context) -> Hashable:
    """All that a search among lines depends on, besides the profile and the rate."""
    return (
        limits(context),
        (context.arrival_scv, context.policy.max_utilization),
        (context.samples, context.policy.max_p95_seconds if context.samples > 1 else None),
        tuple(
            (site.correction, site.overhead_seconds, site.price if site.price == site.price else None)
            for site in context.sites.values()
            if context.affordable(site)
        ),
        tuple(context.wires.items()),
    )

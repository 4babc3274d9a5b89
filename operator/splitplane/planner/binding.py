"""Which limits bind: those without which another plan would be notably better."""

from collections.abc import Iterator
from dataclasses import replace

from splitplane.domain.plans import Candidate
from splitplane.domain.snapshots import Mode, Policy
from splitplane.planner.bars import COST_TIE
from splitplane.planner.choice import gain, severity
from splitplane.planner.context import Context
from splitplane.planner.evaluation import assess
from splitplane.planner.lines import LONGEST
from splitplane.planner.selecting import best_plan

_BUSIEST = 0.95


def binding_limits(context: Context, best: Candidate) -> tuple[str, ...]:
    """Names of limits, each lifted alone: ``p95``, ``cost``, ``utilization``, ``privacy``, ``leak``, ``accuracy``,
    ``memory``, ``replicas``, ``codecs``, ``partitions``."""
    if context.policy.mode is Mode.FIXED:
        return ()
    return tuple(name for name, without in lifted(context) if _better(without, best))


def _better(without: Context, best: Candidate) -> bool:
    found, before = best_plan(without), assess(without, best.plan)
    if found is None or found.plan == best.plan:
        return False
    return severity(found) < severity(before) or gain(without, before, found) > COST_TIE


def lifted(context: Context) -> Iterator[tuple[str, Context]]:
    """The context without one limit, for each that it has."""
    policy = context.policy

    def allowing(**changes: object) -> Context:
        changed: Policy = replace(policy, **changes)  # type: ignore[arg-type]
        return context.changed(lambda each: replace(each, policy=changed))

    if policy.max_p95_seconds is not None:
        yield "p95", allowing(max_p95_seconds=None)
    if policy.max_cost_per_hour is not None:
        yield "cost", allowing(max_cost_per_hour=None)
    if policy.max_utilization < _BUSIEST:
        yield "utilization", allowing(max_utilization=_BUSIEST)
    if policy.raw_input_stays_trusted:
        yield "privacy", allowing(raw_input_stays_trusted=False)
    if policy.max_leak is not None:
        yield "leak", allowing(max_leak=None)
    if policy.max_accuracy_loss is not None:
        yield "accuracy", allowing(max_accuracy_loss=None)
    if any(tier.memory_limit_bytes is not None for tier in context.tiers.values()):
        tiers = {name: replace(tier, memory_limit_bytes=None) for name, tier in context.tiers.items()}
        yield "memory", context.changed(lambda each: replace(each, tiers=tiers))
    yield "replicas", context.changed(_with_twice_the_replicas)
    if not set(context.table.codecs) <= set(policy.codecs):
        yield "codecs", allowing(codecs=context.table.codecs)
    if policy.max_partitions < min(LONGEST, len(context.sites)):
        yield "partitions", allowing(max_partitions=LONGEST)


def _with_twice_the_replicas(context: Context) -> Context:
    sites = {name: replace(site, high=2 * site.high) for name, site in context.sites.items()}
    tiers = {name: replace(tier, max_replicas=2 * tier.max_replicas) for name, tier in context.tiers.items()}
    return replace(context, sites=sites, tiers=tiers)

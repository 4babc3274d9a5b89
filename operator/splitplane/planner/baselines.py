"""Kinds of plans that a decision is measured against: all on one tier, or split elsewhere."""

from dataclasses import replace

from splitplane.domain.plans import Candidate
from splitplane.planner.bars import Aim
from splitplane.planner.choice import pick
from splitplane.planner.context import Context
from splitplane.planner.evaluation import assess, violations
from splitplane.planner.frontier import (
    Frontier,
    contenders_of_other_splits,
    contenders_that_come_back,
    frontier_of_layouts,
)
from splitplane.planner.layouts import one_stage
from splitplane.planner.selecting import best_plan


def baselines(context: Context) -> dict[str, Candidate]:
    """``edge-only`` and ``cloud-only`` (the last tier, raw input as fp32), with as many replicas as suit them best, and
    with pay-per-use where that suits them and the tier offers it.

    For explanation only: they are predicted even where they break a limit, which their violations name. One is left
    out where its tier cannot be used.
    """
    found = {}
    for name, tier in (("edge-only", context.gateway), ("cloud-only", context.farthest)):
        if tier is None or tier not in context.sites:
            continue
        if tier != context.gateway and (context.gateway, tier) not in context.wires:
            continue
        site = context.sites[tier]
        layout = one_stage(context, site)
        used = [one_stage(context, site, pay_per_use=True)] if site.tier.pay_per_use is not None else []
        frontier = frontier_of_layouts(context, [layout, *used], context.rate)
        if len(frontier):
            best = frontier.candidate(context, pick(context.policy, frontier))
            found[name] = Candidate(best.plan, best.predicted, (*violations(context, best.plan), *best.violations))
        else:
            found[name] = assess(context, layout.plan(context, len(layout) - 1))
    return found


def other_variants(context: Context, target: Candidate) -> dict[str, Candidate]:
    """The best plan of each variant but the target's, as ``variant NAME``, and of the model itself as ``reference``.

    For explanation only: one that loses more accuracy than is allowed is predicted, and its violations say so.
    """
    found = {}
    for each in context.variants:
        if each.variant == target.plan.variant:
            continue
        alone = context.of(each.variant)
        best = best_plan(replace(alone, policy=replace(alone.policy, max_accuracy_loss=None)))
        if best is not None:
            found[f"variant {each.variant}" if each.variant else "reference"] = assess(context, best.plan)
    return found


def other_split(context: Context, target: Candidate) -> Candidate | None:
    """The best split that is on other tiers or cut elsewhere; ``None`` if there is none that carries the load."""
    return _best_of(context, contenders_of_other_splits(context, target.plan, Aim.of(context.policy)))


def there_and_back(context: Context, target: Candidate) -> Candidate | None:
    """The best plan that comes back to a tier; ``None`` where the target does, or none may or carries the load."""
    if target.plan.revisits:
        return None
    return _best_of(context, contenders_that_come_back(context, Aim.of(context.policy)))


def _best_of(context: Context, frontier: Frontier) -> Candidate | None:
    return frontier.candidate(context, pick(context.policy, frontier)) if len(frontier) else None

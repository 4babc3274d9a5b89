"""The plans that every other one is measured against: all on the gateway's tier, all on the first tier beyond it."""

from splitplane.domain.plans import Candidate
from splitplane.planner.candidates import one_stage
from splitplane.planner.choice import build_pool, pick_any
from splitplane.planner.context import Context
from splitplane.planner.evaluation import violations


def baselines(context: Context) -> dict[str, Candidate]:
    """``edge-only`` and ``cloud-only`` (raw input as fp32), with as many replicas as suit them best.

    For explanation only: they are predicted even where they break a limit, which their violations name. One is left
    out where its tier cannot be used.
    """
    found = {}
    away = next((name for name in context.sites if name != context.gateway), None)
    for name, tier in (("edge-only", context.gateway), ("cloud-only", away)):
        if tier is None or tier not in context.sites:
            continue
        if tier != context.gateway and (context.gateway, tier) not in context.wires:
            continue
        pool = build_pool(context, [one_stage(context, context.sites[tier])])
        if pool is not None:
            best = pick_any(context, pool)
            found[name] = Candidate(best.plan, best.predicted, (*violations(context, best.plan), *best.violations))
    return found

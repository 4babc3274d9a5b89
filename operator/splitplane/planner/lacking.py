"""Why no plan can serve at all, or none over some tier, for a user who has to mend it."""

from itertools import combinations

from splitplane.domain.snapshots import Mode
from splitplane.planner.binding import lifted
from splitplane.planner.context import Context
from splitplane.planner.lines import TRICKLE, build_lines
from splitplane.planner.selecting import dictated, routing_violations

_FORBIDDING = ("privacy", "leak", "accuracy", "memory", "codecs", "partitions")
"""Limits that can leave no plan, whatever the load."""


def why_nothing_fits(context: Context) -> str:
    """What keeps every tier from serving: what tiers lack, then the limits that forbid all plans over the others."""
    clauses = [*_unusable(context), *_unaffordable(context)]
    if context.policy.mode is Mode.FIXED:
        broken = routing_violations(context, dictated(context)) - {"node-loss"}
        clauses += [f"the fixed plan breaks {', '.join(sorted(broken))}"] if broken else []
    elif not _any_plan(context):
        clauses += _forbidden(context)
    if context.set_aside:
        clauses.append(f"{len(context.set_aside)} plans are set aside after failing")
    return "; ".join(clauses)


def left_out(context: Context) -> tuple[str, ...]:
    """What tiers lack that no plan uses, and which links plans of three partitions lack, a clause each."""
    clauses = [*_unusable(context), *_unaffordable(context)]
    if context.policy.max_partitions > 2:
        inner = [name for name in context.order if name in context.sites and name != context.gateway]
        unmeasured = [pair for pair in combinations(inner, 2) if pair not in context.wires]
        clauses += [f"the link from tier {source} to tier {target} is unmeasured" for source, target in unmeasured]
    return tuple(clauses)


def _unusable(context: Context) -> list[str]:
    clauses = []
    for name, tier in context.tiers.items():
        if name in context.sites:
            continue
        if tier.device_class not in context.profile.devices:
            clauses.append(f"tier {name}: device class {tier.device_class} has no profile yet")
        elif tier.ready_nodes < 1:
            clauses.append(f"tier {name}: no ready node matches its selector")
        elif tier.granted == 0 and tier.slots > 0:
            clauses.append(f"tier {name}: other pipelines got all that its nodes have")
        else:
            clauses.append(f"tier {name}: its nodes have no room for a replica")
    return clauses


def _unaffordable(context: Context) -> list[str]:
    clauses = []
    for name, site in context.sites.items():
        if not context.affordable(site):
            clauses.append(f"tier {name}: its price is unknown")
        elif name != context.gateway and (context.gateway, name) not in context.wires:
            clauses.append(f"tier {name}: the link to it is unmeasured")
    return clauses


def _forbidden(context: Context) -> list[str]:
    """The limits without which there would be a plan, each lifted alone; all that there are where no single one is
    enough."""
    limits = [(name, without) for name, without in lifted(context) if name in _FORBIDDING]
    enough = [name for name, without in limits if _any_plan(without)]
    if enough:
        return [f"the limit on {name} leaves no plan" for name in enough]
    if limits and context.sites:
        return [f"the limits on {', '.join(name for name, _ in limits)} leave no plan together"]
    return []


def _any_plan(context: Context) -> bool:
    return any(next(build_lines(each, TRICKLE), None) is not None for each in context.variants)

"""What a plan gives in every bin of the traces, and what comes of it where requests pile up.

Within a bin of the traces everything is constant, so a plan's response is that of the planner's own formulas at the
true rate and links (docs/planner.md, "Latency", with their errors against an event simulation), for all bins in one
pass. Where a station cannot keep up, requests pile up in the gateway, which turns away what it has no room for; until
the pile is worked off, each request waits for the mean pile before it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from splitplane.domain.plans import Plan
from splitplane.planner.arrays import Array
from splitplane.planner.context import IDLE_RATE, Context, Direction, crossings
from splitplane.planner.evaluation import evaluate, held_by_nodes, violations
from splitplane.planner.layouts import layout_of
from splitplane.planner.queueing import Response

_NORMAL = NormalDist()
_MEDIAN, _HIGH, _HIGHEST = 0.0, _NORMAL.inv_cdf(0.95), _NORMAL.inv_cdf(0.99)
_DEVIATIONS = np.linspace(-8.5, 8.5, 4001)
_SHARES = np.array([_NORMAL.cdf(each) for each in _DEVIATIONS.tolist()])
"""The normal distribution at these, so near one another that values between are right to 5e-7."""

BUSIEST = 0.98

MOST_WAITING = 256.0
"""Requests that a gateway takes in at most (``spec.queue`` of its RouteTable); others are turned away, and are late."""


@dataclass(frozen=True, slots=True)
class Course:
    """What a plan would give in each bin while nothing waits from before: the share of requests within the limit, p95
    in seconds, requests per second that it can work off at most, cost per hour. ``leaks``: it shows what it must not.

    Where more arrives than it can work off, share and p95 are those of a request that meets no others: all that it
    waits for is the pile, which is for others to count.
    """

    within: Array
    p95: Array
    most: Array
    cost: Array
    leaks: bool


def course(context: Context, plan: Plan, rates: Array, links: Mapping[Direction, Array]) -> Course:
    """``plan`` in bins of these rates, and of these bytes per second on links (others are as the context says)."""
    broken = violations(context, plan)
    leaks = bool({"privacy", "leak"} & set(broken))
    unusable = "spec" in broken or any(stage.tier not in context.sites for stage in plan.stages)
    if unusable or any(pair not in context.wires for pair in crossings(plan, context.gateway)):
        running = [stage for stage in plan.stages if stage.tier in context.sites]
        paid = sum(stage.replicas * context.weight(context.sites[stage.tier]) for stage in running)
        nothing = np.zeros(len(rates))
        return Course(nothing, nothing + np.inf, nothing, nothing + paid, leaks)
    rows = held_by_nodes(context, layout_of(context, plan)).where(np.zeros(len(rates), dtype=np.int64))
    table = evaluate(context, rows, rate=rates, bandwidths=links)
    most = table.response.capacity * BUSIEST
    limit = math.inf if context.policy.max_p95_seconds is None else context.policy.max_p95_seconds
    shares, p95, cost = _shares(limit, table.response), table.response.p95, table.cost
    over = np.flatnonzero(rates > most)
    if len(over):
        slower = {pair: rate[over] for pair, rate in links.items()}
        alone = evaluate(context, rows.where(over), rate=IDLE_RATE, bandwidths=slower).response
        shares[over], p95[over] = _shares(limit, alone), alone.p95
        # What is turned away leaves no tier, and costs nothing.
        cost[over] = evaluate(context, rows.where(over), rate=most[over], bandwidths=slower).cost
    return Course(shares, p95, most, cost, leaks)


def _shares(limit: float, response: Response) -> Array:
    return within(limit, response.p50s, response.p95, response.p99s)


def piled_up(rates: Array, most: Array, seconds: float) -> Array:
    """Requests that wait at the end of each bin of so many ``seconds``."""
    left = np.zeros(len(rates))
    if (rates <= most).all():
        return left
    pile = 0.0
    for place, more in enumerate(((rates - most) * seconds).tolist()):
        pile = min(MOST_WAITING, max(0.0, pile + more))
        left[place] = pile
    return left


def within(limit: float, p50: Array, p95: Array, p99: Array) -> Array:
    """Share of requests within ``limit``: log-normal between the known percentiles, and along the nearest two beyond.

    Below the median, where no plan is that keeps its limit, this can be far too high.
    """
    if math.isinf(limit):
        return np.ones(len(p95))
    shares = (p95 <= limit).astype(np.float64)
    able = np.flatnonzero((p50 > 0.0) & (p50 < p95) & (p95 < p99) & np.isfinite(p99))
    p50, p95, p99 = p50[able], p95[able], p99[able]
    low = limit < p95
    start, steep = np.where(low, _MEDIAN, _HIGH), np.where(low, _HIGH - _MEDIAN, _HIGHEST - _HIGH)
    base, top = np.where(low, p50, p95), np.where(low, p95, p99)
    above = start + steep / np.log(top / base) * np.log(limit / base)
    shares[able] = np.interp(above, _DEVIATIONS, _SHARES)
    return shares

"""What could have been had at best by someone who knew the traces: a dynamic programme over time.

It pays for switches as everyone does, and chooses at the same times among the plans that any strategy held and the best
ones for many moments of the traces. Requests that pile up are late only while they do, so it is a little too good.
"""

from collections.abc import Sequence

import numpy as np

from splitplane.domain.plans import Plan
from splitplane.planner import Kept, plan
from splitplane.planner.arrays import Array
from splitplane.planner.context import build_context
from splitplane.planner.gates import moves_pods
from splitplane.simulation.replaying import SWITCH_SECONDS, Scenario
from splitplane.simulation.serving import serve

_MOMENTS, _MOST = 48, 32
_HALVINGS = 24


def cheapest_cost(scenario: Scenario, held: Sequence[Plan], within: float) -> float:
    """The least cost per hour of a schedule that serves at least the share ``within`` of the requests in time.

    ``held`` are plans to choose from, besides those that suit single moments. NaN where no schedule serves as much.
    """
    plans = _plans(scenario, held)
    cost, late, requests = _outcomes(scenario, plans)
    hours = scenario.bins * scenario.arrivals.bin_seconds / 3600.0
    share = SWITCH_SECONDS / (scenario.every * scenario.arrivals.bin_seconds)
    moves = np.array([[share * moves_pods(old, new) for new in plans] for old in plans])
    most = (1.0 - within) * requests + 1e-9
    # The price of a late request is searched at which the cheapest schedule serves just enough.
    low, high = 0.0, 1e-6
    best, missed = _schedule(cost, late, moves, high)
    while missed > most:
        low, high = high, 10.0 * high
        if high > 1e6:
            return np.nan
        best, missed = _schedule(cost, late, moves, high)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        spent, missed = _schedule(cost, late, moves, middle)
        if missed <= most:
            best, high = min(best, spent), middle
        else:
            low = middle
    return best / hours


def _plans(scenario: Scenario, held: Sequence[Plan]) -> list[Plan]:
    kept, found = Kept(scenario.snapshot.profile), dict.fromkeys(held)
    for place in np.linspace(0, scenario.bins - 1, min(_MOMENTS, scenario.bins)).astype(int):
        target = plan(scenario.seen(int(place)), scenario.policy, 0.0, kept=kept).target
        if target is not None:
            found[target.plan] = None
    context = build_context(scenario.seen(0), scenario.policy, kept)
    return [each for each in found if not serve(context, each, 1.0, 0.0).leaks][:_MOST]


def _outcomes(scenario: Scenario, plans: Sequence[Plan]) -> tuple[Array, Array, float]:
    """Money and late requests by (step, plan), and how many requests there are."""
    steps, width = -(-scenario.bins // scenario.every), scenario.arrivals.bin_seconds
    cost, late, requests = np.zeros((steps, len(plans))), np.zeros((steps, len(plans))), 0.0
    kept = Kept(scenario.snapshot.profile)
    for place in range(scenario.bins):
        context = build_context(scenario.seen(place), scenario.policy, kept)
        requests += context.rate * width
        for column, each in enumerate(plans):
            outcome = serve(context, each, width, 0.0)
            cost[place // scenario.every, column] += outcome.cost * width / 3600.0
            late[place // scenario.every, column] += context.rate * width * (1.0 - outcome.within)
    return cost, late, requests


def _schedule(cost: Array, late: Array, moves: Array, price: float) -> tuple[float, float]:
    """Money and late requests of the schedule that is cheapest when a late request costs ``price``."""
    steps, count = cost.shape
    value, spent, missed = cost[0] + price * late[0], cost[0].copy(), late[0].copy()
    everyone = np.arange(count)
    for step in range(1, steps):
        paid = moves * cost[step][:, None]
        before = (value[:, None] + paid).argmin(axis=0)
        extra = paid[before, everyone]
        value = value[before] + extra + cost[step] + price * late[step]
        spent = spent[before] + extra + cost[step]
        missed = missed[before] + late[step]
    last = int(value.argmin())
    return float(spent[last]), float(missed[last])

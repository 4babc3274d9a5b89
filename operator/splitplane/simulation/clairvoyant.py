"""What could have been had at best by someone who knew the traces: a dynamic programme over time.

It pays for switches as everyone does, and chooses as often, but at least each minute, among the plans that any strategy
held and the best ones for many moments of the traces. Requests that pile up are late only while they do, so it is a
little too good.
"""

from collections.abc import Sequence

import numpy as np

from splitplane.domain.plans import Plan
from splitplane.planner import choose
from splitplane.planner.arrays import Array
from splitplane.planner.gates import moves_pods
from splitplane.simulation.replaying import SWITCH_SECONDS, Ground

_MOMENTS, _MOST = 48, 32
_HALVINGS = 24
_MOST_BINS = 2


def cheapest_cost(ground: Ground, held: Sequence[Plan], within: float) -> float:
    """The least cost per hour of a schedule that serves at least the share ``within`` of the requests in time.

    ``held`` are plans to choose from, besides those that suit single moments. NaN where no schedule serves as much.
    """
    plans = _plans(ground, held)
    if not plans:
        return np.nan
    cost, late, requests = _outcomes(ground, plans)
    share = SWITCH_SECONDS / (_every(ground) * ground.width)
    moves = np.array([[share * moves_pods(old, new) for new in plans] for old in plans])
    most = (1.0 - within + 1e-9) * requests
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
    return best / ground.hours


def _every(ground: Ground) -> int:
    """Bins from one choice to the next: no more than a minute, as strategies may also move when the load leaps."""
    return min(_MOST_BINS, ground.scenario.every)


def _plans(ground: Ground, held: Sequence[Plan]) -> list[Plan]:
    scenario, found = ground.scenario, dict.fromkeys(held)
    for place in np.linspace(0, scenario.bins - 1, min(_MOMENTS, scenario.bins)).astype(int):
        target = choose(scenario.seen(int(place)), scenario.policy, 0.0, kept=ground.kept).target
        if target is not None:
            found[target.plan] = None
    return [each for each in found if not ground.course(each).leaks][:_MOST]


def _outcomes(ground: Ground, plans: Sequence[Plan]) -> tuple[Array, Array, float]:
    """Money and late requests by (step, plan), and how many requests there are."""
    starts = np.arange(0, ground.scenario.bins, _every(ground))
    requests = ground.rates * ground.width
    cost, late = np.zeros((len(starts), len(plans))), np.zeros((len(starts), len(plans)))
    for column, each in enumerate(plans):
        course = ground.course(each)
        borne = np.where(ground.rates <= course.most, course.within, 0.0)
        cost[:, column] = np.add.reduceat(course.cost, starts) * ground.width / 3600.0
        late[:, column] = np.add.reduceat(requests * (1.0 - borne), starts)
    return cost, late, float(requests.sum())


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

"""What could have been had at best by someone who knew the traces: a dynamic programme over time.

It pays for switches as everyone does, and chooses as often, but at least each minute, among all plans that may be held
(``Ground.possible``). Requests that pile up are late only while they do, so it is a little too good. Where there are
more plans than are weighed, it chooses among those that any strategy held and the best ones for many moments.
What is told is what no schedule of the plans that are weighed costs less than, so that against those regret is never
told too low for want of search.
"""

from collections.abc import Sequence

import numpy as np

from splitplane.domain.plans import Plan
from splitplane.planner.arrays import Array
from splitplane.planner.gates import deployments
from splitplane.simulation.replaying import SWITCH_SECONDS, Ground, Outcomes

_MOMENTS = 48
_HALVINGS = 24


def cheapest_cost(ground: Ground, held: Sequence[Plan], within: float) -> float:
    """What no schedule that serves at least the share ``within`` of the requests in time costs less than, per hour.

    For any price of a late request, whoever serves as many pays no less than the schedule that is cheapest at that
    price, less what the late requests that are allowed cost there (weak duality); told is the highest such bound.
    Few schedules lie between it and the best one. ``held`` are plans to choose from, besides all others. NaN where
    no schedule serves as much.
    """
    scenario = ground.scenario
    places = np.linspace(0, scenario.bins - 1, min(_MOMENTS, scenario.bins)).astype(int)
    outcomes = ground.outcomes(held, (scenario.seen(int(place)) for place in places))
    if not outcomes.plans:
        return np.nan
    schedules = Schedules(ground, outcomes)
    allowed = (1.0 - within + 1e-9) * float((ground.rates * ground.width).sum())
    # The bound rises with the price while the cheapest schedule has more late requests than are allowed.
    low, high = 0.0, 1e-6
    bound, missed = _bound(schedules, low, allowed)
    while missed > allowed:
        if high > 1e6:
            return np.nan
        found, missed = _bound(schedules, high, allowed)
        bound = max(bound, found)
        low, high = (high, 10.0 * high) if missed > allowed else (low, high)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        found, missed = _bound(schedules, middle, allowed)
        bound = max(bound, found)
        low, high = (middle, high) if missed > allowed else (low, middle)
    return bound / ground.hours


def _bound(schedules: "Schedules", price: float, allowed: float) -> tuple[float, float]:
    spent, missed = schedules.cheapest(price)
    return spent + price * (missed - allowed), missed


class Schedules:
    """Plans in time. Those of one group have the same pods, so that to go from one to another costs nothing; to come
    from another group costs what the new plan does for as long as a switch takes. So only the best plan of each group
    counts, at each step."""

    def __init__(self, ground: Ground, outcomes: Outcomes) -> None:
        groups: dict[object, list[int]] = {}
        for place, plan in enumerate(outcomes.plans):
            groups.setdefault((plan.variant, deployments(plan)), []).append(place)
        self._parts = [(outcomes.cost[:, places], outcomes.late[:, places]) for places in groups.values()]
        self._switch = SWITCH_SECONDS / (ground.every * ground.width)

    def cheapest(self, price: float) -> tuple[float, float]:
        """Money and late requests of the schedule that is cheapest when a late request costs ``price``."""
        stay, stay_late = self._best(1.0, price)
        enter, enter_late = self._best(1.0 + self._switch, price)
        value, missed = stay[0].copy(), stay_late[0].copy()  # what serves first is there already
        for step in range(1, len(stay)):
            cheapest = int(value.argmin())
            entering = value[cheapest] + enter[step]
            value += stay[step]
            moved = entering < value
            missed = np.where(moved, missed[cheapest] + enter_late[step], missed + stay_late[step])
            np.minimum(value, entering, out=value)
        last = int(value.argmin())
        return float(value[last] - price * missed[last]), float(missed[last])

    def _best(self, times: float, price: float) -> tuple[Array, Array]:
        """By step and group, what the best plan costs if its money counts so many times, with its late requests, and
        how many these are."""
        steps = np.arange(len(self._parts[0][0]))
        value, late = (np.empty((len(steps), len(self._parts))) for _ in range(2))
        for group, (money, missed) in enumerate(self._parts):
            weighed = times * money + price * missed
            best = weighed.argmin(axis=1)
            value[:, group] = weighed[steps, best]
            late[:, group] = missed[steps, best]
        return value, late

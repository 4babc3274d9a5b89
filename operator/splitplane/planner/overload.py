"""What is borne at most where nothing carries the load."""

from collections.abc import Collection, Iterable

import numpy as np

from splitplane.domain.plans import Plan
from splitplane.planner.arrays import Array, Bools
from splitplane.planner.context import Context
from splitplane.planner.evaluation import evaluate
from splitplane.planner.frontier import find, same_plan
from splitplane.planner.layouts import Layout, layout_of, with_replicas
from splitplane.planner.lines import TRICKLE, Line, build_lines
from splitplane.planner.sides import ceiling


def highest_rate_of_lines(context: Context, without: Collection[Plan] = ()) -> float:
    """The highest rate that any plan but those of ``without`` bears at the utilisation ceiling, 0 if there is none."""
    highest = 0.0
    for line in build_lines(context, TRICKLE):
        rates = _rates(context, line)
        for plan in without:
            if (numbers := find(context, line, plan)) is not None:
                same = (line.first == numbers[0]) & (line.second == numbers[1])
                fewer = with_replicas(context, plan)
                rates[same] = 0.0 if fewer is None else highest_rate_of_layouts(context, [fewer], without)
        highest = max(highest, float(rates.max()))
    return highest


def highest_rate_of_layouts(context: Context, layouts: Iterable[Layout], without: Collection[Plan] = ()) -> float:
    """The same among the plans of some layouts."""
    highest = 0.0
    for layout in layouts:
        rates = evaluate(context, layout).max_rate
        left_out: list[Bools] = [same_plan(layout, layout_of(context, plan)) for plan in without]
        highest = max(highest, float(np.where(np.logical_or.reduce(left_out), 0.0, rates).max(initial=0.0)))
    return highest


def _rates(context: Context, line: Line) -> Array:
    """The rate that each row of a line bears with the most replicas."""
    rates = np.minimum(line.head.capacity[line.first], line.tail.capacity[line.second])
    if line.middle is not None:
        busy = line.middle.busy(line.first, line.second)
        rates = np.minimum(rates, line.middle.most * ceiling(context) / busy)
    if line.both is not None:  # whatever the two stages share out among them
        heads = np.arange(1.0, line.both.high)[:, None]
        near, far = line.head.busy[line.first], line.tail.busy[line.second]
        shared = np.minimum(heads / near, (line.both.high - heads) / far).max(axis=0)
        rates = np.minimum(rates, shared * ceiling(context))
    return rates

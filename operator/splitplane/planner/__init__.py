"""The planner: a pure function from what is known and allowed to what should serve. Imports domain only."""

from splitplane.planner.context import ContradictionError
from splitplane.planner.keeping import Kept
from splitplane.planner.planning import (
    choose,
    explain,
    frontier,
    indifference,
    left_out,
    plan,
    why_none,
    why_overloaded,
)
from splitplane.planner.replay import dump_call, from_dict, load_call, to_dict
from splitplane.planner.sites import plan_sites

__all__ = [
    "ContradictionError",
    "Kept",
    "choose",
    "dump_call",
    "explain",
    "from_dict",
    "frontier",
    "indifference",
    "left_out",
    "load_call",
    "plan",
    "plan_sites",
    "to_dict",
    "why_none",
    "why_overloaded",
]

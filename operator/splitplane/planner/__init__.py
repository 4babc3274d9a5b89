"""The planner: a pure function from what is known and allowed to what should serve. Imports domain only."""

from splitplane.planner.planning import plan
from splitplane.planner.replay import dump_call, from_dict, load_call, to_dict

__all__ = ["dump_call", "from_dict", "load_call", "plan", "to_dict"]

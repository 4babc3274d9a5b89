"""The planner: a pure function from what is known and allowed to what should serve. Imports domain only."""

from splitplane.planner.planning import plan

__all__ = ["plan"]

"""``splitplane plan``: what the planner would choose for a pipeline under conditions that the user states.

It needs no cluster: a pipeline and its ModelProfile from files are enough. The operator asks the same planner.
"""

from typing import Annotated

import typer

from splitplane.cli.conditions import Conditions
from splitplane.cli.plans import WAY_OUT, out, show, told_indifference, told_left_out, told_overloads
from splitplane.planner import dump_call
from splitplane.planner import plan as decide


def plan(
    conditions: Conditions,
    record: Annotated[bool, typer.Option(help="Print the planner's arguments as one line of JSON instead.")] = False,
) -> None:
    """Show the plan for a pipeline, its routes, and what other kinds of plan would give."""
    snapshot, policy = conditions.arguments()
    if record:
        typer.echo(dump_call(snapshot, policy, snapshot.time))
        return
    try:
        decision = decide(snapshot, policy, snapshot.time)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    out.print(f"{decision.reason}: {decision.message}", markup=False)
    chosen = [("chosen", decision.target)] if decision.target else []
    ways_out = [(WAY_OUT, route) for route in decision.routes[1:]]
    show([*chosen, *ways_out, *decision.alternatives.items()], rate=conditions.rate)
    for line in told_left_out(snapshot, policy, decision.message):
        out.print(line, markup=False)
    for line in told_overloads(snapshot, policy, [*chosen, *decision.alternatives.items()]):
        out.print(line, markup=False)
    if decision.target is not None:
        for line in told_indifference(snapshot, policy, decision.target.plan):
            out.print(line, markup=False)

"""``splitplane frontier``: all plans that none other beats in p95, cost, leak and accuracy loss."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from splitplane.cli.conditions import Conditions
from splitplane.cli.plans import out, per_thousand, show, told_left_out
from splitplane.cli.plots import check_picture, new_figure, save
from splitplane.domain.plans import Candidate
from splitplane.planner import frontier as find
from splitplane.planner import to_dict, why_none


def frontier(
    conditions: Conditions,
    most: Annotated[int, typer.Option(help="Rows to print, spread evenly by cost.", min=2)] = 30,
    plot: Annotated[Path | None, typer.Option(help="Draw p95 over cost into a file (PNG, SVG or PDF).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all plans as JSON.")] = False,
) -> None:
    """Show the plans to choose from: every other plan is at most as good in p95, cost, leak and accuracy loss."""
    if plot is not None:
        if as_json:
            raise typer.BadParameter("--json prints, --plot draws: give one of them")
        check_picture(plot)
    snapshot, policy = conditions.arguments()
    try:
        plans = find(snapshot, policy)
        why = "" if plans else why_none(snapshot, policy)
        lines = [why] * bool(why) + told_left_out(snapshot, policy, why)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for line in lines:
        typer.echo(line, err=as_json)
    if as_json:
        rows = [{**to_dict(plan), "costPerThousandRequests": per_thousand(plan, conditions.rate)} for plan in plans]
        typer.echo(json.dumps(_finite(rows), indent=2, allow_nan=False))
    elif plans and plot is not None:
        _draw(plans, conditions.rate, plot)
        out.print(f"{len(plans)} plans drawn into {plot}", markup=False)
    elif plans:
        out.print(f"{len(plans)} plans that no other beats, by cost", markup=False)
        show([("", plan) for plan in _spread(plans, most)], rate=conditions.rate)


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON has none for: a price that is unknown, a rate without a bound."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _spread(plans: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most so many, the first and the last included."""
    if len(plans) <= most:
        return list(plans)
    return [plans[round(place * (len(plans) - 1) / (most - 1))] for place in range(most)]


def _draw(plans: Sequence[Candidate], rate: float, path: Path) -> None:
    figure = new_figure(width=8, height=5)
    axes: Any = figure.subplots()
    for partitions in (1, 2, 3):
        for broken, marker in ((False, "o"), (True, "x")):
            group = [
                plan.predicted
                for plan in plans
                if len(plan.plan.stages) == partitions and bool(plan.violations) is broken
            ]
            if group:
                label = f"{partitions} partition{'s' * (partitions > 1)}" + ", breaks a limit" * broken
                costs, seconds = [each.cost_per_hour for each in group], [each.p95_seconds * 1e3 for each in group]
                axes.scatter(costs, seconds, color=f"C{partitions - 1}", marker=marker, s=18, label=label)
    axes.set(xlabel="cost per hour", ylabel="p95 (ms)", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_title(
        f"{len(plans)} plans that no other beats, at {rate:g} requests/s\n"
        "(what looks worse here shows less of the input, or loses less accuracy)",
        fontsize="medium",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)

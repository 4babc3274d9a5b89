"""``splitplane explain``: why the planner decides as it does, for a recorded decision or conditions that are stated."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from splitplane.cli.conditions import Conditions
from splitplane.cli.plans import out, show, show_routes
from splitplane.cli.recorded import Recorded, last_recorded
from splitplane.domain.plans import Candidate
from splitplane.domain.snapshots import Action, Decision
from splitplane.planner import explain as decide

_LIMITS = {
    "p95": "the limit on p95 latency",
    "cost": "the limit on cost per hour",
    "utilization": "how busy a stage or link may be",
    "privacy": "raw input stays on trusted tiers",
    "leak": "the limit on leaked input",
    "accuracy": "the limit on accuracy loss",
    "memory": "memory of the tiers' pods",
    "replicas": "replicas that the tiers may or can hold",
    "codecs": "codecs that are allowed",
    "partitions": "the number of partitions",
}


def explain(
    conditions: Conditions,
    call: Annotated[
        Path | None,
        typer.Option(help="A log with decisions that the operator recorded, the last of which is taken; - for stdin."),
    ] = None,
    pipeline: Annotated[
        str, typer.Option(metavar="NAMESPACE/NAME", help="Whose last decision is taken from the log of --call.")
    ] = "",
) -> None:
    """Tell which limits bind, what other kinds of plan would give, the gain of a change, the gate that holds it, and
    from which routes the gateway chooses as the link gets slower and faster."""
    heading = ""
    if call is not None:
        found, names = last_recorded(call, pipeline)
        snapshot, policy, now = found.snapshot, found.policy, found.now
        heading = _heading(found, names, chosen=bool(pipeline))
    elif pipeline:
        raise typer.BadParameter("--pipeline chooses from a log: give that as --call FILE")
    elif conditions.file is not None and conditions.profile is not None:
        snapshot, policy = conditions.arguments()
        now = snapshot.time
    else:
        raise typer.BadParameter("give --call FILE, or both --file and --profile")
    try:
        decision = decide(snapshot, policy, now)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if heading:
        out.print(heading, markup=False)
    for line in _lines(decision):
        out.print(line, markup=False)
    chosen = decision.target or decision.best
    rows = [("serves", decision.current), ("chosen", chosen), ("without gates", decision.best)]
    told: list[tuple[str, Candidate]] = []
    for name, candidate in rows:
        if candidate is not None and all(candidate.plan != other.plan for _, other in told):
            told.append((name, candidate))
    rate = decision.inputs.rate_per_second if decision.inputs else conditions.rate
    show([*told, *decision.alternatives.items()], rate=rate)
    if decision.routes:
        show_routes(decision.routes, decision.steps)


def _heading(found: Recorded, names: tuple[str, ...], *, chosen: bool) -> str:
    """Whose decision it is, and when it was made."""
    try:
        moment = f"{datetime.fromtimestamp(found.now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OSError, OverflowError, ValueError):
        moment = f"{found.now:g} s"
    which = f"{found.pipeline or 'A pipeline'} at {moment}"
    return which if chosen or len(names) < 2 else f"{which}; the log has {len(names)} pipelines: --pipeline chooses"


def _lines(decision: Decision) -> list[str]:
    lines = [f"{decision.action} ({decision.reason}): {decision.message}"]
    if decision.action is not Action.START and decision.current is not None and decision.best is not None:
        lines.append(f"Gain of the change in what is preferred: {decision.gain:.0%}")
        lines.append(f"Held by gate: {decision.gate}" if decision.gate else "Held by no gate")
    bound = [f"{name} ({_LIMITS[name]})" for name in decision.binding]
    lines.append(f"Limits that bind, each lifted alone: {', '.join(bound) or 'none'}")
    return lines

"""``splitplane explain``: why the planner decides as it does, for a recorded decision or conditions that are stated."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from splitplane.cli.conditions import Conditions
from splitplane.cli.plans import out, show, show_routes
from splitplane.domain.plans import Candidate
from splitplane.domain.snapshots import Action, Decision, Policy, Snapshot
from splitplane.planner import explain as decide
from splitplane.planner import load_call

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
) -> None:
    """Tell which limits bind, what other kinds of plan would give, the gain of a change, the gate that holds it, and
    from which routes the gateway chooses as the link gets slower and faster."""
    if call is not None:
        snapshot, policy, now = _recorded(call)
    elif conditions.file is not None and conditions.profile is not None:
        snapshot, policy = conditions.arguments()
        now = snapshot.time
    else:
        raise typer.BadParameter("give --call FILE, or both --file and --profile")
    try:
        decision = decide(snapshot, policy, now)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
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


def _recorded(path: Path) -> tuple[Snapshot, Policy, float]:
    """The last call that a log holds. Raises ``typer.BadParameter`` if there is none."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except OSError as error:
        raise typer.BadParameter(str(error)) from error
    for line in reversed(text.splitlines()):
        start = line.find('{"now":')
        if start >= 0:
            try:
                return load_call(line[start:].strip())
            except ValueError:
                continue
    raise typer.BadParameter(
        f"{path} holds no recorded decision: the operator's log has one at each switch and each new reason to hold"
    )


def _lines(decision: Decision) -> list[str]:
    lines = [f"{decision.action} ({decision.reason}): {decision.message}"]
    if decision.action is not Action.START and decision.current is not None and decision.best is not None:
        lines.append(f"Gain of the change in what is preferred: {decision.gain:.0%}")
        lines.append(f"Held by gate: {decision.gate}" if decision.gate else "Held by no gate")
    bound = [f"{name} ({_LIMITS[name]})" for name in decision.binding]
    lines.append(f"Limits that bind, each lifted alone: {', '.join(bound) or 'none'}")
    return lines

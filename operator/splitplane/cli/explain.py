"""``splitplane explain``: why the planner decides as it does, for what was recorded or conditions that are stated."""

from pathlib import Path
from typing import Annotated

import typer

from splitplane.cli.conditions import Conditions
from splitplane.cli.plans import out, show, show_routes, told_left_out, told_overloads
from splitplane.cli.recorded import About, Log, Recorded, RecordedGrants, RecordedPool, moment
from splitplane.cli.shared import show_grants, show_pool
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
        typer.Option(help="A log of the operator, of which the last record is taken; - for stdin."),
    ] = None,
    pipeline: Annotated[
        str, typer.Option(metavar="NAMESPACE/NAME", help="Whose last record is taken from the log of --call.")
    ] = "",
    about: Annotated[
        About | None,
        typer.Option(
            help="What of the log is explained: a decision, how many replicas the sites of a pipeline share, or what"
            " pipelines are granted of scarce nodes. The first of these that it has, if left out."
        ),
    ] = None,
) -> None:
    """Tell which limits bind, what other kinds of plan would give, the gain of a change, the gate that holds it, and
    from which routes the gateway chooses as the link gets slower and faster. Of what sites share: what it rests on, and
    what keeps it from being smaller or larger; of grants: what each claim asked for and got, and why."""
    heading = ""
    if call is not None:
        log = Log(call)
        found = log.last(about, pipeline)
        if not isinstance(found, Recorded):
            _show_shared(found, pipeline)
            return
        snapshot, policy, now = found.snapshot, found.policy, found.now
        heading = _heading(found, log.names(About.DECISION), chosen=bool(pipeline))
    elif pipeline or about:
        raise typer.BadParameter("--pipeline and --about choose from a log: give that as --call FILE")
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
    told: list[tuple[str, Candidate]] = []
    for name, candidate in [("serves", decision.current), ("chosen", chosen), ("without gates", decision.best)]:
        if candidate is not None and all(candidate.plan != other.plan for _, other in told):
            told.append((name, candidate))
    rate = decision.inputs.rate_per_second if decision.inputs else conditions.rate
    rows = [*told, *decision.alternatives.items()]
    show(rows, rate=rate)
    for line in told_left_out(snapshot, policy, decision.message, stated=call is None):
        out.print(line, markup=False)
    for line in told_overloads(snapshot, policy, rows):
        out.print(line, markup=False)
    if decision.routes:
        show_routes(decision.routes, decision.steps)


def _show_shared(found: RecordedPool | RecordedGrants, pipeline: str) -> None:
    try:
        if isinstance(found, RecordedPool):
            show_pool(found)
        else:
            show_grants(found, pipeline)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _heading(found: Recorded, names: tuple[str, ...], *, chosen: bool) -> str:
    """Whose decision it is, and when it was made."""
    which = f"{found.pipeline or 'A pipeline'} at {moment(found.now)}"
    return which if chosen or len(names) < 2 else f"{which}; the log has {len(names)} pipelines: --pipeline chooses"


def _lines(decision: Decision) -> list[str]:
    lines = [f"{decision.action} ({decision.reason}): {decision.message}"]
    if decision.action is not Action.START and decision.current is not None and decision.best is not None:
        lines.append(f"Gain of the change in what is preferred: {decision.gain:.0%}")
        lines.append(f"Held by gate: {decision.gate}" if decision.gate else "Held by no gate")
    bound = [f"{name} ({_LIMITS[name]})" for name in decision.binding]
    lines.append(f"Limits that bind, each lifted alone: {', '.join(bound) or 'none'}")
    return lines

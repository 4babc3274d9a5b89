"""``splitplane plan``: what the planner would choose for a pipeline under conditions that the user states.

It needs no cluster: a pipeline and its ModelProfile from files are enough. The operator asks the same planner.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from splitplane.api.fields import Model
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.policies import spec_price, to_policy, to_tier
from splitplane.api.profiles import ModelProfile, to_profile
from splitplane.domain.measurements import Value
from splitplane.domain.plans import Candidate
from splitplane.domain.snapshots import Decision, Link, Snapshot
from splitplane.local.config import parse_delay, parse_rate
from splitplane.planner import dump_call
from splitplane.planner import plan as decide

M = TypeVar("M", bound=Model)

_UNLIMITED_BYTES_PER_SECOND = 1.25e11

_out = Console(highlight=False, soft_wrap=True)
if not _out.is_terminal:
    _out.width = 200  # lines of a table stay whole where other programs read them


def plan(
    pipeline: Annotated[Path, typer.Argument(help="An InferencePipeline (YAML).")],
    profile: Annotated[Path, typer.Argument(help="Its ModelProfile: kubectl get mprof NAME -o yaml.")],
    rate: Annotated[float, typer.Option(help="Requests per second.", min=0.0)] = 1.0,
    scv: Annotated[
        float, typer.Option(help="Burstiness of arrivals: 0 for a metronome, 1 for independent users.", min=0.0)
    ] = 1.0,
    link: Annotated[
        list[str] | None, typer.Option(metavar="A:B=RATE,DELAY", help="Repeatable, as edge:cloud=50Mbit,2ms.")
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(metavar="TIER=PRICE", help="Per replica-hour, instead of pricePerHour.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(metavar="TIER", help="A tier without ready nodes.")] = None,
    record: Annotated[bool, typer.Option(help="Print the planner's arguments as one line of JSON instead.")] = False,
) -> None:
    """Show the plan for a pipeline, its routes, and what edge-only and cloud-only would give."""
    try:
        snapshot = _snapshot(
            _read(InferencePipeline, pipeline), _read(ModelProfile, profile),
            rate=rate, scv=scv, links=link or [], prices=price or [], without=without or [],
        )  # fmt: skip
        policy = to_policy(_read(InferencePipeline, pipeline).spec)
        if record:
            typer.echo(dump_call(snapshot, policy, snapshot.time))
            return
        _show(decide(snapshot, policy, snapshot.time))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise typer.BadParameter(str(error)) from error


def _read(kind: type[M], path: Path) -> M:
    data: Any = yaml.safe_load(path.read_text())
    if not isinstance(data, dict) or data.get("kind") != kind.__name__:
        raise ValueError(f"{path} holds no {kind.__name__}: give a file with that one resource")
    try:
        return kind.parse(data)
    except ValidationError as error:
        wrong = (f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors())
        raise ValueError(f"{path}: {'; '.join(wrong)}") from error


def _snapshot(
    pipeline: InferencePipeline, profile: ModelProfile, *,
    rate: float, scv: float, links: Sequence[str], prices: Sequence[str], without: Sequence[str],
) -> Snapshot:  # fmt: skip
    names = [tier.name for tier in pipeline.spec.tiers]
    stated = {}
    for text in prices:
        tier, _, amount = text.partition("=")
        stated[tier] = Value(_number(amount, text, "cloud=0.30"))
    for name in (*stated, *without):
        if name not in names:
            raise ValueError(f"the pipeline has no tier {name!r}: its tiers are {', '.join(names)}")
    return Snapshot(
        pipeline=pipeline.metadata.name,
        time=0.0,
        profile=to_profile(profile.spec),
        tiers=tuple(
            to_tier(
                tier,
                price_per_hour=stated.get(tier.name) or spec_price(tier),
                slots=0 if tier.name in without else tier.replicas.max,
                ready_nodes=0 if tier.name in without else 1,
            )
            for tier in pipeline.spec.tiers
        ),
        links=tuple(_link(text, names) for text in links),
        arrival_rate=Value(rate),
        arrival_scv=scv,
    )


def _link(text: str, tiers: Sequence[str]) -> Link:
    ends, _, numbers = text.partition("=")
    source, _, target = ends.partition(":")
    rate, _, delay = numbers.partition(",")
    if source not in tiers or target not in tiers or not rate:
        raise ValueError(f"link {text!r} is not of the form edge:cloud=50Mbit,2ms with tiers of {', '.join(tiers)}")
    bits = parse_rate(rate)
    bandwidth = _UNLIMITED_BYTES_PER_SECOND if bits is None else bits / 8.0
    return Link(source, target, Value(bandwidth), Value(parse_delay(delay or "0")))


def _number(text: str, whole: str, example: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{whole!r} is not of the form {example}") from None


def _show(decision: Decision) -> None:
    _out.print(f"{decision.reason}: {decision.message}", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "PLAN", "REPLICAS", "P95", "COST/H", "MAX RATE", "BREAKS"):
        table.add_column(column)
    if decision.target is not None:
        table.add_row("chosen", *_cells(decision.target))
    for route in decision.routes[1:]:
        table.add_row("way out", *_cells(route))
    for name, candidate in decision.alternatives.items():
        table.add_row(name, *_cells(candidate))
    _out.print(table)


def _cells(candidate: Candidate) -> tuple[str, ...]:
    predicted = candidate.predicted
    return (
        str(candidate.plan),
        "+".join(str(stage.replicas) for stage in candidate.plan.stages),
        f"{predicted.p95_seconds * 1e3:.0f} ms",
        f"{predicted.cost_per_hour:.2f}",
        f"{predicted.max_rate_per_second:.2f}/s",
        ", ".join(candidate.violations),
    )

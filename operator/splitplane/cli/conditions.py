"""The options by which commands of the planner take the conditions to plan under; no cluster is asked."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer
import yaml

from splitplane.cli.stated import Stated, stated
from splitplane.domain.measurements import MOST_SCV
from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner.lines import LONGEST

P = ParamSpec("P")

File = Annotated[Path | None, typer.Option("--file", "-f", help="An InferencePipeline (YAML).")]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", help="Its ModelProfile: kubectl get mprof NAME -o yaml.")
]

_RATE = 1.0
MOST_RATE = 1e9
"""Requests per second, far beyond what any tier bears: the planner's numbers stay numbers."""

Rate = Annotated[
    float | None,
    typer.Option("--rate", help="Requests per second.", min=0.0, max=MOST_RATE, show_default=f"{_RATE:g}"),
]
Scv = Annotated[
    float,
    typer.Option(help="Burstiness of arrivals: 0 for a metronome, 1 for independent users.", min=0.0, max=MOST_SCV),
]
Partitions = Annotated[
    int | None,
    typer.Option(
        "--max-partitions",
        help="For the pipeline's maxPartitions. Three are only weighed: the operator makes two at most.",
        min=1,
        max=3,
    ),
]
Return = Annotated[
    bool,
    typer.Option(
        "--allow-return",
        help="Also weigh plans that come back to a tier, as edge to cloud to edge: three partitions, of which the last"
        " is on the tier of the first. Only weighed: the operator makes none.",
    ),
]
Bandwidth = Annotated[
    list[str] | None,
    typer.Option(metavar="[A:B=]RATE[,DELAY]", help="Of all links, as 50Mbit, or of one, as edge:cloud=50Mbit,2ms."),
]
Price = Annotated[list[str] | None, typer.Option(metavar="TIER=PRICE", help="Per replica-hour, for pricePerHour.")]
PerUse = Annotated[
    list[str] | None,
    typer.Option(
        "--pay-per-use",
        metavar="TIER=PRICE[/s][,DELAY]",
        help="Capacity of a tier that is paid by the request, or (/s) by the second that one takes, and by how much"
        " longer one takes there: cloud=0.00002/s,40ms. Only weighed: the operator has none.",
    ),
]
Exit = Annotated[
    list[str] | None,
    typer.Option(
        "--exit",
        metavar="CUT=SHARE",
        help="Share of all requests that would get their answer at a cut: 3=0.4. Only weighed: no model leaves early.",
    ),
]
Without = Annotated[list[str] | None, typer.Option(metavar="TIER", help="A tier without ready nodes.")]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        metavar="NAME=PROFILE:LOSS",
        help="A model that may answer in its stead, such as a distilled one: the file of its ModelProfile, and the"
        " share of accuracy that it loses: tiny=tiny.yaml:0.02. Only weighed: the operator serves one model.",
    ),
]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a user states to the planner: each field is an option of every command ``under_conditions``."""

    file: File = None
    profile: ProfileFile = None
    stated_rate: Rate = None
    scv: Scv = 1.0
    bandwidth: Bandwidth = None
    price: Price = None
    per_use: PerUse = None
    early: Exit = None
    partitions: Partitions = None
    allow_return: Return = False
    without: Without = None
    variants: Variants = None

    @property
    def rate(self) -> float:
        """Requests per second, stated or not."""
        return _RATE if self.stated_rate is None else self.stated_rate

    def arguments(self) -> tuple[Snapshot, Policy]:
        """What the planner would be asked. Raises ``typer.BadParameter``, saying what to write instead."""
        found = self.read()
        return found.snapshot, found.policy

    def read(self) -> Stated:
        """All that is stated. Tells on standard error what the operator does otherwise. Raises as ``arguments``."""
        if self.file is None or self.profile is None:
            raise typer.BadParameter("give both --file and --profile")
        try:
            found = stated(
                self.file, self.profile, rate=self.rate, scv=self.scv, bandwidths=self.bandwidth or (),
                prices=self.price or (), without=self.without or (), per_use=self.per_use or (),
                exits=self.early or (), variants=self.variants or (),
            )  # fmt: skip
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise typer.BadParameter(str(error)) from error
        for remark in found.remarks:
            typer.echo(remark, err=True)
        partitions = self.partitions or (LONGEST if self.allow_return else found.policy.max_partitions)
        if self.allow_return and partitions < LONGEST:
            raise typer.BadParameter("a plan that comes back has 3 partitions: --allow-return needs --max-partitions 3")
        policy = replace(found.policy, max_partitions=partitions, allow_return=self.allow_return)
        return replace(found, policy=policy)


_FILES = ("file", "profile")


def under_conditions(command: Callable[Concatenate[Conditions, P], None], *, files: bool = True) -> Callable[..., None]:
    """The command with the options of ``Conditions`` in place of its first parameter, for Typer. It must be given
    ``files``, or may be without."""

    def run(**options: Any) -> None:
        given = {field.name: options.pop(field.name) for field in fields(Conditions)}
        command(Conditions(**given), **options)  # type: ignore[call-arg]

    hints = get_type_hints(Conditions, include_extras=True)
    named = [
        Parameter(
            field.name, Parameter.KEYWORD_ONLY, annotation=hints[field.name],
            default=Parameter.empty if files and field.name in _FILES else field.default,
        )
        for field in fields(Conditions)
    ]  # fmt: skip
    _, *more = signature(command, eval_str=True).parameters.values()
    own = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in more]
    run.__signature__ = Signature([*named, *own])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*named, *own)}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run

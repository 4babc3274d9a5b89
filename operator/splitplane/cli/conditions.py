"""A pipeline, its profile and the conditions that a user states, as the planner's arguments; no cluster is asked."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml
from pydantic import ValidationError

from splitplane.api.fields import Model
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.policies import spec_price, to_policy, to_tier
from splitplane.api.profiles import ModelProfile, ModelProfileSpec, to_profile
from splitplane.domain.measurements import Value
from splitplane.domain.snapshots import Link, PayPerUse, Policy, Snapshot
from splitplane.local.config import parse_delay, parse_rate

M = TypeVar("M", bound=Model)

File = Annotated[Path, typer.Option("--file", "-f", help="An InferencePipeline (YAML).")]
ProfileFile = Annotated[Path, typer.Option("--profile", help="Its ModelProfile: kubectl get mprof NAME -o yaml.")]


def finite(value: float) -> float:
    """The value of an option. Raises ``typer.BadParameter`` for infinity and what is no number."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


Rate = Annotated[float, typer.Option(help="Requests per second.", min=0.0, callback=finite)]
Scv = Annotated[
    float,
    typer.Option(help="Burstiness of arrivals: 0 for a metronome, 1 for independent users.", min=0.0, callback=finite),
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

Texts = Sequence[str] | None

_UNLIMITED_BYTES_PER_SECOND = 1.25e11


def arguments(
    file: Path, profile: Path, *,
    rate: float, scv: float, bandwidth: Texts, price: Texts, without: Texts, per_use: Texts, exits: Texts,
    partitions: int | None,
) -> tuple[Snapshot, Policy]:  # fmt: skip
    """What the planner would be asked. Raises ``typer.BadParameter``, saying what to write instead."""
    try:
        pipeline, measured = _read(InferencePipeline, file), _read(ModelProfile, profile)
        _check_lengths(measured.spec, profile)
        snapshot = _snapshot(
            pipeline, measured, rate, scv, bandwidth or (), price or (), without or (), per_use or ()
        )  # fmt: skip
        policy = to_policy(pipeline.spec)
        if partitions is not None:
            policy = replace(policy, max_partitions=partitions)
        return replace(snapshot, reach=_reach(exits or (), len(snapshot.profile.cuts))), policy
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


def _check_lengths(profile: ModelProfileSpec, path: Path) -> None:
    """What the API server would have refused. Raises ``ValueError``."""
    cuts = len(profile.cuts)
    if len(profile.segments) != cuts - 1:
        raise ValueError(f"{path}: {cuts} cuts bound {cuts - 1} segments, not {len(profile.segments)}")
    for device in profile.devices:
        for prefixes in (device.prefix_nanoseconds, *(timing.prefix_nanoseconds for timing in device.timings)):
            if len(prefixes) != cuts:
                raise ValueError(
                    f"{path}: device class {device.device_class} has {len(prefixes)} times for {cuts} cuts"
                )


def _snapshot(
    pipeline: InferencePipeline, profile: ModelProfile, rate: float, scv: float,
    bandwidths: Sequence[str], prices: Sequence[str], without: Sequence[str], per_use: Sequence[str],
) -> Snapshot:  # fmt: skip
    names = [tier.name for tier in pipeline.spec.tiers]
    stated = {}
    for text in prices:
        tier, _, amount = text.partition("=")
        stated[tier] = Value(_number(amount, text, "cloud=0.30"))
    offers = dict(_per_use(text) for text in per_use)
    for name in (*stated, *without, *offers):
        if name not in names:
            raise ValueError(f"the pipeline has no tier {name!r}: its tiers are {', '.join(names)}")
    links = {(link.source, link.target): link for text in bandwidths for link in _links(text, names)}
    return Snapshot(
        pipeline=pipeline.metadata.name,
        time=0.0,
        profile=to_profile(profile.spec),
        tiers=tuple(
            replace(
                to_tier(
                    tier,
                    price_per_hour=stated.get(tier.name) or spec_price(tier),
                    slots=0 if tier.name in without else tier.replicas.max,
                    ready_nodes=0 if tier.name in without else 1,
                ),
                pay_per_use=offers.get(tier.name),
            )
            for tier in pipeline.spec.tiers
        ),
        links=tuple(links.values()),
        arrival_rate=Value(rate),
        arrival_scv=scv,
    )


def _links(text: str, tiers: Sequence[str]) -> list[Link]:
    """The links that one option states: one, or those between all tiers."""
    ends, one, numbers = text.rpartition("=")
    source, _, target = ends.partition(":")
    rate, _, delay = numbers.partition(",")
    if not rate or (one and not (source in tiers and target in tiers and source != target)):
        form = f"50Mbit, or edge:cloud=50Mbit,2ms with tiers of {', '.join(tiers)}"
        raise ValueError(f"bandwidth {text!r} is not of the form {form}")
    bits = parse_rate(rate)
    bandwidth = Value(_UNLIMITED_BYTES_PER_SECOND if bits is None else bits / 8.0)
    pairs = [(source, target)] if one else [(a, b) for a in tiers for b in tiers if a != b]
    return [Link(*pair, bandwidth, Value(parse_delay(delay or "0"))) for pair in pairs]


def _per_use(text: str) -> tuple[str, PayPerUse]:
    """A tier and what it offers: ``cloud=0.0001``, ``cloud=0.00002/s,40ms``."""
    tier, _, numbers = text.partition("=")
    price, _, delay = numbers.partition(",")
    amount = _number(price.removesuffix("/s"), text, "cloud=0.0001, or cloud=0.00002/s,40ms")
    extra = parse_delay(delay or "0")
    if price.endswith("/s"):
        return tier, PayPerUse(price_per_second=amount, extra_seconds=extra)
    return tier, PayPerUse(price_per_request=amount, extra_seconds=extra)


def _reach(texts: Sequence[str], cuts: int) -> tuple[float, ...]:
    """Share of the requests that are still on their way at each cut; empty where none leaves early."""
    reach = [1.0] * cuts
    for text in texts:
        cut, _, share = text.partition("=")
        gone = _number(share, text, "3=0.4")
        if not (cut.isdecimal() and 0 < int(cut) < cuts - 1 and 0.0 <= gone < reach[-1]):
            raise ValueError(f"{text!r} is no cut from 1 to {cuts - 2} with a share below {reach[-1]:g}, such as 3=0.4")
        reach[int(cut) :] = [stay - gone for stay in reach[int(cut) :]]
    return tuple(reach) if texts else ()


def _number(text: str, whole: str, example: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{whole!r} is not of the form {example}") from None
    if not (math.isfinite(number) and number >= 0.0):
        raise ValueError(f"{whole!r}: {text} is not a finite number from 0")
    return number

"""A pipeline, its profile and the conditions that a user states, as the planner's arguments; no cluster is asked."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from splitplane.api.fields import Model
from splitplane.api.pipelines import InferencePipeline, InferencePipelineSpec
from splitplane.api.policies import spec_price, to_policy, to_tier
from splitplane.api.profiles import ModelProfile, ModelProfileSpec, to_profile
from splitplane.domain.measurements import Value
from splitplane.domain.profiles import Profile
from splitplane.domain.snapshots import Link, PayPerUse, Policy, Snapshot, Variant
from splitplane.local.config import parse_delay, parse_rate

M = TypeVar("M", bound=Model)

_UNLIMITED_BYTES_PER_SECOND = 1.25e11
_HIGHEST_PRICE = 1e9
"""Far beyond any price, and small enough for sums and products of prices to stay finite."""


@dataclass(frozen=True, slots=True)
class Stated:
    """The planner's arguments, and what of the pipeline they do not hold."""

    snapshot: Snapshot
    policy: Policy
    interval_seconds: float
    """How often the operator plans."""
    remarks: tuple[str, ...] = ()
    """What the operator does otherwise with this pipeline, a sentence each."""


def stated(
    file: Path, profile: Path, *,
    rate: float, scv: float, bandwidths: Sequence[str], prices: Sequence[str], without: Sequence[str],
    per_use: Sequence[str], exits: Sequence[str], variants: Sequence[str],
) -> Stated:  # fmt: skip
    """What the planner would be asked, from files and texts of options.

    Raises ``ValueError``, saying what to write instead, ``OSError`` or ``yaml.YAMLError``.
    """
    pipeline, measured = _read(InferencePipeline, file), _profile(profile)
    snapshot = _snapshot(pipeline, measured, rate, scv, bandwidths, prices, without, per_use)
    snapshot = replace(
        snapshot,
        reach=_reach(exits, len(measured.cuts)),
        variants=tuple(_variant(text, measured) for text in variants),
    )
    interval = float(pipeline.spec.replanning.interval_seconds)
    return Stated(snapshot, to_policy(pipeline.spec), interval, _remarks(pipeline.spec))


def _remarks(spec: InferencePipelineSpec) -> tuple[str, ...]:
    remarks = []
    if spec.sites is not None:
        shared = spec.sites.shared_tier
        remarks.append("The pipeline has sites: this is one of them alone, which may spend all of maxCostPerHour")
        if shared is not None:
            remarks.append(f"The operator sizes replicas in tier {shared} for all sites together, not for one")
    if spec.suspend:
        remarks.append("The pipeline is suspended: the operator keeps what serves, and makes no plan")
    return tuple(remarks)


def _profile(path: Path) -> Profile:
    measured = _read(ModelProfile, path)
    _check_lengths(measured.spec, path)
    return to_profile(measured.spec)


def _variant(text: str, reference: Profile) -> Variant:
    name, _, rest = text.partition("=")
    path, _, loss = rest.rpartition(":")
    form = "tiny=tiny.yaml:0.02, with what it loses in accuracy beside the pipeline's model"
    if not re.fullmatch(r"[\w.-]+", name) or not path:
        raise ValueError(f"{text!r} is not of the form {form}")
    lost = _number(loss, text, form)
    if lost > 1.0:
        raise ValueError(f"{text!r}: a model loses a share of accuracy from 0 to 1, not {loss}")
    profile = _profile(Path(path))
    for what, place in (("inputs", 0), ("outputs", -1)):
        kinds = [[(each.datatype, each.shape) for each in one.cuts[place].tensors] for one in (reference, profile)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{path}: a variant has the same {what} as the pipeline's model, {kinds[0]}, not {kinds[1]}"
            )
    return Variant(name, profile, lost)


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
    pipeline: InferencePipeline, profile: Profile, rate: float, scv: float,
    bandwidths: Sequence[str], prices: Sequence[str], without: Sequence[str], per_use: Sequence[str],
) -> Snapshot:  # fmt: skip
    names = [tier.name for tier in pipeline.spec.tiers]
    _once("--price", [text.partition("=")[0] for text in prices])
    _once("--pay-per-use", [text.partition("=")[0] for text in per_use])
    _once("--bandwidth", [text.rpartition("=")[0] for text in bandwidths])
    stated = {}
    for text in prices:
        tier, _, amount = text.partition("=")
        stated[tier] = Value(_price(amount, text, "cloud=0.30"))
    offers = dict(_per_use(text) for text in per_use)
    for name in (*stated, *without, *offers):
        if name not in names:
            raise ValueError(f"the pipeline has no tier {name!r}: its tiers are {', '.join(names)}")
    # What is stated of one link holds before what is of all.
    general_first = sorted(bandwidths, key=lambda text: "=" in text)
    links = {(link.source, link.target): link for text in general_first for link in _links(text, names)}
    return Snapshot(
        pipeline=pipeline.metadata.name,
        time=0.0,
        profile=profile,
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


def _once(option: str, names: Sequence[str]) -> None:
    """Raises ``ValueError`` where an option says two things of the same; an empty name is all."""
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"{option} is given {times} times for {name or 'all links'}: give it once")


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
    amount = _price(price.removesuffix("/s"), text, "cloud=0.0001, or cloud=0.00002/s,40ms")
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


def _price(text: str, whole: str, example: str) -> float:
    price = _number(text, whole, example)
    if price > _HIGHEST_PRICE:
        raise ValueError(f"{whole!r}: a price is at most {_HIGHEST_PRICE:g}")
    return price


def _number(text: str, whole: str, example: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{whole!r} is not of the form {example}") from None
    if not (math.isfinite(number) and number >= 0.0):
        raise ValueError(f"{whole!r}: {text} is not a finite number from 0")
    return number

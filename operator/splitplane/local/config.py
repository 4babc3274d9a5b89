"""What a user may say about the embedded cluster: its nodes, and the links between tiers."""

import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from splitplane.local.errors import LocalError

TIER_LABEL = "splitplane.dev/tier"

_RATE_UNITS = {"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def _quantity(value: object, units: dict[str, float], example: str) -> float:
    text = str(value).strip()
    match = re.fullmatch(r"([0-9.]+)\s*([a-zA-Z]+)", text)
    if not match or match[2].lower() not in units:
        raise ValueError(
            f"{text!r} is not a number with one of the units {', '.join(units)}; write for example {example}"
        )
    try:
        return float(Decimal(match[1])) * units[match[2].lower()]
    except InvalidOperation:
        raise ValueError(f"{match[1]!r} is not a number; write for example {example}") from None


def parse_rate(value: object) -> float | None:
    """Bits per second of ``3Mbit`` and the like; None for ``unlimited``.

    Raises:
        ValueError: not a rate; the message shows one.
    """
    if value is None or isinstance(value, float):
        return value
    if str(value).lower() == "unlimited":
        return None
    rate = _quantity(value, _RATE_UNITS, "3Mbit")
    if rate < 1000:
        raise ValueError(f"a rate of {value} is below 1kbit: to cut the link, take it down")
    return rate


def parse_delay(value: object) -> float:
    """Seconds of ``5ms`` and the like.

    Raises:
        ValueError: not a time; the message shows one.
    """
    if isinstance(value, float):
        return value
    if str(value) == "0":
        return 0.0
    delay = _quantity(value, _TIME_UNITS, "5ms")
    if delay > 60:
        raise ValueError(f"a delay of {value} is longer than 60s")
    return delay


def format_rate(bits_per_second: float | None) -> str:
    if bits_per_second is None:
        return "unlimited"
    for unit in ("Gbit", "Mbit", "kbit"):
        scale = _RATE_UNITS[unit.lower()]
        if bits_per_second >= scale:
            return f"{bits_per_second / scale:g}{unit}"
    return f"{bits_per_second:g}bit"


def format_delay(seconds: float) -> str:
    return f"{seconds * 1e3:g}ms"


Rate = Annotated[float | None, BeforeValidator(parse_rate), PlainSerializer(format_rate)]
Delay = Annotated[float, BeforeValidator(parse_delay), PlainSerializer(format_delay)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"), BeforeValidator(str)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Taint(_Model):
    key: str = Field(min_length=1, max_length=317)
    value: str = Field(default="", max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class NodeConfig(_Model):
    """One node. ``tier`` becomes the label ``splitplane.dev/tier``."""

    name: Name
    tier: Name | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    cpu: Quantity = "4"
    memory: Quantity = "8Gi"
    speed_factor: float = Field(default=1.0, ge=1.0, le=1000.0)
    """How many times slower than this machine the node's device is."""
    price_per_hour: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)

    @property
    def all_labels(self) -> dict[str, str]:
        return {**self.labels, **({TIER_LABEL: self.tier} if self.tier else {})}


class LinkConfig(_Model):
    """The link between two tiers, alike in both directions. All nodes of a tier share it: a tier is a site."""

    between: tuple[Name, Name]
    rate: Rate = None
    """Bits per second in each direction; None is unlimited."""
    delay: Delay = 0.0
    """Seconds from one end to the other."""
    down: bool = False

    @property
    def key(self) -> tuple[str, str]:
        first, second = sorted(self.between)
        return first, second


class ClusterConfig(_Model):
    nodes: tuple[NodeConfig, ...] = Field(max_length=32)
    """None at all is an API server to test against, ready in seconds."""
    links: tuple[LinkConfig, ...] = ()

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        _unique("node", (node.name for node in self.nodes))
        _unique("link", ("-".join(link.key) for link in self.links))
        for link in self.links:
            check_tiers(self, link.between)
        return self

    @property
    def tiers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node.tier for node in self.nodes if node.tier))

    def node(self, name: str) -> NodeConfig:
        """The node called ``name``.

        Raises:
            LocalError: there is none; the message names those that exist.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise LocalError(f"There is no node {name!r} in this cluster; it has {', '.join(n.name for n in self.nodes)}.")

    def all_links(self, known: Iterable[LinkConfig]) -> tuple[LinkConfig, ...]:
        """One link per pair of tiers: from ``known``, else unlimited."""
        by_key = {link.key: link for link in known}
        pairs = [pair for pair in combinations_with_replacement(sorted(self.tiers), 2) if pair[0] != pair[1]]
        return tuple(by_key.get(pair) or LinkConfig(between=pair) for pair in pairs)


def check_tiers(config: ClusterConfig, between: tuple[str, str]) -> None:
    """Refuse a link that the cluster cannot have.

    Raises:
        ValueError: an end is no tier of this cluster, or both are the same.
    """
    for tier in between:
        if tier not in config.tiers:
            raise ValueError(f"there is no tier {tier!r}; the nodes have {', '.join(config.tiers) or 'no tiers'}")
    if between[0] == between[1]:
        raise ValueError(f"a link joins two tiers, not {between[0]!r} with itself")


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"there are two {what}s {name!r}")
        seen.add(name)


_EDGE = {"tier": "edge", "taints": [{"key": TIER_LABEL, "value": "edge"}], "pricePerHour": 0.05}

DEFAULT = ClusterConfig.model_validate({
    "nodes": [
        {"name": "system-1", "pricePerHour": 0.02},
        {"name": "edge-1", **_EDGE},
        {"name": "edge-2", **_EDGE},
        {"name": "cloud-1", "tier": "cloud", "pricePerHour": 0.40},
    ]
})  # fmt: skip


def load(path: Path) -> ClusterConfig:
    """Read a cluster's configuration from YAML.

    Raises:
        LocalError: the file cannot be read or breaks a rule; the message names the field.
    """
    try:
        return ClusterConfig.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise LocalError(f"Cannot read the cluster's configuration: {error}") from error
    except ValidationError as error:
        details = "\n".join(
            f"  {'.'.join(str(part) for part in item['loc']) or 'configuration'}: {item['msg']}"
            for item in error.errors()
        )
        raise LocalError(f"{path} does not describe a cluster:\n{details}") from error


def dump(config: ClusterConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False)

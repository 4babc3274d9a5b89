"""Building blocks of the resource models, and how a rule travels from Python into the CRD's schema.

One pattern serves two readers: pydantic checks it here, and the generated schema carries it as a CEL rule with a
message, because the API server's own answer to a failed ``pattern`` shows a regular expression and no advice.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from splitplane.domain.times import timestamp

GROUP = "splitplane.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DECIMAL = r"^[0-9]{1,15}([.][0-9]{1,12})?$"
QUANTITY = r"^[+]?([0-9]+|[0-9]+[.][0-9]*|[.][0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
LARGEST = 2**53
"""Largest integer of a resource: the largest that every JSON reader takes in exactly."""


class Model(BaseModel):
    """A frozen part of a resource: camelCase outside, snake_case inside; unknown fields are left to the API server."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        extra="ignore",
        frozen=True,
    )

    def dump(self) -> dict[str, Any]:
        """The JSON form that the API server takes: camelCase keys, no absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read what the API server returned. Raises ``pydantic.ValidationError``, which names the wrong fields."""
        return cls.model_validate(dict(obj))


def rule(expression: str, message: str, *, field: str = "") -> dict[str, str]:
    """A CEL rule; ``field`` is the path (``.a.b``) that the API server names in its answer.

    Messages are fixed texts: the API server reckons any message made from the object's own strings as too costly.
    """
    entry = {"rule": expression, "message": message}
    if field:
        entry["fieldPath"] = field
    return entry


def rules(*entries: dict[str, str]) -> ConfigDict:
    """A model's configuration with the CEL rules that hold across its fields."""
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": [dict(entry) for entry in entries]})


def text(pattern: str, message: str, *, least: int = 1, longest: int) -> Any:
    """Constraints of a string with a form; ``message`` says what the form is, by example where that is shorter."""
    escaped = pattern.replace("\\", "\\\\").replace("'", "\\'")
    return StringConstraints(pattern=pattern, max_length=longest, min_length=least), WithJsonSchema(
        {
            "type": "string",
            "minLength": least,
            "maxLength": longest,
            "x-kubernetes-validations": [rule(f"self.matches('{escaped}')", message)],
        }
    )


def keyed(*keys: str, least: int = 0, most: int) -> Any:
    """A list whose items are told apart by ``keys``: the API server refuses twins, server-side apply merges by them."""
    extra: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
    return Field(min_length=least or None, max_length=most, json_schema_extra=extra)


def ordered(*, least: int = 0, most: int) -> Any:
    """A list that is replaced as a whole, because its order means something."""
    return Field(min_length=least or None, max_length=most, json_schema_extra={"x-kubernetes-list-type": "atomic"})


def distinct(*, least: int = 0, most: int) -> Any:
    """A list of scalars without repetitions."""
    return Field(min_length=least or None, max_length=most, json_schema_extra={"x-kubernetes-list-type": "set"})


def between(least: int, most: int) -> FieldInfo:
    """Inclusive limits of an integer."""
    info: FieldInfo = Field(ge=least, le=most)
    return info


def at_most(length: int) -> FieldInfo:
    """A string without a form, but with a limit."""
    info: FieldInfo = Field(max_length=length)
    return info


def _utc(moment: datetime) -> str:
    return timestamp(moment.timestamp())


_name, _name_schema = text(NAME, "must be lower-case letters, digits and inner dashes, such as edge-1", longest=63)
_decimal, _decimal_schema = text(
    DECIMAL, 'must be a decimal number in quotes, zero or more, without an exponent, such as "0.80"', longest=28
)
_share, _share_schema = text(
    "^(0([.][0-9]{1,6})?|1([.]0{1,6})?)$", 'must be a number from 0 to 1 in quotes, such as "0.30"', longest=8
)
_tier, _tier_schema = text(NAME, "must be lower-case letters, digits and inner dashes, such as edge", longest=20)

Name = Annotated[str, _name, _name_schema]
TierName = Annotated[str, _tier, _tier_schema]
DecimalString = Annotated[str, _decimal, _decimal_schema]
"""A non-negative decimal in a string: JSON numbers with a fraction do not survive every client unchanged."""
Share = Annotated[str, _share, _share_schema]
"""A part of a whole, as a decimal in a string."""
Timestamp = Annotated[
    datetime, PlainSerializer(_utc, return_type=str), WithJsonSchema({"type": "string", "format": "date-time"})
]
Quantity = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
    StringConstraints(pattern=QUANTITY, max_length=32),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "x-kubernetes-validations": [
                rule(
                    "isQuantity(string(self)) && !string(self).startsWith('-')",
                    'must be a quantity, zero or more, such as 2, "500m" or "512Mi"',
                )
            ],
        }
    ),
]
"""A Kubernetes quantity that is not negative, as a string or a whole number."""
Codec = Literal[
    "fp32", "fp32+zstd", "fp16", "fp16+zstd", "bf16", "bf16+zstd", "int8", "int8+zstd", "int4", "int4+zstd"
]  # fmt: skip
"""``domain.profiles.CODECS``."""
Count = Annotated[int, between(0, LARGEST)]


def decimal_string(value: float, *, digits: int = 6) -> str:
    """``value`` as a ``DecimalString`` of up to ``digits`` places. Raises ``ValueError`` if negative or not finite."""
    if not 0 <= value < 1e15:
        raise ValueError(f"{value} is not a finite number from 0 to 1e15, so a resource cannot hold it")
    written = f"{Decimal(repr(float(value))):.{digits}f}"
    return written.rstrip("0").rstrip(".") if "." in written else written


def decimal_or_none(value: float, *, digits: int = 6) -> str | None:
    """``value`` as a ``DecimalString``; ``None`` for what is no finite number below 1e15. Below zero counts as zero."""
    # NaN compares as false, so it ends up with infinity.
    return decimal_string(max(0.0, value), digits=digits) if value < 1e15 else None


class Condition(Model):
    """One aspect of a resource's state, in the form that kubectl and kstatus understand."""

    type: Annotated[str, at_most(316)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, at_most(1024)]
    message: Annotated[str, at_most(32768)] = ""
    last_transition_time: Timestamp
    observed_generation: Count = 0


class Metadata(Model):
    """The part of an object's metadata that Splitplane reads."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    deletion_timestamp: datetime | None = None
    creation_timestamp: datetime | None = None

"""A decision's arguments as JSON, so that any decision can be kept, replayed and explained later, bit for bit."""

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from splitplane.domain.measurements import Error, Idle, Missing, Stale, Value
from splitplane.domain.snapshots import Policy, Snapshot

T = TypeVar("T")

_MEASUREMENTS = {kind.__name__: kind for kind in (Value, Idle, Missing, Stale, Error)}
_KIND = "kind"


def dump_call(snapshot: Snapshot, policy: Policy, now: float) -> str:
    """One line of JSON that holds the arguments of ``plan``. Floats keep all their digits."""
    call = {"snapshot": to_dict(snapshot), "policy": to_dict(policy), "now": now}
    return json.dumps(call, sort_keys=True, separators=(",", ":"))


def load_call(line: str) -> tuple[Snapshot, Policy, float]:
    """The inverse of ``dump_call``. Raises ``ValueError`` for anything else."""
    try:
        call = json.loads(line)
        return from_dict(Snapshot, call["snapshot"]), from_dict(Policy, call["policy"]), float(call["now"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a recorded call of the planner: {error!r}") from error


def to_dict(value: Any) -> Any:
    """Frozen values of ``domain`` as plain JSON types."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
        name = type(value).__name__
        return {_KIND: name, **fields} if name in _MEASUREMENTS else fields
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(to_dict(item) for item in value)
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def digest(value: Any) -> str:
    """Ten hexadecimal digits that name a value: equal ones have the same, in any process and once read back."""
    plain = json.loads(json.dumps(to_dict(value)), parse_int=float)  # a price of 0 is read back as 0.0
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]


def from_dict(kind: type[T], data: Any) -> T:
    """Build a value of ``kind`` from what ``to_dict`` made of one. Unknown keys raise ``TypeError``."""
    result: T = _build(kind, data)
    return result


def _build(kind: Any, data: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _build_union(arguments, data)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return tuple(_build(arguments[0], item) for item in data)
        return tuple(_build(argument, item) for argument, item in zip(arguments, data, strict=True))
    if origin is frozenset:
        return frozenset(_build(arguments[0], item) for item in data)
    if origin is not None and issubclass(origin, Mapping):
        return {key: _build(arguments[1], item) for key, item in data.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{key: _build(hints[key], item) for key, item in data.items() if key != _KIND})
    return kind(data)


def _build_union(arguments: tuple[Any, ...], data: Any) -> Any:
    if data is None:
        return None
    if isinstance(data, dict) and _KIND in data:
        return _build(_MEASUREMENTS[data[_KIND]], data)
    (argument,) = (argument for argument in arguments if argument is not types.NoneType)
    return _build(argument, data)

"""Records whose fields are arrays with a row for each plan: the last axis is that of rows."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from splitplane.planner.arrays import Ints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def joined(parts: Sequence[T]) -> T:
    """The rows of all parts, of which there is one at least."""
    names = [field.name for field in fields(parts[0])]
    return type(parts[0])(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names))


def taken(columns: T, places: Ints) -> T:
    """The rows at these places."""
    return type(columns)(*(getattr(columns, field.name).take(places, axis=-1) for field in fields(columns)))


def sliced(columns: T, part: slice) -> T:
    """The rows of a slice, without copying them."""
    return type(columns)(*(getattr(columns, field.name)[..., part] for field in fields(columns)))

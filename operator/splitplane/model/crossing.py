"""The form in which a value of the graph crosses a cut: a tensor whose first dimension is the batch.

Clients, codecs and stages can then treat whatever crosses alike. The range before a cut brings each value into its
form, the range after it undoes that, so neither changes a number.
"""

import enum
import math
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

from splitplane.domain.profiles import TensorSpec
from splitplane.model.datatypes import oip_datatype
from splitplane.model.sizes import Sizes, expression


class Form(enum.Enum):
    """What is done to a value before it leaves."""

    MOVED = enum.auto()
    """Dimension ``index`` is the batch and comes to the front (it mostly is there)."""
    UNFOLDED = enum.auto()
    """Dimension 0 is the batch times something, as where an image is divided into windows: it becomes two."""
    REPEATED = enum.auto()
    """It has no batch, and goes with each sample."""
    SIZE = enum.auto()
    """It is a number, sent as INT64 with each sample."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """How one value crosses. ``sample`` are the dimensions of what is sent, after the batch."""

    form: Form
    index: int
    dtype: torch.dtype
    sample: tuple[sympy.Expr, ...]

    def spec(self, name: str, sizes: Sizes) -> TensorSpec:
        """What the schema of a cut says of it."""
        datatype = oip_datatype(self.dtype)
        assert datatype is not None  # `crossing` lets no other pass
        free = tuple(sizes.name(size) for size in self.sample)
        return TensorSpec(name, datatype, tuple(map(sizes.example, self.sample)), free if any(free) else ())

    def bytes(self, sizes: Sizes) -> int:
        """Bytes of one sample of the example."""
        return math.prod(map(sizes.example, self.sample)) * self.dtype.itemsize

    def emit_sending(self, code: fx.Graph, value: Any, batch: Any) -> Any:
        """Add to a graph what is done to a value before it leaves."""
        aten = torch.ops.aten
        match self.form:
            case Form.MOVED if self.index == 0:
                return value
            case Form.MOVED:
                value = code.call_function(aten.movedim.int, (value, self.index, 0))
            case Form.UNFOLDED:
                value = code.call_function(torch.unflatten, (value, 0, (batch, -1)))
            case Form.REPEATED:
                value = code.call_function(_repeat, (value, batch))
            case Form.SIZE:
                value = code.call_function(aten.full.default, ((batch,), value), {"dtype": torch.int64})
        return value

    def emit_receiving(self, code: fx.Graph, value: Any) -> Any:
        """Add to a graph what gives the value back."""
        aten = torch.ops.aten
        match self.form:
            case Form.MOVED if self.index == 0:
                return value
            case Form.MOVED:
                return code.call_function(aten.movedim.int, (value, 0, self.index))
            case Form.UNFOLDED:
                return code.call_function(aten.flatten.using_ints, (value, 0, 1))
            case Form.REPEATED:
                return code.call_function(aten.select.int, (value, 0, 0))
            case Form.SIZE:
                return code.call_function(_first, (value,))


def crossing(value: object, sizes: Sizes) -> Crossing | None:
    """How a traced value would cross; ``None`` if it cannot: the protocol lacks its type, or its size is not known."""
    if isinstance(value, torch.SymInt):
        return Crossing(Form.SIZE, 0, torch.int64, ())
    if not isinstance(value, torch.Tensor) or oip_datatype(value.dtype) is None:
        return None
    if not all(sizes.knows(size) for size in value.shape):
        return None
    shape = tuple(expression(size) for size in value.shape)
    if sizes.batch in shape:
        index = shape.index(sizes.batch)
        return Crossing(Form.MOVED, index, value.dtype, (*shape[:index], *shape[index + 1 :]))
    if shape and sizes.batch in shape[0].free_symbols:
        times = sympy.cancel(shape[0] / sizes.batch)
        if sizes.batch not in times.free_symbols and times.is_integer:
            return Crossing(Form.UNFOLDED, 0, value.dtype, (times, *shape[1:]))
    return Crossing(Form.REPEATED, 0, value.dtype, shape)


def _repeat(value: torch.Tensor, batch: int) -> torch.Tensor:
    return value.expand(batch, *value.shape)


def _first(value: torch.Tensor) -> int:
    return int(value[0])

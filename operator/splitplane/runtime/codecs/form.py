"""What every codec offers, and how a wire tensor says what it was before."""

from typing import Protocol

import torch

from splitplane.domain.codecs import FLOATING
from splitplane.runtime.inference import InferenceError, Parameter, Tensor, TensorMetadata, invalid
from splitplane.runtime.tensors import from_torch, torch_datatype, torch_dtype

CODEC = "splitplane_codec"
"""Tensor parameter: the base codec that this tensor was encoded with; absent means raw."""
DATATYPE = "splitplane_datatype"
"""Tensor parameter: the datatype to decode to."""
SHAPE = "splitplane_shape"
"""Tensor parameter: the shape to decode to, batch first, as in ``2,64,56,56``; absent where it is the wire tensor's."""

_MOST_DIMENSIONS = 64


class Codec(Protocol):
    """A base codec. Sizes are those of ``domain.codecs.encoded_bytes``."""

    def encode(self, name: str, value: torch.Tensor) -> list[Tensor] | None:
        """Wire tensors of a floating-point tensor that has elements; ``None`` where it must travel raw."""

    def decode(self, tensor: Tensor, companion: Tensor | None) -> torch.Tensor:
        """Undo :meth:`encode`. Raises :class:`InferenceError`."""


def malformed(tensor: Tensor, why: str) -> InferenceError:
    return invalid(f"tensor '{tensor.name}': {why}")


def encoded(name: str, wire: torch.Tensor, codec: str, original: torch.Tensor) -> Tensor:
    """A wire tensor that says what it was."""
    raw = from_torch(name, wire)
    parameters: dict[str, Parameter] = {CODEC: codec, DATATYPE: torch_datatype(original.dtype)}
    if wire.shape != original.shape:
        parameters[SHAPE] = ",".join(map(str, original.shape))
    return Tensor(name=name, datatype=raw.datatype, shape=raw.shape, data=raw.data, parameters=parameters)


def metadata(tensor: Tensor) -> TensorMetadata:
    """What a wire tensor is once it is decoded. Raises :class:`InferenceError`."""
    return TensorMetadata(tensor.name, str(tensor.parameters.get(DATATYPE, tensor.datatype)), original_shape(tensor))


def original_dtype(tensor: Tensor) -> torch.dtype:
    """Raises :class:`InferenceError`."""
    datatype = tensor.parameters.get(DATATYPE, "FP32")
    if datatype not in FLOATING:
        raise malformed(tensor, f"parameter {DATATYPE} is '{datatype}', not one of {', '.join(sorted(FLOATING))}")
    return torch_dtype(str(datatype))


def original_shape(tensor: Tensor) -> tuple[int, ...]:
    """Raises :class:`InferenceError`."""
    text = tensor.parameters.get(SHAPE)
    return tensor.shape if text is None else read_shape(tensor, SHAPE, str(text))


def read_shape(tensor: Tensor, parameter: str, text: str) -> tuple[int, ...]:
    """Raises :class:`InferenceError` on anything but sizes with commas between them."""
    sizes = text.split(",") if text else []
    if len(sizes) > _MOST_DIMENSIONS or not all(size.isascii() and size.isdigit() and len(size) < 12 for size in sizes):
        raise malformed(tensor, f"parameter {parameter} is {text[:80]!r}, not sizes such as 2,64,56,56")
    return tuple(map(int, sizes))

"""Encoders of the tensors that cross a cut; sizes are those of ``domain.codecs.encoded_bytes``.

A base codec (``fp32``, ``fp16``, ``bf16``, ``int8``, ``int4``) writes a floating-point tensor in fewer bits; others,
and those that would not shrink, travel raw, without the parameter ``splitplane_codec``. So do tensors with values that
a codec cannot hold (NaN and infinity in int8 and int4, large finite ones in fp16 and bf16), which must survive, since
the whole model would return them too. ``+zstd`` compresses what the base codec gave, where that makes it smaller.

Every wire tensor keeps the bytes that its datatype and shape promise, as the Open Inference Protocol wants.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from splitplane.domain.codecs import FLOATING
from splitplane.domain.profiles import BASE_CODECS, CODECS, ZSTD, base_codec
from splitplane.runtime.codecs import zstd
from splitplane.runtime.codecs.affine import AFFINE, Affine
from splitplane.runtime.codecs.form import CODEC, DATATYPE, Codec, malformed, metadata, original_shape
from splitplane.runtime.codecs.halves import Half
from splitplane.runtime.inference import Tensor, TensorMetadata
from splitplane.runtime.tensors import from_torch, torch_datatype, view_torch

__all__ = ["AFFINE", "CODEC", "CODECS", "DATATYPE", "decode", "described", "encode"]

# torch says once per process that a view of received bytes must not be written to. Nobody does (model/partitions).
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b"0", dtype=torch.uint8)

Array = torch.Tensor | npt.NDArray[Any]

_CODECS: Mapping[str, Codec] = {
    "fp16": Half("fp16", torch.float16),
    "bf16": Half("bf16", torch.bfloat16),
    "int8": Affine("int8"),
    "int4": Affine("int4"),
}
"""Base codecs but for fp32, which is a tensor as it lies in memory."""


def encode(tensors: Mapping[str, Array], codec: str) -> tuple[Tensor, ...]:
    """Wire tensors of everything that crosses a cut, batch first. Raises ``ValueError`` on an unknown codec."""
    if codec not in CODECS:
        raise ValueError(f"codec {codec} is unknown; use one of {', '.join(CODECS)}")
    base = _CODECS.get(base_codec(codec))
    wire: list[Tensor] = []
    for name, array in tensors.items():
        value = array if isinstance(array, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(array))
        lossy = base is not None and torch_datatype(value.dtype) in FLOATING and value.ndim > 0 and value.numel() > 0
        encoded = base.encode(name, value) if base is not None and lossy else None
        wire += encoded or [from_torch(name, value)]
    return tuple(map(zstd.compress, wire)) if codec.endswith(ZSTD) else tuple(wire)


def decode(tensors: Iterable[Tensor]) -> dict[str, torch.Tensor]:
    """Undo :func:`encode`; tensors without the parameter ``splitplane_codec`` are raw.

    These are views of what came, and not to be written to. Raises :class:`InferenceError` when bytes do not fit, a
    codec is unknown, or a companion tensor is missing.
    """
    by_name = {tensor.name: zstd.decompress(tensor) for tensor in tensors}
    companions = _companions(by_name.values())
    values: dict[str, torch.Tensor] = {}
    for name, tensor in by_name.items():
        used = tensor.parameters.get(CODEC, "fp32")
        if used == "fp32":
            if name not in companions:
                values[name] = view_torch(tensor)
        elif used in _CODECS:
            values[name] = _CODECS[str(used)].decode(tensor, by_name.get(name + AFFINE))
        else:
            raise malformed(tensor, f"codec '{used}' is unknown here; use one of {', '.join(BASE_CODECS)}")
        if name in values and values[name].shape != original_shape(tensor):
            raise malformed(tensor, f"is of shape {list(values[name].shape)}, not {list(original_shape(tensor))}")
    return values


def described(tensors: Iterable[Tensor]) -> list[TensorMetadata]:
    """What :func:`decode` will give, told from the wire tensors' headers alone. Raises :class:`InferenceError`."""
    wire = [zstd.described(tensor) for tensor in tensors]
    companions = _companions(wire)
    return [metadata(tensor) for tensor in wire if tensor.name not in companions]


def _companions(wire: Iterable[Tensor]) -> set[str]:
    return {tensor.name + AFFINE for tensor in wire if isinstance(_CODECS.get(_used(tensor)), Affine)}


def _used(tensor: Tensor) -> str:
    return str(tensor.parameters.get(CODEC, "fp32"))

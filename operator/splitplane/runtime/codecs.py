"""Encoders of the tensors that cross a cut; sizes are exactly those of ``domain.codecs.encoded_bytes``.

``fp32`` sends every tensor as it lies in memory. ``fp16`` rounds floating-point tensors to half precision. ``int8``
is affine, shared by the batch, per channel (dimension 1) or, where channels have few elements, for the whole tensor
(``domain.codecs.int8_groups``): element ``x`` becomes ``q = round((x - offset) / scale)`` in 0..255 with ``offset`` the
group's minimum and ``scale`` its extent / 255, so the error is at most half a scale. Scales and offsets travel as a
companion tensor ``<name>:affine``, FP32 of shape [2, channels] or [2, 1], whose shape tells the receiver which it is:
every wire tensor keeps the bytes that its datatype and shape promise, as the Open Inference Protocol wants.

Values that a codec cannot hold (NaN and infinity in int8; finite ones beyond 65,504 in fp16) must survive, since the
whole model would return them too: such a tensor travels raw, without the parameter ``splitplane_codec``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from splitplane.domain.codecs import FLOATING, int8_groups
from splitplane.domain.profiles import CODECS, TensorSpec
from splitplane.runtime.inference import InferenceError, Tensor, TensorMetadata, invalid
from splitplane.runtime.tensors import from_torch, to_torch, torch_datatype, torch_dtype

CODEC = "splitplane_codec"
"""Tensor parameter: the codec that this tensor was encoded with; absent means raw."""
DATATYPE = "splitplane_datatype"
"""Tensor parameter: the datatype to decode to."""
AFFINE = ":affine"

Array = torch.Tensor | npt.NDArray[Any]


def encode(tensors: Mapping[str, Array], codec: str) -> tuple[Tensor, ...]:
    """Wire tensors of everything that crosses a cut, batch first. Raises ``ValueError`` on an unknown codec."""
    if codec not in CODECS:
        raise ValueError(f"codec {codec} is unknown; use one of {', '.join(CODECS)}")
    wire: list[Tensor] = []
    for name, array in tensors.items():
        value = array if isinstance(array, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(array))
        if codec != "fp32" and torch_datatype(value.dtype) in FLOATING and value.ndim and value.numel():
            wire += _ENCODERS[codec](name, value)
        else:
            wire.append(from_torch(name, value))
    return tuple(wire)


def decode(tensors: Iterable[Tensor]) -> dict[str, torch.Tensor]:
    """Undo :func:`encode`; tensors without the parameter ``splitplane_codec`` are raw.

    Raises :class:`InferenceError` when bytes do not fit, a codec is unknown, or a companion tensor is missing.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    companions = {name + AFFINE for name, tensor in by_name.items() if tensor.parameters.get(CODEC) == "int8"}
    values: dict[str, torch.Tensor] = {}
    for name, tensor in by_name.items():
        codec = tensor.parameters.get(CODEC, "fp32")
        if codec == "int8":
            values[name] = _decode_int8(tensor, by_name)
        elif codec == "fp16":
            values[name] = to_torch(tensor).to(_target(tensor))
        elif codec != "fp32":
            raise _invalid(tensor, f"codec '{codec}' is unknown here; use one of {', '.join(CODECS)}")
        elif name not in companions:
            values[name] = to_torch(tensor)
    return values


def described(tensors: Iterable[Tensor]) -> list[TensorMetadata]:
    """What :func:`decode` will give, told from the wire tensors' headers alone."""
    wire = list(tensors)
    companions = {tensor.name + AFFINE for tensor in wire if tensor.parameters.get(CODEC) == "int8"}
    return [
        TensorMetadata(tensor.name, str(tensor.parameters.get(DATATYPE, tensor.datatype)), tensor.shape)
        for tensor in wire
        if tensor.name not in companions
    ]


def _invalid(tensor: Tensor, why: str) -> InferenceError:
    return invalid(f"tensor '{tensor.name}': {why}")


def _target(tensor: Tensor) -> torch.dtype:
    datatype = tensor.parameters.get(DATATYPE, "FP32")
    if datatype not in FLOATING:
        raise _invalid(tensor, f"parameter {DATATYPE} is '{datatype}', not one of {', '.join(sorted(FLOATING))}")
    return torch_dtype(str(datatype))


def _encoded(name: str, value: torch.Tensor, codec: str, original: torch.Tensor) -> Tensor:
    raw = from_torch(name, value)
    parameters = {CODEC: codec, DATATYPE: torch_datatype(original.dtype)}
    return Tensor(name=name, datatype=raw.datatype, shape=raw.shape, data=raw.data, parameters=parameters)


def _encode_fp16(name: str, value: torch.Tensor) -> list[Tensor]:
    half = value.to(torch.float16)
    # The cheap look at the extremes (NaN reaches them too) decides whether the full comparison is needed.
    extremes_finite = bool(torch.isfinite(torch.stack(torch.aminmax(half))).all())
    if not extremes_finite and bool((torch.isinf(half) & torch.isfinite(value)).any()):
        return [from_torch(name, value)]
    return [_encoded(name, half, "fp16", value)]


def _encode_int8(name: str, value: torch.Tensor) -> list[Tensor]:
    groups = int8_groups(TensorSpec(name, torch_datatype(value.dtype), tuple(value.shape[1:])))
    if groups is None:
        return [from_torch(name, value)]
    grouped = value.to(torch.float32).reshape(value.shape[0], groups, -1)
    low, high = grouped.amin(dim=(0, 2)), grouped.amax(dim=(0, 2))
    scale = (high - low) / 255.0
    if not bool(torch.isfinite(scale).all()):  # NaN and infinity reach the extremes
        return [from_torch(name, value)]
    divisor = torch.where(scale > 0, scale, 1.0)
    codes = grouped.sub(low[:, None]).div_(divisor[:, None]).round_().clamp_(0, 255).to(torch.uint8)
    affine = torch.stack((scale, low))
    return [_encoded(name, codes.reshape(value.shape), "int8", value), from_torch(name + AFFINE, affine)]


def _decode_int8(tensor: Tensor, by_name: Mapping[str, Tensor]) -> torch.Tensor:
    companion = by_name.get(tensor.name + AFFINE)
    if companion is None:
        raise _invalid(tensor, f"int8 needs its scales and offsets in a tensor '{tensor.name}{AFFINE}'")
    codes, affine = to_torch(tensor), to_torch(companion)
    channels = codes.shape[1] if codes.ndim > 1 else 1
    if affine.shape not in ((2, channels), (2, 1)) or affine.dtype != torch.float32 or not codes.ndim:
        raise _invalid(
            companion,
            f"expected FP32 of shape [2, {channels}] or [2, 1], not {companion.datatype} {list(affine.shape)}",
        )
    scale, low = affine
    grouped = codes.reshape(codes.shape[0], len(scale), -1).to(torch.float32)
    return grouped.mul_(scale[:, None]).add_(low[:, None]).reshape(codes.shape).to(_target(tensor))


_ENCODERS = {"fp16": _encode_fp16, "int8": _encode_int8}

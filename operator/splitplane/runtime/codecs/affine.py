"""int8 and int4: equal steps over the extent of a channel, or of the whole tensor.

Affine, for each sample by itself, per channel (dimension 1) or, where channels have few elements, for the whole sample
(``domain.codecs.affine_groups``): element ``x`` becomes ``q = round((x - offset) / scale)`` in 0..255 (int8) or 0..15
(int4) with ``offset`` the group's minimum and ``scale`` its extent / 255 or / 15, so the error is at most half a scale,
whichever samples it crosses with. Scales and offsets travel as a companion tensor ``<name>:affine``, FP32 of shape
[batch, 2, channels] or [batch, 2, 1], whose shape tells the receiver which it is.

int4 packs two elements into a byte: the first half of a sample's elements are the low nibbles, the second half the
high ones, so that packing and unpacking walk through memory in order.
"""

import math

import torch

from splitplane.domain.codecs import AFFINE_BITS, affine_groups
from splitplane.domain.profiles import TensorSpec
from splitplane.runtime.codecs.form import encoded, malformed, original_dtype, original_shape
from splitplane.runtime.inference import Tensor
from splitplane.runtime.tensors import from_torch, torch_datatype, view_torch

AFFINE = ":affine"


class Affine:
    """A codec of 2 to the power of ``bits`` equal steps; tensors with NaN, infinity or too wide an extent are raw."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bits = AFFINE_BITS[name]
        self._steps = 2**self._bits - 1

    def encode(self, name: str, value: torch.Tensor) -> list[Tensor] | None:
        spec = TensorSpec(name, torch_datatype(value.dtype), tuple(value.shape[1:]))
        groups = affine_groups(spec, self._name)
        if groups is None:
            return None
        grouped = value.to(torch.float32).reshape(value.shape[0], groups, -1)
        low, high = grouped.amin(dim=2, keepdim=True), grouped.amax(dim=2, keepdim=True)
        scale = (high - low) / self._steps
        if not bool(torch.isfinite(scale).all()):  # NaN and infinity reach the extremes
            return None
        divisor = torch.where(scale > 0, scale, 1.0)
        codes = grouped.sub(low).div_(divisor).round_().clamp_(0, self._steps).to(torch.uint8)
        codes = codes.reshape(value.shape) if self._bits == 8 else _pack(codes.reshape(value.shape[0], -1))
        affine = torch.stack((scale.squeeze(2), low.squeeze(2)), dim=1)
        return [encoded(name, codes, self._name, value), from_torch(name + AFFINE, affine)]

    def decode(self, tensor: Tensor, companion: Tensor | None) -> torch.Tensor:
        if companion is None:
            raise malformed(tensor, f"{self._name} needs its scales and offsets in a tensor '{tensor.name}{AFFINE}'")
        codes, affine, shape = view_torch(tensor), view_torch(companion), original_shape(tensor)
        channels = shape[1] if len(shape) > 1 else 1
        batch = shape[0] if shape else 0
        if affine.shape not in ((batch, 2, channels), (batch, 2, 1)) or affine.dtype != torch.float32 or not shape:
            raise malformed(
                companion,
                f"expected FP32 of shape [{batch}, 2, {channels}] or [{batch}, 2, 1], not {companion.datatype} "
                f"{list(affine.shape)}",
            )
        elements = math.prod(shape[1:])
        packed = elements if self._bits == 8 else -(-elements // 2)
        if codes.dtype != torch.uint8 or not 0 < batch * packed == codes.numel():
            raise malformed(
                tensor,
                f"{self._name} of shape {list(shape)} takes {batch * packed} UINT8, "
                f"not {codes.numel()} {tensor.datatype}",
            )
        scale, low = affine[:, 0, :, None], affine[:, 1, :, None]
        if self._bits == 4:
            codes = _unpack(codes.reshape(batch, packed), elements)
        grouped = codes.reshape(batch, scale.shape[1], -1).to(torch.float32)
        return grouped.mul_(scale).add_(low).reshape(shape).to(original_dtype(tensor))


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """[batch, elements] of 0..15 as [batch, half of the elements, rounded up]."""
    half = -(-codes.shape[1] // 2)
    packed = codes[:, :half].clone()
    packed[:, : codes.shape[1] - half] |= codes[:, half:] << 4
    return packed


def _unpack(packed: torch.Tensor, elements: int) -> torch.Tensor:
    return torch.cat((packed & 15, packed >> 4), dim=1)[:, :elements]

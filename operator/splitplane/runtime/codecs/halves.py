"""fp16 and bf16: rounding to sixteen bits. bf16 has the range of fp32 and an eighth of fp16's precision."""

from dataclasses import dataclass

import torch

from splitplane.runtime.codecs.form import encoded, original_dtype
from splitplane.runtime.inference import Tensor
from splitplane.runtime.tensors import view_torch


@dataclass(frozen=True, slots=True)
class Half:
    """Rounds to the nearest; NaN and infinity stay what they are; a tensor with finite values out of range is raw."""

    name: str
    dtype: torch.dtype

    def encode(self, name: str, value: torch.Tensor) -> list[Tensor] | None:
        if value.element_size() <= self.dtype.itemsize:
            return None
        half = value.to(self.dtype)
        # The cheap look at the extremes (NaN reaches them too) decides whether the full comparison is needed.
        extremes_finite = bool(torch.isfinite(torch.stack(torch.aminmax(half))).all())
        if not extremes_finite and bool((torch.isinf(half) & torch.isfinite(value)).any()):
            return None
        return [encoded(name, half, self.name, value)]

    def decode(self, tensor: Tensor, _companion: Tensor | None) -> torch.Tensor:
        return view_torch(tensor).to(original_dtype(tensor))

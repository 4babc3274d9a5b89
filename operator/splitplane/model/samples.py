"""Made-up inputs: what a model is timed and tried with where there are no real ones."""

from collections.abc import Sequence

import torch

from splitplane.domain.profiles import TensorSpec
from splitplane.model.datatypes import torch_datatype


def sample(specs: Sequence[TensorSpec], *, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Normal noise, and ones for integers (a valid token, an open mask)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for spec in specs:
        dtype = torch_datatype(spec.datatype)
        shape = (batch, *spec.shape)
        if dtype.is_floating_point:
            tensors[spec.name] = torch.randn(shape, generator=generator).to(dtype)
        else:
            tensors[spec.name] = torch.ones(shape, dtype=dtype)
    return tensors

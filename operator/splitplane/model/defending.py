"""Defences of a cut, carried out on its tensors: noise and dropout, on each sample by itself."""

from collections.abc import Mapping

import torch

from splitplane.domain.defences import Defence


def defend(
    tensors: Mapping[str, torch.Tensor], defence: Defence, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The tensors ``[samples, ...]`` as they may leave; integers and booleans as they are.

    A sample's noise is scaled by its own deviation, so it does not matter which others it is computed with.
    """
    return {name: _defended(value, defence, generator) for name, value in tensors.items()}


def _defended(value: torch.Tensor, defence: Defence, generator: torch.Generator) -> torch.Tensor:
    if not value.is_floating_point() or not value.numel():
        return value
    if defence.noise:
        deviation = value.float().flatten(1).std(1, correction=0) if value.ndim > 1 else value.float().abs()
        scale = defence.noise * deviation.reshape(-1, *(1,) * (value.ndim - 1))
        value = value + (scale * torch.randn(value.shape, generator=generator)).to(value.dtype)
    if defence.dropout:
        kept = torch.rand(value.shape, generator=generator) >= defence.dropout
        value = value * kept / (1.0 - defence.dropout)
    return value

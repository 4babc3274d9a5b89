"""Defences of a cut, carried out on its tensors: noise and dropout, on each sample by itself."""

from collections.abc import Mapping

import torch

from splitplane.domain.defences import Defence


def defend(
    tensors: Mapping[str, torch.Tensor], defence: Defence, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The tensors ``[samples, ...]`` as they may leave; integers and booleans as they are.

    A sample's noise is scaled by its own deviation, so it does not matter which others it is computed with. What masks
    (infinities, a type's extremes) or is no number has no part in that, and stays as it is; nothing else becomes such.
    """
    return {name: _defended(value, defence, generator) for name, value in tensors.items()}


def _defended(value: torch.Tensor, defence: Defence, generator: torch.Generator) -> torch.Tensor:
    if not value.is_floating_point() or not value.numel():
        return value
    limit = torch.finfo(value.dtype).max
    told = value.abs() < limit
    defended = value if value.dtype is torch.float64 else value.float()
    if defence.noise:
        noise = torch.randn(value.shape, generator=generator)
        defended = defended + defence.noise * _deviation(defended, told) * noise
    if defence.dropout:
        kept = torch.rand(value.shape, generator=generator) >= defence.dropout
        defended = torch.where(kept, defended / (1.0 - defence.dropout), 0.0)
    return torch.where(told, defended.clamp(-limit, limit).to(value.dtype), value)


def _deviation(value: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """Of each sample, of its elements that are ``told``, ``[samples, 1, ...]``; of a sample of one its size."""
    if value.ndim == 1:
        return value.abs()
    others = tuple(range(1, value.ndim))
    count = told.sum(others, keepdim=True).clamp_min(1)
    mean = value.where(told, 0.0).sum(others, keepdim=True) / count
    return ((value - mean).where(told, 0.0).pow(2).sum(others, keepdim=True) / count).sqrt()

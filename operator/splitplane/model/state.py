"""The tensors of a module that a weights file holds, and which of them are one and the same."""

from collections.abc import Mapping

import torch
from torch import nn


def state_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by their names in a file: the module's own objects, not copies."""
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def tied(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, ...]]:
    """All names of the same memory, by each of them: one parameter in two modules, or two over one storage."""
    names: dict[tuple[object, ...], list[str]] = {}
    places = {
        name: (value.untyped_storage()._cdata, value.storage_offset(), value.size(), value.stride())
        if value.numel()
        else (name,)
        for name, value in tensors.items()
    }
    for name, place in places.items():
        names.setdefault(place, []).append(name)
    return {name: tuple(names[place]) for name, place in places.items()}

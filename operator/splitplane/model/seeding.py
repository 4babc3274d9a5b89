"""Values that a constructor makes and no weights file holds: whether every process makes the same.

The parts of a model are built in processes of their own. A buffer of random numbers that nothing seeds would have other
values in each, and no two of them would be parts of one model.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from splitplane.model.building import NeedsValuesError, build_lean, build_plainly
from splitplane.model.errors import FactoryError
from splitplane.model.source import ModelSource
from splitplane.model.state import state_tensors
from splitplane.model.weights import tensor_bytes

Made = Mapping[str, str]
"""Digests of values by where a module keeps them."""


def made_values(module: nn.Module) -> Made:
    """Buffers that are not persistent, and tensors in plain attributes."""
    kept, torchs = {_memory(tensor) for tensor in state_tensors(module).values()}, vars(nn.Module())
    made = {}
    for name, child in module.named_modules():
        attributes: dict[str, Any] = {key: value for key, value in vars(child).items() if key not in torchs}
        leaves, _ = tree_flatten_with_path({**attributes, **child._buffers})
        for path, leaf in leaves:
            if _is_made(leaf) and _memory(leaf) not in kept:
                place = f"{name}.{path[0].key}{keystr(path[1:])}"  # type: ignore[attr-defined]
                made[place.removeprefix(".")] = _digest(leaf)
    return made


def refuse_unseeded(
    source: ModelSource, build: Callable[[ModelSource], nn.Module], made: Made, used: Iterable[torch.Tensor] | None
) -> None:
    """Build again, and raise :class:`FactoryError` if something that was made, and is used, has other values then."""
    digests = None if used is None else set(map(_digest, used))
    wanted = {place: digest for place, digest in made.items() if digests is None or digest in digests}
    if not wanted:
        return
    again = made_values(build(source))
    drawn = [place for place, digest in wanted.items() if again.get(place, digest) != digest]
    if drawn:
        raise FactoryError(
            f"factory {source.factory} gives {', '.join(drawn[:3])} other values each time that it is called, which no "
            "weights file holds: every process would have a model of its own. Register it as a persistent buffer and "
            "save it with the weights, or draw it from a seed (torch.Generator().manual_seed(0))"
        )


def refuse_unseeded_whole(source: ModelSource, *, lean: bool = True) -> None:
    """As :func:`refuse_unseeded`, for a model of which nothing is known but the module."""
    build = build_lean if lean else build_plainly
    try:
        refuse_unseeded(source, build, made_values(build(source)), None)
    except NeedsValuesError:
        refuse_unseeded_whole(source, lean=False)


def _is_made(value: object) -> TypeGuard[torch.Tensor]:
    """Whether it is a tensor with values that can be compared, and no weight."""
    if not isinstance(value, torch.Tensor) or isinstance(value, (nn.Parameter, FakeTensor)):
        return False
    return value.layout is torch.strided and not value.is_quantized


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _digest(value: torch.Tensor) -> str:
    told = f"{value.dtype} {list(value.shape)} ".encode()
    return hashlib.sha256(told + bytes(tensor_bytes(value.detach().cpu().contiguous()))).hexdigest()

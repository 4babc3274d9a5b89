"""Tensors that a model keeps outside its module, such as global ones: what a trace makes of them is put back.

A trace calls the module on tensors without memory. One that ``forward`` keeps where it outlives the call would be what
the next model of this process computes with.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import is_fake

from splitplane.model.code import own_classes, own_modules
from splitplane.model.errors import NotSplittableError
from splitplane.model.refusals import line_of_writing
from splitplane.model.source import ModelSource

_Owner = ModuleType | type
_Held = Mapping[str, tuple[object, Mapping[Any, object]]]
"""By name: what an owner holds, and what that holds."""


@contextlib.contextmanager
def outside_kept(source: ModelSource, module: nn.Module) -> Iterator[None]:
    """Puts back global variables, attributes of classes, and what dicts and lists in these hold.

    Raises :class:`NotSplittableError` where a tensor was replaced, which is state; one that was not there before is
    what the first call keeps for later ones.
    """
    modules = (sys.modules[name] for name in own_modules(source.factory, module) if name in sys.modules)
    owners: list[_Owner] = [*modules, *own_classes(module)]
    before: list[tuple[_Owner, _Held]] = [
        (owner, {name: (value, dict(_items(value))) for name, value in vars(owner).items()}) for owner in owners
    ]
    replaced: list[tuple[_Owner, str]] = []
    try:
        yield
    finally:
        for owner, held in before:
            replaced += [(owner, name) for name in _put_back(owner, held)]
    if replaced:
        owner, name = replaced[0]
        lines = (line_of_writing(child, name) for child in module.modules())
        raise NotSplittableError(
            f"forward of {source.factory} replaces the tensor {owner.__name__}.{name}: it keeps state between calls",
            next((line for line in lines if line), None),
        )


def _put_back(owner: _Owner, held: _Held) -> list[str]:
    """The names of what held a tensor in place of a traced one."""
    replaced = []
    now = {name: value for name, value in vars(owner).items() if any(map(_traced, _items(value).values()))}
    for name, value in now.items():
        if name not in held:
            delattr(owner, name)
            continue
        old, content = held[name]
        if any(_traced(each) and isinstance(content.get(key), torch.Tensor) for key, each in _items(value).items()):
            replaced.append(name)
        if type(old) is dict:
            old.clear()
            old.update(content)
        elif type(old) is list:
            old[:] = content.values()
        setattr(owner, name, old)
    return replaced


def _items(value: object) -> Mapping[Any, object]:
    if type(value) is dict:
        return value
    return dict(enumerate(value)) if type(value) is list else {None: value}


def _traced(value: object) -> bool:
    return isinstance(value, torch.Tensor) and is_fake(value)

"""What a trace leaves outside the module that it calls, such as in global variables: put back, or at least found.

A trace calls the module on tensors without memory. One that ``forward`` keeps where it outlives the call would be what
the next model of this process computes with.
"""

import contextlib
import functools
import gc
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, is_fake

from splitplane.model.code import own_classes, own_modules
from splitplane.model.errors import NotSplittableError
from splitplane.model.refusals import line_of_writing
from splitplane.model.source import ModelSource

_Owner = ModuleType | type
_Held = Mapping[str, tuple[object, Mapping[Any, object]]]
"""By name: what an owner holds, and what that holds."""
_DICTS, _LISTS = (dict, OrderedDict, defaultdict), (list, deque)
"""No subclasses of others: to read all that such a mapping holds may import half of a library."""
_CACHE: Any = functools._lru_cache_wrapper
DEPTH = 4
"""How far what a cached function gave is looked into: a list of pairs of tensors lies three deep."""


@contextlib.contextmanager
def outside_kept(source: ModelSource, module: nn.Module) -> Iterator[None]:
    """Puts back global variables, attributes of classes, variables of closures, and what dicts and lists in these hold.

    Cached functions (``functools.lru_cache``) forget what they gave in the trace. Raises :class:`NotSplittableError`
    where a tensor was replaced, which is state; one that was not there before is what the first call keeps for later
    ones.
    """
    modules = (sys.modules[name] for name in own_modules(source.factory, module) if name in sys.modules)
    owners: list[_Owner] = [*modules, *own_classes(module)]
    before: list[tuple[_Owner, _Held]] = [
        (owner, {name: (value, dict(_items(value))) for name, value in vars(owner).items()}) for owner in owners
    ]
    enclosed = [(cell, cell.cell_contents, dict(_items(cell.cell_contents))) for cell in _cells(owners)]
    replaced: list[tuple[_Owner, str]] = []
    try:
        yield
    finally:
        for owner, held in before:
            replaced += [(owner, name) for name in _put_back(owner, held)]
        for cell, value, content in enclosed:
            if any(map(_traced, _items(cell.cell_contents).values())):
                cell.cell_contents = _filled(value, content)
        clear_caches()
    if replaced:
        owner, name = replaced[0]
        lines = (line_of_writing(child, name) for child in module.modules())
        raise NotSplittableError(
            f"forward of {source.factory} replaces the tensor {owner.__name__}.{name}: it keeps state between calls",
            next((line for line in lines if line), None),
        )


def traced_objects() -> list[object]:
    """Every tensor without values, and every size without a number, that anything in this process refers to."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) in (FakeTensor, torch.SymInt)]


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
        setattr(owner, name, _filled(old, content))
    return replaced


def _cells(owners: Iterable[_Owner]) -> list[CellType]:
    """The variables that functions of these have from where they were made, such as the memory of a decorator."""
    functions = (value for owner in owners for value in vars(owner).values() if isinstance(value, FunctionType))
    cells = {id(cell): cell for function in functions for cell in function.__closure__ or ()}
    return [cell for cell in cells.values() if _is_set(cell)]


def _is_set(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # its variable has no value yet
        return False


def _filled(value: Any, content: Mapping[Any, object]) -> object:
    if type(value) in _DICTS:
        value.clear()
        value.update(content)
    elif type(value) in _LISTS:
        value.clear()
        value.extend(content.values())
    return value


def _items(value: Any) -> Mapping[Any, object]:
    if type(value) in _DICTS:
        return dict(value)
    return dict(enumerate(value)) if type(value) in _LISTS else {None: value}


def _traced(value: object) -> bool:
    return isinstance(value, torch.Tensor) and is_fake(value)


def clear_caches() -> None:
    """Let cached functions compute anew what they hold of a trace, as they do with what they were not asked before."""
    for each in gc.get_objects():
        if type(each) is _CACHE and each.cache_info().currsize:
            function = each.__wrapped__
            kept = (value for value in gc.get_referents(each) if value is not function and not isinstance(value, type))
            if any(_holds_traced(value, DEPTH) for value in kept):
                each.cache_clear()


def _holds_traced(value: object, depth: int) -> bool:
    if _traced(value):
        return True
    containers = (dict, list, tuple)
    return (
        bool(depth)
        and isinstance(value, containers)
        and any(_holds_traced(each, depth - 1) for each in gc.get_referents(value))
    )

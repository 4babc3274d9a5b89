"""How a factory's module is built: as it is, or without memory for its weights and in all else the same.

A constructor does more than make room for weights: it draws the numbers of a buffer after those of the weights before
it, keeps a parameter under a second name, reads the device of one. So a parameter without memory stays the same object,
says that it lies on the CPU, and has its random numbers drawn where others follow that the module keeps.
"""

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import init
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from splitplane.model.errors import FactoryError
from splitplane.model.outside import clear_caches
from splitplane.model.source import ModelSource, find_factory

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, OptimizedModule)
"""What runs a module on several devices, or compiled: only the module itself can be cut."""


class NeedsValuesError(Exception):
    """A module that is not the same without the values of its parameters: build it plainly."""


def build_plainly(source: ModelSource) -> nn.Module:
    """Call the factory, as a user's own process would. Raises :class:`FactoryError`."""
    return _called(source, find_factory(source.factory))


def build_lean(source: ModelSource) -> nn.Module:
    """Call the factory with each parameter's memory given back as it is registered: never more than one is filled.

    Parameters become fake tensors of ``torch.export``'s kind. Buffers stay real: those that no weights file holds
    (position ids, masks) must have the values that the constructor gives them. Raises :class:`NeedsValuesError` where
    that cannot be done or could make a difference, and :class:`FactoryError` if there is no such factory.
    """
    factory = find_factory(source.factory)
    building = _Building(draws=False)
    try:
        module = _built_lean(source, factory, building)
        if building.followed:
            module = _built_lean(source, factory, _Building(draws=True))
    finally:
        clear_caches()  # of constructors, which may keep a weight for the next one
    return module


def _built_lean(source: ModelSource, factory: Callable[[], object], building: "_Building") -> nn.Module:
    hook = register_module_parameter_registration_hook(building.drop)
    try:
        with warnings.catch_warnings(), building, _without_looking(building):
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by copy.deepcopy
            module = _called(source, factory)
    except FactoryError as error:
        raise NeedsValuesError from error
    finally:
        hook.remove()
    if not all(storage.expired() for storage in building.dropped):  # type: ignore[no-untyped-call]
        raise NeedsValuesError  # something else refers to the memory that a parameter had
    return module


@contextlib.contextmanager
def _without_looking(building: "_Building") -> Iterator[None]:
    """``trunc_normal_`` draws again what is out of its bounds: it looks at values, but not at those of meta tensors."""
    original: Any = init._no_grad_trunc_normal_

    def fill(tensor: torch.Tensor, *args: Any, generator: torch.Generator | None = None) -> torch.Tensor:
        return building.fill(tensor, generator, lambda real: original(real, *args, generator=generator))

    init._no_grad_trunc_normal_ = fill  # type: ignore[assignment]
    try:
        yield
    finally:
        init._no_grad_trunc_normal_ = original


def _called(source: ModelSource, factory: Callable[[], object]) -> nn.Module:
    try:
        module = factory()
    except Exception as error:  # the tenant's code may raise anything
        raise FactoryError(f"factory {source.factory} failed: {type(error).__name__}: {error}") from error
    while isinstance(module, _WRAPPERS):
        module = module._orig_mod if isinstance(module, OptimizedModule) else module.module
    if not isinstance(module, nn.Module):
        raise FactoryError(f"factory {source.factory} returned {type(module).__name__}, not a torch.nn.Module")
    if isinstance(module, torch.jit.ScriptModule):
        raise FactoryError(
            f"factory {source.factory} returned a TorchScript module, which cannot be looked into: return the "
            "torch.nn.Module that it was made from"
        )
    lazy = [name for name, value in module.named_parameters() if isinstance(value, UninitializedParameter)]
    if lazy:
        raise FactoryError(
            f"factory {source.factory} returned a module whose {', '.join(lazy[:3])} has no shape before the first "
            "call: give its layers their sizes (nn.Linear for nn.LazyLinear)"
        )
    return module.eval().requires_grad_(False)


class _FakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    def __deepcopy__(self, _memo: object) -> "_FakeMode":  # layers are copied with their parameters, these with it
        return self


class _Building(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stands between a constructor and its operations on parameters.

    Those that fill a parameter with random numbers do nothing, or, with ``draws``, fill other memory that is given back
    at once, so that the numbers after them are those of a plain construction.
    """

    def __init__(self, *, draws: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dropped: list[StorageWeakRef] = []
        """What parameters had for memory."""
        self.followed = set[StorageWeakRef]()
        """Random numbers which the constructor keeps outside parameters, drawn after some that were not."""
        self._draws = draws
        self._skipped = set[torch.Generator]()
        self._mode = _FakeMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        # Those that a constructor only registers are others' too: a global one, or another model's.
        self._others = {id(each): each for each in gc.get_objects() if type(each) is nn.Parameter}

    def drop(self, _module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or isinstance(parameter, FakeTensor) or id(parameter) in self._others:
            return
        if type(parameter) is not nn.Parameter or parameter.device.type != "cpu":
            raise NeedsValuesError
        storage = StorageWeakRef(parameter.untyped_storage())  # type: ignore[no-untyped-call]
        self.dropped.append(storage)
        self.followed.discard(storage)
        meta = torch.empty_strided(parameter.size(), parameter.stride(), dtype=parameter.dtype, device="meta")
        fake: Any = FakeTensor(self._mode, meta, torch.device("cpu"))
        fake.requires_grad_(parameter.requires_grad)
        fake.__dict__.update(parameter.__dict__)
        fake._is_param = True  # by this `isinstance` takes it for a parameter
        torch.utils.swap_tensors(parameter, fake)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fakes = [each for each in tree_leaves((args, kwargs)) if isinstance(each, FakeTensor)]
        if fakes and operation is torch.ops.aten._local_scalar_dense.default:
            raise NeedsValuesError
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return operation(*args, **kwargs)
        generator = kwargs.get("generator") or torch.default_generator
        if not fakes:
            result = operation(*args, **kwargs)
            if generator in self._skipped and isinstance(result, torch.Tensor):
                self.followed.add(StorageWeakRef(result.untyped_storage()))  # type: ignore[no-untyped-call]
            return result
        if len(fakes) > 1 or fakes[0] is not args[0] or not operation._schema.is_mutable:
            raise NeedsValuesError  # how many numbers are drawn may depend on values
        return self.fill(fakes[0], generator, lambda real: operation(real, *args[1:], **kwargs))

    def fill(
        self, tensor: torch.Tensor, generator: torch.Generator | None, fill: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Fill a tensor with random numbers, or, if it has no memory, draw as many."""
        if not isinstance(tensor, FakeTensor):
            return fill(tensor)
        if self._draws:
            fill(torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype))
        else:
            self._skipped.add(generator or torch.default_generator)
        return tensor

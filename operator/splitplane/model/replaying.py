"""Whether a module computes the same each time that it is called, wherever it may keep what it remembers.

A copy is called several times on tensors without memory, and the operations are compared: state shows by another
number, another operation, a tensor that an earlier call made of its inputs, or one that each call makes for the next.
"""

import copy
import hashlib
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from splitplane.model.operations import REARRANGING
from splitplane.model.weights import tensor_bytes

COMPARED = 1 << 28
"""Bytes of a tensor of constants up to which its values are looked at."""

KEEPING = REARRANGING | {
    "_to_copy", "as_strided", "copy_", "fill_", "lift_fresh_copy", "select", "split", "to", "tril", "triu", "type_as",
    "unbind", "zero_",
}  # fmt: skip
"""Operations of whose result nobody can tell how often they were done: a table that each call cuts or casts anew is the
same one, and so is room in memory that each call fills."""

OVERWRITING = frozenset({"copy_", "fill_", "zero_"})
"""Operations that write all of their first tensor without reading it."""


def find_state(module: nn.Module, arguments: Mapping[str, object]) -> traceback.StackSummary | None:
    """Where a further call does something else than the one before, innermost last; ``None`` if none does.

    What a first call sets once and for all is no state. A module that cannot be called so is not judged.
    """
    mode = next((each.fake_mode for each in module.parameters() if isinstance(each, FakeTensor)), None)
    try:
        copied = copy.deepcopy(module)
        first = _Call(mode or FakeTensorMode(allow_non_fake_inputs=True), None)
        first.run(copied, arguments)
    except Exception:  # the tenant's code may raise anything
        return None
    second = _Call(first.mode, first)
    if second.run(copied, arguments) is None:
        return None
    return _Call(first.mode, second).run(copied, arguments)


class _Call(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One call, held against the one before."""

    def __init__(self, mode: FakeTensorMode, before: "_Call | None") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mode = mode
        self.operations: list[str] = []
        self.made: dict[int, tuple[torch.Tensor, str]] = {}
        """Tensors of this call by their identity, which they keep while they are held here, and what they are."""
        self.of_inputs: set[int] = before.of_inputs if before is not None else set()
        """Tensors of any call that depend on the values of its inputs."""
        self._before = before
        self._number: int = 1 if before is None else before._number + 1
        self._earlier: dict[int, tuple[torch.Tensor, str]] = {} if before is None else before.left()
        """Tensors that are left from earlier calls, and of which call they are."""
        self._kept: dict[int, str] = {}
        """What tensors of this call still are by ``KEEPING`` operations: those of an earlier one, or held ones."""
        self._differs: traceback.StackSummary | None = None

    def left(self) -> dict[int, tuple[torch.Tensor, str]]:
        """What a later call may find."""
        of_this = {
            key: (value, self._kept.get(key, f"call {self._number}: {told}"))
            for key, (value, told) in self.made.items()
        }
        return {**self._earlier, **of_this}

    def run(self, module: nn.Module, arguments: Mapping[str, object]) -> traceback.StackSummary | None:
        """Where it first did something else."""
        with torch.no_grad(), self.mode:
            given = tree_map(lambda leaf: torch.zeros_like(leaf) if isinstance(leaf, torch.Tensor) else leaf, arguments)
            for index, leaf in enumerate(tree_leaves(given)):
                self._add(leaf, f"input {index}", of_inputs=True)
            try:
                with self:
                    module(**given)
            except Exception as error:
                if self._before is None:
                    raise
                self._differs = self._differs or _below(traceback.extract_tb(error.__traceback__))
        if self._before is not None and len(self.operations) < len(self._before.operations) and self._differs is None:
            self._differs = traceback.StackSummary()
        return self._differs

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.prim.device.default:  # only tensors without memory are asked so
            return operation(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        told = f"{operation} {tree_map(self._tell, (args, kwargs))}"
        index = len(self.operations)
        self.operations.append(told)
        read = leaves[1:] if operation.overloadpacket.__name__ in OVERWRITING else leaves
        remembered = any(
            id(leaf) in self._earlier and id(leaf) in self.of_inputs and id(leaf) not in self.made for leaf in read
        )
        before = self._before.operations[index : index + 1] if self._before is not None else [told]
        if self._differs is None and (remembered or before != [told]):
            self._differs = _below(traceback.extract_stack())
        of_inputs = any(id(leaf) in self.of_inputs for leaf in leaves)
        result = operation(*args, **(kwargs or {}))
        kept = None
        if leaves and not of_inputs and operation.overloadpacket.__name__ in KEEPING:
            kept = self._kept.get(id(leaves[0]), None if id(leaves[0]) in self.made else self._tell(leaves[0]))
        for number, leaf in enumerate(tree_leaves(result)):
            self._add(leaf, f"{index}.{number}", of_inputs=of_inputs)
            if kept is not None and isinstance(leaf, torch.Tensor):
                self._kept[id(leaf)] = kept
        return result

    def _add(self, value: object, told: str, *, of_inputs: bool) -> None:
        if isinstance(value, torch.Tensor):
            self.made[id(value)] = value, told
            if of_inputs:
                self.of_inputs.add(id(value))

    def _tell(self, value: object) -> str:
        if not isinstance(value, torch.Tensor):
            return repr(value)
        if id(value) in self.made:
            return self.made[id(value)][1]
        if id(value) in self._earlier:
            return self._earlier[id(value)][1]
        held = f"{value.dtype} {list(value.shape)}"
        # Parameters, of which a module built as it is may have gigabytes, are written to by operations alone.
        strided = value.layout is torch.strided and not value.is_meta  # others have no bytes to ask for
        if not strided or isinstance(value, (FakeTensor, nn.Parameter)) or value.nbytes > COMPARED:
            return held
        with unset_fake_temporarily():
            return f"{held} {hashlib.sha256(tensor_bytes(value.detach().cpu().contiguous())).hexdigest()}"


def _below(stack: traceback.StackSummary) -> traceback.StackSummary:
    """A stack without what watches operations, which lies between them and the module's code."""
    watching = _Call.__torch_dispatch__.__name__
    return traceback.StackSummary.from_list(
        [each for each in stack if (each.filename, each.name) != (__file__, watching)]
    )

"""What can be seen while ``torch.export`` calls a module, and not afterwards.

Whether the module keeps state outside its buffers, for export takes what such attributes hold for constants, and puts
them back; where it demands something of a size, for the stack is gone by the time that a demand turns out to be
too much; what it asks of sizes, for torch tells nothing of answers that follow from their being 2 at least; and where
it sets the state that random numbers are drawn from, which no graph holds.
"""

import contextlib
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves

DEPTH = 3
"""How far containers in attributes are looked into."""
_TORCH = Path(torch.__file__).parent
_SYMBOLIC = tuple(str(_TORCH / file) for file in ("fx/experimental/sym_node.py", "fx/experimental/symbolic_shapes.py"))
_RANDOM: Any = torch.random
_GENERATOR = torch.default_generator
_SEEDING = {
    contextlib.__file__, _RANDOM.__file__, *(str(_TORCH / file) for file in ("_compile.py", "_dynamo/eval_frame.py"))
}  # fmt: skip
"""What lies between a call of ``torch.manual_seed`` or ``torch.random.fork_rng`` and the generator."""
_BOOLEANS = str(_TORCH / "__init__.py")
_MODULES = f"{_TORCH}/nn/", f"{_TORCH}/functional.py"
"""Torch's code that is written as a user's is; the rest of it are operators and what records them."""


@dataclass(frozen=True, slots=True)
class Question:
    """What code asked of sizes, what it was told, and where it asked."""

    asked: sympy.Basic
    told: bool
    place: traceback.StackSummary


class CallWatch:
    """Looks at a module just before and after each call."""

    def __init__(self, module: nn.Module) -> None:
        self.changed: dict[tuple[nn.Module, str], object] = {}
        """Plain attributes that a call gave another value, and whose they are; by the values."""
        self.demands: list[traceback.StackSummary] = []
        """Where the last call asked something of a free size that must hold from then on."""
        self.questions: list[Question] = []
        """What the code of modules asked in the last call; not what operators ask to tell shapes."""
        self.seeded: list[traceback.StackSummary] = []
        """Where a call set the state of the random numbers."""
        self._shapes: ShapeEnv | None = None
        self._before = {child: _held(child) for child in module.modules()}
        self._hooks = (
            module.register_forward_pre_hook(lambda *call: self._look_before(call), with_kwargs=True),
            module.register_forward_hook(lambda *_: self._look_after()),
        )

    def settle(self) -> bool:
        """Give the attributes the values that the call gave them, if all are plain ones: then a further call may change
        nothing more (Swin lowers its window to the size of its input). Export has put back the old ones."""
        if not all(type(value) in (bool, int, float, str) for value in self.changed.values()):
            return False
        for (child, name), value in self.changed.items():
            setattr(child, name, value)
        return True

    def remembered(self) -> dict[tuple[nn.Module, str], object]:
        """Changed attributes but for those that hold tensors alone, or references to such: layers keep what they
        compute from their weights at each call so (weight norm, recurrent layers), and reading them in a later call
        shows in what it computes."""
        return {place: value for place, value in self.changed.items() if not _holds_tensors(value)}

    def asked(self) -> list[Question]:
        """The questions in terms of the symbols that are left, now that torch knows which sizes follow from others."""
        if self._shapes is None:
            return []
        return [replace(each, asked=self._shapes.replace(each.asked)) for each in self.questions]

    def guards(self) -> list[sympy.Basic]:
        """What was found true of the free sizes of the example, in the trace and in what was made of it since."""
        if self._shapes is None:
            return []
        return [self._shapes.replace(guard.expr) for guard in self._shapes.guards]

    def end(self) -> None:
        _RANDOM.default_generator = _GENERATOR
        for hook in self._hooks:
            hook.remove()

    def _look_before(self, call: tuple[Any, ...]) -> None:
        _RANDOM.default_generator = _NotedGenerator(self.seeded)
        for leaf in tree_leaves(call[1:]):
            for size in leaf.shape if isinstance(leaf, torch.Tensor) else ():
                if isinstance(size, torch.SymInt):
                    shapes: ShapeEnv = size.node.shape_env
                    self._shapes = shapes
                    self.demands = []
                    shapes.guards = _Noted(shapes.guards, self.demands)
                    self.questions = []
                    evaluate = ShapeEnv.evaluate_expr.__get__(shapes)
                    shapes.evaluate_expr = _noting(evaluate, self.questions)
                    return

    def _look_after(self) -> None:
        _RANDOM.default_generator = _GENERATOR
        for child, before in self._before.items():
            after = _held(child)
            for name in (*after, *before):
                if name not in before or name not in after or not _same(before[name], after[name]):
                    self.changed[child, name] = after.get(name)


class _Noted(list[Any]):
    """A list that notes where it is appended to."""

    def __init__(self, items: Iterable[Any], places: list[traceback.StackSummary]) -> None:
        super().__init__(items)
        self._places = places

    def append(self, item: Any) -> None:
        super().append(item)
        self._places.append(traceback.extract_stack())


class _NotedGenerator:
    """Torch's generator of random numbers, which notes where a module's code sets its state."""

    def __init__(self, places: list[traceback.StackSummary]) -> None:
        self._places = places

    def __getattr__(self, name: str) -> Any:
        if name in ("manual_seed", "seed", "set_state"):
            frame = sys._getframe(1)
            while frame.f_code.co_filename in _SEEDING and frame.f_back is not None:
                frame = frame.f_back
            if not frame.f_code.co_filename.startswith(f"{_TORCH}/"):  # export saves and restores the state too
                self._places.append(traceback.extract_stack(frame))
        return getattr(_GENERATOR, name)


def _noting(evaluate: Callable[..., Any], questions: list[Question]) -> Callable[..., Any]:
    """Evaluate as before, and note what modules ask."""
    known: set[tuple[sympy.Basic, bool]] = set()

    def evaluate_and_note(asked: sympy.Basic, *args: Any, **kwargs: Any) -> Any:
        answer = evaluate(asked, *args, **kwargs)
        if answer in (sympy.true, sympy.false) and (asked, bool(answer)) not in known and _modules_ask():
            known.add((asked, bool(answer)))
            questions.append(Question(asked, bool(answer), traceback.extract_stack()))
        return answer

    return evaluate_and_note


def _modules_ask() -> bool:
    """Whether a truth value is wanted by Python code of a module. Operators in C++ ask without ``SymBool``."""
    frame, truth = sys._getframe(2), False
    while (file := frame.f_code.co_filename) in (*_SYMBOLIC, _BOOLEANS) and frame.f_back is not None:
        truth = truth or (file == _BOOLEANS and frame.f_code.co_name == "__bool__")
        frame = frame.f_back
    return truth and (file.startswith(_MODULES) or not file.startswith(f"{_TORCH}/"))


def _held(module: nn.Module) -> dict[str, object]:
    # A module's own containers (`_parameters`, `_forward_hooks`) are torch's concern.
    torchs = vars(nn.Module())
    return {name: _copy(value, DEPTH) for name, value in vars(module).items() if name not in torchs}


def _holds_tensors(value: object) -> bool:
    leaves = tree_leaves(value)
    return bool(leaves) and all(each is None or isinstance(each, (torch.Tensor, weakref.ref)) for each in leaves)


def _copy(value: object, depth: int) -> object:
    if depth and isinstance(value, dict):
        return {key: _copy(each, depth - 1) for key, each in value.items()}
    if depth and isinstance(value, (list, tuple, set)):
        return [_copy(each, depth - 1) for each in value]
    return value


def _same(before: object, after: object) -> bool:
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_same(value, after[key]) for key, value in before.items())
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_same, before, after))
    return before is after or (isinstance(before, (bool, int, float, str)) and before == after)

"""Why a model cannot be exported, in one line, and which line of its code is in the way."""

import inspect
import linecache
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

_OWN = Path(__file__).parent
_TORCH = Path(torch.__file__).parent
_DATA_DEPENDENT = (GuardOnDataDependentSymNode, DataDependentOutputException)
_BURNT_IN = re.compile(
    r"marked (?P<name>\w+) as dynamic but your code specialized it to be a constant \((?P<size>\d+)\)"
)
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')


def describe(error: Exception) -> str:
    """The first lines that tell something: torch appends advice and stacks over many lines."""
    if isinstance(error, _DATA_DEPENDENT):
        return "what it does next depends on the values of its inputs"
    burnt = _BURNT_IN.search(str(error))
    if burnt is not None:
        return f"its code works for a {burnt['name']} of {burnt['size']} only"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:600]}" if lines else type(error).__name__


def line_of_operation(*causes: BaseException | traceback.StackSummary | fx.Node) -> str | None:
    """The innermost line of the model's own code in the stacks where an error rose, or that made a node.

    Of several causes the last tells for which that is known.
    """
    for cause in reversed(causes):
        for file, line, function in reversed(list(_frames(cause))):
            if _is_models(file):
                return _told(file, line, function)
    return None


def _frames(cause: BaseException | traceback.StackSummary | fx.Node) -> Iterator[tuple[str, int, str]]:
    if isinstance(cause, fx.Node):
        for each in _FRAME.finditer(cause.stack_trace or ""):
            yield each["file"], int(each["line"]), each["function"]
    else:
        stack = traceback.extract_tb(cause.__traceback__) if isinstance(cause, BaseException) else cause
        for frame in stack:
            yield frame.filename, frame.lineno or 0, frame.name


def line_of_attribute(module: nn.Module, name: str) -> str | None:
    """The first line of a module's code that writes to one of its attributes."""
    try:
        file = inspect.getsourcefile(type(module)) or ""
        lines, start = inspect.getsourcelines(type(module).forward)
    except (OSError, TypeError):
        return None
    writing = re.compile(rf"\bself\.{re.escape(name)}\b.*(=|\()")
    return next((_told(file, start + i, "forward") for i, line in enumerate(lines) if writing.search(line)), None)


def _is_models(file: str) -> bool:
    path = Path(file)
    return path.is_file() and not path.is_relative_to(_TORCH) and not path.is_relative_to(_OWN)


def _told(file: str, line: int, function: str) -> str:
    return f"{file}:{line}, in {function}: {linecache.getline(file, line).strip()}"

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

_OWN = Path(__file__).parents[1]
_WATCHING = Path(__file__).with_name("watching.py")
"""Notes stacks within calls of the model, so that it is innermost there."""
_TORCH = Path(torch.__file__).parent
_PACKING, _RECURRENT = _TORCH / "nn/utils/rnn.py", _TORCH / "nn/modules/rnn.py"
_INTERNAL = (AssertionError, AttributeError, KeyError, TypeError)
"""What rises where torch's own code meets something that it was not written for."""
_DATA_DEPENDENT = (GuardOnDataDependentSymNode, DataDependentOutputException)
_BURNT_IN = re.compile(
    r"marked (?P<name>\w+) as dynamic but your code specialized it to be a constant \((?P<size>\d+)\)"
)
_INPUT_SIZE = re.compile(r"L\['\w+'\](\['\w+'\])*\.size\(\)\[\d+\]")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')


_UNKNOWN_OUTPUT = re.compile(r"Found <class '(?P<type>[^']+)'> in output, which is not a known type")
_CONSTRAINT = re.compile(r"Not all values of (?P<name>\w+) = .*? satisfy the generated guard (?P<guard>[^\n]*)")


def burnt_in(message: str) -> re.Match[str] | None:
    """What torch says of a size that the code takes for fixed: ``name`` and ``size``."""
    return _BURNT_IN.search(message)


def describe(error: Exception) -> str:
    """The first lines that tell something: torch appends advice and stacks over many lines."""
    if isinstance(error, _DATA_DEPENDENT):
        return (
            "what it does next depends on the values of its inputs or weights (what follows from weights alone can be "
            "computed in the constructor)"
        )
    burnt = burnt_in(str(error))
    if burnt is not None:
        return f"its code works for a {burnt['name']} of {burnt['size']} only"
    constraint = _CONSTRAINT.search(str(error))
    if constraint is not None:
        guard = _INPUT_SIZE.sub(constraint["name"], constraint["guard"]).strip().rstrip(".")
        return (
            f"its code does not hold for every {constraint['name']} (it needs {guard}), nor for all from about the "
            "example's size on: a larger example may help, or one of which no two sizes are equal"
        )
    unknown = _UNKNOWN_OUTPUT.search(str(error))
    if unknown is not None:
        return (
            f"its outputs hold a {unknown['type']}, which torch cannot look into: return tensors only (a model of "
            "transformers: set use_cache=False in the config that the factory makes it with)"
        )
    if "Cannot create Dim" in str(error):
        return (
            "torch can prove of no range of sizes that its code holds for them, and it does something else for some: "
            "declare them as fixed, or pad the inputs to a multiple before they are sent"
        )
    if _packs(error):
        return (
            "packed sequences are of as many steps as the values of their lengths say, which no graph can hold: give "
            "the recurrent layer the padded sequence, and mask what it gives for the padding"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = f"{type(error).__name__}: {' '.join(lines[:3])[:600]}" if lines else type(error).__name__
    if isinstance(error, _INTERNAL) and not _is_models(traceback.extract_tb(error.__traceback__)[-1].filename):
        return f"torch cannot trace this call ({told})"
    return told


def _packs(error: Exception) -> bool:
    """Whether it rose in, or on the way to, a recurrent layer that was given a packed sequence."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(
        Path(frame.f_code.co_filename) == _PACKING
        or (Path(frame.f_code.co_filename) == _RECURRENT and frame.f_locals.get("batch_sizes") is not None)
        for frame in frames
    )


def line_of_operation(*causes: BaseException | traceback.StackSummary | fx.Node) -> str | None:
    """The innermost line of the model's own code in the stacks where an error rose, or that made a node.

    Of several causes the last tells for which that is known. What called Splitplane is no part of the model.
    """
    for cause in reversed(causes):
        for file, line, function in reversed(list(_frames(cause))):
            if Path(file).is_relative_to(_OWN) and Path(file) != _WATCHING:
                break
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


def line_of_writing(module: nn.Module, name: str) -> str | None:
    """The first line of a module's code that writes to a variable, or to an attribute (``self.name``)."""
    try:
        file = inspect.getsourcefile(type(module)) or ""
        lines, start = inspect.getsourcelines(type(module).forward)
    except (OSError, TypeError):
        return None
    writing = re.compile(rf"\b{re.escape(name)}\b.*(=|\()")
    return next((_told(file, start + i, "forward") for i, line in enumerate(lines) if writing.search(line)), None)


def _is_models(file: str) -> bool:
    path = Path(file)
    return path.is_file() and not path.is_relative_to(_TORCH) and path != _WATCHING


def _told(file: str, line: int, function: str) -> str:
    return f"{file}:{line}, in {function}: {linecache.getline(file, line).strip()}"

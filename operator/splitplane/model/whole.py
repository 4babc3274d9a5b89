"""A model that cannot be split, run as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from splitplane.domain.profiles import TensorSpec
from splitplane.model.building import build_plainly
from splitplane.model.code import source_lines
from splitplane.model.datatypes import oip_datatype
from splitplane.model.errors import FactoryError, WeightsError
from splitplane.model.samples import sample
from splitplane.model.source import ModelSource, bind_inputs
from splitplane.model.state import state_tensors, tied
from splitplane.model.weights import WeightsFile

BATCHES = (3, 1)
"""Run once to see the outputs' shapes, with a number that other dimensions seldom are; some models take one only."""


def load_whole(source: ModelSource) -> nn.Module:
    """The module with its weights in memory; without an address of weights, with those that the factory gives it.

    Raises :class:`FactoryError` or :class:`WeightsError`.
    """
    module = build_plainly(source)
    if source.weights_uri is None:
        return module
    state = _tensors(source, module)
    aliases = tied(state)
    with torch.no_grad():
        for name, tensor in WeightsFile.open(source).each({group[0] for group in aliases.values()}, aliases):
            check_fits(name, tensor, state[name])
            state[name].copy_(tensor)  # in place, for whatever else in the module refers to it
    return module


def save_own_weights(source: ModelSource, path: Path) -> None:
    """Write a weights file of the values that the factory gives its parameters. Raises :class:`FactoryError`."""
    state = _tensors(source, build_plainly(source))
    first = {names[0]: state[names[0]] for names in tied(state).values()}
    save_file({name: tensor.detach().contiguous() for name, tensor in first.items()}, path)


def _tensors(source: ModelSource, module: nn.Module) -> dict[str, torch.Tensor]:
    """What a weights file holds of a module's state; the rest, such as a version number, stays as the factory made it.

    Raises :class:`FactoryError` where the rest has tensors in it, as packed weights of quantised layers have.
    """
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor) and any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value)):
            raise FactoryError(
                f"{source.factory} keeps weights in {name}, a {type(value).__name__}, which no weights file can hold: "
                "return the module as it was before it was quantised or packed"
            )
    return state_tensors(module)


def check_fits(name: str, tensor: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises :class:`WeightsError` if a tensor of the file is not what the factory makes."""
    if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
        raise WeightsError(
            f"weight {name} is {tensor.dtype} {list(tensor.shape)} in the file; the factory "
            f"makes it {expected.dtype} {list(expected.shape)}{_ways_out(tensor, expected)}"
        )


def _ways_out(tensor: torch.Tensor, expected: torch.Tensor) -> str:
    """What to do where only the precision differs, as it does of many files that are published."""
    if tensor.shape != expected.shape or not (tensor.is_floating_point() and expected.is_floating_point()):
        return ""
    return (
        f": save the file anew with {expected.dtype} tensors and give that one's sha256, or let the factory return the "
        f"model in the file's precision (module.to({tensor.dtype}))"
    )


def run_whole(source: ModelSource, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Call the module; gives its tensors in the order in which they lie in what it returns (:func:`answers`).

    It may write to what it is given and compute gradients, as models of energy do for forces: it gets copies, and is
    not called in inference mode, within which there are no gradients even where the module asks for them.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        given = {name: tensor.clone() for name, tensor in tensors.items()}
        result = module(**bind_inputs(source, module, given))
    return answers(result, next(iter(tensors.values())).shape[0])


def answers(result: object, batch: int) -> tuple[torch.Tensor, ...]:
    """The tensors in what a module returns; a number is told once for each sample, as INT64 or FP32."""
    return tuple(
        leaf.detach() if isinstance(leaf, torch.Tensor) else torch.full((batch,), leaf, dtype=number_type(leaf))
        for leaf in tree_leaves(result)
        if isinstance(leaf, torch.Tensor) or number_type(leaf) is not None
    )


def number_type(value: object) -> torch.dtype | None:
    """How a number among the outputs is told; ``None`` of anything else, such as a flag or a name."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, torch.SymInt)):
        return torch.int64
    return torch.float32 if isinstance(value, (float, torch.SymFloat)) else None


@dataclass(frozen=True, slots=True)
class Described:
    """A model that is served whole: its outputs, the bytes of its weights, and lines that tell its code."""

    outputs: tuple[TensorSpec, ...]
    weight_bytes: int
    code: Sequence[str]


def describe_whole(source: ModelSource) -> Described:
    """What is told by running a model on made-up inputs, and by its source files. Raises :class:`ModelError`."""
    module = load_whole(source)
    held = {id(tensor): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}
    code = source_lines(source.factory, module)
    refusal: FactoryError | None = None
    for batch in BATCHES:
        try:
            return Described(_outputs(source, module, batch), sum(held.values()), code)
        except FactoryError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _outputs(source: ModelSource, module: nn.Module, batch: int) -> tuple[TensorSpec, ...]:
    """The outputs for the example's sizes, and which of their dimensions move with a free size of the inputs."""
    try:
        outputs = _run(source, module, source.inputs, batch)
    except Exception as error:  # the tenant's code may raise anything
        raise FactoryError(f"{source.factory} fails on inputs as declared: {type(error).__name__}: {error}") from error
    if not outputs:
        raise FactoryError(f"{source.factory} returns no tensor")
    if any(isinstance(output, FakeTensor) for output in outputs):
        raise FactoryError(
            f"{source.factory} keeps tensors of its calls where a trace cannot put them back (a cached function, an "
            "object of another): those of the trial calls are still there, and have no values. Keep them in "
            "attributes of it"
        )
    moves = _moves(source, module, batch, outputs)
    specs = []
    for index, output in enumerate(outputs):
        datatype = oip_datatype(output.dtype)
        if datatype is None or not output.ndim or output.shape[0] != batch:
            raise FactoryError(
                f"output {index} of {source.factory} is {output.dtype} {list(output.shape)} for {batch} inputs: each "
                "output must have the batch as its first dimension"
            )
        free = tuple(moves.get((index, dimension)) for dimension in range(1, output.ndim))
        specs.append(TensorSpec(f"output_{index}", datatype, tuple(output.shape[1:]), free if any(free) else ()))
    return tuple(specs)


def _run(source: ModelSource, module: nn.Module, inputs: Sequence[TensorSpec], batch: int) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return run_whole(source, module, sample(inputs, batch=batch))


def _moves(
    source: ModelSource, module: nn.Module, batch: int, outputs: Sequence[torch.Tensor]
) -> dict[tuple[int, int], str]:
    """By output and dimension, the free size that it is, or that it is a function of; told from runs at other sizes."""
    found: dict[tuple[int, int], str] = {}
    for name, size in {name: size for spec in source.inputs for name, size in _free(spec)}.items():
        for other in (max(2, size // 2), 2 * size, size + 1):
            if other == size:
                continue
            try:
                resized = _run(source, module, [_resized(spec, name, other) for spec in source.inputs], batch)
            except Exception:  # noqa: S112 - the tenant's code may raise anything, and may not take this size
                continue
            for index, (before, after) in enumerate(zip(outputs, resized, strict=False)):
                for dimension, (old, new) in enumerate(zip(before.shape, after.shape, strict=False)):
                    if old != new:
                        told = name if (old, new) == (size, other) else f"f({name})"
                        earlier = found.get((index, dimension))
                        found[index, dimension] = told if earlier is None else f"f({earlier},{told})"
            break
    return found


def _free(spec: TensorSpec) -> list[tuple[str, int]]:
    return [(name, size) for name, size in zip(spec.free, spec.shape, strict=False) if name is not None]


def _resized(spec: TensorSpec, name: str, size: int) -> TensorSpec:
    named = spec.free or (None,) * len(spec.shape)
    return replace(
        spec, shape=tuple(size if each == name else old for old, each in zip(spec.shape, named, strict=True))
    )

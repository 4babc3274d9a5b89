"""A model that cannot be split, run as it is."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._pytree import tree_leaves

from splitplane.domain.profiles import TensorSpec
from splitplane.model.building import build_plainly
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
            f"makes it {expected.dtype} {list(expected.shape)}"
        )


def run_whole(source: ModelSource, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Call the module; gives its tensors in the order in which they lie in what it returns."""
    result = module(**bind_inputs(source, module, tensors))
    return tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))


def describe_whole(source: ModelSource) -> tuple[tuple[TensorSpec, ...], int]:
    """The outputs, told from one run on made-up inputs, and the bytes of all weights. Raises :class:`ModelError`."""
    module = load_whole(source)
    held = {id(tensor): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}
    refusal: FactoryError | None = None
    for batch in BATCHES:
        try:
            return _outputs(source, module, batch), sum(held.values())
        except FactoryError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _outputs(source: ModelSource, module: nn.Module, batch: int) -> tuple[TensorSpec, ...]:
    try:
        with torch.inference_mode():
            outputs = run_whole(source, module, sample(source.inputs, batch=batch))
    except Exception as error:  # the tenant's code may raise anything
        raise FactoryError(f"{source.factory} fails on inputs as declared: {type(error).__name__}: {error}") from error
    if not outputs:
        raise FactoryError(f"{source.factory} returns no tensor")
    specs = []
    for index, output in enumerate(outputs):
        datatype = oip_datatype(output.dtype)
        if datatype is None or not output.ndim or output.shape[0] != batch:
            raise FactoryError(
                f"output {index} of {source.factory} is {output.dtype} {list(output.shape)} for {batch} inputs: each "
                "output must have the batch as its first dimension"
            )
        specs.append(TensorSpec(f"output_{index}", datatype, tuple(output.shape[1:])))
    return tuple(specs)

"""Real inputs of a model, from the user's file, which accuracy and leak are measured on. They stay on this machine."""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from splitplane.domain.profiles import TensorSpec
from splitplane.model.caching import sha256_and_state, state_of
from splitplane.model.datatypes import torch_datatype
from splitplane.model.errors import CalibrationError

LABELS = "labels"
"""Name of the tensor of right answers, where the file has them."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """``inputs`` by name, samples first; ``labels`` are the right answers: classes as whole numbers, or numbers.

    ``sha256`` is that of the file that they are from.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    sha256: str = ""

    @property
    def samples(self) -> int:
        return len(next(iter(self.inputs.values())))

    def order(self) -> torch.Tensor:
        """All samples at random, the same each time: files are often sorted by class."""
        return _order(self.samples)

    def sample(self, most: int) -> "Calibration":
        """At most so many, drawn at random, in random order."""
        return self.at(self.order()[:most])

    def first(self, samples: int) -> "Calibration":
        """The first so many."""
        return self.at(slice(samples))

    def at(self, chosen: slice | torch.Tensor) -> "Calibration":
        """Those of a slice, of indices, or where a mask ``[samples]`` is true."""
        labels = None if self.labels is None else self.labels[chosen]
        return Calibration({name: value[chosen] for name, value in self.inputs.items()}, labels, self.sha256)


def _order(samples: int) -> torch.Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(0))


class _Held:
    """A tensor of a file, of which rows are read when they are asked for."""

    def __init__(self, shape: Sequence[int], rows: Callable[[int, int], torch.Tensor]) -> None:
        self.shape, self._rows = tuple(shape), rows

    def read(self, most: int) -> torch.Tensor:
        """At most so many rows, drawn at random, as they follow each other in the file."""
        samples = self.shape[0]
        if most >= samples:
            return self._rows(0, samples)
        return torch.cat([self._rows(row, row + 1) for row in _order(samples)[:most].sort().values.tolist()])


def read_calibration(
    path: Path, specs: Sequence[TensorSpec], *, most: int | None = None, most_bytes: int | None = None
) -> Calibration:
    """Read a ``.safetensors`` or ``.npz`` file with a tensor for each input, ``[samples, ...]``, and maybe ``labels``.

    Of ``most`` samples at most, and of as many as ``most_bytes`` hold as 32 bit numbers, drawn at random; of a
    ``.npz`` file a whole tensor is read first. Raises :class:`CalibrationError` that says what the file lacks.
    """
    try:
        with ExitStack() as stack:
            digest, state = sha256_and_state(path)
            read = _read(path, _held(path, stack), specs, most, most_bytes)
            if state_of(path) != state:
                raise CalibrationError(f"{path} was replaced or written to while it was read: measure again")
            return replace(read, sha256=digest)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CalibrationError(
            f"cannot read calibration inputs from {path}: {error}: give .safetensors or .npz"
        ) from error


def _held(path: Path, stack: ExitStack) -> dict[str, _Held]:
    if zipfile.is_zipfile(path):  # as .npz is
        arrays = stack.enter_context(np.load(path, allow_pickle=False))
        tensors = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
        return {name: _Held(value.shape, partial(_rows, value)) for name, value in tensors.items()}
    file = stack.enter_context(safe_open(path, framework="pt"))
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return {name: _Held(each.get_shape(), partial(_rows, each)) for name, each in slices.items()}


def _rows(value: Any, start: int, stop: int) -> torch.Tensor:
    found: torch.Tensor = value[start:stop]
    return found


def _read(
    path: Path, held: Mapping[str, _Held], specs: Sequence[TensorSpec], most: int | None, most_bytes: int | None
) -> Calibration:
    for spec in specs:
        if spec.name not in held:
            raise CalibrationError(f"{path} lacks the input {spec.name}; it holds {', '.join(held) or 'nothing'}")
        shape = held[spec.name].shape
        fits = len(spec.declared_shape) == len(shape) and all(
            want in (-1, got) for want, got in zip(spec.declared_shape, shape, strict=True)
        )
        if not fits:
            raise CalibrationError(
                f"{path}: {spec.name} is {list(shape)}, not {list(spec.declared_shape)} (-1: any size)"
            )
    labels = held.get(LABELS) if LABELS not in {spec.name for spec in specs} else None
    wanted = [held[spec.name] for spec in specs]
    sizes = {(*each.shape, 0)[0] for each in (*wanted, *(() if labels is None else (labels,)))}
    if len(sizes) != 1 or sizes == {0}:
        raise CalibrationError(f"{path}: every tensor must have the same number of samples, at least one")
    samples = min(sizes) if most is None else min(*sizes, most)
    if most_bytes is not None:
        samples = max(1, min(samples, most_bytes // (4 * sum(math.prod(each.shape[1:]) for each in wanted))))
    return Calibration(
        {spec.name: held[spec.name].read(samples).to(torch_datatype(spec.datatype)) for spec in specs},
        None if labels is None else _labels(path, labels.read(samples)),
    )


def _labels(path: Path, values: torch.Tensor) -> torch.Tensor:
    """Right answers, classes as signed integers: of unsigned ones torch compares only bytes."""
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise CalibrationError(
            f"{path}: {LABELS} hold NaN or infinities, which no answer is near: leave such samples out"
        )
    return values if values.is_floating_point() or values.is_complex() else values.long()


class Runs(Protocol):
    """What gives what crosses a cut: a wholly resident partition."""

    def run(self, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]: ...


def run_on(partition: Runs, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run ``[first, last)`` on calibration inputs, or what came of them.

    Raises :class:`CalibrationError` that tells the tensors, where the model fails on them.
    """
    try:
        return partition.run(first, last, tensors)
    except Exception as error:  # the tenant's code may raise anything, such as of a token that its table lacks
        given = ", ".join(_told(name, value) for name, value in tensors.items())
        raise CalibrationError(
            f"the model fails on the calibration inputs, between cuts {first} and {last}, given {given}: "
            f"{type(error).__name__}: {error}. Correct the file's values, or name the file of this model"
        ) from error


def _told(name: str, value: torch.Tensor) -> str:
    """Ranges of whole numbers alone, which a table may lack: it is told in conditions, where no real value may be."""
    span = ""
    if value.numel() and not (value.is_floating_point() or value.is_complex()):
        low, high = (end.item() for end in value.long().aminmax())
        span = f" from {low} to {high}"
    return f"{name} ({str(value.dtype).removeprefix('torch.')} {list(value.shape)}{span})"

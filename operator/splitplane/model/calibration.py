"""Real inputs of a model, from the user's file, which accuracy and leak are measured on. They stay on this machine."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from splitplane.domain.profiles import TensorSpec
from splitplane.model.datatypes import torch_datatype
from splitplane.model.errors import CalibrationError

LABELS = "labels"
"""Name of the tensor of right answers, where the file has them."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """``inputs`` by name, samples first; ``labels`` are the right answers: classes as whole numbers, or numbers."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None

    @property
    def samples(self) -> int:
        return len(next(iter(self.inputs.values())))

    def first(self, samples: int) -> "Calibration":
        """The first so many."""
        return self._at(slice(samples))

    def sample(self, most: int) -> "Calibration":
        """At most so many, drawn at random from all of them, the same each time: files are often sorted by class."""
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(0))
        return self._at(order[:most])

    def _at(self, chosen: slice | torch.Tensor) -> "Calibration":
        labels = None if self.labels is None else self.labels[chosen]
        return Calibration({name: value[chosen] for name, value in self.inputs.items()}, labels)


def read_calibration(path: Path, specs: Sequence[TensorSpec]) -> Calibration:
    """Read a ``.safetensors`` or ``.npz`` file with a tensor for each input, ``[samples, ...]``, and maybe ``labels``.

    Raises :class:`CalibrationError` that says what the file lacks.
    """
    try:
        if zipfile.is_zipfile(path):  # as .npz is
            with np.load(path, allow_pickle=False) as file:
                held = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
        else:
            held = load_file(path)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CalibrationError(
            f"cannot read calibration inputs from {path}: {error}: give .safetensors or .npz"
        ) from error
    labels = held.pop(LABELS, None) if LABELS not in {spec.name for spec in specs} else None
    inputs = {}
    for spec in specs:
        if spec.name not in held:
            raise CalibrationError(f"{path} lacks the input {spec.name}; it holds {', '.join(held) or 'nothing'}")
        value = held[spec.name]
        fits = len(spec.declared_shape) == value.ndim and all(
            want in (-1, got) for want, got in zip(spec.declared_shape, value.shape, strict=True)
        )
        if not fits:
            raise CalibrationError(
                f"{path}: {spec.name} is {list(value.shape)}, not {list(spec.declared_shape)} (-1: any size)"
            )
        inputs[spec.name] = value.to(torch_datatype(spec.datatype))
    sizes = {len(value) for value in (*inputs.values(), *(() if labels is None else (labels,)))}
    if len(sizes) != 1 or sizes == {0}:
        raise CalibrationError(f"{path}: every tensor must have the same number of samples, at least one")
    return Calibration(inputs, labels)

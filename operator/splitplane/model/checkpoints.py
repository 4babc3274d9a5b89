"""Tensors of a torch checkpoint, without running the code that a pickle may hold: ``weights_only=True``, always."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from splitplane.model.errors import WeightsError

_NESTED = ("state_dict", "model_state_dict", "model")
"""Under which a training framework keeps the weights, beside an optimiser's state and more."""
_CONVERT = (
    "convert it once, where you trust it: python -c \"import torch, safetensors.torch as s; m = torch.load('{name}', "
    "map_location='cpu', weights_only=False); m = next((m[k] for k in {nested} if isinstance(m, dict) and k in m), m); "
    "s.save_model(m, 'model.safetensors') if isinstance(m, torch.nn.Module) "
    "else s.save_file({{k: v.clone() for k, v in m.items()}}, 'model.safetensors')\""
)


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as ``torch.save`` begins one: a zip archive, or a bare pickle. Raises ``OSError``."""
    with path.open("rb") as file:
        head = file.read(2)
    return head == b"PK" or (head[:1] == b"\x80" and head[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, mapped from the file where its format allows that.

    Raises :class:`WeightsError` for a file that would run code, or that holds no mapping from names to tensors.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle in a newer protocol than torch writes
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        why = " ".join(str(error).split())
        blamed = why.partition("WeightsUnpickler error: ")[2] or why
        raise WeightsError(
            f"{path} is a torch checkpoint that cannot be read as tensors alone, and a pickle that runs code is never "
            f"loaded here ({blamed[:200]}): {_CONVERT.format(name=path.name, nested=_NESTED)}"
        ) from error
    for key in (None, *_NESTED):
        state = loaded if key is None else (loaded.get(key) if isinstance(loaded, Mapping) else None)
        if isinstance(state, Mapping) and state and all(isinstance(value, torch.Tensor) for value in state.values()):
            return {str(name): value for name, value in state.items()}
    raise WeightsError(
        f"{path} holds {type(loaded).__name__}, not a mapping from names to tensors (nor has it one under "
        f"{', '.join(_NESTED)}): save model.state_dict()"
    )

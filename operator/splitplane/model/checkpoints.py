"""Tensors of a torch checkpoint, without running the code that a pickle may hold: ``weights_only=True``, always."""

import re
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
    "map_location='cpu', weights_only=False); c = [m] if isinstance(m, torch.nn.Module) else "
    "[*(m[k] for k in {nested} if k in m), m, *m.values()]; c = [getattr(d, 'state_dict', lambda: d)() for d in c if "
    "isinstance(d, (dict, torch.nn.Module))]; c = [{{k: v.clone(memory_format=torch.contiguous_format) for k, v in "
    "d.items() if isinstance(v, torch.Tensor)}} for d in c]; s.save_file(max(c, key=len), 'model.safetensors')\""
)
"""Keeps the tensors of the mapping that has most of them, or of the module."""
_CODE = re.compile(r"GLOBAL (?P<name>\S+)|Can only (create|build)|Trying to (call|instantiate)")
"""What torch says of a pickle that would run code, and not of one that is damaged."""
_NEWEST_OF_TORCH = 2
"""The pickle protocol that ``torch.save`` writes."""


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as ``torch.save`` begins one: a zip archive, or a bare pickle. Raises ``OSError``."""
    with path.open("rb") as file:
        head = file.read(2)
    return head == b"PK" or (head[:1] == b"\x80" and head[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, mapped from the file where its format allows that.

    Raises :class:`WeightsError` for a file that would run code, that is damaged or of another kind, or that holds no
    mapping from names to tensors.
    """
    zipped = zipfile.is_zipfile(path)
    _check_kind(path, zipped)
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle in a newer protocol than torch writes
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # what a damaged file makes torch raise can be anything
        raise WeightsError(_refused(path, zipped, error)) from error
    for key in (None, *_NESTED):
        state = loaded if key is None else (loaded.get(key) if isinstance(loaded, Mapping) else None)
        if isinstance(state, Mapping) and state and all(isinstance(value, torch.Tensor) for value in state.values()):
            return {str(name): value for name, value in state.items()}
    raise WeightsError(
        f"{path} holds {type(loaded).__name__}, not a mapping from names to tensors (nor has it one under "
        f"{', '.join(_NESTED)}): save model.state_dict(), or {_way_out(path)}"
    )


def _check_kind(path: Path, zipped: bool) -> None:
    """Raises :class:`WeightsError` for an archive that is no checkpoint, with what it is as far as that shows."""
    with path.open("rb") as file:
        if file.read(2) == b"PK" and not zipped:
            raise WeightsError(f"{path} ends early: it is damaged, or was not copied whole; copy it anew")
    if not zipped:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise WeightsError(f"{path} is damaged, or was not copied whole ({error}): copy it anew") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(
            f"{path} is a TorchScript archive, not a checkpoint: convert it once, where you trust it: python -c "
            f"\"import torch, safetensors.torch as s; m = torch.jit.load('{path.name}', map_location='cpu'); "
            "s.save_file({k: v.clone() for k, v in m.state_dict().items()}, 'model.safetensors')\""
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise WeightsError(
            f"{path} is a zip archive that torch.save did not write (it holds {', '.join(names[:3]) or 'nothing'}): "
            "give a safetensors file, or a checkpoint of model.state_dict()"
        )


def _refused(path: Path, zipped: bool, error: Exception) -> str:
    why = " ".join(str(error).split())
    blamed = (why.partition("WeightsUnpickler error: ")[2] or why)[:200]
    with path.open("rb") as file:
        foreign = not zipped and file.read(2)[1] > _NEWEST_OF_TORCH
    if foreign or _CODE.search(why):
        return (
            f"{path} is a torch checkpoint that cannot be read as tensors alone, and a pickle that runs code is never "
            f"loaded here ({blamed}): {_way_out(path)}"
        )
    return (
        f"{path} cannot be read as a torch checkpoint: it is damaged, was not copied whole, or torch.save did not "
        f"write it ({type(error).__name__}: {blamed}): copy it anew, or save model.state_dict()"
    )


def _way_out(path: Path) -> str:
    return _CONVERT.format(name=path.name, nested=_NESTED)

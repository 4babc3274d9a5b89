"""Tensors from a weights file: only those that are asked for, and only if the file is the one that is meant.

The file is a safetensors file, or a torch checkpoint of tensors alone; one that lies elsewhere is downloaded first.

The file is read, not mapped: every tensor lies in aligned memory of this process once, and a file that is overwritten
in place changes nothing in a pod that runs.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from safetensors import SafetensorError, safe_open

from splitplane.domain.addresses import without_secrets
from splitplane.model.caching import FileState, fetched, sha256_and_state, state_of, wrong_digest
from splitplane.model.checkpoints import is_checkpoint, load_checkpoint
from splitplane.model.errors import WeightsError
from splitplane.model.remote import SCHEMES
from splitplane.model.source import ModelSource

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Types of safetensors as torch names them."""

_PREFIXES = "module.", "_orig_mod."
"""Of all names where a wrapper's state was saved (``DataParallel``, ``torch.compile``), not that of the model in it."""


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A verified weights file; ``state`` is what it was in when it was."""

    path: Path
    sha256: str
    state: FileState

    @classmethod
    def open(cls, source: ModelSource) -> "WeightsFile":
        """Find and verify the file of a model. Raises :class:`WeightsError`."""
        path = _local_path(source)
        try:
            digest, state = sha256_and_state(path)
        except OSError as error:
            raise WeightsError(
                f"cannot read the weights {source.told_uri}: {error.strerror} ({path}): check weights.uri, and "
                "that the volume is mounted on this node"
            ) from error
        if source.weights_sha256 not in (None, digest):
            raise WeightsError(wrong_digest(source.told_uri, str(source.weights_sha256), digest, state[1]))
        return cls(path, digest, state)

    def read(self, names: Iterable[str], aliases: Mapping[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
        """Read the named tensors, tied ones under whichever of their names the file holds. Raises as :meth:`each`."""
        return dict(self.each(names, aliases))

    def each(self, names: Iterable[str], aliases: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, torch.Tensor]]:
        """As :meth:`read`, one after another.

        Raises :class:`WeightsError` that lists all that are missing, and after the last one where the file is not in
        the state any more in which it was verified.
        """
        held = self._held()
        found = {
            name: next((alias for alias in (name, *aliases.get(name, ())) if alias in held), None) for name in names
        }
        missing = sorted(name for name, alias in found.items() if alias is None)
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            nearest = get_close_matches(missing[0], sorted(held.keys() - found.values()), n=1, cutoff=0.0)
            raise WeightsError(
                f"weights {self.path} lack {shown}: the factory's parameters must have the names of the file's tensors"
                + "".join(f", of which {name} is nearest to {missing[0]}" for name in nearest)
            )
        yield from self._tensors({name: held[alias] for name, alias in found.items() if alias is not None})

    def read_held(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Read those of the named tensors that the file holds."""
        held = self._held()
        return dict(self._tensors({name: held[name] for name in names if name in held}))

    def _held(self) -> Mapping[str, "_Entry | torch.Tensor"]:
        self._check_state(self.path)
        held: Mapping[str, _Entry | torch.Tensor]
        held = load_checkpoint(self.path) if is_checkpoint(self.path) else self._entries()
        self._check_state(self.path)
        for prefix in _PREFIXES:
            if held and all(name.startswith(prefix) for name in held):
                return {**held, **{name.removeprefix(prefix): value for name, value in held.items()}}
        return held

    def _entries(self) -> dict[str, "_Entry"]:
        try:
            with safe_open(self.path, framework="pt"):  # the library checks the header
                pass
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(length))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{self.path} is not a safetensors file: {error}") from error
        header.pop("__metadata__", None)
        return {
            name: _Entry(each["dtype"], tuple(each["shape"]), 8 + length + each["data_offsets"][0])
            for name, each in header.items()
        }

    def _tensors(self, wanted: Mapping[str, "_Entry | torch.Tensor"]) -> Iterator[tuple[str, torch.Tensor]]:
        # Tensors of a checkpoint are mapped; they are copied, so that the mapping goes with the last of them.
        mapped = {name: value for name, value in wanted.items() if isinstance(value, torch.Tensor)}
        for name, value in mapped.items():
            if value.layout != torch.strided:
                raise WeightsError(f"tensor {name} of {self.path} is sparse: save it dense (tensor.to_dense())")
            yield name, value.clone()
        if mapped:
            self._check_state(self.path)
        entries = {name: value for name, value in wanted.items() if isinstance(value, _Entry)}
        with self.path.open("rb", buffering=0) as file:
            for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
                if entry.dtype not in _DTYPES:
                    raise WeightsError(f"tensor {name} of {self.path} is {entry.dtype}, which torch has no type for")
                tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
                file.seek(entry.offset)
                left = tensor_bytes(tensor)
                while left and (count := file.readinto(left)):
                    left = left[count:]
                if left:
                    raise WeightsError(f"{self.path} ends within tensor {name}: it was shortened while it was read")
                yield name, tensor
            self._check_state(file.fileno())

    def _check_state(self, file: Path | int) -> None:
        # A volume may be updated at any time, and what was read is what was verified only if it was not.
        with contextlib.suppress(OSError):  # it may not be there any more
            if state_of(file) == self.state:
                return
        raise WeightsError(
            f"{self.path} was replaced, removed or written to while it was read, so that it is no longer the file with "
            f"sha256 {self.sha256}: load the model again once the file stays as it is"
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor lies in its file; ``offset`` in bytes from its start."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _local_path(source: ModelSource) -> Path:
    uri = source.weights_uri
    if uri is None:
        raise WeightsError("the model has no weights: give weights.uri")
    parts = urlsplit(uri)
    if parts.scheme in SCHEMES:
        if source.weights_sha256 is None:
            raise WeightsError(
                f"weights {without_secrets(uri)}: give weights.sha256, by which downloads are checked and kept"
            )
        return fetched(uri, source.weights_sha256)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise WeightsError(
            f"weights {without_secrets(uri)}: a pod reads file:///path, https://, s3://bucket/key or "
            "oci://registry/repository:tag; a claim is pvc://claim/path in weights.uri"
        )
    return Path(unquote(parts.path))

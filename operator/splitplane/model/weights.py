"""Tensors from a safetensors file: only those that are asked for, and only if the file is the one that is meant."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from safetensors import SafetensorError, safe_open

from splitplane.model.errors import WeightsError
from splitplane.model.source import ModelSource


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A verified weights file."""

    path: Path
    sha256: str

    @classmethod
    def open(cls, source: ModelSource) -> "WeightsFile":
        """Find and verify the file of a model. Raises :class:`WeightsError`."""
        path = _local_path(source.weights_uri)
        try:
            status = path.stat()
            digest = _sha256(path, status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise WeightsError(
                f"cannot read the weights {source.weights_uri}: {error.strerror} ({path}): check weights.uri, and "
                "that the volume is mounted on this node"
            ) from error
        if source.weights_sha256 not in (None, digest):
            raise WeightsError(
                f"weights {source.weights_uri} have the wrong sha256: expected {source.weights_sha256}, got {digest}: "
                "restore the file, or correct weights.sha256"
            )
        return cls(path, digest)

    def read(self, names: Iterable[str], aliases: Mapping[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
        """Read the named tensors, tied ones under whichever of their names the file holds.

        Raises :class:`WeightsError` that lists all that are missing.
        """
        tensors, missing = {}, []
        try:
            with safe_open(self.path, framework="pt") as file:
                held = set(file.keys())
                for name in names:
                    found = next((alias for alias in (name, *aliases.get(name, ())) if alias in held), None)
                    if found is None:
                        missing.append(name)
                    else:
                        # The clone lies in aligned memory of this process: the file may be replaced while it runs.
                        tensors[name] = file.get_tensor(found).clone()
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{self.path} is not a safetensors file: {error}") from error
        if missing:
            shown = ", ".join(sorted(missing)[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise WeightsError(
                f"weights {self.path} lack {shown}: the factory's parameters must have the names of the file's tensors"
            )
        return tensors


def _local_path(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise WeightsError(f"weights {uri}: a pod reads file:///path only; use file:// or pvc:// in weights.uri")
    return Path(unquote(parts.path))


@lru_cache(maxsize=8)
def _sha256(path: Path, _size: int, _modified: int) -> str:
    # Size and time of change are part of the key: a file that is replaced is hashed anew.
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Zstandard on top of a base codec: a wire tensor becomes bytes that say what lies in them."""

import math

import numpy as np
import zstandard

from splitplane.domain.codecs import DATATYPE_BYTES
from splitplane.runtime.codecs.form import malformed, read_shape
from splitplane.runtime.inference import Buffer, Tensor
from splitplane.runtime.tensors import nbytes

STORED = "splitplane_zstd"
"""Tensor parameter of compressed bytes: datatype and shape of what lies in them, as in ``UINT8 2,64,56,56``."""

LEVEL = 1
"""Activations are noise to a compressor but for their zeros and their exponents: higher levels take three times as long
to find no more."""
MOST_BYTES = 1 << 30
"""What a message may unfold to; sixteen times what one can hold."""


def compress(tensor: Tensor) -> Tensor:
    """The tensor in fewer bytes, or as it is where there is nothing to gain.

    The bytes of equal weight of all elements come together first: sign and exponent repeat, the mantissa does not.
    """
    size = DATATYPE_BYTES.get(tensor.datatype, 1)
    raw = np.frombuffer(tensor.data, np.uint8)
    planes = np.ascontiguousarray(raw.reshape(-1, size).T) if size > 1 else raw
    data = zstandard.ZstdCompressor(level=LEVEL).compress(planes.reshape(-1).data)
    if len(data) >= raw.nbytes:
        return tensor
    stored = f"{tensor.datatype} {','.join(map(str, tensor.shape))}"
    return Tensor(tensor.name, "UINT8", (len(data),), data, {**tensor.parameters, STORED: stored})


def described(tensor: Tensor) -> Tensor:
    """What lies in compressed bytes, without its data; any other tensor as it is. Raises :class:`InferenceError`."""
    text = tensor.parameters.get(STORED)
    if text is None:
        return tensor
    datatype, _, sizes = str(text).partition(" ")
    if datatype not in DATATYPE_BYTES:
        raise malformed(tensor, f"parameter {STORED} names the datatype '{datatype[:20]}', which has no fixed size")
    parameters = {name: value for name, value in tensor.parameters.items() if name != STORED}
    return Tensor(tensor.name, datatype, read_shape(tensor, STORED, sizes), b"", parameters)


def decompress(tensor: Tensor) -> Tensor:
    """Undo :func:`compress`. Raises :class:`InferenceError`, before memory is taken where the sizes do not fit."""
    if STORED not in tensor.parameters:
        return tensor
    stored = described(tensor)
    size = DATATYPE_BYTES[stored.datatype]
    expected = math.prod(stored.shape) * size
    if expected > MOST_BYTES:
        raise malformed(tensor, f"unfolds to {expected} bytes; a stage takes at most {MOST_BYTES}")
    try:
        told = zstandard.frame_content_size(tensor.data)
        if told != expected:
            raise malformed(tensor, f"holds {told} bytes, but {stored.datatype} {list(stored.shape)} takes {expected}")
        data: Buffer = zstandard.ZstdDecompressor().decompress(tensor.data)
    except zstandard.ZstdError as error:
        raise malformed(tensor, f"cannot be decompressed ({nbytes(tensor)} bytes): {error}") from error
    if size > 1:
        planes = np.frombuffer(data, np.uint8).reshape(size, -1)
        data = np.ascontiguousarray(planes.T).reshape(-1).data
    return Tensor(stored.name, stored.datatype, stored.shape, data, stored.parameters)

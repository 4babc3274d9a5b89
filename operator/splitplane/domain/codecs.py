"""Sizes of tensors on the wire, so that planner, profiler and data plane count the same bytes.

The encoders themselves live in ``runtime.codecs``; they must produce exactly what :func:`encoded_bytes` says.
"""

import math

from splitplane.domain.profiles import CODECS, TensorSpec

DATATYPE_BYTES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Bytes per element of the Open Inference Protocol's fixed-size datatypes (``BYTES`` has no fixed size)."""

FLOATING = frozenset({"FP16", "BF16", "FP32", "FP64"})
"""Datatypes that a lossy codec may shrink; all others travel raw under every codec."""

INT8_CHANNEL_BYTES = 8
"""int8 is affine per channel (dimension 1): an fp32 scale and an fp32 offset for each."""


def raw_bytes(spec: TensorSpec, *, batch: int = 1) -> int:
    """Bytes of ``batch`` samples of a tensor as it lies in memory. Raises ``ValueError`` on an unknown datatype."""
    if spec.datatype not in DATATYPE_BYTES:
        raise ValueError(f"tensor {spec.name}: datatype {spec.datatype} has no fixed size on the wire")
    return batch * math.prod(spec.shape) * DATATYPE_BYTES[spec.datatype]


def channels(shape: tuple[int, ...]) -> int:
    """Channels that int8 scales apart, for a shape without its batch dimension; a tensor of only a batch has one."""
    return shape[0] if shape else 1


def encoded_bytes(spec: TensorSpec, codec: str, *, batch: int = 1) -> int:
    """Payload bytes of ``batch`` samples under a codec, headers excluded.

    fp16 stores two bytes per element, int8 one, and the scales and offsets of int8 are shared by the whole batch.
    Tensors whose datatype is not floating point travel raw under every codec. Raises ``ValueError`` on an unknown
    codec or datatype.
    """
    raw = raw_bytes(spec, batch=batch)
    if codec not in CODECS:
        raise ValueError(f"codec {codec} is unknown; use one of {', '.join(CODECS)}")
    if codec == "fp32" or spec.datatype not in FLOATING:
        return raw
    elements = batch * math.prod(spec.shape)
    if codec == "fp16":
        return 2 * elements
    return elements + INT8_CHANNEL_BYTES * channels(spec.shape)

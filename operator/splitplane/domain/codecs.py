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

INT8_AFFINE_BYTES = 8
"""An fp32 scale and an fp32 offset, for each part of a tensor that int8 scales apart from the rest."""


def raw_bytes(spec: TensorSpec, *, batch: int = 1) -> int:
    """Bytes of ``batch`` samples of a tensor as it lies in memory. Raises ``ValueError`` on an unknown datatype."""
    if spec.datatype not in DATATYPE_BYTES:
        raise ValueError(f"tensor {spec.name}: datatype {spec.datatype} has no fixed size on the wire")
    return batch * math.prod(spec.shape) * DATATYPE_BYTES[spec.datatype]


def int8_groups(spec: TensorSpec) -> int | None:
    """How many parts of a tensor int8 scales apart: its channels, or 1 for all of it; ``None`` where it travels raw.

    Channels (dimension 1) are scaled apart where that takes fewer bytes than fp16, which loses less; with few elements
    to a channel, scales and offsets would outweigh what int8 saves. A sample that would not shrink travels raw. The
    batch plays no part in it.
    """
    elements = math.prod(spec.shape)
    channels = spec.shape[0] if spec.shape else 1
    per_channel = channels > 0 and elements // channels > INT8_AFFINE_BYTES
    groups = channels if per_channel else 1
    return groups if elements + INT8_AFFINE_BYTES * groups < raw_bytes(spec) else None


def encoded_bytes(spec: TensorSpec, codec: str, *, batch: int = 1) -> int:
    """Payload bytes of ``batch`` samples under a codec, headers excluded.

    fp16 stores two bytes per element, int8 one, and the scales and offsets of int8 (see :func:`int8_groups`) are
    shared by the whole batch. Tensors whose datatype is not floating point travel raw under every codec. Raises
    ``ValueError`` on an unknown codec or datatype.
    """
    raw = raw_bytes(spec, batch=batch)
    if codec not in CODECS:
        raise ValueError(f"codec {codec} is unknown; use one of {', '.join(CODECS)}")
    if codec == "fp32" or spec.datatype not in FLOATING:
        return raw
    elements = batch * math.prod(spec.shape)
    if codec == "fp16":
        return 2 * elements
    groups = int8_groups(spec)
    return raw if groups is None else elements + INT8_AFFINE_BYTES * groups

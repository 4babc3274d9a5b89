"""Sizes of tensors on the wire, so that planner, profiler and data plane count the same bytes.

The encoders themselves live in ``runtime.codecs``; they must produce exactly what :func:`encoded_bytes` says, and with
Zstandard on top at most that.
"""

import math

from splitplane.domain.profiles import CODECS, TensorSpec, base_codec

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
"""Datatypes that a lossy codec may shrink; all others travel raw under every base codec."""

ELEMENT_BITS = {"fp16": 16, "bf16": 16, "int8": 8, "int4": 4}
"""What each lossy codec takes for an element."""

AFFINE_BITS = {"int8": 8, "int4": 4}
"""Codecs that divide the extent of a group of elements into equal steps, 2 to this power less one."""

AFFINE_BYTES = 8
"""An fp32 scale and an fp32 offset, for each part of a tensor that is scaled apart from the rest."""


def raw_bytes(spec: TensorSpec, *, batch: int = 1) -> int:
    """Bytes of ``batch`` samples of a tensor as it lies in memory. Raises ``ValueError`` on an unknown datatype."""
    if spec.datatype not in DATATYPE_BYTES:
        raise ValueError(f"tensor {spec.name}: datatype {spec.datatype} has no fixed size on the wire")
    return batch * math.prod(spec.shape) * DATATYPE_BYTES[spec.datatype]


def packed_bytes(spec: TensorSpec, codec: str) -> int:
    """Bytes of the elements of one sample under a lossy base codec; int4 fills up the last byte of a sample."""
    return -(-math.prod(spec.shape) * ELEMENT_BITS[codec] // 8)


def affine_groups(spec: TensorSpec, codec: str) -> int | None:
    """How many parts of a tensor int8 or int4 scales apart: its channels, or 1 for all of it; ``None`` if it is raw.

    Channels (dimension 1) are scaled apart where that takes fewer bytes than the codec of twice the bits, which loses
    less; with few elements to a channel, scales and offsets would outweigh what is saved. A sample that would not
    shrink travels raw. The batch plays no part in it.
    """
    elements = math.prod(spec.shape)
    channels = spec.shape[0] if spec.shape else 1
    per_channel = channels > 0 and elements // channels * AFFINE_BITS[codec] > 8 * AFFINE_BYTES
    groups = channels if per_channel else 1
    return groups if packed_bytes(spec, codec) + AFFINE_BYTES * groups < raw_bytes(spec) else None


def encoded_bytes(spec: TensorSpec, codec: str, *, batch: int = 1) -> int:
    """Payload bytes of ``batch`` samples under a codec, headers excluded; of one that compresses, the most it can be.

    fp16 and bf16 store two bytes per element, int8 one, int4 half of one, and the last two scales and offsets for each
    sample (see :func:`affine_groups`). Tensors that would not shrink travel raw, as all do whose
    datatype is not floating point. Raises ``ValueError`` on an unknown codec or datatype.
    """
    raw = raw_bytes(spec, batch=batch)
    if codec not in CODECS:
        raise ValueError(f"codec {codec} is unknown; use one of {', '.join(CODECS)}")
    base = base_codec(codec)
    if base == "fp32" or spec.datatype not in FLOATING:
        return raw
    packed = packed_bytes(spec, base)
    if base not in AFFINE_BITS:
        return min(raw, batch * packed)
    groups = affine_groups(spec, base)
    return raw if groups is None else batch * (packed + AFFINE_BYTES * groups)

"""Typed contents of tensors, the Open Inference Protocol's other form beside raw bytes, read in small steps.

protobuf would read them in one go in which no other thread runs: 0.2 s for 16 MB, and as long a pause of the event
loop, on whatever thread that is done. numpy decodes here some thousand numbers at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from splitplane.runtime import oip_pb2
from splitplane.runtime.budgets import MAX_MESSAGE_BYTES
from splitplane.runtime.inference import Buffer, invalid
from splitplane.runtime.protobuf_fields import (
    FIXED32,
    FIXED64,
    FIXED_SIZES,
    LENGTH_DELIMITED,
    VARINT,
    FormError,
    fields,
    varints,
)
from splitplane.runtime.tensors import BYTES, NUMPY_TYPES, elements_in

_NUMBERS = {field.name: field.number for field in oip_pb2.InferTensorContents.DESCRIPTOR.fields}
_FORMS: dict[str, tuple[str, int, np.dtype[Any]]] = {
    "BOOL": ("bool_contents", VARINT, np.dtype("u8")),
    **dict.fromkeys(("INT8", "INT16", "INT32"), ("int_contents", VARINT, np.dtype("i4"))),
    "INT64": ("int64_contents", VARINT, np.dtype("i8")),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), ("uint_contents", VARINT, np.dtype("u4"))),
    "UINT64": ("uint64_contents", VARINT, np.dtype("u8")),
    "FP32": ("fp32_contents", FIXED32, np.dtype("<f4")),
    "FP64": ("fp64_contents", FIXED64, np.dtype("<f8")),
}
"""By datatype: the field, its kind and its numbers. FP16 and BF16 have none and must come as raw contents."""
_STEP_BYTES = 1 << 16
"""Read at once: other threads get their turn in between."""
MAX_ELEMENTS = 1 << 20
"""Texts, and numbers that are not packed: Python looks at each, for a microsecond or two."""


def read_contents(what: str, datatype: str, shape: Sequence[int], contents: Sequence[memoryview]) -> Buffer:
    """The raw form of a tensor's typed ``contents``, each of them a serialised ``InferTensorContents``.

    Raises :class:`InferenceError` that begins with ``what`` when they are not of the datatype.
    """
    if datatype == BYTES:
        return _joined(_elements(what, shape, contents), what)
    form = _FORMS.get(datatype)
    if form is None:
        raise invalid(f"{what}: {datatype or 'a tensor without datatype'} can only be sent as raw contents")
    name, kind, dtype = form
    decode = _varints if kind == VARINT else _fixed
    pieces = _packed(what, contents, _NUMBERS[name], kind)
    target = NUMPY_TYPES[datatype]
    return _joined((_as(values, target, what) for piece in pieces for values in decode(piece, dtype)), what)


def _joined(pieces: Iterable[Buffer | npt.NDArray[Any]], what: str) -> Buffer:
    """One after the other. Not by appending to one buffer, which would be moved as it grows, all of it at once."""
    kept, size = [], 0
    for piece in pieces:
        kept.append(np.frombuffer(piece, np.uint8))
        size += len(kept[-1])
        if size > MAX_MESSAGE_BYTES:
            raise invalid(f"{what}: typed contents of more than {MAX_MESSAGE_BYTES} bytes in their raw form")
    joined, position = np.empty(size, np.uint8), 0
    for each in kept:
        joined[position : position + len(each)] = each
        position += len(each)
    return joined.data


def _packed(what: str, contents: Sequence[memoryview], number: int, kind: int) -> Iterator[Buffer]:
    """The field's numbers, one after the other, in pieces. Senders pack them, but readers have to take single ones."""
    gathered, count = bytearray(), 0
    for view in contents:
        for found, found_kind, _, start, end in fields(view):
            count = _counted(count, what)
            if found != number or found_kind not in (kind, LENGTH_DELIMITED) or start == end:
                continue
            if view[end - 1] > 0x7F if kind == VARINT else (end - start) % FIXED_SIZES[kind]:
                raise FormError("the last number is cut off")
            is_small = end - start < _STEP_BYTES
            if is_small:
                gathered += view[start:end]
            if not is_small or len(gathered) >= _STEP_BYTES:
                yield gathered
                gathered = bytearray()
            if not is_small:
                yield view[start:end]
    yield gathered


def _varints(piece: Buffer, dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    data, position = np.frombuffer(piece, np.uint8), 0
    while position < len(data):
        values, used = varints(data[position : position + _STEP_BYTES])
        position += used
        # Of a field of 32 bits the upper ones count for nothing.
        yield values.astype(f"u{dtype.itemsize}").view(dtype)


def _fixed(piece: Buffer, dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(piece), _STEP_BYTES):
        yield np.frombuffer(piece[start : start + _STEP_BYTES], dtype)


def _counted(count: int, what: str) -> int:
    if count == MAX_ELEMENTS:
        raise invalid(f"{what}: more than {MAX_ELEMENTS} elements one by one: send them as raw contents")
    return count + 1


def _as(values: npt.NDArray[Any], target: np.dtype[Any], what: str) -> npt.NDArray[Any]:
    if target.kind in "iu" and target.itemsize < values.dtype.itemsize and len(values):
        limits: np.iinfo[Any] = np.iinfo(target)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise invalid(f"{what}: a value does not fit into {target.name.upper()}")
    return values.astype(target)


def _elements(what: str, shape: Sequence[int], contents: Sequence[memoryview]) -> Iterator[bytearray]:
    """In the raw form each has its length before it."""
    expected, found, count, piece = elements_in(what, shape), 0, 0, bytearray()
    for view in contents:
        for number, kind, _, start, end in fields(view):
            count = _counted(count, what)
            if number != _NUMBERS["bytes_contents"] or kind != LENGTH_DELIMITED:
                continue
            found += 1
            if found > expected:
                raise invalid(f"{what}: more than {expected} elements, but shape {list(shape)} takes {expected}")
            piece += (end - start).to_bytes(4, "little")
            piece += view[start:end]
            if len(piece) >= _STEP_BYTES:
                yield piece
                piece = bytearray()
    yield piece
    if found != expected:
        raise invalid(f"{what}: {found} elements, but shape {list(shape)} takes {expected}")

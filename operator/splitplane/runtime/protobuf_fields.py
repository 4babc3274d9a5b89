"""The form of protobuf messages, read beside protobuf, which takes a whole message in at once and copies what it holds.

A message is a sequence of fields: a tag (number and kind), and what belongs to it.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Kinds of fields. There were groups (3 and 4), which no message here has ever had."""
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
_MOST_VARINT_BYTES = 10

Data = bytes | bytearray | memoryview


class FormError(ValueError):
    """These bytes are no message."""


def fields(data: Data) -> Iterator[tuple[int, int, int, int, int]]:
    """Number and kind of each field, where it begins, where its value does, and where both end.

    Raises :class:`FormError`, possibly after some fields.
    """
    position, size = 0, len(data)
    try:
        while position < size:
            start = position
            tag, position = _varint(data, position)
            kind = tag & 7
            if kind == LENGTH_DELIMITED:
                length, value = _varint(data, position)
                position = value + length
            elif kind == VARINT:
                value = position
                _, position = _varint(data, position)
            else:
                value = position
                position += FIXED_SIZES[kind]
            if position > size:
                raise FormError("the last field ends beyond the message")
            yield tag >> 3, kind, start, value, position
    except (IndexError, KeyError):
        raise FormError("a field is cut off, or of no known kind") from None


def _varint(data: Data, position: int) -> tuple[int, int]:
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift = byte & 0x7F, 7
    while True:
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
        if shift > 63:
            raise FormError("a varint has at most ten bytes")


def varint(value: int) -> bytes:
    """A number as a varint."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def varints(data: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint64], int]:
    """The varints that these bytes begin with, as many as are whole, and how many bytes they take.

    Raises :class:`FormError` when one is too long.
    """
    ends = np.flatnonzero(data < 0x80)
    starts = np.concatenate(([0], ends + 1))
    lengths = np.diff(starts)
    used = int(starts[-1])
    if len(data) - used >= _MOST_VARINT_BYTES or (lengths > _MOST_VARINT_BYTES).any():
        raise FormError("a varint has at most ten bytes")
    values = (data[starts[:-1]] & 0x7F).astype(np.uint64)
    for place in range(1, int(lengths.max(initial=0))):
        (longer,) = np.nonzero(lengths > place)
        values[longer] |= (data[starts[longer] + place] & 0x7F).astype(np.uint64) << np.uint64(7 * place)
    return values, used

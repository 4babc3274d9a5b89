"""What JSON takes in memory while Python's parser and numpy are at it: up to 50 times its text.

That goes by its values, not by its bytes, so these are counted before anything is parsed: each but the first of a list
follows a comma, and each list and object has a bracket. Those within texts count as well, which is the safe side.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from splitplane.runtime.inference import Buffer, Failure, InferenceError, Tensor, TensorMetadata
from splitplane.runtime.tensors import BYTES, known_shapes, nbytes

MAX_TEXT_BYTES = 16 << 20
MAX_VALUES = 2 << 20
"""Numbers, texts, lists and objects. No other thread runs while they are parsed: so long may the event loop pause."""

VALUE_BYTES, QUOTE_BYTES = 80, 28
"""Of a number in a list and in numpy's arrays of them, or of a list; and what a text takes beyond that, by halves."""
OBJECT_BYTES, ENTRY_BYTES = 192, 160
"""Of an object, and of each name in it."""
PLAIN_COPIES, WIDE_COPIES = 3, 9
"""Of the text: decoded, cut into texts, encoded again; Python takes four bytes a character if one needs as many."""
WRITTEN_VALUE_BYTES, WRITTEN_TEXT_COPIES = 90, 20
"""Of a number or a list that is written, its text included; and of texts, where JSON may have six bytes for one:
escaped, joined and encoded."""
_STEP_BYTES = 1 << 16


def footprint(text: Buffer) -> int:
    """Bytes that ``text`` takes at most while it is parsed, its own not included.

    Raises :class:`InferenceError` (``OUT_OF_RANGE``) when there is more of it than is taken.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise too_large(f"there are {len(text)} bytes of JSON, and {MAX_TEXT_BYTES} are taken")
    data, counts = np.frombuffer(text, np.uint8), np.zeros(256, np.int64)
    for start in range(0, len(data), _STEP_BYTES):
        counts += np.bincount(data[start : start + _STEP_BYTES], minlength=256)
    objects, entries, quotes = (int(counts[ord(mark)]) for mark in '{:"')
    values = int(counts[list(b",[")].sum())
    if values + objects > MAX_VALUES:
        raise too_large(f"JSON of {values + objects} values, and {MAX_VALUES} are taken")
    is_plain = not counts[ord("\\")] and not counts[0x80:].any()
    return (
        values * VALUE_BYTES
        + objects * OBJECT_BYTES
        + entries * ENTRY_BYTES
        + quotes * QUOTE_BYTES
        + len(text) * (PLAIN_COPIES if is_plain else WIDE_COPIES)
    )


def footprint_written(tensors: Iterable[Tensor], *, nested: bool = False) -> int:
    """Bytes that the tensors take at most while they are written as JSON: flat, or in lists within lists.

    Raises :class:`InferenceError` (``OUT_OF_RANGE``) when they have more values than are given as JSON.
    """
    tensors = tuple(tensors)
    texts = sum(nbytes(tensor) for tensor in tensors if tensor.datatype == BYTES)
    return _written([tensor.shape for tensor in tensors], nested=nested) + texts * WRITTEN_TEXT_COPIES


def footprint_known(inputs: Iterable[Tensor], outputs: Iterable[TensorMetadata], *, nested: bool = False) -> int:
    """As :func:`footprint_written` has it, before anything is computed: at least, by those ``outputs`` of which all
    sizes but the batch's are known."""
    return _written([shape for _, shape in known_shapes(inputs, outputs)], nested=nested)


def _written(shapes: Iterable[Sequence[int]], *, nested: bool) -> int:
    values = sum(_values(shape, nested=nested) for shape in shapes)
    if values > MAX_VALUES:
        raise unwritable(f"the answer has {values} values, and {MAX_VALUES} are given as JSON")
    return values * WRITTEN_VALUE_BYTES


def unwritable(what: str) -> InferenceError:
    return InferenceError(
        Failure.OUT_OF_RANGE,
        f"{what}: ask for it in binary over /v2 (the parameter binary_data_output), or send fewer samples at once",
    )


def _values(shape: Sequence[int], *, nested: bool) -> int:
    lists = sum(math.prod(shape[:axis]) for axis in range(1, len(shape))) if nested else 0
    return math.prod(shape) + lists


def too_large(what: str) -> InferenceError:
    return InferenceError(
        Failure.OUT_OF_RANGE,
        f"{what}: send tensors in binary over /v2 (binary_data_size), or fewer samples in one request",
    )

"""Open Inference Protocol tensors from and to numpy arrays and torch tensors, and the checks on what clients send.

torch is imported only by the functions that return or take its tensors: gateway and link target run without it.
"""

import functools
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from splitplane.domain.codecs import DATATYPE_BYTES
from splitplane.runtime.inference import RESERVED, Tensor, TensorMetadata, invalid

if TYPE_CHECKING:
    import torch

NUMPY_TYPES = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The datatypes that numpy knows. ``BF16`` exists in torch only; ``BYTES`` has no place in a tensor program."""

BYTES = "BYTES"
"""Texts or blobs: on the wire each element is its length (four bytes, little-endian) and then its bytes."""

BF16 = "BF16"
"""The upper half of an FP32."""

MOST_ELEMENTS = 1 << 63
"""What a tensor has less of, and a dimension too: the protocol's sizes are int64."""
MAX_ENTRIES = 1024
"""Dimensions of one tensor, and over gRPC parameters of one place: each costs far more to read than to send."""

DATATYPES = {dtype: name for name, dtype in NUMPY_TYPES.items()}


def nbytes(tensor: Tensor) -> int:
    return len(tensor.data) if not isinstance(tensor.data, memoryview) else tensor.data.nbytes


def elements_in(what: str, shape: Sequence[int]) -> int:
    """How many elements a shape takes.

    Raises :class:`InferenceError` that begins with ``what`` where no number of the protocol can tell: the product of
    thousands of sizes is a number of as many digits, and takes minutes.
    """
    if 0 in shape:
        return 0
    count = 1
    for size in shape:
        count *= size
        if abs(count) >= MOST_ELEMENTS:
            raise invalid(f"{what}: its shape takes {MOST_ELEMENTS} elements or more")
    return count


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes that they take together."""
    return sum(map(nbytes, tensors))


def known_shapes(
    inputs: Iterable[Tensor], outputs: Iterable[TensorMetadata]
) -> list[tuple[TensorMetadata, tuple[int, ...]]]:
    """Shapes of the answer to these inputs, for the ``outputs`` of which all sizes but the batch's are known.

    The batch is at least that of the smallest input, where inputs differ in it.
    """
    batch = min((tensor.shape[0] for tensor in inputs if tensor.shape), default=0)
    shapes = [(each, (batch, *each.shape[1:]) if each.shape[:1] == (-1,) else each.shape) for each in outputs]
    return [(each, shape) for each, shape in shapes if all(size >= 0 for size in shape)]


def known_bytes(inputs: Iterable[Tensor], outputs: Iterable[TensorMetadata]) -> int:
    """Bytes of those outputs, but for texts and blobs, of which shapes tell nothing."""
    return sum(math.prod(shape) * DATATYPE_BYTES.get(each.datatype, 0) for each, shape in known_shapes(inputs, outputs))


def check_size(tensor: Tensor, *, kind: str = "input") -> None:
    """Raises :class:`InferenceError` when the bytes of a tensor are not those of its datatype and shape."""
    if tensor.datatype not in DATATYPE_BYTES and tensor.datatype != BYTES:
        raise invalid(
            f"{kind} '{tensor.name}': datatype '{tensor.datatype}' is not supported; "
            f"use one of {', '.join((*DATATYPE_BYTES, BYTES))}"
        )
    if any(size < 0 for size in tensor.shape):
        raise invalid(f"{kind} '{tensor.name}': shape {list(tensor.shape)} has a negative dimension")
    if tensor.datatype == BYTES:
        _check_elements(tensor, kind)
        return
    expected = elements_in(f"{kind} '{tensor.name}'", tensor.shape) * DATATYPE_BYTES[tensor.datatype]
    if nbytes(tensor) != expected:
        raise invalid(
            f"{kind} '{tensor.name}': {nbytes(tensor)} bytes of data, but {tensor.datatype} of shape "
            f"{list(tensor.shape)} takes {expected}"
        )


def to_elements(tensor: Tensor, *, kind: str = "input") -> list[bytes]:
    """The elements of a ``BYTES`` tensor. Raises :class:`InferenceError` when its shape takes another number."""
    check_size(tensor, kind=kind)
    view = memoryview(tensor.data)
    return [bytes(view[start:end]) for start, end in _elements(tensor)]


def from_elements(name: str, elements: Iterable[bytes], shape: tuple[int, ...]) -> Tensor:
    """A ``BYTES`` tensor of these elements."""
    data = bytearray()
    for element in elements:
        data += struct.pack("<I", len(element))
        data += element
    return Tensor(name=name, datatype=BYTES, shape=shape, data=data)


def _elements(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Where each element begins and ends, one at a time: a few bytes on the wire may be an object in memory else.

    The last ends beyond the data where these do not end with an element.
    """
    data, total, position = tensor.data, nbytes(tensor), 0
    while position < total:
        start = position + 4
        (size,) = struct.unpack_from("<I", data, position) if start <= total else (0,)
        position = start + size
        yield start, position


def _check_elements(tensor: Tensor, kind: str) -> None:
    expected, count, end = elements_in(f"{kind} '{tensor.name}'", tensor.shape), 0, 0
    for _, stop in _elements(tensor):
        count, end = count + 1, stop
        if count > expected:
            break
    if count <= expected and end != nbytes(tensor):
        raise invalid(f"{kind} '{tensor.name}': the data ends within an element or its length")
    if count != expected:
        found = f"more than {expected}" if count > expected else str(count)
        raise invalid(f"{kind} '{tensor.name}': {found} elements, but shape {list(tensor.shape)} takes {expected}")


def check_inputs(tensors: Sequence[Tensor], declared: Sequence[TensorMetadata]) -> None:
    """Compare what a client sent with what the model declares, bytes included.

    Raises :class:`InferenceError` as :func:`check_described`, :func:`check_size` and :func:`check_plain` do.
    """
    check_plain(tensors)
    check_described([TensorMetadata(tensor.name, tensor.datatype, tensor.shape) for tensor in tensors], declared)
    for tensor in tensors:
        check_size(tensor)


def check_plain(tensors: Iterable[Tensor]) -> None:
    """Raises :class:`InferenceError` for a tensor with parameters that stages obey between themselves: by these a few
    bytes from a client could stand for gigabytes, or for other shapes than were checked."""
    for tensor in tensors:
        for name in tensor.parameters:
            if name.startswith(RESERVED):
                raise invalid(
                    f"input '{tensor.name}' has the parameter {name}: {RESERVED}* is for stages; leave it out"
                )


def check_described(described: Sequence[TensorMetadata], declared: Sequence[TensorMetadata]) -> None:
    """Compare names, datatypes and shapes of tensors with what the model declares.

    Raises :class:`InferenceError` that names the tensor and what was expected: unknown, twice or missing names, a
    wrong datatype or shape, an empty batch, inputs that differ in their batch (first) dimension.
    """
    expected = {spec.name: spec for spec in declared}
    seen: set[str] = set()
    batches: dict[int, str] = {}
    for tensor in described:
        if tensor.name in seen:
            raise invalid(f"input '{tensor.name}' is given twice")
        seen.add(tensor.name)
        spec = declared_as(tensor.name, tensor.datatype, expected)
        if not _fits(tensor.shape, spec.shape):
            raise invalid(
                f"input '{tensor.name}' has shape {list(tensor.shape)}; expected {list(spec.shape)} (-1 is any size)"
            )
        if tensor.shape:
            batches.setdefault(tensor.shape[0], tensor.name)
    missing = [name for name in expected if name not in seen]
    if missing:
        raise invalid(f"input '{missing[0]}' is missing; the inputs are {', '.join(expected)}")
    if len(batches) > 1:
        sizes = ", ".join(f"'{name}' has {size}" for size, name in batches.items())
        raise invalid(f"the inputs differ in their batch size (first dimension): {sizes}")
    if 0 in batches:
        raise invalid(f"input '{batches[0]}' has an empty batch: send at least one sample")


def declared_as(name: str, datatype: str, declared: Mapping[str, TensorMetadata]) -> TensorMetadata:
    """What is declared by that name. Raises :class:`InferenceError` when nothing is, or with another datatype."""
    spec = declared.get(name)
    if spec is None:
        raise invalid(f"input '{name}' is unknown; the inputs are {', '.join(declared)}")
    if datatype != spec.datatype:
        raise invalid(f"input '{name}' has datatype {datatype}; expected {spec.datatype}")
    return spec


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(want in (-1, got) for want, got in zip(declared, shape, strict=True))


def to_array(tensor: Tensor) -> npt.NDArray[Any]:
    """A view of the bytes (read-only, perhaps unaligned). Raises :class:`InferenceError` if they do not fit."""
    check_size(tensor)
    if tensor.datatype not in NUMPY_TYPES:
        raise invalid(f"input '{tensor.name}': numpy has no {tensor.datatype}")
    return np.frombuffer(tensor.data, NUMPY_TYPES[tensor.datatype]).reshape(tensor.shape)


def from_array(name: str, array: npt.NDArray[Any]) -> Tensor:
    """A tensor over the array's own memory (copied only if it is not contiguous or not little-endian)."""
    dtype = array.dtype.newbyteorder("<")
    if dtype not in DATATYPES:
        raise ValueError(f"tensor {name}: {array.dtype} has no Open Inference Protocol datatype")
    flat = np.ascontiguousarray(array, dtype)
    return Tensor(name=name, datatype=DATATYPES[dtype], shape=array.shape, data=flat.reshape(-1).view(np.uint8).data)


def narrowed(name: str, values: npt.NDArray[np.float32], shape: tuple[int, ...]) -> Tensor:
    """A ``BF16`` tensor of the nearest values, ties to even: what torch makes of FP32.

    Raises :class:`InferenceError` for finite ones that none is near.
    """
    single = np.ascontiguousarray(values, "<f4").reshape(-1)
    bits = single.view("<u4")
    # The upper half of the bits, after half a unit of it has been added; a carry goes into the exponent, as it should.
    upper = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2")
    if (np.isfinite(single) & (upper & 0x7F80 == 0x7F80)).any():
        raise invalid(f"input '{name}': a value lies outside {BF16} (up to 3.39e+38)")
    upper[np.isnan(single)] = 0x7FC0  # a carry could have made another number of it
    return Tensor(name=name, datatype=BF16, shape=shape, data=upper.tobytes())


def widened(tensor: Tensor) -> Tensor:
    """The values of a ``BF16`` tensor as FP32, which has them all; any other tensor as it is.

    Raises :class:`InferenceError` when the bytes do not fit the shape.
    """
    if tensor.datatype != BF16:
        return tensor
    check_size(tensor)
    bits = np.frombuffer(tensor.data, "<u2").astype("<u4") << 16
    return replace(tensor, datatype="FP32", data=bits.tobytes())


def to_torch(tensor: Tensor) -> "torch.Tensor":
    """The tensor in memory of its own, aligned and writable: one copy, which torch's kernels need.

    Raises :class:`InferenceError` when the bytes do not fit datatype and shape.
    """
    import torch

    check_size(tensor)
    raw = np.frombuffer(tensor.data, np.uint8).copy()
    flat = torch.from_numpy(raw)
    if flat.numel() == 0:
        return torch.empty(tensor.shape, dtype=torch_dtype(tensor.datatype))
    return flat.view(torch_dtype(tensor.datatype)).reshape(tensor.shape)


def view_torch(tensor: Tensor) -> "torch.Tensor":
    """The tensor over the bytes that came, which nobody may write to; a copy only where they lie askew.

    Raises :class:`InferenceError` when the bytes do not fit.
    """
    import torch

    check_size(tensor)
    dtype = torch_dtype(tensor.datatype)
    if nbytes(tensor) == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    flat = torch.frombuffer(tensor.data, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        return to_torch(tensor)
    return flat.view(dtype).reshape(tensor.shape)


def from_torch(name: str, value: "torch.Tensor") -> Tensor:
    """A tensor over the memory of a torch tensor (copied only if it is not contiguous or not on the CPU)."""
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return Tensor(name=name, datatype=torch_datatype(value.dtype), shape=tuple(value.shape), data=data)


@functools.cache
def torch_dtype(datatype: str) -> "torch.dtype":
    """torch's type of an OIP datatype, all of ``DATATYPE_BYTES``."""
    import torch

    names = {"BOOL": "bool", "FP16": "float16", "BF16": "bfloat16", "FP32": "float32", "FP64": "float64"}
    dtype = getattr(torch, names.get(datatype, datatype.lower()))
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no datatype {datatype}")
    return dtype


@functools.cache
def torch_datatype(dtype: "torch.dtype") -> str:
    """The OIP datatype of a torch type. Raises ``ValueError`` for those that the protocol lacks (complex)."""
    for datatype in DATATYPE_BYTES:
        if torch_dtype(datatype) == dtype:
            return datatype
    raise ValueError(f"{dtype} has no Open Inference Protocol datatype")

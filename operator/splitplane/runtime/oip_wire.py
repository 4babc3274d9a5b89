"""Inference messages of the Open Inference Protocol (gRPC) to and from ``inference`` values, without spare copies.

Tensor contents are by far the largest part of a message, and protobuf copies them several times (into its arena, out
as ``bytes``, into the serialised message). Here the fields ``raw_*_contents`` are read and written beside protobuf: a
message is a sequence of fields, so any protobuf implementation reads what these functions write, and the reverse.
Reading gives views into the received bytes; writing joins header and contents once.
"""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from splitplane.runtime import oip_pb2
from splitplane.runtime.inference import (
    Buffer,
    InferenceError,
    InferRequest,
    InferResponse,
    Parameter,
    Parameters,
    Tensor,
    deadline_of,
    invalid,
)
from splitplane.runtime.tensors import BYTES, NUMPY_TYPES, from_elements, nbytes

_RAW_INPUTS = oip_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_RAW_OUTPUTS = oip_pb2.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_PADDING = 1000
"""A field that the protocol does not have, so that readers skip it: fills up to where contents lie aligned."""
_ALIGNMENT = 16
"""As the memory of a message does; no element is larger."""
_FIXED_SIZES = {1: 8, 5: 4}
MAX_FIELDS = 4096
"""Of a message: tensors, contents, padding, parameters. Each costs far more to read than the two bytes it may take."""
MAX_ENTRIES = 1024
"""Parameters and dimensions of one tensor, for the same reason."""
_CHUNK = 1 << 14
"""Typed values that are read in one step: other threads get their turn in between."""
_LENGTH_DELIMITED = 2

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""The typed field of a tensor by datatype; FP16 and BF16 have none and must come as raw contents."""


class Parts(NamedTuple):
    """A message taken apart: what protobuf has to read, and views of the raw contents, which nobody has to."""

    header: bytes
    contents: list[memoryview]


def split_request(data: bytes) -> Parts:
    """A ``ModelInferRequest`` as it came off the wire, in about a millisecond at most whatever its size.

    Raises :class:`InferenceError` when it has no such form, or too many fields.
    """
    return _split(data, _RAW_INPUTS)


def read_request(
    message: bytes | Parts,
    *,
    deadline: float | None = None,
    client: str = "",
    forwarded: str = "",
    identity: tuple[str, ...] = (),
) -> InferRequest:
    """A ``ModelInferRequest``, taken apart or not yet; how long that takes goes by the header's size.

    Raises :class:`InferenceError` when it is malformed.
    """
    received = time.perf_counter()
    header, contents = message if isinstance(message, Parts) else split_request(message)
    parsed = parse(oip_pb2.ModelInferRequest, header)
    parameters = _read_parameters(parsed.parameters)
    return InferRequest(
        model_name=parsed.model_name,
        model_version=parsed.model_version,
        id=parsed.id,
        parameters=parameters,
        inputs=_read_tensors(parsed.inputs, contents, "input"),
        outputs=tuple(output.name for output in parsed.outputs),
        deadline=deadline_of(parameters, deadline),
        received=received,
        client=client,
        forwarded=forwarded,
        identity=identity,
    )


def write_request(request: InferRequest) -> bytes:
    """The serialised ``ModelInferRequest``."""
    message = oip_pb2.ModelInferRequest(
        model_name=request.model_name, model_version=request.model_version, id=request.id
    )
    _write_parameters(message.parameters, request.parameters)
    for name in request.outputs:
        message.outputs.add(name=name)
    return _join(message, message.inputs, request.inputs, _RAW_INPUTS)


def read_response(data: bytes) -> InferResponse:
    """A ``ModelInferResponse`` as it came off the wire. Raises :class:`InferenceError` when it is malformed."""
    header, contents = _split(data, _RAW_OUTPUTS)
    message = parse(oip_pb2.ModelInferResponse, header)
    return InferResponse(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        parameters=_read_parameters(message.parameters),
        outputs=_read_tensors(message.outputs, contents, "output"),
    )


def write_response(response: InferResponse) -> bytes:
    """The serialised ``ModelInferResponse``."""
    message = oip_pb2.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    _write_parameters(message.parameters, response.parameters)
    return _join(message, message.outputs, response.outputs, _RAW_OUTPUTS)


def _split(data: bytes, number: int) -> Parts:
    """The message without its fields of that number, and views of those fields' contents."""
    view, position, start, fields = memoryview(data), 0, 0, 0
    header: list[memoryview] = []
    contents: list[memoryview] = []
    try:
        while position < len(data):
            field, fields = position, fields + 1
            if fields > MAX_FIELDS:
                raise invalid(f"the message has more than {MAX_FIELDS} tensors, contents and parameters")
            tag, position = _read_varint(data, position)
            kind = tag & 7
            if kind == _LENGTH_DELIMITED:
                size, position = _read_varint(data, position)
                end = position + size
                if tag >> 3 in (number, _PADDING):
                    if end > len(data):
                        raise ValueError
                    header.append(view[start:field])
                    if tag >> 3 == number:
                        contents.append(view[position:end])
                    start = end
                position = end
            elif kind == 0:
                _, position = _read_varint(data, position)
            else:
                position += _FIXED_SIZES[kind]
    except (IndexError, KeyError, ValueError):
        raise _malformed() from None
    header.append(view[start:])
    return Parts(b"".join(header), contents)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint has at most ten bytes")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def parse(form: Any, header: bytes) -> Any:
    """A message of a protobuf class. Raises :class:`InferenceError` when it is malformed."""
    try:
        return form.FromString(header)
    except Exception:  # protobuf's DecodeError is another class in each of its implementations
        raise _malformed() from None


def _malformed() -> InferenceError:
    return invalid("the message is not a valid Open Inference Protocol message")


def _join(message: Any, described: Any, tensors: Sequence[Tensor], number: int) -> bytes:
    """Contents lie aligned in the message, so that the reader computes on them where they are."""
    for tensor in tensors:
        entry = described.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _write_parameters(entry.parameters, tensor.parameters)
    parts: list[Buffer] = [message.SerializeToString()]
    position = len(parts[0])
    tag = _varint(number << 3 | _LENGTH_DELIMITED)
    for tensor in tensors:
        before = tag + _varint(nbytes(tensor))
        before = _padding(position + len(before)) + before
        parts += (before, tensor.data)
        position += len(before) + nbytes(tensor)
    return b"".join(parts)


def _padding(position: int) -> bytes:
    """What brings the position to the next multiple of the alignment: nothing, or a field of padding."""
    missing = -position % _ALIGNMENT
    if missing == 0:
        return b""
    head = _varint(_PADDING << 3 | _LENGTH_DELIMITED)
    size = (missing - len(head) - 1) % _ALIGNMENT
    return head + bytes((size, *bytes(size)))


def _read_parameters(parameters: Any) -> Parameters:
    if len(parameters) > MAX_ENTRIES:
        raise invalid(f"there are {len(parameters)} parameters in one place; at most {MAX_ENTRIES} are taken")
    read: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            read[name] = getattr(parameter, choice)
    return read


def _write_parameters(target: Any, parameters: Parameters) -> None:
    for name, value in parameters.items():
        match value:
            case bool():
                target[name].bool_param = value
            case int() if value >= 1 << 63:
                target[name].uint64_param = value
            case int():
                target[name].int64_param = value
            case float():
                target[name].double_param = value
            case _:
                target[name].string_param = value


def _read_tensors(described: Iterable[Any], contents: list[memoryview], kind: str) -> tuple[Tensor, ...]:
    entries = list(described)
    if contents and len(contents) != len(entries):
        raise invalid(
            f"the message describes {len(entries)} {kind} tensors but holds {len(contents)} raw contents",
        )
    if contents and (both := next((entry.name for entry in entries if entry.HasField("contents")), None)) is not None:
        raise invalid(f"{kind} '{both}' has typed contents in a message with raw contents: send one form")
    for entry in entries:
        if len(entry.shape) > MAX_ENTRIES:
            raise invalid(f"{kind} '{entry.name}' has {len(entry.shape)} dimensions; at most {MAX_ENTRIES} are taken")
    return tuple(
        Tensor(
            name=entry.name,
            datatype=entry.datatype,
            shape=tuple(entry.shape),
            data=contents[index] if contents else _typed_contents(entry, kind),
            parameters=_read_parameters(entry.parameters),
        )
        for index, entry in enumerate(entries)
    )


def _typed_contents(entry: Any, kind: str) -> Buffer:
    if entry.datatype == BYTES:
        elements, expected = len(entry.contents.bytes_contents), math.prod(entry.shape)
        if elements != expected:
            raise invalid(f"{kind} '{entry.name}': {elements} elements, but shape {list(entry.shape)} takes {expected}")
        return from_elements(entry.name, entry.contents.bytes_contents, ()).data
    field = _CONTENTS.get(entry.datatype)
    if field is None:
        raise invalid(
            f"{kind} '{entry.name}': {entry.datatype or 'a tensor without datatype'} can only be sent as raw contents",
        )
    values = getattr(entry.contents, field)
    read = np.empty(len(values), NUMPY_TYPES[entry.datatype])
    try:
        for start in range(0, len(values), _CHUNK):
            read[start : start + _CHUNK] = np.array(values[start : start + _CHUNK], read.dtype)
        return read.tobytes()
    except OverflowError:
        raise invalid(f"{kind} '{entry.name}': a value does not fit into {entry.datatype}") from None

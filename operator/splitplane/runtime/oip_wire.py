"""Inference messages of the Open Inference Protocol (gRPC) to and from ``inference`` values, without spare copies.

Tensor contents are by far the largest part of a message, and protobuf copies them several times (into its arena, out
as ``bytes``, into the serialised message). Here the fields ``raw_*_contents`` are read and written beside protobuf: a
message is a sequence of fields, so any protobuf implementation reads what these functions write, and the reverse.
Reading gives views into the received bytes; writing joins header and contents once.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

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
    require_served,
)
from splitplane.runtime.oip_contents import read_contents
from splitplane.runtime.protobuf_fields import LENGTH_DELIMITED, Data, FormError, fields, varint
from splitplane.runtime.tensors import MAX_ENTRIES, nbytes

_INPUTS = oip_pb2.ModelInferRequest.INPUTS_FIELD_NUMBER
_RAW_INPUTS = oip_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_OUTPUTS = oip_pb2.ModelInferResponse.OUTPUTS_FIELD_NUMBER
_RAW_OUTPUTS = oip_pb2.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_CONTENTS = oip_pb2.ModelInferRequest.InferInputTensor.CONTENTS_FIELD_NUMBER
"""Of tensors in requests and in responses."""
_PADDING = 1000
"""A field that the protocol does not have, so that readers skip it: fills up to where contents lie aligned."""
_ALIGNMENT = 16
"""As the memory of a message does; no element is larger."""
MAX_FIELDS = 4096
"""Of a message: tensors, contents, padding, parameters. Each costs far more to read than the two bytes it may take."""
MAX_TENSOR_FIELDS = 16 * MAX_FIELDS
"""Of all its tensors: names, shapes, parameters."""
MAX_HEADER_BYTES = 512 << 10
"""Of a message without contents, and of its tensors without theirs: what protobuf reads takes up to 18 times as much
memory. It is twice what routes and traces may have between pods."""


class Parts(NamedTuple):
    """A message taken apart: what protobuf has to read, and views of tensors and of raw contents."""

    header: bytes
    tensors: list[memoryview]
    contents: list[memoryview]

    @property
    def size(self) -> int:
        """Bytes that somebody has to read, which of raw contents nobody has to."""
        return len(self.header) + sum(map(len, self.tensors))


def split_request(data: bytes) -> Parts:
    """A ``ModelInferRequest`` as it came off the wire, in about a millisecond at most whatever its size.

    Raises :class:`InferenceError` when it has no such form, too many fields, or too much beside contents.
    """
    header, _, found = _split(data, (_INPUTS, _RAW_INPUTS))
    return Parts(header, found[_INPUTS], found[_RAW_INPUTS])


def read_request(
    message: bytes | Parts,
    *,
    deadline: float | None = None,
    client: str = "",
    forwarded: str = "",
    identity: tuple[str, ...] = (),
) -> InferRequest:
    """A ``ModelInferRequest``, taken apart or not yet; how long that takes goes by its :attr:`Parts.size`.

    Raises :class:`InferenceError` when it is malformed.
    """
    received = time.perf_counter()
    header, tensors, contents = message if isinstance(message, Parts) else split_request(message)
    parsed = parse(oip_pb2.ModelInferRequest, header)
    parameters = _read_parameters(parsed.parameters)
    for output in parsed.outputs:
        require_served(_read_parameters(output.parameters), f"output '{output.name}'")
    return InferRequest(
        model_name=parsed.model_name,
        model_version=parsed.model_version,
        id=parsed.id,
        parameters=parameters,
        inputs=_read_tensors(oip_pb2.ModelInferRequest.InferInputTensor, tensors, contents, "input"),
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
    header, _, found = _split(data, (_OUTPUTS, _RAW_OUTPUTS))
    message = parse(oip_pb2.ModelInferResponse, header)
    return InferResponse(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        parameters=_read_parameters(message.parameters),
        outputs=_read_tensors(
            oip_pb2.ModelInferResponse.InferOutputTensor, found[_OUTPUTS], found[_RAW_OUTPUTS], "output"
        ),
    )


def write_response(response: InferResponse) -> bytes:
    """The serialised ``ModelInferResponse``."""
    message = oip_pb2.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    _write_parameters(message.parameters, response.parameters)
    return _join(message, message.outputs, response.outputs, _RAW_OUTPUTS)


def _split(
    data: Data, taken: Sequence[int], most: int = MAX_FIELDS, most_bytes: int = MAX_HEADER_BYTES
) -> tuple[bytes, int, dict[int, list[memoryview]]]:
    """The message without its fields of these numbers and padding, how many fields it had, and what those contain."""
    view, start, count = memoryview(data), 0, 0
    header: list[memoryview] = []
    found: dict[int, list[memoryview]] = {number: [] for number in taken}
    try:
        for number, kind, begin, value, end in fields(data):
            count += 1
            if count > most:
                raise invalid(f"the message has more than {most} tensors, contents and parameters")
            if kind == LENGTH_DELIMITED and (number in found or number == _PADDING):
                header.append(view[start:begin])
                if number != _PADDING:
                    found[number].append(view[value:end])
                start = end
    except FormError:
        raise _malformed() from None
    header.append(view[start:])
    if sum(map(len, header)) > most_bytes:
        raise invalid(f"names, shapes and parameters take more than {MAX_HEADER_BYTES} bytes")
    return b"".join(header), count, found


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
    tag = varint(number << 3 | LENGTH_DELIMITED)
    for tensor in tensors:
        before = tag + varint(nbytes(tensor))
        before = _padding(position + len(before)) + before
        parts += (before, tensor.data)
        position += len(before) + nbytes(tensor)
    return b"".join(parts)


def _padding(position: int) -> bytes:
    """What brings the position to the next multiple of the alignment: nothing, or a field of padding."""
    missing = -position % _ALIGNMENT
    if missing == 0:
        return b""
    head = varint(_PADDING << 3 | LENGTH_DELIMITED)
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


def _read_tensors(
    form: Any, tensors: Sequence[memoryview], contents: Sequence[memoryview], kind: str
) -> tuple[Tensor, ...]:
    entries, typed, fields_left, bytes_left = [], [], MAX_TENSOR_FIELDS, MAX_HEADER_BYTES
    for tensor in tensors:
        header, count, found = _split(tensor, (_CONTENTS,), fields_left, bytes_left)
        fields_left, bytes_left = fields_left - count, bytes_left - len(header)
        entry = parse(form, header)
        if kind == "input" and entry.parameters:
            require_served(_read_parameters(entry.parameters), f"input '{entry.name}'")
        entries.append(entry)
        typed.append(found[_CONTENTS])
    if contents and len(contents) != len(entries):
        raise invalid(
            f"the message describes {len(entries)} {kind} tensors but holds {len(contents)} raw contents",
        )
    if contents and (both := next((e.name for e, own in zip(entries, typed, strict=True) if own), None)) is not None:
        raise invalid(f"{kind} '{both}' has typed contents in a message with raw contents: send one form")
    for entry in entries:
        if len(entry.shape) > MAX_ENTRIES:
            raise invalid(f"{kind} '{entry.name}' has {len(entry.shape)} dimensions; at most {MAX_ENTRIES} are taken")
    return tuple(
        Tensor(
            name=entry.name,
            datatype=entry.datatype,
            shape=tuple(entry.shape),
            data=contents[index] if contents else _typed(entry, typed[index], kind),
            parameters=_read_parameters(entry.parameters),
        )
        for index, entry in enumerate(entries)
    )


def _typed(entry: Any, contents: Sequence[memoryview], kind: str) -> Buffer:
    try:
        return read_contents(f"{kind} '{entry.name}'", entry.datatype, entry.shape, contents)
    except FormError:
        raise _malformed() from None

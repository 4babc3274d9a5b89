"""Inference bodies of the Open Inference Protocol (REST) to and from ``inference`` values.

The binary tensor extension is included: a body is then a JSON header of ``Inference-Header-Content-Length`` bytes, and
after it the contents of every tensor that has the parameter ``binary_data_size``, in the order of the header. With a
header of 0 bytes the body is the contents of the model's one input, and the outputs are binary.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from splitplane.domain.codecs import DATATYPE_BYTES
from splitplane.runtime.inference import (
    InferRequest,
    InferResponse,
    Parameter,
    Parameters,
    Tensor,
    TensorMetadata,
    deadline_of,
    invalid,
    require_served,
)
from splitplane.runtime.tensors import (
    BF16,
    BYTES,
    MAX_ENTRIES,
    MOST_ELEMENTS,
    NUMPY_TYPES,
    check_size,
    declared_as,
    elements_in,
    from_array,
    from_elements,
    narrowed,
    nbytes,
    to_array,
    to_elements,
    widened,
)

BINARY_SIZE = "binary_data_size"
BINARY = "binary_data"
BINARY_OUTPUT = "binary_data_output"
_TRANSPORT_PARAMETERS = frozenset({BINARY_SIZE, BINARY, BINARY_OUTPUT})

_KINDS = {"b": "b", "u": "ui", "i": "ui", "f": "uif"}
"""Kinds of JSON values (as numpy reads them) that a tensor of a numpy kind takes without loss of meaning."""


class BinaryOutputs:
    """Which outputs a client wants as raw bytes: its default, and its word on single outputs."""

    def __init__(self, *, default: bool, named: Mapping[str, bool]) -> None:
        self._default, self._named = default, named

    def __contains__(self, name: str) -> bool:
        return self._named.get(name, self._default)


def read_request(
    body: bytes | bytearray,
    *,
    header_size: int | None,
    model_name: str,
    model_version: str,
    declared: Sequence[TensorMetadata] = (),
    deadline: float | None = None,
) -> tuple[InferRequest, BinaryOutputs]:
    """A request, and which outputs it wants in binary. Raises :class:`InferenceError` that says what is wrong.

    ``declared`` are the model's inputs where they are known: binary ones of another datatype are not looked into.
    ``deadline`` is what the transport says of it.
    """
    received = time.perf_counter()
    if header_size is not None and not 0 <= header_size <= len(body):
        raise invalid(f"Inference-Header-Content-Length is {header_size}, but the body has {len(body)} bytes")
    if header_size == 0:
        tensors = (_whole(body, declared),)
        raw = InferRequest(model_name, tensors, model_version, deadline=deadline, received=received)
        return raw, BinaryOutputs(default=True, named={})
    header = read_object(body if header_size is None else body[:header_size])
    rest = memoryview(body).toreadonly()[len(body) if header_size is None else header_size :]
    inputs: list[Tensor] = []
    specs = {spec.name: spec for spec in declared}
    for entry in _objects(header, "inputs"):
        tensor, rest = _read_input(entry, rest, specs)
        inputs.append(tensor)
    if len(rest):
        raise invalid(f"{len(rest)} bytes follow the last binary input")
    parameters = _parameters(header, "the request")
    outputs = _objects(header, "outputs")
    names = [_text(output, "name", "an output") for output in outputs]
    named = {}
    for name, output in zip(names, outputs, strict=True):
        wishes = _parameters(output, f"output '{name}'")
        require_served(wishes, f"output '{name}'")
        wish = wishes.get(BINARY)
        if wish is not None:
            named[name] = bool(wish)
    request = InferRequest(
        model_name=model_name,
        model_version=model_version,
        id=_id(header),
        parameters=_without_transport(parameters),
        inputs=tuple(inputs),
        outputs=tuple(names),
        deadline=deadline_of(parameters, deadline),
        received=received,
    )
    return request, BinaryOutputs(default=bool(parameters.get(BINARY_OUTPUT, False)), named=named)


def write_response(response: InferResponse, binary: BinaryOutputs) -> tuple[bytes, int | None]:
    """The body, and the size of its JSON header when binary contents follow (else ``None``).

    Raises :class:`InferenceError` when an output that should be JSON cannot be.
    """
    outputs, contents = [], []
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        parameters = dict(tensor.parameters)
        if tensor.name in binary:
            parameters[BINARY_SIZE] = nbytes(tensor)
            contents.append(tensor.data)
        else:
            entry["data"] = json_data(tensor)
        if parameters:
            entry["parameters"] = parameters
        outputs.append(entry)
    message: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        message["id"] = response.id
    if response.parameters:
        message["parameters"] = dict(response.parameters)
    header = json.dumps({**message, "outputs": outputs}, separators=(",", ":")).encode()
    return (b"".join((header, *contents)), len(header)) if contents else (header, None)


def read_object(body: bytes | bytearray) -> dict[str, Any]:
    """A body that is a JSON object. Raises :class:`InferenceError` when it is none."""
    try:
        header = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the request is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise invalid("the request is not a JSON object")
    return header


def json_data(tensor: Tensor, *, instead: str = f"ask for it as {BINARY}") -> list[Any]:
    """An output's values, flat. Raises :class:`InferenceError` when JSON has no form for one of them, with what to do
    ``instead``."""
    if tensor.datatype == BYTES:
        try:
            return [element.decode() for element in to_elements(tensor, kind="output")]
        except UnicodeDecodeError:
            raise invalid(f"output '{tensor.name}' holds bytes that are no UTF-8: {instead}") from None
    array = to_array(widened(tensor)).reshape(-1)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise invalid(f"output '{tensor.name}' holds NaN or infinity, which JSON cannot carry: {instead}")
    values: list[Any] = array.tolist()
    return values


def _read_input(
    entry: Mapping[str, Any], rest: memoryview, declared: Mapping[str, TensorMetadata]
) -> tuple[Tensor, memoryview]:
    name = _text(entry, "name", "an input")
    datatype = _text(entry, "datatype", f"input '{name}'")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < MOST_ELEMENTS for size in shape):
        raise invalid(f"input '{name}': 'shape' must be a list of sizes from 0 to {MOST_ELEMENTS - 1}")
    if len(shape) > MAX_ENTRIES:
        raise invalid(f"input '{name}' has {len(shape)} dimensions; at most {MAX_ENTRIES} are taken")
    parameters = _parameters(entry, f"input '{name}'")
    require_served(parameters, f"input '{name}'")
    size = parameters.get(BINARY_SIZE)
    if size is None:
        return _from_json(name, datatype, tuple(shape), entry, _without_transport(parameters)), rest
    if entry.get("data") is not None:
        raise invalid(f"input '{name}' has both 'data' and the parameter {BINARY_SIZE}; send one of them")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise invalid(f"input '{name}': {BINARY_SIZE} is {size}, but {len(rest)} bytes of binary data are left")
    if declared:
        declared_as(name, datatype, declared)
    tensor = Tensor(name, datatype, tuple(shape), rest[:size], _without_transport(parameters))
    check_size(tensor)
    return tensor, rest[size:]


def _whole(body: bytes | bytearray, declared: Sequence[TensorMetadata]) -> Tensor:
    """A body that is the model's one input and nothing else; its shape follows from how long it is.

    Raises :class:`InferenceError` where it does not: of the batch and another size that are open, the batch is 1.
    """
    if len(declared) != 1:
        raise invalid("a body without a header is the one input of a model, and this one does not have one")
    (spec,) = declared
    data = memoryview(body).toreadonly()
    shape = (1, *spec.shape[1:]) if spec.shape.count(-1) > 1 else spec.shape
    fixed = math.prod(size for size in shape if size != -1)
    if spec.datatype == BYTES and fixed == 1:
        return from_elements(spec.name, (bytes(data),), (1,) * len(shape))
    width = fixed * DATATYPE_BYTES.get(spec.datatype, 0)
    if shape.count(-1) > 1 or not width or len(data) % width:
        raise invalid(f"{len(data)} bytes without a header do not tell the shape of input '{spec.name}'")
    tensor = Tensor(spec.name, spec.datatype, tuple(len(data) // width if n == -1 else n for n in shape), data)
    check_size(tensor)
    return tensor


def _from_json(
    name: str, datatype: str, shape: tuple[int, ...], entry: Mapping[str, Any], parameters: Parameters
) -> Tensor:
    if entry.get("data") is None:
        raise invalid(f"input '{name}' has neither 'data' nor the parameter {BINARY_SIZE}")
    return replace(read_values(name, datatype, entry["data"], shape), parameters=parameters)


def read_values(name: str, datatype: str, data: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """JSON values, nested or flat, as a tensor; without ``shape`` their nesting is it.

    Raises :class:`InferenceError` when they are not of that datatype or not as many as the shape says.
    """
    array = _texts(name, data) if datatype == BYTES else _numbers(name, datatype, data)
    shape = array.shape if shape is None else shape
    expected = elements_in(f"input '{name}'", shape)
    if array.size != expected:
        raise invalid(f"input '{name}' has {array.size} values; shape {list(shape)} takes {expected}")
    if datatype == BYTES:
        return from_elements(name, array.flat, shape)
    if datatype == BF16:
        return narrowed(name, array, shape)
    # Flat, as no array of numpy's has as many dimensions as a client may name.
    return replace(from_array(name, array.reshape(-1)), shape=shape)


def _texts(name: str, data: Any) -> npt.NDArray[Any]:
    """Texts as their UTF-8, in an array of objects."""
    given = _nested(name, data, object)
    try:
        for index, value in enumerate(given.flat):
            if not isinstance(value, str):
                raise invalid(f"input '{name}': 'data' holds values that are not {BYTES}")
            given.flat[index] = value.encode()
    except UnicodeEncodeError:
        raise invalid(f"input '{name}': a text has no UTF-8 form") from None
    return given


def _has_text(data: Any) -> bool:
    """Whether there is one among the values. numpy would give each value as much room as the longest text takes."""
    level = [data]
    while level:
        kinds = set(map(type, level))
        if str in kinds:
            return True
        if list not in kinds:
            return False
        level = list(chain.from_iterable(level if kinds == {list} else filter(_is_list, level)))
    return False


def _is_list(value: Any) -> bool:
    return type(value) is list


def _nested(name: str, data: Any, dtype: Any = None) -> npt.NDArray[Any]:
    try:
        return np.array(data, dtype)
    except ValueError:
        raise invalid(f"input '{name}': 'data' is ragged; nest it as its shape says, or send it flat") from None


def _numbers(name: str, datatype: str, data: Any) -> npt.NDArray[Any]:
    """JSON values as an array; never wraps, clips or parses a value to make it fit. Floats round to the nearest."""
    target = NUMPY_TYPES.get("FP32" if datatype == BF16 else datatype)
    if target is None:
        raise invalid(f"input '{name}': datatype '{datatype}' is not supported")
    if _has_text(data):
        raise invalid(f"input '{name}': 'data' holds values that are not {datatype}")
    given = _nested(name, data)
    if given.size == 0:
        return np.empty(given.shape, target)
    fits = given.dtype.kind in _KINDS[target.kind]
    if target.kind in "ui" and not fits:
        # numpy reads integers that fit no signed 64 bits beside others as floats or objects: look at them one by one.
        given = np.array(data, object)
        fits = all(type(value) is int for value in given.flat)
    elif target.kind == "f" and given.dtype.kind == "O":  # as numpy reads integers beyond 64 bits
        fits = all(type(value) in (int, float) for value in given.flat)
        if fits:
            given = _floats(name, datatype, given)
    if not fits:
        raise invalid(f"input '{name}': 'data' holds values that are not {datatype}")
    if target.kind in "ui":
        limits: np.iinfo[Any] = np.iinfo(target)
        if int(given.min()) < limits.min or int(given.max()) > limits.max:
            raise invalid(f"input '{name}': a value lies outside {datatype} ({limits.min} to {limits.max})")
    with np.errstate(over="ignore"):
        fitted = given.astype(target)
    if target.kind == "f" and not np.isfinite(fitted[np.isfinite(given.astype(np.float64))]).all():
        raise invalid(f"input '{name}': a value lies outside {datatype} (up to {np.finfo(target.name).max:.4g})")
    return fitted


def _floats(name: str, datatype: str, given: npt.NDArray[Any]) -> npt.NDArray[Any]:
    try:
        return given.astype(np.float64)
    except OverflowError:
        raise invalid(f"input '{name}': a value lies outside {datatype}") from None


def _given(record: Mapping[str, Any], key: str, default: Any) -> Any:
    """``null`` stands for what is not there, as some clients write it."""
    value = record.get(key)
    return default if value is None else value


def _objects(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    entries = _given(record, key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise invalid(f"'{key}' must be a list of objects")
    return entries


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise invalid(f"{where} has no '{key}'")
    _encodable(value, where)
    return value


def _parameters(record: Mapping[str, Any], where: str) -> Parameters:
    given = _given(record, "parameters", {})
    parameters = {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else {}
    if not isinstance(given, dict) or not all(
        isinstance(value, bool | int | float | str) for value in parameters.values()
    ):
        raise invalid(f"{where}: 'parameters' must be an object of numbers, texts, true and false")
    for name, value in parameters.items():
        _encodable(name, where)
        if isinstance(value, str):
            _encodable(value, where)
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            raise invalid(f"{where}: parameter '{name}' fits neither int64 nor uint64")
    return parameters


def _id(header: Mapping[str, Any]) -> str:
    value = _given(header, "id", "")
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise invalid("'id' must be a text")
    text = str(value)
    _encodable(text, "'id'")
    return text


def _encodable(text: str, where: str) -> None:
    """JSON may escape half a surrogate pair, which no text on the wire can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(f"{where}: a text has no UTF-8 form") from None


def _without_transport(parameters: Parameters) -> dict[str, Parameter]:
    return {name: value for name, value in parameters.items() if name not in _TRANSPORT_PARAMETERS}

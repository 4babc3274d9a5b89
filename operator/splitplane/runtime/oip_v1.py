"""KServe's protocol V1, ``:predict``, over the same values as the Open Inference Protocol.

Its two forms are TensorFlow Serving's. Row: ``{"instances": [...]}``, one entry per sample, a bare value where the
model has one input, else an object of values by name; answered by ``{"predictions": [...]}`` alike. Column:
``{"inputs": ...}``, the whole batch of the one input, or an object of batches by name; answered by ``{"outputs":
...}`` alike. V1 names no datatypes: values are read as what the model declares.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from splitplane.runtime.inference import InferRequest, InferResponse, ModelMetadata, TensorMetadata, invalid
from splitplane.runtime.oip_json import json_data, read_object, read_values

ROWS, COLUMNS = "instances", "inputs"
INSTEAD = "ask for it in binary over /v2/models, as this protocol has no form for it"


def read_request(body: bytes | bytearray, metadata: ModelMetadata) -> tuple[InferRequest, bool]:
    """A request, and whether it came in rows. Raises :class:`InferenceError` that says what is wrong."""
    given = read_object(body)
    if (ROWS in given) == (COLUMNS in given):
        raise invalid(f"send either '{ROWS}', a list of samples, or '{COLUMNS}', batches by input")
    by_rows = ROWS in given
    columns = _transposed(given[ROWS], metadata.inputs) if by_rows else _columns(given[COLUMNS], metadata.inputs)
    declared = {spec.name: spec for spec in metadata.inputs}
    unknown = next((name for name in columns if name not in declared), None)
    if unknown is not None:
        raise invalid(f"input {unknown!r} is unknown; the inputs are {', '.join(declared)}")
    inputs = tuple(read_values(name, declared[name].datatype, data) for name, data in columns.items())
    return InferRequest(model_name=metadata.name, inputs=inputs), by_rows


def write_response(response: InferResponse, *, by_rows: bool) -> bytes:
    """The body, in the form of the request. Raises :class:`InferenceError` for outputs that JSON cannot carry."""
    columns = {tensor.name: _nested(json_data(tensor, instead=INSTEAD), tensor.shape) for tensor in response.outputs}
    single = next(iter(columns.values())) if len(columns) == 1 else None
    if not by_rows:
        message = {"outputs": columns if single is None else single}
    elif single is not None:
        message = {"predictions": single}
    else:
        rows = zip(*columns.values(), strict=True)
        message = {"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}
    return json.dumps(message, separators=(",", ":")).encode()


def _transposed(rows: Any, specs: Sequence[TensorMetadata]) -> dict[str, list[Any]]:
    if not isinstance(rows, list) or not rows:
        raise invalid(f"'{ROWS}' must be a list of at least one sample")
    if not isinstance(rows[0], dict):
        return {_only(specs, ROWS): rows}
    names = rows[0].keys()
    if not all(isinstance(row, dict) and row.keys() == names for row in rows):
        raise invalid(f"the objects in '{ROWS}' must name the same inputs")
    return {name: [row[name] for row in rows] for name in names}


def _columns(given: Any, specs: Sequence[TensorMetadata]) -> Mapping[str, Any]:
    return given if isinstance(given, dict) else {_only(specs, COLUMNS): given}


def _only(specs: Sequence[TensorMetadata], key: str) -> str:
    if len(specs) != 1:
        raise invalid(f"'{key}' must name the inputs, which are {', '.join(spec.name for spec in specs)}")
    return specs[0].name


def _nested(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Flat values as lists within lists."""
    for axis in range(len(shape) - 1, 0, -1):
        size = shape[axis]
        values = [values[size * index : size * (index + 1)] for index in range(math.prod(shape[:axis]))]
    return values

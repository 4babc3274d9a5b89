"""Cases of the ``kserve`` package's own clients, run in the peers' environment (``make peers``).

    python oip_kserve_cases.py GRPC_ADDRESS HTTP_ADDRESS

Prints a JSON object: what went wrong by case, empty where all is well.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

ARRAYS = {
    "BOOL": np.array([[True, False]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-32768, 32767]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.5, -65504]], np.float16),
    "FP32": np.array([[0.5, -3.25]], np.float32),
    "FP64": np.array([[0.1, 1e300]], np.float64),
    "BYTES": np.array([["a", "\u00fc\u20ac"]], dtype=np.object_),
}


def request(datatype: str, *, binary: bool) -> InferRequest:
    array = ARRAYS[datatype]
    tensor = InferInput(datatype.lower(), list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest("echo", [tensor], request_id="r1", parameters={"colour": "red"})


def same(response: Any, datatype: str) -> None:
    got = response.outputs[0].as_numpy()
    want = ARRAYS[datatype]
    if datatype == "BYTES":
        got = np.array([e.decode() if isinstance(e, bytes) else e for e in got.flat], np.object_).reshape(want.shape)
    assert got.shape == want.shape, got.shape
    assert (got == want).all(), got
    assert response.id == "r1", response.id
    assert response.parameters["served_by"], response.parameters


async def main(grpc_address: str, http_address: str) -> dict[str, str]:
    url = f"http://{http_address}"
    grpc_client = InferenceGRPCClient(grpc_address)
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    first = InferenceRESTClient(RESTConfig(protocol="v1"))
    cases: dict[str, Callable[[], Awaitable[None]]] = {}

    def case(name: str, call: Callable[[], Awaitable[Any]], check: Callable[[Any], Any]) -> None:
        async def run() -> None:
            verdict = check(await call())
            assert verdict is None or verdict, "another answer was expected"

        cases[name] = run

    for datatype in ARRAYS:
        for binary in (True, False):
            if datatype == "FP16" and not binary:
                continue  # this client refuses to send it

            def check(answer: Any, datatype: str = datatype) -> None:
                same(answer, datatype)

            given = request(datatype, binary=binary)
            form = "binary" if binary else "typed"
            case(f"grpc {datatype} {form}", partial(grpc_client.infer, given), check)
            if not (datatype == "BYTES" and not binary):  # this client sends no texts as JSON
                case(f"rest {datatype} {form}", partial(rest.infer, url, given, model_name="echo"), check)
    yes = bool
    case("grpc live", grpc_client.is_server_live, yes)
    case("grpc ready", grpc_client.is_server_ready, yes)
    case("grpc model ready", lambda: grpc_client.is_model_ready("echo"), yes)
    case("rest live", lambda: rest.is_server_live(url), yes)
    case("rest ready", lambda: rest.is_server_ready(url), yes)
    case("rest model ready", lambda: rest.is_model_ready(url, "echo"), yes)
    case("v1 live", lambda: first.is_server_live(url), yes)
    case("v1 model ready", lambda: first.is_model_ready(url, "echo"), yes)
    rows = {"instances": [{"fp32": [1, 2.5]}, {"fp32": [3, 4]}]}
    case("v1 rows", lambda: first.infer(url, rows, model_name="echo"),
         lambda answer: answer == {"predictions": [[1, 2.5], [3, 4]]})  # fmt: skip
    columns = {"inputs": {"fp32": [[1, 2.5], [3, 4]], "int64": [[1, 2], [3, 4]]}}
    case("v1 columns", lambda: first.infer(url, columns, model_name="echo"),
         lambda answer: answer == {"outputs": columns["inputs"]})  # fmt: skip
    failures: dict[str, str] = {}
    for name, run in cases.items():
        try:
            await run()
            failures[name] = ""
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    for client in (grpc_client, rest, first):
        await client.close()
    return failures


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))

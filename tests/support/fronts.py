"""Both protocol fronts over a model, on an event loop of their own, for clients that block."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from splitplane.runtime import oip_grpc, oip_rest, rest_serving
from splitplane.runtime.inference import (
    InferRequest,
    InferResponse,
    Model,
    ModelMetadata,
    Tensor,
    TensorMetadata,
)
from splitplane.runtime.tensors import check_size

DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64",
    "BYTES",
)  # fmt: skip
"""All of the protocol."""


@dataclass
class Echo:
    """Returns what it gets, each input under its own name; takes any tensor that is whole."""

    is_ready: bool = True
    name: str = "echo"
    seen: list[InferRequest] = field(default_factory=list)

    def metadata(self) -> ModelMetadata:
        tensors = tuple(TensorMetadata(datatype.lower(), datatype, (-1, 2)) for datatype in DATATYPES)
        return ModelMetadata(self.name, inputs=tensors, outputs=tensors)

    def ready(self) -> bool:
        return self.is_ready

    async def infer(self, request: InferRequest) -> InferResponse:
        self.seen[:] = [request]
        for tensor in request.inputs:
            check_size(tensor)
        outputs = tuple(Tensor(t.name, t.datatype, t.shape, t.data) for t in request.inputs)
        return InferResponse(self.name, outputs, parameters={"served_by": "test"})


@dataclass(frozen=True)
class Fronts:
    grpc_address: str
    http_address: str


@contextlib.contextmanager
def serving(model: Model, registry: CollectorRegistry | None = None) -> Iterator[Fronts]:
    loop = asyncio.new_event_loop()

    async def start() -> tuple[Any, Any, Fronts]:
        server = oip_grpc.Server(model)
        port = server.bind("127.0.0.1", 0)
        await server.start()
        rest = await rest_serving.serve(oip_rest.make_app(model, registry or CollectorRegistry()), "127.0.0.1", 0)
        return server, rest, Fronts(f"127.0.0.1:{port}", "{}:{}".format(*rest.address))

    async def stop() -> None:
        await grpc_server.stop(None)
        await rest.stop(0)

    grpc_server, rest, fronts = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield fronts
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()

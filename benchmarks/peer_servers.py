"""Servers of others with the two halves of a model, for ``benchmarks.peers``; runs in the peers' environment.

    python -m benchmarks.peer_servers fastapi|kserve MODEL FIRST LAST WEIGHTS DIGEST PORT [NEXT]
    python -m benchmarks.peer_servers ray MODEL WEIGHTS DIGEST PORT

Each in the form that its documentation shows, but with tensors as raw bytes: safetensors over HTTP, KServe's own raw
contents over gRPC. FastAPI's and KServe's event loops compute on a thread; Ray Serve runs handlers on one by itself.
"""

import asyncio
import logging
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as read
from safetensors.torch import save as write

from benchmarks.peer_models import HALF, LAST, Range, load

HOST = "127.0.0.1"
DATATYPES = {torch.float32: "FP32", torch.int64: "INT64", torch.bool: "BOOL"}


def computed(part: Range, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in part.run(first, last, tensors).items()}


def serve_fastapi(part: Range, first: int, last: int, port: int, following: str) -> None:
    import httpx
    import uvicorn
    from fastapi import FastAPI, Request, Response

    app, one, client = FastAPI(), ThreadPoolExecutor(1), httpx.AsyncClient(timeout=60.0)

    @app.post("/infer")
    async def infer(request: Request) -> Response:
        body = await request.body()

        def work() -> bytes:
            return write(computed(part, first, last, read(body)))

        answer = await asyncio.get_running_loop().run_in_executor(one, work)
        if following:
            answer = (await client.post(f"http://{following}/infer", content=answer)).content
        return Response(answer, media_type="application/octet-stream")

    # Connections stay open while the client is busy with the others.
    uvicorn.run(app, host=HOST, port=port, log_level="warning", access_log=False, timeout_keep_alive=300)


def serve_kserve(part: Range, first: int, last: int, port: int, following: str) -> None:
    import kserve

    class Part(kserve.Model):
        def __init__(self) -> None:
            super().__init__("encoder")
            self.ready, self.one = True, ThreadPoolExecutor(1)
            self.client: kserve.InferenceGRPCClient | None = None

        async def predict(self, payload: Any, *_: Any) -> Any:
            def work() -> dict[str, Any]:
                given = {each.name: torch.from_numpy(each.as_numpy().copy()) for each in payload.inputs}
                return computed(part, first, last, given)

            tensors = await asyncio.get_running_loop().run_in_executor(self.one, work)
            form = kserve.InferInput if following else kserve.InferOutput
            described = []
            for name, tensor in tensors.items():
                each = form(name, list(tensor.shape), DATATYPES[tensor.dtype])
                each.set_data_from_numpy(tensor.numpy(), binary_data=True)
                described.append(each)
            if not following:
                return kserve.InferResponse(payload.id, "encoder", described)
            if self.client is None:
                self.client = kserve.InferenceGRPCClient(following)
            return await self.client.infer(kserve.InferRequest("encoder", described, request_id=payload.id))

    server = kserve.ModelServer(http_port=0, grpc_port=port, enable_grpc=True, enable_latency_logging=False)
    logging.getLogger("kserve").setLevel(logging.WARNING)  # it writes a line a request
    server.start([Part()])


def serve_ray(model: str, weights: Path, digest: str, port: int) -> None:
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    class Back:
        def __init__(self) -> None:
            self.part = load(model, HALF[model], LAST[model], weights, digest)

        def __call__(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            given = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
            return {n: t.numpy() for n, t in computed(self.part, HALF[model], LAST[model], given).items()}

    class Front:
        def __init__(self, back: Any) -> None:
            self.back = back
            self.part = load(model, 0, HALF[model], weights, digest)

        async def __call__(self, request: Request) -> Response:
            arrays = {n: t.numpy() for n, t in computed(self.part, 0, HALF[model], read(await request.body())).items()}
            answer = await self.back.remote(arrays)
            return Response(write({n: torch.from_numpy(a.copy()) for n, a in answer.items()}))

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": HOST, "port": port})
    front, back = (serve.deployment(max_ongoing_requests=64)(each) for each in (Front, Back))
    serve.run(front.bind(back.bind()), route_prefix="/infer")
    sys.stdin.read()  # it ends with the benchmark
    serve.shutdown()
    ray.shutdown()


def main() -> None:
    kind, model, *rest = sys.argv[1:]
    if kind == "ray":
        weights, digest, port = rest
        serve_ray(model, Path(weights), digest, int(port))
        return
    first, last, weights, digest, port, *following = rest
    part = load(model, int(first), int(last), Path(weights), digest)
    serve = {"fastapi": serve_fastapi, "kserve": serve_kserve}[kind]
    serve(part, int(first), int(last), int(port), following[0] if following else "")


if __name__ == "__main__":
    main()

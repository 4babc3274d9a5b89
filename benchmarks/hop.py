"""What a stage adds to a request beyond moving its bytes: a hop through a stage against a bare ``grpc.aio`` echo.

Both servers run in processes of their own and get the same message (a 600 kB activation), one request at a time, in
turn. The stage is the real server with a segment that returns its input, called as a sending stage calls it
(``hops.call``: serialise, send, parse the answer). The echo's client sends and receives bytes that lie ready, and does
nothing else.

    python -m benchmarks.hop              # the benchmark
    python -m benchmarks.hop stage|echo   # one server, on 127.0.0.1, port on its standard output
"""

import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import grpc
import grpc.aio
import numpy as np

from benchmarks._report import Row, row, write
from splitplane.domain.codecs import encoded_bytes
from splitplane.domain.profiles import CODECS, Cut, TensorSpec
from splitplane.runtime import hops, oip_grpc, oip_pb2, oip_wire
from splitplane.runtime.inference import InferRequest
from splitplane.runtime.tensors import from_array

SPEC = TensorSpec("activation", "FP32", (150, 1000))
WARM_UP, ROUNDS = 200, 1500
KINDS = ("echo", "raw stage", "stage")
START_SECONDS = 60.0
MODEL = "hop"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_stage(grpc_port: int) -> None:
    """The real stage server around a segment that returns its input."""
    import torch
    from prometheus_client import CollectorRegistry

    from splitplane.runtime.stage import server
    from splitplane.runtime.stage.settings import Settings

    wire_bytes = {codec: encoded_bytes(SPEC, codec) for codec in CODECS}

    @dataclass(frozen=True)
    class Graph:
        cuts = tuple(Cut(index, "identity", (SPEC,), wire_bytes, "identity") for index in (0, 1))

    class Identity:
        graph = Graph()

        def run(self, _first: int, _last: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
            return tensors

    settings = Settings(
        namespace="bench",
        pipeline=MODEL,
        tier="edge",
        pod_name="hop-stage",
        pod_ip="127.0.0.1",
        model="",
        resident_first=0,
        resident_last=1,
        fingerprint="",
        http_port=free_port(),
        grpc_port=grpc_port,
        drain_pause_seconds=0.0,
    )
    asyncio.run(server.run(settings, Identity, lambda _compute, _elapsed: 0.0, CollectorRegistry()))


def serve_echo(grpc_port: int) -> None:
    """As little as ``grpc.aio`` can do with a message."""

    async def echo(data: bytes, _context: oip_grpc.Context) -> bytes:
        return data

    async def run() -> None:
        server = grpc.aio.server(options=oip_grpc.OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(echo)
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(oip_grpc.SERVICE, handlers),))
        server.add_insecure_port(f"127.0.0.1:{grpc_port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


@contextlib.contextmanager
def process(kind: str) -> Iterator[str]:
    """A server's address; the process ends with the block."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.hop", kind, str(port)])
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


async def measure(stage: str, echo: str) -> dict[str, list[float]]:
    """Seconds per request by kind; the three kinds take turns."""
    array = np.random.default_rng(0).standard_normal((1, *SPEC.shape), np.float32)
    request = InferRequest(model_name=MODEL, inputs=(from_array(SPEC.name, array),))
    message = oip_wire.write_request(request)
    channels = {kind: hops.Channels() for kind in KINDS}  # one connection each: sharing one would favour its users
    raw: dict[str, hops.Method] = {
        kind: channels[kind].get(address).unary_unary(oip_grpc.MODEL_INFER)
        for kind, address in (("echo", echo), ("raw stage", stage))
    }
    await _wait_until_ready(stage, echo)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(WARM_UP + ROUNDS):
        for position in range(len(KINDS)):
            kind = KINDS[(turn + position) % len(KINDS)]
            started = time.perf_counter()
            if kind == "stage":
                await hops.call(channels[kind], (stage,), request)
            else:
                await raw[kind](message)
            seconds[kind].append(time.perf_counter() - started)
    for each in channels.values():
        await each.close()
    return {kind: values[WARM_UP:] for kind, values in seconds.items()}


async def _wait_until_ready(stage: str, echo: str) -> None:
    async with grpc.aio.insecure_channel(echo) as channel:
        await asyncio.wait_for(channel.channel_ready(), START_SECONDS)
    async with grpc.aio.insecure_channel(stage) as channel:
        await asyncio.wait_for(channel.channel_ready(), START_SECONDS)
        ready: hops.Method = channel.unary_unary(f"/{oip_grpc.SERVICE}/ServerReady")
        async with asyncio.timeout(START_SECONDS):
            while True:
                if oip_pb2.ServerReadyResponse.FromString(await ready(b"")).ready:
                    return
                await asyncio.sleep(0.1)


def main() -> list[Row]:
    with process("stage") as stage, process("echo") as echo:
        seconds = asyncio.run(measure(stage, echo))
    medians = {kind: statistics.median(values) * 1e3 for kind, values in seconds.items()}
    return [
        row("hop through a stage, 600 kB", medians["stage"], "ms", medians["echo"]),
        row("hop through a stage, client's own work excluded", medians["raw stage"], "ms", medians["echo"]),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"stage": serve_stage, "echo": serve_echo}[sys.argv[1]](int(sys.argv[2]))
    else:
        write("hop", main())

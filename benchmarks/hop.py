"""What a stage adds to a request beyond moving its bytes: a hop through it against ``grpc.aio`` and a bare socket.

All servers run in processes of their own and get the same message (a 600 kB activation), one or eight requests at a
time, in turn. The stage is the real server with a segment that returns its input, called as a sending stage calls it
(``hops.call``: serialise, send, parse the answer). The echo's client sends and receives bytes that lie ready, and does
nothing else. The same again with mutual TLS on both.

    python -m benchmarks.hop                     # the benchmark
    python -m benchmarks.hop stage|echo|socket P [FOLDER]  # one server, on port P; with certificates
"""

import asyncio
import contextlib
import datetime as dt
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import numpy as np

from benchmarks._report import Row, row, write
from splitplane.controller.authority import issue, new_authority
from splitplane.domain.codecs import encoded_bytes
from splitplane.domain.peers import GATEWAY, ROLES, STAGE, peer_name
from splitplane.domain.profiles import CODECS, Cut, TensorSpec
from splitplane.runtime import hops, oip_grpc, oip_pb2, oip_wire
from splitplane.runtime.inference import InferRequest
from splitplane.runtime.mtls import Identity
from splitplane.runtime.tensors import from_array

SPEC = TensorSpec("activation", "FP32", (150, 1000))
WARM_UP, ROUNDS = 200, 1500
CONCURRENCY = (1, 8)
PER_TURN = 5
KINDS = ("socket", "echo", "raw stage", "stage")
MESSAGE_BYTES = 600_000
START_SECONDS = 60.0
MODEL = "hop"

Send = Callable[[], Awaitable[object]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certificates(folder: Path) -> Path:
    """A certificate for a gateway and one for a stage in their folders, as Secrets are mounted."""
    now = dt.datetime.now(dt.UTC)
    authority = new_authority("bench", now=now)
    for role in ROLES:
        pair = issue(authority, peer_name(role, MODEL, "bench"), now=now, lifetime=dt.timedelta(hours=1))
        (folder / role).mkdir()
        files = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate}
        for name, content in files.items():
            (folder / role / name).write_bytes(content)
    return folder


def identity_of(folder: Path | None, role: str) -> Identity | None:
    return None if folder is None else Identity(folder / role, pipeline=MODEL, namespace="bench")


def serve_stage(grpc_port: int, folder: Path | None) -> None:
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
        tls_dir=None if folder is None else folder / STAGE,
    )
    asyncio.run(server.run(settings, Identity, lambda _compute, _elapsed: 0.0, CollectorRegistry()))


def serve_echo(grpc_port: int, folder: Path | None) -> None:
    """As little as ``grpc.aio`` can do with a message."""

    async def echo(data: bytes, _context: oip_grpc.Context) -> bytes:
        return data

    async def run() -> None:
        server = grpc.aio.server(options=oip_grpc.OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(echo)
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(oip_grpc.SERVICE, handlers),))
        oip_grpc.bind(server, "127.0.0.1", grpc_port, identity=identity_of(folder, STAGE))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


@contextlib.contextmanager
def process(kind: str, folder: Path | None) -> Iterator[str]:
    """A server's address; the process ends with the block."""
    port = free_port()
    more = [] if folder is None else [str(folder)]
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.hop", kind, str(port), *more])
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def serve_socket(port: int, _folder: Path | None) -> None:
    """As little as the operating system can do with a message: its bytes there and back."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_return_all, args=(connection,), daemon=True).start()


def _return_all(connection: socket.socket) -> None:
    buffer = bytearray(MESSAGE_BYTES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while (got := connection.recv_into(buffer)) != 0:
        while got < MESSAGE_BYTES:
            got += connection.recv_into(memoryview(buffer)[got:])
        connection.sendall(buffer)


async def _socket_sender(address: str) -> Send:
    host, _, port = address.partition(":")
    loop, message, buffer = asyncio.get_running_loop(), bytes(MESSAGE_BYTES), bytearray(MESSAGE_BYTES)
    connection = socket.create_connection((host, int(port)))
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send() -> None:
        await loop.sock_sendall(connection, message)
        got = 0
        while got < MESSAGE_BYTES:
            got += await loop.sock_recv_into(connection, memoryview(buffer)[got:])

    return send


async def measure(
    stage: str, echo: str, bare: str, concurrency: int, identity: Identity | None
) -> dict[str, list[float]]:
    """Seconds per request by kind, with so many requests at a time; the kinds take turns."""
    array = np.random.default_rng(0).standard_normal((1, *SPEC.shape), np.float32)
    request = InferRequest(model_name=MODEL, inputs=(from_array(SPEC.name, array),))
    message = oip_wire.write_request(request)
    # One connection each: sharing one would favour its users.
    channels = {kind: hops.Channels(identity=identity) for kind in KINDS}
    await asyncio.wait_for(channels["echo"].get(echo).channel_ready(), START_SECONDS)
    await wait_until_ready(stage, channels["stage"])

    def raw(kind: str, address: str) -> Send:
        method: hops.Method = channels[kind].get(address).unary_unary(oip_grpc.MODEL_INFER)
        return lambda: method(message)

    senders: dict[str, list[Send]] = {
        "socket": [await _socket_sender(bare) for _ in range(concurrency)],
        "echo": [raw("echo", echo)] * concurrency,
        "raw stage": [raw("raw stage", stage)] * concurrency,
        "stage": [lambda: hops.call(channels["stage"], (stage,), request)] * concurrency,
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}

    async def timed(kind: str, send: Send) -> None:
        for _ in range(PER_TURN):
            started = time.perf_counter()
            await send()
            seconds[kind].append(time.perf_counter() - started)

    for turn in range((WARM_UP + ROUNDS) // (PER_TURN * concurrency)):
        for position in range(len(KINDS)):
            kind = KINDS[(turn + position) % len(KINDS)]
            await asyncio.gather(*(timed(kind, send) for send in senders[kind]))
    for each in channels.values():
        await each.close()
    return {kind: values[WARM_UP:] for kind, values in seconds.items()}


async def wait_until_ready(stage: str, channels: hops.Channels) -> None:
    """Until the stage at this address takes requests."""
    channel = channels.get(stage)
    await asyncio.wait_for(channel.channel_ready(), START_SECONDS)
    ready: hops.Method = channel.unary_unary(f"/{oip_grpc.SERVICE}/ServerReady")
    async with asyncio.timeout(START_SECONDS):
        while True:
            if oip_pb2.ServerReadyResponse.FromString(await ready(b"")).ready:
                return
            await asyncio.sleep(0.1)


def main() -> list[Row]:
    """A hop against grpc.aio, in clear text and with mutual TLS, and what it adds to a bare socket."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_rows(None), *_rows(certificates(Path(folder)))]


def _rows(folder: Path | None) -> list[Row]:
    rows: list[Row] = []
    identity = identity_of(folder, GATEWAY)
    with process("stage", folder) as stage, process("echo", folder) as echo, process("socket", None) as bare:
        for concurrency in CONCURRENCY:
            seconds = asyncio.run(measure(stage, echo, bare, concurrency, identity))
            medians = {kind: statistics.median(values) * 1e3 for kind, values in seconds.items()}
            where = f"600 kB, {concurrency} at a time{'' if folder is None else ', mutual TLS'}"
            rows += [
                row(f"hop through a stage, {where}", medians["stage"], "ms", medians["echo"]),
                row(f"hop, client's own work excluded, {where}", medians["raw stage"], "ms", medians["echo"]),
            ]
            if folder is None:
                rows.append(
                    row(f"hop less a bare socket's transfer, {where}", medians["stage"] - medians["socket"], "ms")
                )
    return rows


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"stage": serve_stage, "echo": serve_echo, "socket": serve_socket}[sys.argv[1]](
            int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None
        )
    else:
        write("hop", main())

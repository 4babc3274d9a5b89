"""How many requests of small tensors a gateway passes on in a second on one core, and whether its memory stays flat.

The gateway has a core to itself. On another are its client, which sends at a constant rate whatever comes back (an
open loop), and a stage that answers at once with the same bytes: so neither is what is measured. The gateway is
profiled by py-spy at the highest rate where `make peers` has installed that: build/bench/gateway-profile.txt.

    python -m benchmarks.gateway_rate
    python -m benchmarks.gateway_rate --minutes 10     # its memory over a longer run
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil

from benchmarks._report import FOLDER, Row, row, write
from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.runtime import hops, oip_grpc, oip_pb2, oip_wire
from splitplane.runtime.inference import InferRequest, InferResponse
from splitplane.runtime.routes import TRACE, HopTrace, encode_trace
from splitplane.runtime.tensors import from_array
from tests.support import gateway_rig as rig

RATES = (250.0, 500.0, 750.0, 1000.0, 1250.0)
SECONDS, MEMORY_RATE = 8.0, 400.0
WIDTH = 16
PROFILER = Path(__file__).parents[1] / "build" / "peers" / "bin" / "py-spy"
PROFILE = FOLDER / "gateway-profile.txt"
TICK = 0.002


# The two servers.


def serve_gateway(stage: str) -> None:
    """Prints its address once it can serve."""

    async def run() -> None:
        cluster = rig.MemoryCluster()
        cluster.put(POD, rig.pod_object("small-edge-0", "small-edge", stage))
        model = {
            "name": rig.PIPELINE,
            "inputs": [{"name": "frames", "datatype": "FP32", "shape": [-1, WIDTH]}],
            "outputs": [{"name": "output_0", "datatype": "FP32", "shape": [-1, WIDTH]}],
        }
        cluster.put(ROUTE_TABLE, rig.table(1, rig.ALONE, model=model))
        with tempfile.TemporaryDirectory() as state:
            async with rig.gateway(cluster, Path(state)) as running:
                await rig.until(running.forwarder.ready, seconds=120)
                sys.stdout.write(f"{running.settings.pod_ip}:9000\n")
                sys.stdout.flush()
                await asyncio.Event().wait()

    asyncio.run(run())


def serve_stage(address: str) -> None:
    trace = HopTrace("small-edge", "edge", 0, 3, queue=0.0, decode=0.0, compute=1e-4, encode=0.0, server=1e-4)
    output = from_array("output_0", np.zeros((1, WIDTH), np.float32))
    answer = oip_wire.write_response(InferResponse(rig.PIPELINE, (output,), parameters={TRACE: encode_trace((trace,))}))
    ready = oip_pb2.ServerReadyResponse(ready=True).SerializeToString()

    def always(content: bytes) -> "grpc.RpcMethodHandler[Any, Any]":
        async def handle(_data: bytes, _context: oip_grpc.Context) -> bytes:
            return content

        return grpc.unary_unary_rpc_method_handler(handle)

    async def run() -> None:
        server = grpc.aio.server(options=oip_grpc.SERVER_OPTIONS)
        methods = {"ModelInfer": always(answer), "ServerReady": always(ready)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(oip_grpc.SERVICE, methods),))
        oip_grpc.bind(server, address, 9000)
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


@contextmanager
def serving() -> Iterator[tuple[psutil.Process, str]]:
    """The gateway's process, on a core of its own, and its address."""
    own, *others = sorted(os.sched_getaffinity(0))
    stage = rig.free_address()
    commands = [[sys.executable, "-m", "benchmarks.gateway_rate", kind, stage] for kind in ("stage", "gateway")]
    started = []
    try:
        for command, core in zip(commands, (own, others[-1] if others else own), strict=True):
            os.sched_setaffinity(0, {core})  # for what is started now
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        os.sched_setaffinity(0, {own})
        assert started[1].stdout is not None
        yield psutil.Process(started[1].pid), started[1].stdout.readline().strip()
    finally:
        os.sched_setaffinity(0, {own, *others})
        for process in started:
            process.terminate()
            process.wait(10)


# The client.


@dataclass(slots=True)
class Sent:
    seconds: list[float] = field(default_factory=list)
    failed: int = 0


async def send(method: hops.Method, rate: float, seconds: float) -> Sent:
    """At a constant rate; a request that should have been sent earlier counts from then."""
    tensor = from_array("frames", np.zeros((1, WIDTH), np.float32))
    request, found = oip_wire.write_request(InferRequest(rig.PIPELINE, (tensor,))), Sent()
    tasks: set[asyncio.Task[None]] = set()
    began, count = time.perf_counter(), 0

    async def one(due: float) -> None:
        try:
            await method(request, timeout=10.0)
        except grpc.aio.AioRpcError:
            found.failed += 1
        else:
            found.seconds.append(time.perf_counter() - due)

    while (now := time.perf_counter() - began) < seconds:
        while count < now * rate:
            task = asyncio.create_task(one(began + count / rate))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            count += 1
        await asyncio.sleep(TICK)
    await asyncio.gather(*tasks)
    return found


async def measure(gateway: psutil.Process, address: str) -> list[Row]:
    rows: list[Row] = []
    async with grpc.aio.insecure_channel(address) as channel:
        method: hops.Method = channel.unary_unary(oip_grpc.MODEL_INFER)
        await send(method, RATES[0], 3.0)
        for rate in RATES:
            profiler = _profile(gateway.pid) if rate == RATES[-1] else None
            before, started = _cpu(gateway), time.perf_counter()
            sent = await send(method, rate, SECONDS)
            served = len(sent.seconds) / (time.perf_counter() - started)
            where = f"gateway, {rate:.0f} requests/s"
            rows += [
                row(f"{where}: served", served, "1/s", rate),
                row(f"{where}: p50", float(np.percentile(sent.seconds, 50)) * 1e3, "ms"),
                row(f"{where}: p99", float(np.percentile(sent.seconds, 99)) * 1e3, "ms", 20.0),
                row(f"{where}: CPU per request", (_cpu(gateway) - before) / len(sent.seconds) * 1e3, "ms"),
                row(f"{where}: failed", float(sent.failed), ""),
            ]
            if profiler is not None:
                _tell(profiler)
    return rows


async def memory(gateway: psutil.Process, address: str, minutes: float) -> list[Row]:
    """Resident megabytes after a minute's warm-up, and at the end of the run."""
    async with grpc.aio.insecure_channel(address) as channel:
        method: hops.Method = channel.unary_unary(oip_grpc.MODEL_INFER)
        await send(method, MEMORY_RATE, min(60.0, 20.0 * minutes))
        before = gateway.memory_info().rss / 1e6
        sent = await send(method, MEMORY_RATE, 60.0 * minutes)
    where = f"gateway, {minutes:.0f} minutes at {MEMORY_RATE:.0f} requests/s"
    return [
        row(f"{where}: memory", gateway.memory_info().rss / 1e6, "MB", before),
        row(f"{where}: failed", float(sent.failed), ""),
    ]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _profile(pid: int) -> "subprocess.Popen[bytes] | None":
    if not PROFILER.exists():
        return None
    PROFILE.parent.mkdir(parents=True, exist_ok=True)
    options = {"pid": pid, "duration": int(SECONDS) - 2, "rate": 200, "format": "raw", "output": PROFILE}
    command = [str(PROFILER), "record", "--gil", *(f"--{name}={value}" for name, value in options.items())]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _tell(profiler: "subprocess.Popen[bytes]") -> None:
    """Shares of the samples by the function that was running, and by the ones that it ran for."""
    with suppress(subprocess.TimeoutExpired):
        profiler.wait(30)
    profiler.kill()
    if not PROFILE.exists():
        return
    own, under = Counter[str](), Counter[str]()
    for line in PROFILE.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = [frame.rpartition(":")[0] or frame for frame in stack.split(";")]
        own[frames[-1]] += int(samples)
        for frame in set(frames):
            under[frame] += int(samples)
    total = sum(own.values()) or 1
    for title, counted in (("running", own), ("running or called", under)):
        sys.stdout.write(f"share of the gateway's samples, {title}\n")
        sys.stdout.writelines(f"  {100 * n / total:5.1f} %  {name}\n" for name, n in counted.most_common(20))


def main(minutes: float | None = None) -> list[Row]:
    with serving() as (gateway, address):
        return asyncio.run(measure(gateway, address) if minutes is None else memory(gateway, address, minutes))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stage", address]:
            serve_stage(address)
        case ["gateway", stage]:
            serve_gateway(stage)
        case _:
            parser = argparse.ArgumentParser(description=__doc__)
            parser.add_argument("--minutes", type=float, help="watch the memory for so long instead")
            write("gateway-rate", main(parser.parse_args().minutes))

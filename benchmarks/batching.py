"""What batching gives a stage, and what it costs where there is nothing to batch.

The real stage server in a process of its own, called as a gateway calls it; whether it may batch is told with each
request, so that both take turns on one stage. On a CPU batching pays where weights are read for little work (a wide
perceptron) or operators called for little (MiniLM on short sentences); at 128 tokens one sentence keeps a core busy.

    python -m benchmarks.batching
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks import wide
from benchmarks._report import Row, row, write
from benchmarks.hop import free_port, wait_until_ready
from splitplane.runtime import hops
from splitplane.runtime.inference import InferRequest, Tensor
from splitplane.runtime.routes import ROUTE, Hop, Limits, encode_route
from splitplane.runtime.tensors import from_array

MODELS = Path(__file__).parents[1] / "examples" / "models"
KINDS = {"wide perceptron": 0, "MiniLM, 16 tokens": 16, "MiniLM, 128 tokens": 128}
"""Models, and the tokens of a sentence."""
CONCURRENCY = (1, 16)
MODEL = "encoder"
ROUNDS, SECONDS = 5, 1.0
BATCHED, ALONE = Limits(samples=16), None
SERVER = """
import asyncio, os, sys
from prometheus_client import REGISTRY
from splitplane.model import ModelSource, load_partition
from splitplane.runtime.stage import server
from splitplane.runtime.stage.settings import Settings
import torch
torch.set_num_threads(1)
source, grpc_port, http_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
partition = load_partition(ModelSource.from_json(source), 0, None)
print(partition.last, flush=True)
settings = Settings("bench", "encoder", "edge", "encoder-stage", "127.0.0.1", "", 0, partition.last, "",
                    http_port=http_port, grpc_port=grpc_port, drain_pause_seconds=0.0)
asyncio.run(server.run(settings, lambda: partition, lambda _core, _wall: 0.0, REGISTRY))
os._exit(0)
"""


@contextmanager
def serving(tokens: int) -> Iterator[tuple[str, int]]:
    """Address and last cut of a stage that holds the whole encoder, or the perceptron for 0 tokens."""
    sys.path.insert(0, str(MODELS))
    import sentence_encoder  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        if tokens:
            digest, factory = sentence_encoder.save(weights), "sentence_encoder:build"
            inputs = [{"name": n, "datatype": "INT64", "shape": [-1, tokens]} for n in ("input_ids", "attention_mask")]
        else:
            digest, factory = wide.save(weights), "benchmarks.wide:build"
            inputs = [{"name": "input", "datatype": "FP32", "shape": [-1, wide.WIDTH]}]
        source = {"name": MODEL, "factory": factory, "inputs": inputs,
                  "weights": {"uri": weights.as_uri(), "sha256": digest}}  # fmt: skip
        port = free_port()
        command = [sys.executable, "-c", SERVER, json.dumps(source), str(port), str(free_port())]
        environment = {**os.environ, "PYTHONPATH": f"{MODELS}:{MODELS.parents[1]}", "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                yield f"127.0.0.1:{port}", int(server.stdout.readline())
            finally:
                server.terminate()


async def measure(address: str, last: int, tokens: int) -> dict[tuple[int, Limits | None], tuple[float, float]]:
    """By concurrency and limits: requests per second, and the median of a request's milliseconds."""
    channels, generator = hops.Channels(), np.random.default_rng(0)
    await wait_until_ready(address, channels)
    requests = {
        limits: InferRequest(
            MODEL, inputs(tokens, generator),
            parameters={ROUTE: encode_route((Hop("s", "edge", 0, last, (address,), batch=limits),))},
        )
        for limits in (BATCHED, ALONE)
    }  # fmt: skip
    found: dict[tuple[int, Limits | None], list[tuple[float, float]]] = {}

    async def client(request: InferRequest, end: float, seconds: list[float]) -> None:
        while (started := time.perf_counter()) < end:
            await hops.call(channels, (address,), request)
            seconds.append(time.perf_counter() - started)

    for turn in range(ROUNDS + 1):
        for concurrency in CONCURRENCY:
            for limits in (BATCHED, ALONE) if turn % 2 else (ALONE, BATCHED):
                seconds: list[float] = []
                started = time.perf_counter()
                clients = (client(requests[limits], started + SECONDS, seconds) for _ in range(concurrency))
                await asyncio.gather(*clients)
                elapsed = time.perf_counter() - started
                if turn:
                    rate = len(seconds) / elapsed
                    found.setdefault((concurrency, limits), []).append((rate, statistics.median(seconds) * 1e3))
    await channels.close()
    return {
        key: (statistics.median(rate for rate, _ in runs), statistics.median(ms for _, ms in runs))
        for key, runs in found.items()
    }


def inputs(tokens: int, generator: np.random.Generator) -> tuple[Tensor, ...]:
    """One sample."""
    if not tokens:
        return (from_array("input", generator.standard_normal((1, wide.WIDTH), np.float32)),)
    return (
        from_array("input_ids", generator.integers(1000, 20000, (1, tokens))),
        from_array("attention_mask", np.ones((1, tokens), np.int64)),
    )


def main() -> list[Row]:
    """Batched against one by one."""
    rows = []
    for name, tokens in KINDS.items():
        with serving(tokens) as (address, last):
            measured = asyncio.run(measure(address, last, tokens))
        for concurrency in CONCURRENCY:
            (rate, ms), (alone_rate, alone_ms) = (measured[concurrency, limits] for limits in (BATCHED, ALONE))
            where = f"{name}, {concurrency} at a time"
            rows += [
                row(f"batching: throughput, {where}", rate, "1/s", alone_rate),
                row(f"batching: p50, {where}", ms, "ms", alone_ms),
            ]
    return rows


if __name__ == "__main__":
    write("batching", main())

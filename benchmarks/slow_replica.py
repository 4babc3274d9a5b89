"""What clients see of a slow replica beside a quick one, with and without its being left out.

Two replicas of one stage, of which one takes ten times as long for each request, at constant rates.

    python -m benchmarks.slow_replica
"""

import asyncio
import math
import tempfile
import time
from pathlib import Path
from statistics import mean, quantiles
from unittest import mock

from benchmarks._report import Row, row, write
from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.runtime.gateway import attempts
from splitplane.runtime.gateway.app import Gateway
from splitplane.runtime.gateway.outliers import INTERVAL_SECONDS, Outliers
from splitplane.runtime.inference import InferenceError, InferRequest
from splitplane.runtime.tensors import from_array
from tests.support import gateway_rig as rig

QUICK_SECONDS, SLOW_SECONDS = 0.02, 0.2
RATES = (2.0, 25.0, 45.0, 52.0)
SECONDS = 6.0


async def latencies(running: Gateway, rate: float, seconds: float) -> list[float]:
    """Of the requests that were answered, sent at a constant rate."""
    answered: list[float] = []

    async def one() -> None:
        started = time.perf_counter()
        try:
            await running.forwarder.infer(InferRequest(rig.PIPELINE, (from_array("frames", rig.frames()),)))
            answered.append(time.perf_counter() - started)
        except InferenceError:
            pass

    started = time.perf_counter()
    tasks: list[asyncio.Task[None]] = []
    while (now := time.perf_counter() - started) < seconds:
        while len(tasks) < now * rate:
            tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    return answered


async def measure(*, leaving_out: bool) -> dict[float, list[float]]:
    """Latencies by requests per second, with the slow replica known for what it is, if that is wanted."""
    interval = INTERVAL_SECONDS if leaving_out else math.inf
    found: dict[float, list[float]] = {}
    replicas = [rig.StageProcess("small-edge", "edge", (0, 3), seconds=each) for each in (QUICK_SECONDS, SLOW_SECONDS)]
    cluster = rig.MemoryCluster()
    cluster.put(ROUTE_TABLE, rig.table(1, rig.ALONE, stages=["small-edge"]))
    for replica in replicas:
        cluster.put(POD, replica.pod)
    with (
        mock.patch.object(attempts, "Outliers", return_value=Outliers(interval)),
        rig.stages(*replicas),
        tempfile.TemporaryDirectory() as state,
    ):
        async with rig.gateway(cluster, Path(state)) as running:
            await rig.until(lambda: running.router.endpoints.ready("small-edge") == 2)
            await latencies(running, 10.0, 1.2 * INTERVAL_SECONDS)
            assert running.router.endpoints.ready("small-edge") == (1 if leaving_out else 2)
            for rate in RATES:
                found[rate] = await latencies(running, rate, SECONDS)
    return found


def main() -> list[Row]:
    """Mean, median and 95th percentile in ms, and how many were answered, beside those without leaving it out."""
    kept, left_out = (asyncio.run(measure(leaving_out=each)) for each in (False, True))
    rows = []
    for rate in RATES:
        for name, of in (
            ("mean", mean),
            ("p50", lambda seconds: quantiles(seconds, n=20)[9]),
            ("p95", lambda seconds: quantiles(seconds, n=20)[18]),
        ):
            one, other = 1e3 * of(left_out[rate]), 1e3 * of(kept[rate])
            rows.append(row(f"{rate:.0f} requests/s, {name}, the slow one left out", one, "ms", other))
        served = [len(each[rate]) / SECONDS for each in (left_out, kept)]
        rows.append(row(f"{rate:.0f} requests/s, answered, the slow one left out", served[0], "1/s", served[1]))
    return rows


if __name__ == "__main__":
    write("slow-replica", main())

"""What the operator predicts for a plan against what its clients see, on the embedded cluster: p95 at five rates.

Three plans of the pitch tracker are dictated (mode Fixed, with so many replicas): edge-only, and two splits. A client
sends frames as independent users would, at shares of the rate that the busiest stage bears. The prediction is the one
in the pipeline's status meanwhile: at the rate, burstiness and link that the operator measures, with what it has learnt
of the devices. It needs a machine that does nothing else.

    make bench-predictions                                         # all: about 30 minutes
    PYTHONPATH=examples python -m benchmarks.predictions --plan edge-only  # one; the table is of all that were run
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks._report import FOLDER, Row, row, write
from demo.embedded import Embedded
from demo.kube import Kube, active, wait_for
from demo.sites import EXAMPLES, PIPELINE

FRAME_SECONDS = {"edge": 0.2, "cloud": 0.1}
"""Quick devices, so that a minute holds many requests."""
SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Of the rate at which the busiest stage or link would be busy all the time."""
CEILING_PERCENT = 80
WARM_SECONDS, SECONDS = 20.0, 45.0
LEARNING_SECONDS = 60.0
"""Of traffic before a plan's rates are chosen: what its stages bear is known once they were seen at work."""
REQUESTS = 400
"""At least, of each point: among 100, p95 is the fifth slowest, and a quarter off by chance."""
WITHIN = 0.20
FRAME = 1024
STARTED_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Dictated:
    """A plan: the cut between edge and cloud (``None``: none), its codec, replicas by tier."""

    cut: int | None
    codec: str
    replicas: dict[str, int]


PLANS = {
    "edge-only": Dictated(None, "", {"edge": 2}),
    "early split": Dictated(1, "int8", {"edge": 1, "cloud": 1}),
    "late split": Dictated(2, "fp16", {"edge": 3, "cloud": 1}),
}


@dataclass(frozen=True, slots=True)
class Point:
    """One rate: requests sent per second, the share of the highest rate, and p95 in milliseconds (a prediction is NaN
    where the operator takes the plan for overloaded); ``load`` is the machine's load average then."""

    share: float
    rate: float
    requests: int
    failed: int
    predicted: float
    observed: float
    load: float

    @property
    def error(self) -> float:
        return self.predicted / self.observed - 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=PLANS, action="append")
    chosen = parser.parse_args(arguments).plan or list(PLANS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is taken down
    folder = FOLDER / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    site = Embedded(
        name="predictions", keep=False, out=folder, console=console, say=console.print, frame_seconds=FRAME_SECONDS
    )
    with site.up() as kube:
        site.install()
        code = EXAMPLES / "models" / "pitch_tracker.py"
        kube.run("create", "configmap", "pitch-tracker-code", f"--from-file=pitch_tracker.py={code}")
        site.weights()
        segments = _profiled(kube, site.pipeline())
        for name in chosen:
            _dictate(kube, site.pipeline(), PLANS[name], segments)
            points = asyncio.run(_measure(kube, site.gateway(), console))
            (folder / f"{name}.json").write_text(json.dumps([asdict(point) for point in points]))
    found = {name: _read(folder / f"{name}.json") for name in PLANS if (folder / f"{name}.json").exists()}
    console.print("\n".join(_table(found)), markup=False, soft_wrap=True)
    write("bench-predictions", list(_rows(found)))


def _profiled(kube: Kube, manifest: str) -> int:
    """Apply the pipeline; the number of the model's segments once a plan serves."""
    kube.run("apply", "--filename=-", stdin=manifest)
    wait_for(
        "the first plan", lambda: active(kube, PIPELINE).ready,
        seconds=STARTED_SECONDS, show=lambda: str(active(kube, PIPELINE).conditions),
    )  # fmt: skip
    (profile,) = kube.get("modelprofiles")["items"]
    return len(profile["spec"]["cuts"]) - 1


def _dictate(kube: Kube, manifest: str, plan: Dictated, segments: int) -> None:
    """Make the pipeline keep this plan."""
    body: dict[str, Any] = yaml.safe_load(manifest)
    spec = body["spec"]
    bounds = [0, segments] if plan.cut is None else [0, plan.cut, segments]
    stages = [
        {"tier": tier, "firstCut": first, "lastCut": last}
        for tier, first, last in zip(plan.replicas, bounds, bounds[1:], strict=False)
    ]
    spec["partitioning"] = {"mode": "Fixed", "codecs": ["fp32"], "fixed": {"stages": stages}}
    if plan.cut is not None:
        spec["partitioning"] |= {"codecs": [plan.codec]}
        spec["partitioning"]["fixed"]["codecs"] = [plan.codec]
    for tier in spec["tiers"]:
        count = plan.replicas.get(tier["name"], 1)
        tier["replicas"] = {"min": count, "max": count}
    spec["replanning"] = {
        "intervalSeconds": 5, "cooldownSeconds": 0, "scaleDownWindowSeconds": 0,
        "maxUtilizationPercent": CEILING_PERCENT,
    }  # fmt: skip
    spec["objectives"]["latencyP95Milliseconds"] = 5000
    kube.run("apply", "--filename=-", stdin=yaml.safe_dump(body))
    wanted = "|".join(f"{each['tier']}:{each['firstCut']}-{each['lastCut']}" for each in stages)

    def serves() -> bool:
        now = active(kube, PIPELINE)
        return now.ready and now.summary.split()[0] == wanted and now.replicas == plan.replicas

    wait_for(wanted, serves, seconds=STARTED_SECONDS, show=lambda: str(active(kube, PIPELINE)))


def _highest(kube: Kube) -> float:
    """The rate per second at which the plan's busiest stage would be busy all the time."""
    return float(_plan(kube)["maxRatePerSecond"]) / CEILING_PERCENT * 100.0


def _plan(kube: Kube) -> dict[str, Any]:
    plan: dict[str, Any] = kube.get("ipipe", PIPELINE)["status"]["plan"]
    return plan


async def _measure(kube: Kube, gateway: str, console: Console) -> list[Point]:
    client = InferenceServerClient(gateway)
    points = []
    try:
        await _send(client, 0.5 * _highest(kube), LEARNING_SECONDS, np.random.default_rng())
        highest = _highest(kube)
        for number, share in enumerate(SHARES):
            rate, rng = share * highest, np.random.default_rng(number)
            seconds = max(SECONDS, REQUESTS / rate)
            await _send(client, rate, WARM_SECONDS, rng)
            sending = asyncio.create_task(_send(client, rate, seconds, rng))
            await asyncio.sleep(WARM_SECONDS)
            predicted = []
            while not sending.done():
                plan = await asyncio.to_thread(_plan, kube)
                predicted.append(float(plan.get("predictedP95Milliseconds") or "nan"))
                await asyncio.wait([sending], timeout=3.0)
            sent = await sending
            answered = [each for each in sent if each is not None]
            points.append(
                Point(
                    share, len(sent) / seconds, len(sent), len(sent) - len(answered),
                    statistics.median(predicted), 1e3 * float(np.quantile(answered, 0.95)), os.getloadavg()[0],
                )
            )  # fmt: skip
            console.print(points[-1])
    finally:
        await client.close()
    return points


async def _send(
    client: InferenceServerClient, rate: float, seconds: float, rng: np.random.Generator
) -> list[float | None]:
    """Frames at independent times; seconds from when each was due to its answer, ``None`` where that is an error."""
    tensor = InferInput("frames", [1, FRAME], "FP32")
    tensor.set_data_from_numpy(rng.standard_normal((1, FRAME)).astype(np.float32))

    async def one(due: float) -> float | None:
        try:
            await client.infer(PIPELINE, [tensor], client_timeout=60.0)
        except Exception:  # whatever it is: the request has failed, and is counted
            return None
        return time.monotonic() - due

    tasks, due = [], time.monotonic()
    end = due + seconds
    while (due := due + float(rng.exponential(1.0 / rate))) < end:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.sleep(max(0.0, end - time.monotonic()))
    return list(await asyncio.gather(*tasks))


def _read(path: Path) -> list[Point]:
    return [Point(**each) for each in json.loads(path.read_text())]


def _table(found: dict[str, list[Point]]) -> Iterator[str]:
    """Markdown: a row for each plan and rate."""
    yield "| plan | busiest stage | requests/s | p95 predicted | p95 observed | error |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, points in found.items():
        for point in points:
            times = f"{point.predicted:.0f} ms | {point.observed:.0f} ms | {point.error:+.0%}"
            yield f"| {name} | {point.share:.0%} | {point.rate:.1f} | {times} |"


def _rows(found: dict[str, list[Point]]) -> Iterator[Row]:
    for name, points in found.items():
        for point in points:
            yield row(f"p95 of {name} at {point.share:.0%}, predicted", point.predicted, "ms", point.observed)
    points = [point for each in found.values() for point in each]
    if points:
        yield row("largest error of a predicted p95", max(abs(point.error) for point in points), "", WITHIN)
        near = sum(abs(point.error) <= WITHIN for point in points)
        yield row(f"predictions of p95 within {WITHIN:.0%}", float(near), "plans", float(len(points)))
        # Devices are emulated on this machine: where others keep its cores busy, times are those of the others.
        yield row("highest load average of the machine meanwhile", max(point.load for point in points), "processes")
        yield row("requests that failed", float(sum(point.failed for point in points)), "requests")


if __name__ == "__main__":
    main()

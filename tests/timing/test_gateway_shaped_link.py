"""The same link as a kernel has it: a network namespace, a token bucket each way, and packets that are dropped.

Needs root, as only root may make such a link; skipped without.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tritonclient.grpc.aio as triton

from splitplane.adapters.kinds import POD, ROUTE_TABLE
from tests.support.gateway_rig import (
    PIPELINE,
    MemoryCluster,
    StageProcess,
    gateway,
    infer,
    pod_object,
    put_all,
    route,
    stages,
    table,
    until,
)

EDGE_CLOUD = ("edge", "cloud")
STAGE_SECONDS = 0.8
REQUESTS, SAMPLES = 12, 3
"""Of 197 kB each: 0.2 s on the link."""
SHAPE = ("root", "tbf", "rate", "8mbit", "burst", "16kb", "latency", "20s")
STAGE = "import sys, json; from tests.support import gateway_stage; gateway_stage.serve(json.loads(sys.argv[1]))"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(shutil.which(program) for program in ("ip", "tc", "iptables")),
    reason="makes a network namespace: needs root, iproute2 and iptables",
)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class FarSide:
    """A network namespace behind a link of 8 Mbit/s, with two addresses: a stage's and a link target's."""

    name: str
    stage: str
    target: str

    def inside(self, *command: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name, *command)

    def cut(self) -> float:
        """Drops what comes and what goes, without a word to anybody; when that was."""
        for chain, way in (("INPUT", "--in-interface"), ("OUTPUT", "--out-interface")):
            run(*self.inside("iptables", "--insert", chain, way, "far", "--jump", "DROP"))
        return time.monotonic()


@pytest.fixture
def far_side() -> Iterator[FarSide]:
    number = random.randint(1, 250)
    name, net = f"splitplane-{os.getpid()}", f"10.231.{number}"
    near = f"sp{os.getpid()}"
    side = FarSide(name, f"{net}.2", f"{net}.3")
    run("ip", "netns", "add", name)
    try:
        try:
            run("ip", "link", "add", near, "type", "veth", "peer", "name", "far", "netns", name)
            run("tc", "qdisc", "add", "dev", near, *SHAPE)
            run(*side.inside("tc", "qdisc", "add", "dev", "far", *SHAPE))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this kernel makes no such link: {error.stderr.strip()}")
        run("ip", "address", "add", f"{net}.1/24", "dev", near)
        run("ip", "link", "set", near, "up")
        for device, address in (("lo", "127.0.0.1/8"), ("far", f"{side.stage}/24"), ("far", f"{side.target}/24")):
            run("ip", "-n", name, "address", "replace", address, "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
        yield side
    finally:
        run("ip", "netns", "delete", name)


@contextlib.contextmanager
def programs(side: FarSide) -> Iterator[None]:
    """A stage that takes its time, and a link target."""
    argument = {"ip": side.stage, "name": "far", "pipeline": PIPELINE, "tier": "cloud", "resident": (0, 3),
                "seconds": STAGE_SECONDS}  # fmt: skip
    started = [
        subprocess.Popen(side.inside(sys.executable, "-c", STAGE, json.dumps(argument)), stderr=subprocess.DEVNULL),
        subprocess.Popen(
            side.inside(sys.executable, "-m", "splitplane.runtime.link_target"),
            env={**os.environ, "SPLITPLANE_POD_IP": side.target}, stderr=subprocess.DEVNULL,
        ),
    ]  # fmt: skip
    try:
        yield
    finally:
        for program in started:
            program.kill()
            program.wait()


async def test_a_cut_is_known_in_time_while_the_stage_behind_the_link_is_the_bottleneck(
    far_side: FarSide, tmp_path: Path
) -> None:
    edge, cluster = StageProcess("small-edge", "edge", (0, 3)), MemoryCluster()
    routes = (route(("small-cloud", "cloud", 0, 3)), route(("small-edge", "edge", 0, 3)))
    links = [{"source": "edge", "target": "cloud", "probes": [f"{far_side.target}:9000"]}]
    plans: list[str] = []

    async def ask() -> None:
        answer = await infer(client, timeout=20.0, batch=SAMPLES)
        plans.append(answer.get_response().parameters["splitplane_plan"].string_param)

    with stages(edge), programs(far_side):
        put_all(cluster, edge)
        cluster.put(POD, pod_object("far", "small-cloud", far_side.stage))
        cluster.put(ROUTE_TABLE, table(1, *routes, links=links))
        async with gateway(cluster, tmp_path) as running:
            client = triton.InferenceServerClient(f"{running.settings.pod_ip}:9000")
            router = running.router
            await until(lambda: all(router.endpoints.ready(s) for s in ("small-edge", "small-cloud")), seconds=60)
            await until(lambda: router.links.bandwidth(EDGE_CLOUD, time.monotonic()) is not None)
            asked = [asyncio.create_task(ask()) for _ in range(REQUESTS)]
            await until(lambda: len(plans) == 4)
            assert EDGE_CLOUD not in router.links.down
            cut = far_side.cut()
            await until(lambda: EDGE_CLOUD in router.links.down)
            known = time.monotonic() - cut
            await asyncio.gather(*asked)
            print(f"known after {known:.2f} s, all answered {time.monotonic() - cut:.2f} s after the cut")
            await client.close()
    assert known <= 2.3
    assert plans == ["cloud:0-3"] * 4 + ["edge:0-3"] * (REQUESTS - 4)

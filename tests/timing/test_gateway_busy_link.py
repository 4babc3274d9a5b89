"""A thin link with one queue for all that crosses it: full it is no cut one, and cut it is left in time.

What waits for a busy stage behind it is not on it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.aio as triton

from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.runtime.gateway.app import Gateway
from splitplane.runtime.gateway.pulses import MOST_BEHIND_SECONDS
from splitplane.runtime.link_target import make_grpc_server
from tests.support.gateway_rig import (
    MemoryCluster,
    StageProcess,
    free_address,
    gateway,
    infer,
    pod_object,
    route,
    stages,
    table,
    until,
)
from tests.support.relays import Link, relay

EDGE_CLOUD = ("edge", "cloud")
BATCH = 9
"""Samples of 64 KiB: 590 kB, which take 0.6 s."""
CUT_SECONDS = 2.0
SLACK_SECONDS = 0.3


@dataclass
class Site:
    """A gateway that goes over the link, and can do without, and a client of it."""

    link: Link
    running: Gateway
    client: Any
    falls: int = 0
    plans: list[str] = field(default_factory=list)

    @property
    def is_down(self) -> bool:
        return EDGE_CLOUD in self.running.router.links.down

    async def watch(self) -> None:
        before = False
        while True:
            self.falls, before = self.falls + (self.is_down and not before), self.is_down
            await asyncio.sleep(0.02)

    async def ask(self, batch: int = BATCH) -> None:
        answer = await infer(self.client, timeout=20.0, batch=batch)
        self.plans.append(answer.get_response().parameters["splitplane_plan"].string_param)

    async def cut(self) -> float:
        """Seconds until that is known."""
        began = time.monotonic()
        self.link.is_cut = True
        await until(lambda: self.is_down)
        return time.monotonic() - began

    async def heal(self) -> None:
        self.link.is_cut = False
        await until(lambda: not self.is_down)


@contextlib.asynccontextmanager
async def a_site(tmp_path: Path, *, cloud_seconds: float = 0.0) -> AsyncIterator[Site]:
    """``cloud_seconds``: what the stage behind the link takes for each request, one after the other."""
    edge = StageProcess("small-edge", "edge", (0, 3))
    cloud = StageProcess("small-cloud", "cloud", (0, 3), seconds=cloud_seconds)
    link, cluster = Link(rate=1e6, delay=0.02, shared=True), MemoryCluster()
    near, near_target, target = free_address(), free_address(), free_address()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(stages(edge, cloud))
        server = make_grpc_server()
        server.add_insecure_port(f"{target}:9000")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        await stack.enter_async_context(relay(f"{near}:9000", cloud.address, link))
        await stack.enter_async_context(relay(f"{near_target}:9000", f"{target}:9000", link))
        cluster.put(POD, edge.pod)
        cluster.put(POD, pod_object(cloud.name, cloud.stage, near))
        links = [{"source": "edge", "target": "cloud", "probes": [f"{near_target}:9000"]}]
        routes = (route(("small-cloud", "cloud", 0, 3)), route(("small-edge", "edge", 0, 3)))
        cluster.put(ROUTE_TABLE, table(1, *routes, links=links))
        running = await stack.enter_async_context(gateway(cluster, tmp_path))
        client = await stack.enter_async_context(triton.InferenceServerClient(f"{running.settings.pod_ip}:9000"))
        site = Site(link, running, client)
        await until(lambda: all(running.router.endpoints.ready(s) for s in ("small-edge", "small-cloud")))
        await until(lambda: running.router.links.bandwidth(EDGE_CLOUD, time.monotonic()) is not None)
        watching = asyncio.create_task(site.watch())
        yield site
        watching.cancel()
        link.is_cut = False


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with a_site(tmp_path) as site:
        yield site


async def test_a_full_link_is_kept_and_left_when_it_is_cut_sooner_or_later_by_what_was_on_it(site: Site) -> None:
    for count in (5, 3, 3):
        await asyncio.gather(*(site.ask() for _ in range(count)))
    assert site.falls == 0
    assert set(site.plans) == {"cloud:0-3"}

    asked = [asyncio.create_task(site.ask()) for _ in range(5)]
    await asyncio.sleep(0.5)
    full = await site.cut()
    assert full <= CUT_SECONDS + MOST_BEHIND_SECONDS + SLACK_SECONDS
    await asyncio.gather(*asked)
    assert site.plans[-1] == "edge:0-3"
    await site.heal()

    await asyncio.gather(*(site.ask(batch=1) for _ in range(3)))
    await asyncio.sleep(1.0)
    little = await site.cut()
    assert little <= CUT_SECONDS + SLACK_SECONDS
    await site.heal()
    print(f"known after {full:.2f} s with 3 MB on the link, after {little:.2f} s with nothing")


async def test_a_cut_is_known_in_time_while_requests_wait_for_a_busy_stage_behind_the_link(tmp_path: Path) -> None:
    """A dozen of them, each of which was on the link for a fifth of a second."""
    async with a_site(tmp_path, cloud_seconds=0.8) as site:
        asked = [asyncio.create_task(site.ask(batch=3)) for _ in range(12)]
        await until(lambda: len(site.plans) == 4)
        left = await site.cut()
        assert left <= CUT_SECONDS + SLACK_SECONDS
        await asyncio.gather(*asked)
        assert site.falls == 1
        assert site.plans == ["cloud:0-3"] * 4 + ["edge:0-3"] * 8
        print(f"known after {left:.2f} s with 8 requests in the stage's queue")

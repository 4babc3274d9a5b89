"""How fast a gateway leaves a link that is cut, by itself, and takes it again: emulated link, real stages."""

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.local.files import write_json
from splitplane.runtime.gateway.app import Gateway
from tests.support.gateway_rig import (
    Load,
    MemoryCluster,
    StageProcess,
    free_address,
    gateway,
    route,
    stages,
    table,
    until,
)

EDGE_CLOUD = ("edge", "cloud")
PROXY_PORT = 3128
RATE = 25.0
PROMPT_SECONDS = 0.5
SLACK_SECONDS = 0.3
"""Until the emulated link has read that it is down, and for a machine with other work."""


class Site:
    """An edge and a cloud stage, a link target in the cloud, and the link."""

    def __init__(self, folder: Path, edge: StageProcess, cloud: StageProcess) -> None:
        self.edge, self.cloud, self.target, self.near = edge, cloud, free_address(), free_address()
        self._links, self.config = folder / "links.json", folder / "uplink.json"
        self.set(down=False)
        nodes = [("gateway", "edge", self.near), ("target", "cloud", self.target), ("e", "edge", edge.ip),
                 ("c", "cloud", cloud.ip)]  # fmt: skip
        write_json(self.config, {
            "port": PROXY_PORT, "links": str(self._links),
            "nodes": [{"name": n, "tier": t, "address": a, "cidr": f"{a}/32"} for n, t, a in nodes],
        })  # fmt: skip

    def set(self, *, down: bool) -> float:
        write_json(self._links, [{"between": ["edge", "cloud"], "rate": "100Mbit", "delay": "5ms", "down": down}])
        return time.monotonic()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("link-cut")
    with stages(StageProcess("small-edge", "edge", (0, 3)), StageProcess("small-cloud", "cloud", (0, 3))) as found:
        site = Site(folder, *found)
        target = {**os.environ, "SPLITPLANE_POD_IP": site.target}
        programs = [
            subprocess.Popen([sys.executable, "-m", "splitplane.local.uplink", "--config", str(site.config)],
                             stderr=subprocess.DEVNULL),
            subprocess.Popen([sys.executable, "-m", "splitplane.runtime.link_target"], env=target,
                             stderr=subprocess.DEVNULL),
        ]  # fmt: skip
        yield site
        for program in programs:
            program.terminate()
            program.wait(10)


@pytest.fixture
async def serving(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A gateway that goes to the cloud, and can do without; neither operator nor API server has a part in it."""
    site.set(down=False)
    monkeypatch.setenv("grpc_proxy", f"http://{site.near}:{PROXY_PORT}")
    cluster = MemoryCluster()
    for process in (site.edge, site.cloud):
        cluster.put(POD, process.pod)
    routes = (route(("small-cloud", "cloud", 0, 3)), route(("small-edge", "edge", 0, 3)))
    links = [{"source": "edge", "target": "cloud", "probes": [f"{site.target}:9000"]}]
    cluster.put(ROUTE_TABLE, table(1, *routes, links=links))
    async with gateway(cluster, tmp_path) as running:
        monkeypatch.setenv("no_grpc_proxy", running.settings.pod_ip)
        await until(lambda: all(running.router.endpoints.ready(s) for s in ("small-edge", "small-cloud")))
        await until(lambda: EDGE_CLOUD in running.router.links.estimates(running.router.clock()))
        await asyncio.sleep(2.0)
        yield running


async def test_a_cut_link_is_left_within_two_seconds_and_taken_again_when_it_heals(
    site: Site, serving: Gateway
) -> None:
    async with Load(serving, rate=RATE) as load:
        await asyncio.sleep(2.0)
        cut = site.set(down=True)
        await asyncio.sleep(6.0)
        healed = site.set(down=False)
        await asyncio.sleep(4.0)
    end = time.monotonic()
    assert load.errors == []
    assert {answer.plan for answer in load.between(cut - 1.5, cut - 0.1)} == {"cloud:0-3"}
    held_up = max(a.sent + a.seconds - cut for a in load.between(cut - 0.1, healed) if a.seconds > 0.2)
    assert held_up <= 2.0 + SLACK_SECONDS
    later = load.between(cut + 2.0 + SLACK_SECONDS, healed)
    assert {answer.plan for answer in later} == {"edge:0-3"}
    assert max(answer.seconds for answer in later) < PROMPT_SECONDS
    back = next(a.sent - healed for a in load.between(healed, end) if a.plan == "cloud:0-3")
    assert back <= 2.0 + SLACK_SECONDS
    print(f"held up for {held_up:.2f} s, back after {back:.2f} s")


async def test_a_link_that_only_hiccups_is_kept(site: Site, serving: Gateway) -> None:
    falls = 0
    before = False
    async with Load(serving, rate=RATE) as load:
        for down in itertools.islice(itertools.cycle((True, False)), 10):
            site.set(down=down)
            for _ in range(8 if down else 20):
                await asyncio.sleep(0.1)
                now = EDGE_CLOUD in serving.router.links.down
                falls, before = falls + (now and not before), now
        await asyncio.sleep(1.0)
    assert load.errors == []
    assert falls == 0
    assert set(load.plans) == {"cloud:0-3"}

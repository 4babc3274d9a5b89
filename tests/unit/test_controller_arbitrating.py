"""Two pipelines on nodes that cannot hold what both want: who gives way, what is told of it, and how it ends."""

import asyncio
import copy
import threading
import time
from itertools import pairwise
from typing import Any

import pytest
from typer.testing import CliRunner

from splitplane.adapters.metrics import MetricsSnapshot
from splitplane.cli import app
from splitplane.controller import arbitrating
from splitplane.domain.resources import pod_requests
from splitplane.planner.arbitration import arbitrate
from splitplane.planner.highs import solve
from splitplane.planner.shared_replay import load_settling
from tests.support.controller_cases import node, pod, tier
from tests.support.controller_world import KEY, World, measured

OTHER = ("shop", "viewer")
BOTH = (KEY, OTHER)
RATE = 5.0
ZONE = "topology.kubernetes.io/zone"


def busy(**rates: float) -> MetricsSnapshot:
    """Rates by pipeline; links so slow that nothing but the edge serves in time."""
    found = measured(RATE)
    ours = found.pipelines[KEY]
    pipelines = {("shop", name): measured(rate).pipelines[KEY] for name, rate in rates.items()}
    return MetricsSnapshot(0.0, pipelines or {KEY: ours}, found.node_prices)


class SharedWorld(World):
    """Stage pods go to the first edge node with room, as a scheduler would put them; those without stay pending."""

    def settle(self) -> None:
        self.schedule()
        super().settle()
        table_stages = {name: self.running(name) for name in self.stages()}
        for table in list(self.cluster.of("RouteTable").values()):
            stages = [{"name": name, "ready": table_stages.get(name, 0)} for name in table["spec"]["stages"]]
            (status,) = table["status"]["gateways"].values()
            self.report(table, {**status, "stages": stages})

    def running(self, deployment: str) -> int:
        return sum(name.startswith(f"{deployment}.") for name in self.cluster.of("Pod"))

    def schedule(self) -> None:
        deployments = {
            name: body for name, body in self.cluster.of("Deployment").items() if not name.endswith("-gateway")
        }
        for name in self.cluster.of("Pod"):
            deployment, _, place = name.partition(".")
            if int(place) >= deployments.get(deployment, {"spec": {"replicas": 0}})["spec"]["replicas"]:
                self.cluster.remove("Pod", name, "shop")
        for name, body in deployments.items():
            for number in range(body["spec"]["replicas"]):
                if f"{name}.{number}" not in self.cluster.of("Pod"):
                    self.place(f"{name}.{number}", body)

    def place(self, name: str, deployment: Any) -> None:
        template = copy.deepcopy(deployment["spec"]["template"])
        where = template["spec"]["nodeSelector"]
        asked = pod_requests(template)["cpu"]
        for place, body in self.cluster.of("Node").items():
            used = sum(
                pod_requests(other)["cpu"]
                for other in self.cluster.of("Pod").values()
                if other["spec"]["nodeName"] == place
            )
            if where.items() <= body["metadata"]["labels"].items() and used + asked <= 4:
                self.cluster.put(pod(name, place, cpu=str(asked), labels=template["metadata"]["labels"]))
                return

    def condition_of(self, key: tuple[str, str], kind: str) -> dict[str, Any]:
        status = self.cluster.objects["InferencePipeline", *key]["status"]
        found: dict[str, Any] = next(each for each in status["conditions"] if each["type"] == kind)
        return found

    def edge_replicas(self, key: tuple[str, str]) -> int:
        return sum(count for name, count in self.stages().items() if name.startswith(f"{key[1]}-edge"))


@pytest.fixture
def world() -> SharedWorld:
    world = SharedWorld()
    world.cluster.remove("Node", "e2")  # four cores of edge in all
    return world


def spec(**more: Any) -> dict[str, Any]:
    return {
        "objectives": {"latencyP95Milliseconds": 400, "rawInputStaysTrusted": True},
        "tiers": [tier("edge"), tier("cloud", trusted=False)],
        "replanning": {"intervalSeconds": 5, "cooldownSeconds": 0, "scaleDownWindowSeconds": 5},
        **more,
    }


async def test_the_lower_priority_gives_way_and_says_to_whom(
    world: SharedWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger=arbitrating.__name__)
    world.metrics = busy(tracker=40.0, viewer=40.0)
    world.apply(**spec())
    await world.step(30, keys=BOTH)
    alone = world.edge_replicas(KEY)
    assert alone == 3
    world.apply(OTHER, **spec(priority=10))
    await world.step(120, keys=BOTH)
    assert world.edge_replicas(OTHER) + world.edge_replicas(KEY) <= 4
    assert world.edge_replicas(OTHER) > world.edge_replicas(KEY)
    told = world.condition_of(KEY, "CapacityGranted")
    assert (told["status"], told["reason"]) == ("False", "GaveWay")
    assert "shop/viewer (priority 10)" in told["message"]
    assert any(reason == "GaveWay" for _, reason, _ in world.cluster.events)
    assert world.condition_of(OTHER, "CapacityGranted")["status"] == "True"
    # What was granted can be made again from the log, which has a line for each change.
    lines = [line.partition("Grants of 2 pipelines: ")[2] for line in caplog.messages if "Grants of" in line]
    records = [load_settling(line) for line in lines]
    assert [claim.pipeline for claim in records[-1].claims] == ["shop/tracker", "shop/viewer"]
    assert all(record.again(solve) == record.settled for record in records)
    grants = [record.settled.nodes for record in records]
    assert all(one != other for one, other in pairwise(grants))
    assert [len(nodes["edge"]) for nodes in grants[-1]] == [world.edge_replicas(KEY), world.edge_replicas(OTHER)]
    # Once the other one needs less, everybody may have what it wants again.
    world.metrics = busy(tracker=40.0, viewer=0.5)
    world.cluster.remove("InferencePipeline", OTHER[1], OTHER[0])
    for name in [name for name in world.cluster.of("Deployment") if name.startswith(OTHER[1])]:
        world.cluster.remove("Deployment", name, "shop")
    world.operator.keep_only({KEY})
    await world.step(60)
    assert world.edge_replicas(KEY) == alone
    assert world.condition_of(KEY, "CapacityGranted")["status"] == "True"
    *_, last = (line for line in caplog.messages if "Grants of" in line)
    assert last.startswith("Grants of 1 pipelines: ")


async def test_grants_end_with_a_line_once_everybodys_wish_fits_what_it_was_granted(
    world: SharedWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger=arbitrating.__name__)
    world.metrics = busy(tracker=40.0, viewer=40.0)
    world.apply(**spec())
    await world.step(30, keys=BOTH)
    world.apply(OTHER, **spec(priority=10))
    await world.step(120, keys=BOTH)
    assert world.condition_of(KEY, "CapacityGranted")["status"] == "False"
    shared = explained(caplog.messages)
    assert "Made again: the same, bit for bit" in shared
    row = next(line for line in shared.splitlines() if line.startswith("shop/tracker"))
    assert "beside shop/viewer (priority 10)" in row
    world.metrics = busy(tracker=0.5, viewer=0.5)
    await world.step(20, keys=BOTH)
    assert not any("taken back" in line for line in caplog.messages), "wishes may come back with the next measurement"
    await world.step(60, keys=BOTH)
    told = [line for line in caplog.messages if line.startswith("Grants")]
    assert told[-1] == "Grants are taken back, as nobody is short any more"
    assert sum(line == told[-1] for line in told) == 1
    assert all(world.condition_of(key, "CapacityGranted")["status"] == "True" for key in BOTH)
    assert explained(caplog.messages) == f"Grants: {told[-1]}\n"


def explained(lines: list[str]) -> str:
    """What ``splitplane explain`` tells of the last grants in a log."""
    result = CliRunner().invoke(app, ["explain", "--call", "-", "--about", "grants"], input="\n".join(lines))
    assert result.exit_code == 0, result.output
    return result.output


async def test_planning_goes_on_while_others_are_settled(world: SharedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    settle, done = arbitrate, threading.Event()

    def slow(*claims: Any) -> Any:
        done.wait(timeout=30)
        return settle(*claims)

    monkeypatch.setattr(arbitrating, "arbitrate", slow)
    monkeypatch.setattr(arbitrating, "_WAIT_SECONDS", 0.01)
    world.metrics = busy(tracker=40.0, viewer=40.0)
    world.apply(**spec())
    await world.step(30, keys=BOTH)
    world.apply(OTHER, **spec(priority=10))
    started = time.monotonic()
    await world.step(30, keys=BOTH)
    assert time.monotonic() - started < 20
    assert world.condition_of(KEY, "CapacityGranted")["status"] == "True", "nothing is settled yet"
    done.set()
    for _ in range(200):
        await asyncio.sleep(0.01)
        await world.step(keys=BOTH)
        if world.condition_of(KEY, "CapacityGranted")["reason"] == "GaveWay":
            break
    assert world.condition_of(KEY, "CapacityGranted")["reason"] == "GaveWay"


async def test_what_sites_share_is_one_claimant_among_others() -> None:
    world = SharedWorld()  # four cores of cloud in all
    for name, site in (("e1", "north"), ("e2", "south")):
        world.cluster.put({**(body := node(name, "edge")), "metadata": {**body["metadata"], "labels": {
            **body["metadata"]["labels"], ZONE: site,
        }}})  # fmt: skip
    far = {"mode": "Fixed", "fixed": {"stages": [{"tier": "cloud", "firstCut": 0, "lastCut": 6}], "codecs": []}}
    wanted = {**spec(partitioning=far), "objectives": {"latencyP95Milliseconds": 400}}
    world.metrics = busy(**{"tracker-north": 90.0, "tracker-south": 90.0, "viewer": 180.0})
    world.apply(**wanted, sites={"topologyKey": ZONE, "sharedTier": "cloud"})
    await world.rounds(40)

    def replicas(key: tuple[str, str]) -> int:
        return sum(count for name, count in world.stages().items() if name.startswith(f"{key[1]}-cloud"))

    alone = replicas(KEY)
    assert alone == 3
    world.apply(OTHER, **wanted, priority=10)
    await world.rounds(200)
    assert replicas(OTHER) == 3
    assert replicas(KEY) == 1
    told = world.condition_of(KEY, "CapacityGranted")
    assert (told["status"], told["reason"]) == ("False", "GaveWay")
    assert "cloud: 1 of 3 replicas" in told["message"]
    assert "shop/viewer (priority 10)" in told["message"]
    assert world.condition_of(OTHER, "CapacityGranted")["status"] == "True"

    world.cluster.remove("InferencePipeline", OTHER[1], OTHER[0])
    for name in [name for name in world.cluster.of("Deployment") if name.startswith(OTHER[1])]:
        world.cluster.remove("Deployment", name, "shop")
    await world.rounds(60)
    assert replicas(KEY) == alone
    assert world.condition_of(KEY, "CapacityGranted")["status"] == "True"

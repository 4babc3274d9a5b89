"""Sites that share replicas, against an API in memory: whose pods these are, who uses them, and when they go."""

import base64
import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509

from splitplane.adapters.kinds import SECRET
from splitplane.adapters.metrics import MetricsSnapshot
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.statuses import PipelineStatus
from splitplane.controller import pools
from splitplane.controller.certificates import Certificates
from splitplane.controller.children import StageKey, gateway_objects, stage_deployment
from splitplane.controller.sites import GONE_SECONDS
from splitplane.domain.measurements import Value
from splitplane.planner.shared_replay import load_sizing
from splitplane.runtime.gateway.settings import Settings as GatewaySettings
from splitplane.runtime.stage.settings import Settings as StageSettings
from tests.support.controller_cases import SETTINGS, node, tier
from tests.support.controller_world import KEY, World, measured
from tests.support.fake_cluster import FakeCluster

ZONE = "topology.kubernetes.io/zone"
SITES = {"topologyKey": ZONE, "sharedTier": "cloud"}
FAST, SLOW = 5e6, 4e3
EAGER: dict[str, Any] = {
    "objectives": {"prefer": "Latency", "rawInputStaysTrusted": True},
    "replanning": {"intervalSeconds": 10, "minGainPercent": 0, "cooldownSeconds": 10, "scaleDownWindowSeconds": 60},
}


def at(name: str, site: str) -> dict[str, Any]:
    body = node(name, "edge")
    body["metadata"]["labels"][ZONE] = site
    return body


def metrics(*, rate: float = 3.0, rates: dict[str, float] | None = None, **bandwidth: float) -> MetricsSnapshot:
    """Bandwidth of the link of each site, and requests per second where they are not ``rate``."""
    one = measured()
    pipelines = {
        ("shop", f"tracker-{site}"): replace(
            one.pipelines[KEY], bandwidth={("edge", "cloud"): Value(speed)},
            arrival_rate=Value((rates or {}).get(site, rate)),
        )
        for site, speed in bandwidth.items()
    }  # fmt: skip
    return replace(one, pipelines=pipelines)


@pytest.fixture
def world() -> World:
    world = World()
    world.cluster.put(at("e1", "north"))
    world.cluster.put(at("e2", "south"))
    world.cluster.put(node("c1", "cloud", cpu="8"))
    world.metrics = metrics(north=FAST, south=FAST)
    return world


async def serving(world: World, **spec: Any) -> None:
    spec = {"objectives": {"prefer": "Latency"}, "replanning": {"intervalSeconds": 10}, **spec}
    world.apply(sites=SITES, **spec)
    await world.rounds(20)
    assert world.condition("Ready") == ("True", "Serving"), world.status


def remembering(name: str, memory: str, **more: Any) -> dict[str, Any]:
    """A tier with such a limit on memory."""
    found = tier(name, **more)
    return {**found, "resources": {**found["resources"], "limits": {"memory": memory}}}


def of_tier(world: World, name: str) -> dict[str, dict[str, Any]]:
    return {
        deployment: body
        for deployment, body in world.cluster.of("Deployment").items()
        if body["metadata"]["labels"].get("splitplane.dev/tier") == name
    }


def plan_of(world: World, site: str) -> str:
    return str(world.cluster.of("InferencePipeline")[f"tracker-{site}"]["status"]["plan"]["summary"])


def table_of(world: World, site: str) -> dict[str, Any]:
    return dict(world.cluster.of("RouteTable")[f"tracker-{site}"]["spec"])


async def test_sites_use_one_deployment_that_the_users_pipeline_owns(world: World) -> None:
    await serving(world)

    (name, shared), *others = of_tier(world, "cloud").items()
    assert not others
    assert name.startswith("tracker-cloud-")
    assert shared["metadata"]["labels"]["splitplane.dev/pipeline"] == "tracker"
    assert [each["uid"] for each in shared["metadata"]["ownerReferences"]] == ["u-tracker"]
    assert ("apply", "PodDisruptionBudget", name) in world.cluster.writes
    for site in ("north", "south"):
        assert "cloud" in plan_of(world, site)
        assert name in table_of(world, site)["stages"]
        assert table_of(world, site)["routes"][0]["stages"][-1]["stage"] == name
    edges = of_tier(world, "edge").values()
    assert {body["metadata"]["labels"]["splitplane.dev/pipeline"] for body in edges} <= {
        "tracker-north", "tracker-south",
    }  # fmt: skip


async def test_what_is_shared_is_open_to_each_site_before_that_site_sends(world: World) -> None:
    def callers() -> list[str]:
        (rule, _) = world.cluster.of("NetworkPolicy")["tracker-stages"]["spec"]["ingress"]
        (pipelines,) = [
            each["values"]
            for each in rule["from"][0]["podSelector"]["matchExpressions"]
            if each["key"] == "splitplane.dev/pipeline"
        ]
        return list(pipelines)

    await serving(world)
    assert callers() == ["tracker", "tracker-north", "tracker-south"]
    assert {"tracker-north-stages", "tracker-south-stages"} < world.cluster.of("NetworkPolicy").keys()

    world.cluster.put(at("e3", "west"))
    await world.step()  # the user's pipeline, before that of the new site
    assert "tracker-west" in world.cluster.of("InferencePipeline")
    assert callers() == ["tracker", "tracker-north", "tracker-south", "tracker-west"]


async def test_the_status_shows_what_is_shared_and_what_all_of_it_costs(world: World) -> None:
    await serving(world)

    (name, shared), *_ = of_tier(world, "cloud").items()
    count = shared["spec"]["replicas"]
    (stage,) = world.status["plan"]["stages"]
    assert (stage["tier"], stage["deployment"], stage["replicas"], stage["readyReplicas"]) == (
        "cloud", name, count, count,
    )  # fmt: skip
    assert world.status["replicas"] == f"sites 2/2, cloud {count}/{count}"
    own = sum(float(site["costPerHour"]) for site in world.status["sites"])
    a_replica = 1.2 / 8  # a node of eight cores at 1.2 an hour; a replica asks for one core of it
    assert float(world.status["plan"]["costPerHour"]) == pytest.approx(own + count * a_replica, rel=0.05)
    assert any(reason == "SharedReplicasChanged" for _, reason, _ in world.cluster.events)
    PipelineStatus.parse(world.status)


async def test_its_replicas_bear_what_all_sites_send(world: World) -> None:
    await serving(world)
    (_, before), *_ = of_tier(world, "cloud").items()

    world.metrics = metrics(north=FAST, south=FAST, rates={"north": 3.0, "south": 60.0})
    await world.rounds(30)

    (_, after), *others = of_tier(world, "cloud").items()
    assert not others
    assert after["spec"]["replicas"] > before["spec"]["replicas"]
    assert {plan_of(world, site) for site in ("north", "south")} == {"cloud:0-6"}
    for site in ("north", "south"):
        decisions = world.cluster.of("InferencePipeline")[f"tracker-{site}"]["status"]["decisions"]
        assert [each["action"] for each in decisions if each["action"] != "Hold"] == ["Start"]
    assert world.condition("Degraded")[0] == "False"


async def test_replicas_that_nobody_needs_go_after_the_window(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger=pools.__name__)
    world.metrics = metrics(north=FAST, south=FAST, rate=30.0)
    await serving(world, replanning={"intervalSeconds": 10, "scaleDownWindowSeconds": 60})
    full = next(iter(of_tier(world, "cloud").values()))["spec"]["replicas"]

    world.metrics = metrics(north=FAST, south=FAST, rate=1.0)
    await world.rounds(30)
    assert next(iter(of_tier(world, "cloud").values()))["spec"]["replicas"] == full
    await world.rounds(70)
    left = next(iter(of_tier(world, "cloud").values()))["spec"]["replicas"]
    assert 0 < left < full
    # Each size can be made again from the log.
    records = [
        load_sizing(line.partition("Pool of shop/tracker: ")[2]) for line in caplog.messages if "Pool of" in line
    ]
    sizes = [record.after.pool.replicas for record in records]
    assert (sizes[0], sizes[-1]) == (full, left)
    assert all(record.again().pooling == record.after for record in records)
    assert all(record.before.pool != record.after.pool for record in records)


async def test_a_site_that_cuts_elsewhere_within_what_is_resident_touches_no_other_site(world: World) -> None:
    world.metrics = metrics(north=100 * FAST, south=100 * FAST)
    await serving(world, tiers=[remembering("edge", "370Mi"), tier("cloud", trusted=False)], **EAGER)
    deployments = {name: body["metadata"]["resourceVersion"] for name, body in of_tier(world, "cloud").items()}
    before = {site: (plan_of(world, site), table_of(world, site)) for site in ("north", "south")}

    world.metrics = metrics(north=FAST, south=100 * FAST)
    await world.rounds(100)

    assert (before["north"][0], plan_of(world, "north")) == ("edge:0-1|cloud:1-6 fp32", "edge:0-4|cloud:4-6 fp32")
    assert (plan_of(world, "south"), table_of(world, "south")) == before["south"]
    assert {name: body["metadata"]["resourceVersion"] for name, body in of_tier(world, "cloud").items()} == deployments
    decisions = world.cluster.of("InferencePipeline")["tracker-south"]["status"]["decisions"]
    assert [each["action"] for each in decisions if each["action"] != "Hold"] == ["Start"]


async def test_a_site_that_leaves_the_pool_leaves_it_to_the_others_and_the_last_one_ends_it(world: World) -> None:
    await serving(world, replanning={"intervalSeconds": 10, "scaleDownWindowSeconds": 60})
    (name, _), *_ = of_tier(world, "cloud").items()

    world.metrics = metrics(north=SLOW, south=FAST)
    await world.rounds(150)
    assert "cloud" not in plan_of(world, "north")
    assert "cloud" in plan_of(world, "south")
    assert set(of_tier(world, "cloud")) == {name}

    world.metrics = metrics(north=SLOW, south=SLOW)
    await world.rounds(250)
    assert "cloud" not in plan_of(world, "south")
    assert not of_tier(world, "cloud")
    assert not world.status["plan"].get("stages")


async def test_a_site_that_is_taken_away_leaves_nothing_and_the_others_as_they_are(world: World) -> None:
    await serving(world)
    table = table_of(world, "south")
    world.cluster.remove("Node", "e1")
    await world.rounds(2)
    world.clock.time += GONE_SECONDS
    await world.rounds(2)
    for kind in ("RouteTable", "Deployment", "Service", "ServiceAccount", "Role", "RoleBinding"):  # as the collector
        for name in [each for each in world.cluster.of(kind) if each.startswith("tracker-north")]:
            world.cluster.objects.pop((kind, "shop", name))
    await world.rounds(5)

    assert set(world.cluster.of("InferencePipeline")) == {"tracker", "tracker-south"}
    assert len(of_tier(world, "cloud")) == 1
    assert table_of(world, "south") == table
    assert world.condition("Ready") == ("True", "Serving")


async def test_another_range_is_made_before_the_old_one_goes(world: World) -> None:
    near, far = remembering("edge", "370Mi"), tier("cloud", trusted=False)
    await serving(world, tiers=[near, far], **EAGER)
    (old, _), *_ = of_tier(world, "cloud").items()
    world.gateway_admits = False
    narrow = remembering("cloud", "355Mi", trusted=False)  # enough from cut 3 on
    world.apply(sites=SITES, tiers=[near, narrow], **EAGER)
    await world.rounds(3)
    both = set(of_tier(world, "cloud"))
    assert both > {old}

    world.gateway_admits = True
    await world.rounds(10)
    (new,) = of_tier(world, "cloud")
    assert {new} == both - {old}
    for site in ("north", "south"):
        assert new in table_of(world, site)["stages"]
        assert old not in table_of(world, site)["stages"]


async def test_what_serves_at_rest_is_not_written_to(world: World) -> None:
    await serving(world)
    await world.rounds(30)
    before = len(world.cluster.writes)

    await world.rounds(30)

    assert [each for each in world.cluster.writes[before:] if each[0] != "status"] == []


async def test_a_restarted_operator_takes_what_is_shared_over_as_it_is(world: World) -> None:
    world.metrics = metrics(north=FAST, south=FAST, rate=30.0)
    await serving(world)
    deployments = {name: body["spec"] for name, body in of_tier(world, "cloud").items()}
    tables = {site: table_of(world, site) for site in ("north", "south")}
    before = len(world.cluster.writes)

    world.restart()
    await world.rounds(15)

    assert {name: body["spec"] for name, body in of_tier(world, "cloud").items()} == deployments
    assert {site: table_of(world, site) for site in ("north", "south")} == tables
    assert not [each for each in world.cluster.writes[before:] if each[0] == "delete"]


async def test_what_somebody_deletes_of_it_is_made_again(world: World) -> None:
    await serving(world)
    (name, _), *_ = of_tier(world, "cloud").items()
    world.cluster.objects.pop(("Deployment", "shop", name))

    await world.rounds(2)

    assert set(of_tier(world, "cloud")) == {name}


async def test_a_split_that_is_fixed_is_shared(world: World) -> None:
    stages = [{"tier": "edge", "firstCut": 0, "lastCut": 2}, {"tier": "cloud", "firstCut": 2, "lastCut": 6}]
    await serving(world, partitioning={"mode": "Fixed", "fixed": {"stages": stages, "codecs": ["fp32"]}})

    assert len(of_tier(world, "cloud")) == 1
    assert {plan_of(world, site) for site in ("north", "south")} == {"edge:0-2|cloud:2-6 fp32"}


async def test_pods_of_sites_that_share_have_certificates_by_which_they_take_each_other_for_one(world: World) -> None:
    await serving(world)
    body = dict(world.cluster.of("InferencePipeline")["tracker-north"])
    body.pop("status")
    found = InferencePipeline.parse(body)

    stage = stage_deployment(found, StageKey("edge", 0, 3, "f"), replicas=1, settings=SETTINGS)
    (gateway,) = [body for body in gateway_objects(found, SETTINGS) if body["kind"] == "Deployment"]
    for body in (stage, gateway):
        env = {e["name"]: e.get("value", "x") for e in body["spec"]["template"]["spec"]["containers"][0]["env"]}
        assert env["SPLITPLANE_PEERS"] == "tracker"
        kind = StageSettings if body is stage else GatewaySettings
        assert kind.from_environment(env).peers == "tracker"
    (shared,) = of_tier(world, "cloud").values()
    assert "SPLITPLANE_PEERS" not in {
        each["name"] for each in shared["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    await issued(found)


async def issued(site: Any) -> None:
    """Certificates of a site name the user's pipeline."""
    cluster = FakeCluster()
    await Certificates(cluster, "system", now=lambda: dt.datetime(2026, 1, 1, tzinfo=dt.UTC)).ensure(site)
    for role in ("gateway", "stage"):
        body = await cluster.get(SECRET, f"tracker-north-{role}-tls", "shop")
        leaf = x509.load_pem_x509_certificate(base64.b64decode(body["data"]["tls.crt"]))
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [f"{role}.tracker.shop.splitplane"]


async def test_the_limit_on_cost_counts_what_is_shared_and_what_each_site_has(world: World) -> None:
    await serving(world)
    assert {plan_of(world, site) for site in ("north", "south")} == {"cloud:0-6"}
    assert world.status["plan"]["costPerHour"] == "0.15"  # one replica of 0.15, nothing at the sites
    found = []
    for limit in ("0.11", "0.09"):  # a replica at each site is 0.05
        world.apply(
            sites=SITES, replanning={"intervalSeconds": 10}, objectives={"prefer": "Latency", "maxCostPerHour": limit}
        )
        await world.rounds(40)
        assert {plan_of(world, site) for site in ("north", "south")} == {"edge:0-6"}
        assert not of_tier(world, "cloud")
        assert world.status["plan"]["costPerHour"] == "0.1"
        found.append(world.condition("PlanFeasible"))
    assert found == [("True", "LimitsKept"), ("False", "CostLimit")]


async def test_where_batches_pay_fewer_replicas_are_shared_and_a_restarted_operator_keeps_them(world: World) -> None:
    world.metrics = metrics(north=FAST, south=FAST, rate=80.0)
    world.batches = True
    await serving(world, objectives={"latencyP95Milliseconds": 400})
    (name, shared), *others = of_tier(world, "cloud").items()
    assert not others
    assert any("for batches from cut 0 in fp32" in message for _, _, message in world.cluster.events)
    alone = 160.0 * (0.2 * 0.0502 + 0.002)  # replicas that would be busy if each request were computed by itself
    assert alone > 0.8 * shared["spec"]["replicas"]

    before = len(world.cluster.writes)
    world.restart()
    await world.rounds(15)
    assert {each: body["spec"] for each, body in of_tier(world, "cloud").items()} == {name: shared["spec"]}
    assert not [each for each in world.cluster.writes[before:] if each[0] in ("delete", "merge")]

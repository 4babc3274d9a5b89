"""A pipeline with sites, against an API in memory: what comes and goes with its nodes, and what is told of all."""

from dataclasses import replace
from typing import Any

import pytest

from splitplane.adapters.metrics import MetricsSnapshot
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.statuses import MOST_SITES, PipelineStatus
from splitplane.controller.conditions import GOOD, Facts, Verdict, verdicts
from splitplane.controller.control import Control
from splitplane.controller.site_pipelines import find, site_name, site_pipeline
from splitplane.controller.site_statuses import Site, total
from splitplane.controller.site_statuses import verdicts as over_sites
from splitplane.controller.sites import GONE_SECONDS
from splitplane.controller.switching import Observed
from splitplane.domain.measurements import Value
from tests.support.controller_cases import node, pipeline, pipeline_body, tier
from tests.support.controller_world import KEY, World, measured

ZONE = "topology.kubernetes.io/zone"
SITES = {"topologyKey": ZONE}
NORTH, SOUTH = ("shop", "tracker-north"), ("shop", "tracker-south")


def at(name: str, site: str, **more: Any) -> dict[str, Any]:
    body = node(name, "edge", **more)
    body["metadata"]["labels"][ZONE] = site
    return body


def metrics(**bandwidth: float) -> MetricsSnapshot:
    """Bandwidth of the link of each site."""
    one = measured()
    pipelines = {
        ("shop", f"tracker-{site}"): replace(one.pipelines[KEY], bandwidth={("edge", "cloud"): Value(rate)})
        for site, rate in bandwidth.items()
    }
    return replace(one, pipelines=pipelines)


@pytest.fixture
def world() -> World:
    world = World()
    world.cluster.put(at("e1", "north"))
    world.cluster.put(at("e2", "south"))
    world.metrics = metrics(north=5e6, south=5e6)
    return world


async def serving(world: World, **spec: Any) -> None:
    world.apply(sites=SITES, **spec)
    await world.rounds(20)
    assert world.condition("Ready") == ("True", "Serving"), world.status


def rows(world: World) -> dict[str, Any]:
    return {row["name"]: row for row in world.status["sites"]}


async def test_each_site_is_a_pipeline_of_its_own_with_its_own_plan_and_one_row_in_the_status(world: World) -> None:
    await serving(world)

    assert set(world.cluster.of("InferencePipeline")) == {"tracker", "tracker-north", "tracker-south"}
    assert set(world.cluster.of("RouteTable")) == {"tracker-north", "tracker-south"}
    assert set(world.cluster.of("Service")) == {"tracker-north-gateway", "tracker-south-gateway"}
    assert {name: row["pipeline"] for name, row in rows(world).items()} == {
        "north": "tracker-north", "south": "tracker-south",
    }  # fmt: skip
    north = rows(world)["north"]
    assert (north["ready"], north["observedP95Milliseconds"]) == ("True", 150)
    assert north["plan"] == world.cluster.of("InferencePipeline")["tracker-north"]["status"]["plan"]["summary"]
    assert north["links"] == [{"target": "cloud", "bandwidthBytesPerSecond": 5_000_000, "delayMicroseconds": 2000}]
    assert world.status["replicas"] == "sites 2/2"
    assert world.status["slo"] == "p95 < 200 ms: met at 2 of 2 sites"
    PipelineStatus.parse(world.status)  # within the CRD's bounds


async def test_the_users_pipeline_shows_what_its_sites_come_to(world: World) -> None:
    slow = world.metrics.pipelines[SOUTH]
    pipelines = {**world.metrics.pipelines, SOUTH: replace(slow, p95_seconds=Value(0.19), arrival_rate=Value(5.0))}
    world.metrics = replace(world.metrics, pipelines=pipelines)
    await serving(world)

    plan, sites = world.status["plan"], rows(world)
    assert plan["summary"] == f"{sites['north']['plan']} at north, south"
    assert plan["observedP95Milliseconds"] == 190
    assert plan["requestsPerSecond"] == "8"
    costs = [float(site["costPerHour"]) for site in sites.values()]
    assert float(plan["costPerHour"]) == pytest.approx(sum(costs))
    assert float(plan["costPerThousandRequests"]) == pytest.approx(sum(costs) / (8 * 3.6), rel=0.05)

    world.metrics = replace(world.metrics, pipelines={NORTH: pipelines[NORTH]})
    await world.rounds(12)
    assert "requestsPerSecond" not in world.status["plan"]  # not that of one site alone


@pytest.mark.parametrize(
    ("plans", "summary"),
    [
        ({"a": "edge:0-4", "b": "edge:0-4"}, "edge:0-4 at a, b"),
        ({"a": "cloud:0-4", "b": "edge:0-4", "c": "edge:0-4", "d": "edge:0-4"}, "edge:0-4 at 3 sites; cloud:0-4 at a"),
        ({"a": None, "b": "edge:0-4"}, "edge:0-4 at b"),
    ],
)
def test_plans_of_sites_are_summed_up_by_who_they_serve(plans: dict[str, str | None], summary: str) -> None:
    found = total([{"name": name, **({"plan": plan} if plan else {})} for name, plan in plans.items()])
    assert {key: value for key, value in found.items() if value is not None} == {"summary": summary}
    many = [{"name": f"site-{n}", "plan": f"edge:0-{n}|cloud:{n}-200 int8"} for n in range(100)]
    long = total(many)
    assert long is not None
    assert len(long["summary"]) == 256
    assert total([{"name": "a"}]) is None


async def test_a_link_that_is_measured_a_little_otherwise_is_no_news(world: World) -> None:
    await serving(world)
    world.metrics = metrics(north=5.01e6, south=4.98e6)
    before = rows(world)

    await world.rounds(15)

    assert {name: row["links"] for name, row in rows(world).items()} == {
        name: row["links"] for name, row in before.items()
    }


async def test_gateway_and_edge_partitions_of_a_site_go_to_its_nodes_and_the_others_anywhere(world: World) -> None:
    stages = [{"tier": "edge", "firstCut": 0, "lastCut": 2}, {"tier": "cloud", "firstCut": 2, "lastCut": 6}]
    await serving(world, partitioning={"mode": "Fixed", "fixed": {"stages": stages, "codecs": ["fp32"]}})

    deployments = world.cluster.of("Deployment")
    for site in ("north", "south"):
        held = {
            body["metadata"]["labels"].get("splitplane.dev/tier", "gateway"): body["spec"]["template"]["spec"]
            for name, body in deployments.items()
            if name.startswith(f"tracker-{site}-")
        }
        assert held["gateway"]["nodeSelector"] == held["edge"]["nodeSelector"]
        assert held["edge"]["nodeSelector"] == {"splitplane.dev/tier": "edge", ZONE: site}
        assert held["cloud"]["nodeSelector"] == {"splitplane.dev/tier": "cloud"}


async def test_clients_of_every_site_ask_for_the_model_by_the_pipelines_own_name(world: World) -> None:
    await serving(world)

    assert {table["spec"]["model"]["name"] for table in world.cluster.of("RouteTable").values()} == {"tracker"}


async def test_the_operators_metrics_tell_which_sites_are_ready_as_long_as_there_are_any(world: World) -> None:
    await serving(world)
    world.cluster.put(at("e2", "south", ready=False))
    world.metrics = metrics(north=5e6)
    for name in [name for name in world.cluster.of("RouteTable") if "south" in name]:
        table = world.cluster.of("RouteTable")[name]
        world.cluster.put({**table, "status": {}})
    await world.rounds(3, settle=False)

    def shown(site: str) -> float | None:
        labels = {"pipeline_namespace": "shop", "pipeline_name": "tracker", "site": site}
        labels["site_pipeline"] = f"tracker-{site}"
        return world.telemetry.registry.get_sample_value("splitplane_site_ready", labels)

    assert (shown("north"), shown("south"), shown("west")) == (1.0, 0.0, None)
    world.operator.keep_only(set())
    assert (shown("north"), shown("south")) == (None, None)


async def test_the_model_is_measured_once_for_all_sites(world: World) -> None:
    await serving(world)

    jobs = [name for verb, kind, name in world.cluster.writes if (verb, kind) == ("apply", "Job")]
    assert len(jobs) == 2  # one for each device class
    assert len(world.cluster.of("ModelProfile")) == 1


async def test_a_worse_link_changes_the_plan_of_its_own_site_only(world: World) -> None:
    await serving(world, objectives={"prefer": "Latency"})
    before = {name: row["plan"] for name, row in rows(world).items()}
    tables = {name: table["spec"] for name, table in world.cluster.of("RouteTable").items()}
    assert before["north"] == before["south"]

    world.metrics = metrics(north=4e3, south=5e6)
    await world.rounds(80)

    after = {name: row["plan"] for name, row in rows(world).items()}
    assert after["north"] != before["north"]
    assert after["south"] == before["south"]
    assert world.cluster.of("RouteTable")["tracker-south"]["spec"] == tables["tracker-south"]
    decisions = world.cluster.of("InferencePipeline")["tracker-south"]["status"]["decisions"]
    assert [each["action"] for each in decisions if each["action"] != "Hold"] == ["Start"]


async def test_a_changed_spec_reaches_every_site(world: World) -> None:
    await serving(world)

    world.apply(sites=SITES, objectives={"latencyP95Milliseconds": 300})
    await world.rounds(3)

    limits = {
        name: body["spec"]["objectives"]["latencyP95Milliseconds"]
        for name, body in world.cluster.of("InferencePipeline").items()
    }
    assert limits == {"tracker": 300, "tracker-north": 300, "tracker-south": 300}


async def test_what_somebody_changes_at_a_site_is_changed_back(world: World) -> None:
    await serving(world)
    body = world.cluster.of("InferencePipeline")["tracker-north"]
    changed = {**body, "spec": {**body["spec"], "suspend": True}}
    changed["metadata"] = {**body["metadata"], "generation": body["metadata"]["generation"] + 1}
    world.cluster.put(changed)

    await world.rounds(2)

    assert "suspend" not in world.cluster.of("InferencePipeline")["tracker-north"]["spec"]


async def test_labels_that_somebody_takes_from_a_site_are_put_back(world: World) -> None:
    await serving(world)
    body = world.cluster.of("InferencePipeline")["tracker-north"]
    labels = body["metadata"].pop("labels")
    world.cluster.put(body)

    await world.rounds(2)

    assert world.cluster.of("InferencePipeline")["tracker-north"]["metadata"]["labels"] == labels
    assert set(world.cluster.of("InferencePipeline")) == {"tracker", "tracker-north", "tracker-south"}


async def test_a_site_that_appears_is_served_and_the_others_are_left_alone(world: World) -> None:
    await serving(world)
    before = {name: table["spec"] for name, table in world.cluster.of("RouteTable").items()}

    world.cluster.put(at("e3", "west"))
    world.metrics = metrics(north=5e6, south=5e6, west=5e6)
    await world.rounds(15)

    assert rows(world)["west"]["ready"] == "True"
    assert ("Normal", "SiteAdded", "site west: operated as pipeline tracker-west") in world.cluster.events
    assert {name: world.cluster.of("RouteTable")[name]["spec"] for name in before} == before


async def test_a_site_goes_once_no_node_has_named_it_for_a_while(world: World) -> None:
    await serving(world)
    world.cluster.remove("Node", "e2")

    await world.rounds(2)
    assert rows(world).keys() == {"north", "south"}
    world.clock.time += GONE_SECONDS
    await world.rounds(2)

    assert rows(world).keys() == {"north"}
    assert "tracker-south" not in world.cluster.of("InferencePipeline")
    assert any(reason == "SiteRemoved" for _, reason, _ in world.cluster.events)


async def test_a_site_that_was_taken_away_is_not_made_again_before_the_watch_has_told_of_it(world: World) -> None:
    await serving(world)
    gone = world.cluster.of("InferencePipeline")["tracker-south"]
    world.cluster.remove("Node", "e2")
    await world.rounds()
    world.clock.time += GONE_SECONDS
    await world.rounds()
    assert "tracker-south" not in world.cluster.of("InferencePipeline")

    world.cluster.put(gone)  # as the index still has it
    await world.step()

    assert "tracker-south" not in world.cluster.of("InferencePipeline")
    assert [reason for _, reason, _ in world.cluster.events].count("SiteRemoved") == 1


async def test_a_site_whose_node_comes_back_in_time_is_kept(world: World) -> None:
    await serving(world)
    for _ in range(3):
        world.cluster.remove("Node", "e2")
        world.clock.time += GONE_SECONDS / 2
        await world.rounds()
        world.cluster.put(at("e2", "south"))
        await world.rounds()

    assert ("delete", "InferencePipeline", "tracker-south") not in world.cluster.writes


async def test_a_site_that_is_dark_is_told_of_by_name_and_stays(world: World) -> None:
    await serving(world)

    world.cluster.put(at("e2", "south", ready=False))
    await world.rounds(3)

    status = next(each for each in world.status["conditions"] if each["type"] == "Degraded")
    assert (status["status"], status["reason"]) == ("True", "TierLost")
    assert status["message"].startswith("at 1 of 2 sites: south: tier edge")
    assert ("Warning", "TierLost", status["message"]) in world.cluster.events
    assert "tracker-south" in world.cluster.of("InferencePipeline")


async def test_a_pipeline_of_another_owner_is_not_touched(world: World) -> None:
    other = pipeline_body()
    other["metadata"] |= {"name": "tracker-north", "uid": "somebody-elses"}
    world.cluster.put(other)

    world.apply(sites=SITES)
    await world.rounds(3)

    assert world.cluster.of("InferencePipeline")["tracker-north"]["spec"] == other["spec"]
    assert world.condition("Degraded") == ("True", "NameTaken")
    assert rows(world)["north"]["ready"] == "Unknown"


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [({"e1": "", "e2": ""}, "NoSites"), ({"e1": "north", "e2": ""}, "NodesWithoutSite")],
)
async def test_nodes_without_a_site_are_told_of(nodes: dict[str, str], reason: str) -> None:
    world = World()
    for name, site in nodes.items():
        world.cluster.put(at(name, site) if site else node(name, "edge"))

    world.apply(sites=SITES)
    await world.rounds(2)

    assert world.condition("Degraded") == ("True", reason)
    message = next(each["message"] for each in world.status["conditions"] if each["type"] == "Degraded")
    assert ZONE in message
    if reason == "NoSites":
        assert world.condition("Ready") == ("False", "NoSites")
        assert world.condition("Stalled") == ("True", "NoSites")
        assert "sites" not in world.status or world.status["sites"] is None
    else:
        assert "e2" in message
        assert rows(world).keys() == {"north"}


async def test_no_more_sites_are_served_than_the_status_can_hold(world: World) -> None:
    world.apply(sites=SITES)
    await world.rounds()
    for number in range(MOST_SITES):
        world.cluster.put(at(f"more-{number}", f"a{number:03}"))

    await world.step()

    assert world.condition("Degraded") == ("True", "TooManySites")
    assert len(world.status["sites"]) == MOST_SITES
    assert rows(world).keys() > {"north", "south"}  # they were there first
    PipelineStatus.parse(world.status)


async def test_everything_of_a_site_belongs_to_its_pipeline_and_that_to_the_users(world: World) -> None:
    await serving(world)

    site = world.cluster.of("InferencePipeline")["tracker-north"]
    (reference,) = site["metadata"]["ownerReferences"]
    assert (reference["kind"], reference["name"], reference["uid"]) == ("InferencePipeline", "tracker", "u-tracker")
    for kind in ("RouteTable", "Deployment", "Service", "ServiceAccount", "Role", "RoleBinding"):
        owners = {
            each["metadata"]["ownerReferences"][0]["uid"]
            for name, each in world.cluster.of(kind).items()
            if name.startswith("tracker-north")
        }
        assert owners == {site["metadata"]["uid"]}


async def test_a_pipeline_with_sites_at_rest_is_not_written_to(world: World) -> None:
    await serving(world)
    await world.rounds(30)
    before = len(world.cluster.writes)

    await world.rounds(30)

    later = world.cluster.writes[before:]
    assert [each for each in later if each[2] == "tracker" or each[0] != "status"] == []


async def test_a_restarted_operator_takes_the_sites_over_as_they_are(world: World) -> None:
    await serving(world)
    before = {name: body["metadata"]["uid"] for name, body in world.cluster.of("InferencePipeline").items()}
    specs = {name: table["spec"] for name, table in world.cluster.of("RouteTable").items()}

    world.restart()
    await world.rounds(3)

    assert {name: body["metadata"]["uid"] for name, body in world.cluster.of("InferencePipeline").items()} == before
    assert {name: table["spec"] for name, table in world.cluster.of("RouteTable").items()} == specs


def test_a_site_is_named_by_its_label_as_far_as_that_makes_a_name() -> None:
    parent = pipeline(sites=SITES)
    names = [site_name(parent, site) for site in ("north", "North", "eu_1", "eu-1", "eu.1", "a" * 63, "...", "-")]

    assert names[0] == "tracker-north"
    assert names[3] == "tracker-eu-1"
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) + len("cloud") <= 45
        whole = site_pipeline(pipeline_body(sites=SITES), parent, "north")
        InferencePipeline.parse({**whole, "metadata": {**whole["metadata"], "name": name}})


def test_only_nodes_of_the_gateways_tier_name_sites() -> None:
    cloud = node("c1", "cloud")
    cloud["metadata"]["labels"][ZONE] = "region-1"
    found = find(pipeline(sites=SITES), [at("e1", "north"), at("e2", "north"), cloud, node("e3", "edge")])

    assert found.sites == {"north"}
    assert found.unnamed == ("e3",)


def site(name: str, *, generation: int = 1, **status: str) -> Site:
    conditions = [
        {"type": kind, "status": status.get(kind, good), "reason": f"{kind}Because", "message": f"{kind} there",
         "observedGeneration": 1}
        for kind, good in GOOD.items()
    ]  # fmt: skip
    body = {"metadata": {"name": name, "generation": generation}, "status": {"conditions": conditions}}
    return Site(name, f"p-{name}", body)


def test_a_condition_over_sites_is_good_only_where_it_is_at_every_site_and_names_the_others() -> None:
    sites = [site("a"), site("b", Ready="False", Degraded="True"), site("c", Ready="Unknown")]
    found = {verdict.type: verdict for verdict in over_sites(sites, ())}

    assert found["Ready"] == Verdict(
        "Ready", "False", "ReadyBecause", "at 2 of 3 sites: b: Ready there; c: Ready there"
    )
    assert found["Degraded"].status == "True"
    assert found["PlanFeasible"] == Verdict("PlanFeasible", "True", "PlanFeasibleBecause", "at all 3 sites")


def test_what_a_site_said_of_an_older_spec_is_not_counted() -> None:
    found = {verdict.type: verdict for verdict in over_sites([site("a", generation=2)], ())}

    assert (found["Ready"].status, found["Ready"].reason) == ("Unknown", "NotReconciled")


def test_conditions_over_sites_are_the_same_as_those_of_a_pipeline() -> None:
    own = [verdict.type for verdict in verdicts(Facts(observed=Observed(0, 0), control=Control()))]

    assert [verdict.type for verdict in over_sites([site("a")], ())] == own
    assert [verdict.type for verdict in over_sites([], ())] == own


def test_a_message_names_a_few_of_many_sites() -> None:
    sites = [site(f"s{number:02}", Ready="False") for number in range(MOST_SITES)]
    (ready,) = [verdict for verdict in over_sites(sites, ()) if verdict.type == "Ready"]

    assert ready.message.startswith("at 100 of 100 sites: s00: ")
    assert ready.message.endswith("; and 95 more")


def test_the_gateways_tier_is_all_that_differs_between_a_site_and_the_whole() -> None:
    body = pipeline_body(sites=SITES)
    made = site_pipeline(body, pipeline(sites=SITES), "north")

    selector = {"splitplane.dev/tier": "edge", ZONE: "north"}
    assert made["spec"] == {
        **pipeline_body()["spec"], "tiers": [tier("edge", nodeSelector=selector), tier("cloud", trusted=False)],
    }  # fmt: skip
    assert body == pipeline_body(sites=SITES)


async def test_the_limit_on_cost_is_one_for_all_sites_and_each_plans_with_its_part(world: World) -> None:
    fast: dict[str, Any] = {"latencyP95Milliseconds": 200, "prefer": "Latency"}
    await serving(world, objectives=fast)
    free = float(world.status["plan"]["costPerHour"])
    limit = 0.8 * free  # each site by itself is far below that
    assert max(float(row["costPerHour"]) for row in rows(world).values()) < limit

    world.apply(sites=SITES, objectives={**fast, "maxCostPerHour": f"{limit:.4f}"})
    await world.rounds(60)

    assert float(world.status["plan"]["costPerHour"]) <= limit + 1e-3
    assert world.condition("PlanFeasible") == ("True", "LimitsKept")
    assert world.condition("Ready") == ("True", "Serving")
    before = len(world.cluster.writes)
    world.restart()
    await world.rounds(20)
    assert [each for each in world.cluster.writes[before:] if each[:2] == ("apply", "RouteTable")] == []


async def test_sites_that_cost_more_than_the_limit_together_say_so_and_serve_all_the_same(world: World) -> None:
    await serving(world, objectives={"latencyP95Milliseconds": 200, "maxCostPerHour": "0.01"})

    assert world.condition("PlanFeasible") == ("False", "CostLimit")
    cost = world.status["plan"]["costPerHour"]
    told = next(each["message"] for each in world.status["conditions"] if each["type"] == "PlanFeasible")
    assert told.startswith(f"all sites together cost {cost} an hour, more than maxCostPerHour 0.01. Relax the limit")
    assert "at 2 of 2 sites: north:" in told
    assert any(reason == "CostLimit" for _, reason, _ in world.cluster.events)

    # Together over it, though neither is by itself.
    limit = 0.75 * float(cost)
    world.apply(sites=SITES, objectives={"latencyP95Milliseconds": 200, "maxCostPerHour": f"{limit:.4f}"})
    await world.rounds(20)
    assert all(float(row["costPerHour"]) < limit for row in rows(world).values())
    assert world.condition("PlanFeasible") == ("False", "CostLimit")

"""Several gateways of one pipeline: what the operator takes from their reports, and whose reports it forgets."""

from typing import Any

from splitplane.api.routes import GatewayReport
from splitplane.controller import children
from splitplane.controller.gateway_reports import gone, merged, present
from splitplane.runtime.gateway.tables import parse_table
from tests.support.controller_cases import SETTINGS, pipeline
from tests.support.controller_world import KEY, World


def report(
    generation: int, ready: int = 1, in_flight: int = 0, bandwidth: str = "", delay: int | None = None
) -> GatewayReport:
    link: dict[str, Any] = {"source": "edge", "target": "cloud"}
    link |= {"bandwidthBytesPerSecond": bandwidth} if bandwidth else {}
    link |= {} if delay is None else {"delayMicroseconds": delay}
    return GatewayReport.model_validate(
        {
            "acknowledgedGeneration": generation,
            "stages": [{"name": "p-edge", "ready": ready}],
            "inFlight": [{"generation": generation, "requests": in_flight}] if in_flight else [],
            "links": [link],
        }
    )


def pod(name: str, node: str = "e1", **metadata: Any) -> dict[str, Any]:
    labels = {"splitplane.dev/pipeline": KEY[1], "app.kubernetes.io/component": "gateway",
              "app.kubernetes.io/name": "splitplane"}  # fmt: skip
    about = {"name": name, "namespace": KEY[0], "labels": labels, **metadata}
    return {"kind": "Pod", "metadata": about, "spec": {"nodeName": node, "containers": []}}


def node(name: str, ready: str = "True") -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def test_the_last_gateway_to_follow_decides_and_requests_are_added_up() -> None:
    both = merged([report(6, ready=2, in_flight=3, bandwidth="5000"), report(7, ready=1, in_flight=4)])
    assert both.acknowledged_generation == 6
    assert [(stage.name, stage.ready) for stage in both.stages] == [("p-edge", 1)]
    assert {entry.generation: entry.requests for entry in both.in_flight} == {6: 3, 7: 4}
    assert [link.bandwidth_bytes_per_second for link in both.links] == ["5000"]
    assert merged([]).acknowledged_generation == -1


def test_of_a_shared_link_the_most_that_passes_and_the_shortest_delay_count() -> None:
    reports = [report(1, bandwidth="9000", delay=400), report(1, bandwidth="10000"), report(1, delay=300), report(1)]
    for order in (reports, reports[::-1]):
        (link,) = merged(order).links
        assert (link.bandwidth_bytes_per_second, link.delay_microseconds) == ("10000", 300)


def test_an_endpoint_that_one_gateway_has_not_admitted_is_not_ready() -> None:
    assert merged([report(1, ready=2), GatewayReport(acknowledged_generation=1)]).stages[0].ready == 0


def test_a_gateway_that_leaves_counts_until_it_has_gone_and_one_on_a_dead_node_does_not() -> None:
    reports = {"stays": report(7), "leaves": report(6), "cut-off": report(5), "gone": report(4)}
    pods = [pod("stays"), pod("leaves", deletionTimestamp="2026-01-01T00:00:00Z"), pod("cut-off", "e2")]
    assert set(present(reports, pods, [node("e1"), node("e2", "Unknown")])) == {"stays", "leaves"}
    assert gone(reports, pods) == ("gone",)


def test_without_a_gateway_the_last_reports_stand() -> None:
    reports = {"gone": report(4)}
    assert present(reports, [], [node("e1")]) == reports
    assert gone(reports, []) == ()


async def test_reports_of_gateways_that_have_gone_are_taken_away() -> None:
    world = World()
    world.apply(gateway={"tier": "edge", "replicas": 2})
    await world.step(10)
    assert world.condition("Ready")[0] == "True"
    (name,) = world.table["status"]["gateways"]
    world.cluster.put(pod("another"))
    told = {**world.table["status"]["gateways"], "another": world.table["status"]["gateways"][name]}
    world.cluster.put({**world.table, "status": {"gateways": told}})
    await world.step(settle=False)
    assert set(world.table["status"]["gateways"]) == {"another"}


def test_two_gateways_share_what_a_fallback_bears() -> None:
    stage = {"stage": "p-edge", "tier": "edge", "first": 0, "last": 7}
    routes = [{"name": "edge:0-7", "stages": [stage], "maxRatePerSecond": "8"}]
    model = {"name": "p", "inputs": [], "outputs": []}
    table = parse_table({"spec": {"generation": 1, "model": model, "routes": routes, "gateways": 2}})
    assert table.routes[0].max_rate_per_second == 4.0


def test_as_many_gateways_run_as_were_asked_for_on_different_nodes() -> None:
    objects = children.gateway_objects(pipeline(gateway={"tier": "edge", "replicas": 3}), SETTINGS)
    (deployment,) = (body for body in objects if body["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["topologyKey"] == (
        "kubernetes.io/hostname"
    )

"""One pipeline at two sites of the embedded cluster, each with a link of its own, with real stages and Prometheus.

Pods talk to each other by mutual TLS, with certificates of the operator's own authority.
"""

import asyncio
import base64
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509

from splitplane.local import binaries, install
from splitplane.local.cluster import Cluster
from splitplane.local.config import TIER_LABEL, ClusterConfig
from tests.support import operator_cases as cases
from tests.support.kubectl import kubectl_for
from tests.support.operator_requests import ask, asking, expected

pytestmark = pytest.mark.e2e

NAME, ROLE = "both", "example.com/role"
NORTH, SOUTH = f"{NAME}-north", f"{NAME}-south"
CLOUD, EDGE = "cloud:0-4", "edge:0-4"
# A tier of the embedded cluster is a place with a link: here two of them are sites of the pipeline's one tier edge.
CONFIG = ClusterConfig.model_validate({
    "nodes": [
        {"name": "system-1"},
        {"name": "north-1", "tier": "north", "labels": {ROLE: "edge"}, "pricePerHour": 2.0},
        {"name": "south-1", "tier": "south", "labels": {ROLE: "edge"}, "pricePerHour": 2.0},
        {"name": "cloud-1", "tier": "cloud", "pricePerHour": 0.2},
    ],
    "links": [{"between": [site, "cloud"], "rate": "50Mbit", "delay": "2ms"} for site in ("north", "south")],
})  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        found = Cluster.of(f"sites-{os.getpid()}")
        try:
            found.up(CONFIG)
            settings = ("prometheus.windowSeconds=20", "prometheus.demandWindowSeconds=20", "mtls.mode=Authority")
            helm, chart = binaries.ensure("helm"), install.find_chart()
            install.install(found, helm=helm, chart=chart, settings=settings)
            yield found
        finally:
            found.down(purge=True)


@pytest.fixture(scope="module", params=[False, True], ids=["apart", "shared"])
def shared(request: pytest.FixtureRequest) -> bool:
    """Whether the sites share replicas in the cloud."""
    return bool(request.param)


@pytest.fixture(scope="module")
def ns(cluster: Cluster, shared: bool) -> Iterator[cases.Namespace]:
    """Cloud-only is cheapest, and within the limit as long as the link is short."""
    cluster.set_link(("north", "cloud"), delay=0.002)
    edge = cases.tier("edge", nodeSelector={ROLE: "edge"})
    cloud = cases.tier("cloud")
    model = cases.model(sha256(cases.weights()).hexdigest())
    sites = {"topologyKey": TIER_LABEL, **({"sharedTier": "cloud"} if shared else {})}
    body = cases.pipeline(NAME, model, edge, cloud, objectives={"latencyP95Milliseconds": 300}, sites=sites)
    with cases.Namespace.fresh(kubectl_for(cluster.paths.kubeconfig), body) as found:
        found.wait_condition(NAME, "Ready", "True")
        yield found


def rows(ns: cases.Namespace) -> dict[str, Any]:
    return {row["name"]: row for row in ns.status(NAME)["sites"]}


def plans(ns: cases.Namespace) -> dict[str, Any]:
    return {name: row.get("plan") for name, row in rows(ns).items()}


def ways(ns: cases.Namespace, pipeline: str) -> list[Any]:
    """The routes by name and stages; what they bear may be told anew at any time."""
    return [(route["name"], route["stages"]) for route in ns.get("rtable", pipeline)["spec"]["routes"]]


def in_cloud(ns: cases.Namespace) -> list[Any]:
    return ns.items("pods", "-l", "splitplane.dev/tier=cloud,app.kubernetes.io/component=stage")


async def until(ns: cases.Namespace, probe: Any, what: str) -> None:
    await asyncio.to_thread(cases.wait, probe, seconds=120, what=lambda: f"{what}; sites {rows(ns)}")


async def test_each_site_answers_at_its_own_gateway_by_the_pipelines_name(ns: cases.Namespace) -> None:
    for site, node in ((NORTH, "north-1"), (SOUTH, "south-1")):
        assert abs(await ask(ns.gateway(site), NAME) - expected()).max() <= 1e-5
        (pod,) = ns.items("pods", "-l", f"splitplane.dev/pipeline={site},app.kubernetes.io/component=gateway")
        assert pod["spec"]["nodeName"] == node
        assert ns.get("service", f"{site}-gateway")["spec"]["selector"]["splitplane.dev/pipeline"] == site


async def test_what_sites_share_runs_once_for_both_and_the_users_pipeline_shows_it(
    ns: cases.Namespace, shared: bool
) -> None:
    await until(ns, lambda: plans(ns) == {"north": CLOUD, "south": CLOUD}, f"{CLOUD} at both sites")
    await until(ns, lambda: len(in_cloud(ns)) == (1 if shared else 2), "what serves in the cloud, and nothing else")
    status = ns.status(NAME)
    assert status["plan"]["summary"] == f"{CLOUD} at north, south"
    assert float(status["plan"]["costPerHour"]) > 0.0
    for site in (NORTH, SOUTH):
        secret = ns.get("secret", f"{site}-gateway-tls")
        leaf = x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        whose = NAME if shared else site
        assert names.get_values_for_type(x509.DNSName) == [f"gateway.{whose}.{ns.name}.splitplane"]
    if shared:
        (pod,) = in_cloud(ns)
        assert pod["metadata"]["labels"]["splitplane.dev/pipeline"] == NAME
        routed = {ns.get("rtable", site)["spec"]["routes"][0]["stages"][0]["stage"] for site in (NORTH, SOUTH)}
        assert routed == {pod["metadata"]["labels"]["splitplane.dev/stage"]}
        assert status["replicas"] == "sites 2/2, cloud 1/1"


async def test_a_worse_link_of_one_site_changes_its_plan_alone_while_requests_at_both_go_on(
    ns: cases.Namespace, cluster: Cluster
) -> None:
    cluster.set_link(("north", "cloud"), delay=0.002)
    async with AsyncExitStack() as stack:
        north = await stack.enter_async_context(asking(ns.gateway(NORTH), NAME))
        south = await stack.enter_async_context(asking(ns.gateway(SOUTH), NAME))
        await until(ns, lambda: plans(ns) == {"north": CLOUD, "south": CLOUD}, f"{CLOUD} at both sites")
        before = ways(ns, SOUTH)

        cluster.set_link(("north", "cloud"), delay=0.25)
        await until(ns, lambda: plans(ns)["north"] == EDGE, f"{EDGE} at the site with the longer link")
        answered = north.answered, south.answered
        await until(ns, lambda: north.answered > answered[0] + 20, "answers by the new plan")
        await until(ns, lambda: south.answered > answered[1] + 20, "answers at the other site")
        assert plans(ns)["south"] == CLOUD
        assert ways(ns, SOUTH) == before
    assert north.failures == []
    assert south.failures == []
    delays = {name: row["links"][0]["delayMicroseconds"] for name, row in rows(ns).items()}
    assert delays["north"] > 200_000 > 50_000 > delays["south"]
    changes = [each for each in ns.status(SOUTH)["decisions"] if each["action"] != "Hold"]
    assert [each["action"] for each in changes if each["planAfter"] != CLOUD] == []


def test_all_sites_go_with_the_pipeline(ns: cases.Namespace) -> None:
    kinds = "ipipe,deployments,pods,services,serviceaccounts,roles,rolebindings,configmaps,secrets,pdb,rtable,mprof"
    ours = ("-l", "app.kubernetes.io/name=splitplane")
    assert ns.items(kinds, *ours)

    ns("delete", "ipipe", NAME)
    cases.wait(
        lambda: not ns.items(kinds, *ours), seconds=120,
        what=lambda: f"left: {[(i['kind'], i['metadata']['name']) for i in ns.items(kinds, *ours)]}",
    )  # fmt: skip

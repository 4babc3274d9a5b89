"""Sites come and go with the labels of nodes, as a real API server and garbage collector see it. Nothing runs there:
the nodes have no kubelet (tests/e2e/test_sites.py has sites that serve)."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import operator_cases as cases

pytestmark = pytest.mark.integration

ROLE, SITE = "example.com/role", "example.com/site"
Relabel = Callable[[str, str], None]


@pytest.fixture
def nodes(kubectl: Callable[..., str]) -> Iterator[Relabel]:
    """Nodes far-1 at site a and far-2 at site B; call it to say that a node is at another."""
    sites = {"far-1": "a", "far-2": "B"}
    for name, site in sites.items():
        metadata = {"name": name, "labels": {ROLE: "far", SITE: site}}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"unschedulable": True}}
        kubectl("apply", "--server-side", "-f", "-", stdin=body)
    try:
        yield lambda node, site: void(kubectl("label", "node", node, f"{SITE}={site}", "--overwrite"))
    finally:
        kubectl("delete", "node", *sites, "--wait=false")


def void(_: Any) -> None:
    """What a command says does not matter."""


def sites_of(ns: cases.Namespace, name: str) -> dict[str, str]:
    return {row["name"]: row["pipeline"] for row in ns.status(name).get("sites", ())}


def test_sites_come_and_go_with_labels_and_end_with_the_pipeline(
    profiled: cases.Namespace, nodes: Relabel, digest: str
) -> None:
    ns = profiled
    edge = cases.tier("edge", nodeSelector={ROLE: "far"})
    body = cases.pipeline("all", cases.model(digest), edge, cases.tier("cloud"), sites={"topologyKey": SITE})
    ns.apply(body)
    cases.wait(lambda: sites_of(ns, "all").keys() == {"a", "B"}, seconds=30, what="both sites in the status")

    names = sites_of(ns, "all")
    assert names["a"] == "all-a"
    assert names["B"].startswith("all-b-")  # names are in lower case, and another site may be called b
    parent = ns.get("ipipe", "all")
    for site, name in names.items():
        found = ns.get("ipipe", name)
        assert [each["uid"] for each in found["metadata"]["ownerReferences"]] == [parent["metadata"]["uid"]]
        assert found["spec"]["tiers"][0]["nodeSelector"] == {ROLE: "far", SITE: site}
    dark = ns.wait_condition("all", "Degraded", "True", "TierLost", seconds=60)
    assert dark["message"].startswith("at 2 of 2 sites: B: tier edge: none of 1 nodes takes pods")
    assert {row["ready"] for row in ns.status("all")["sites"]} == {"False"}

    ns("patch", "ipipe", "all-a", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    cases.wait(
        lambda: not ns.get("ipipe", "all-a")["spec"].get("suspend"), seconds=30, what="the user's spec at the site"
    )
    ns.apply({**body, "spec": {**body["spec"], "priority": 7}})
    cases.wait(lambda: ns.get("ipipe", "all-a")["spec"]["priority"] == 7, seconds=30, what="the changed spec")

    nodes("far-2", "c")
    cases.wait(lambda: "c" in sites_of(ns, "all"), seconds=30, what="the site of the new label")
    assert "B" in sites_of(ns, "all")  # for some minutes
    added = [event["message"] for event in ns.events("all") if event["reason"] == "SiteAdded"]
    assert any(message.startswith("site c: ") for message in added)

    ns("delete", "ipipe", "all")
    kinds, ours = "ipipe,deployments,services,roles,rtable", ("-l", "app.kubernetes.io/name=splitplane")
    cases.wait(lambda: not ns.items(kinds, *ours), seconds=60, what=lambda: f"left: {ns.items(kinds, *ours)}")

"""Splitplane's own end, and a beginning with its own authority: the last tests, since no pipeline outlives them."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator

import pytest

from kindcluster import rights
from kindcluster.cluster import NAMESPACE, RELEASE, Cluster
from kindcluster.engine import run
from kindcluster.outside import expose
from kindcluster.product_images import Images
from tests.kind.conftest import SEGMENTS, two_tiers, whole
from tests.support import operator_cases as cases
from tests.support.kind_images import images_in_use
from tests.support.operator_requests import asking

Kubectl = Callable[..., str]
CRDS = [f"{name}.splitplane.dev" for name in ("inferencepipelines", "modelprofiles", "routetables")]
PASSING = {"events", "events.events.k8s.io", "componentstatuses"}
"""Kinds that come and go by themselves."""
OF_KIND = re.compile(r"splitplane-(control-plane|worker\d*)")
"""Nodes are called so by the cluster's own name."""
TESTS = "test-"
"""How namespaces begin that tests make."""
NAMESPACE_OF_THE_CHART = f"Namespace//{NAMESPACE}"
"""Made before the chart, with the level of Pod Security that it keeps to; helm never removes one."""


def everything(kubectl: Kubectl) -> dict[str, cases.Json]:
    """All objects of all kinds that the API server lists, by kind, namespace and name."""
    kinds = sorted(set(kubectl("api-resources", "--verbs=list", "--output=name").split()) - PASSING)
    found = json.loads(kubectl("get", ",".join(kinds), "--all-namespaces", "--output=json"))["items"]
    return {
        "/".join((body["kind"], body["metadata"].get("namespace", ""), body["metadata"]["name"])): body
        for body in found
    }


def of_splitplane(objects: dict[str, cases.Json]) -> set[str]:
    """Those that carry its name in their own name, a label, a finalizer, or as their owner; nodes' labels are ours."""

    def named(body: cases.Json) -> bool:
        metadata = body["metadata"]
        told = {key: metadata.get(key) for key in ("name", "labels", "finalizers", "ownerReferences")}
        return body["kind"] != "Node" and "splitplane" in OF_KIND.sub("", json.dumps(told))

    return {key for key, body in objects.items() if named(body)}


def uninstall(kind: Cluster) -> None:
    run(str(kind.helm), "uninstall", RELEASE, f"--kubeconfig={kind.kubeconfig}", f"--namespace={NAMESPACE}", "--wait")


def remove_pipelines(kubectl: Kubectl) -> None:
    """What NOTES.txt says for those who do not want to keep them."""
    kubectl("delete", "ipipe", "--all", "--all-namespaces")
    kubectl(
        "wait",
        "--for=delete",
        "deployments,jobs,services,configmaps,secrets,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies",
        "--selector=splitplane.dev/pipeline",
        "--all-namespaces",
        "--timeout=120s",
    )
    kubectl("delete", "crd", *CRDS)


@pytest.fixture(scope="module")
def images(kind: Cluster, kubectl: Kubectl) -> Iterator[Images]:
    """Those of the installation; afterwards it is there again."""
    found = images_in_use(kind)
    yield found
    kubectl("delete", "secret", "splitplane-authority", f"--namespace={NAMESPACE}", "--ignore-not-found")
    kind.install_chart(found)


def gone(left: Callable[[], set[str]], *, but_for: set[str]) -> None:
    cases.wait(lambda: left() == but_for, seconds=120, what=lambda: f"nothing but {but_for}, not {left() - but_for}")


def test_a_pipeline_that_is_deleted_leaves_nothing(
    kubectl: Kubectl, make_namespace: Callable[[], cases.Namespace], digest: str
) -> None:
    ns = make_namespace()

    def inside() -> set[str]:
        return {key for key in everything(kubectl) if key.split("/")[1] == ns.name}

    before = inside()
    ns.apply(cases.pipeline("first", cases.model(digest), cases.tier("edge")))
    ns.wait_condition("first", "Ready", "True", seconds=180)
    assert len(inside()) > len(before) + 5
    ns("delete", "ipipe", "first")
    gone(inside, but_for=before)


def test_an_uninstall_leaves_nothing_but_what_it_says(
    kind: Cluster, kubectl: Kubectl, images: Images, serving: cases.Measured
) -> None:
    def outside() -> set[str]:
        """Of the namespaces that have pipelines."""
        return {key for key in of_splitplane(everything(kubectl)) if not key.split("/")[1].startswith(TESTS)}

    uninstall(kind)
    # As NOTES.txt says: definitions stay, and with them the pipelines. The APIService is the API server's, for these.
    definitions = {f"CustomResourceDefinition//{name}" for name in CRDS} | {"APIService//v1alpha1.splitplane.dev"}
    gone(outside, but_for={NAMESPACE_OF_THE_CHART} | definitions)
    assert serving.ns.status(serving.name)["replicas"] == "edge 2/2, cloud 1/1"
    remove_pipelines(kubectl)
    gone(lambda: of_splitplane(everything(kubectl)), but_for={NAMESPACE_OF_THE_CHART})


async def test_with_its_own_authority_it_serves_asks_for_what_it_may_and_leaves_only_that(
    kind: Cluster, kubectl: Kubectl, images: Images, make_namespace: Callable[[], cases.Namespace], digest: str
) -> None:
    def others() -> set[str]:
        return set(everything(kubectl))

    before = await asyncio.to_thread(others)
    await asyncio.to_thread(kind.install_chart, images, "mtls.mode=Authority")
    ns = make_namespace()
    split = cases.fixed(("edge", 0, 1), ("cloud", 1, SEGMENTS))
    ns.apply(cases.pipeline("first", cases.model(digest), *two_tiers(), partitioning=split))
    await asyncio.to_thread(whole, ns, seconds=240)
    address = await asyncio.to_thread(expose, kind, "first-gateway", namespace=ns.name, port=9000)
    async with asking(address, "first") as requests:
        await asyncio.to_thread(cases.wait, lambda: requests.answered > 20, seconds=60, what="20 answers")
    assert requests.failures == []
    assert stages_speak_tls(ns)

    found = rights.use(kind)
    assert found.refused == []
    assert {("", "secrets", verb) for verb in ("get", "create", "patch")} <= found.granted & found.asked

    await asyncio.to_thread(uninstall, kind)
    await asyncio.to_thread(remove_pipelines, kubectl)
    assert await asyncio.to_thread(ns.items, "secrets", "--selector=splitplane.dev/pipeline") == []
    await asyncio.to_thread(kubectl, "delete", "namespace", ns.name)
    # The authority is kept, as NOTES.txt says: pipelines that stay go on with its certificates.
    kept = {f"Secret/{NAMESPACE}/splitplane-authority"}
    await asyncio.to_thread(gone, lambda: others() - before, but_for=kept)


ASK_STAGE = """
import socket, ssl, sys
context = ssl.create_default_context()
context.set_alpn_protocols(["h2"])
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with socket.create_connection((sys.argv[1], 9000), 10) as plain, context.wrap_socket(plain) as secure:
    print(secure.version())
"""


def stages_speak_tls(ns: cases.Namespace) -> bool:
    (gateway,) = ns.items("pods", "--selector=app.kubernetes.io/component=gateway")
    stages = ns.items("pods", "--selector=app.kubernetes.io/component=stage")
    said = [
        ns("exec", gateway["metadata"]["name"], "--", "python", "-c", ASK_STAGE, stage["status"]["podIP"]).strip()
        for stage in stages
    ]
    return bool(said) and set(said) == {"TLSv1.3"}

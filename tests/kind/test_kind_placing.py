"""Where a kubelet runs a pipeline's pods, as whom, and how others find them."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kindcluster.cluster import CONTROL_PLANE, NAMESPACE, Cluster
from kindcluster.rights import NOT_COUNTED
from tests.support import operator_cases as cases
from tests.support.kind_images import images_in_use
from tests.support.operator_requests import ask, expected

Kubectl = Callable[..., str]


def nodes(kubectl: Kubectl, tier: str) -> set[str]:
    found = json.loads(kubectl("get", "nodes", f"--selector=splitplane.dev/tier={tier}", "--output=json"))["items"]
    return {node["metadata"]["name"] for node in found}


REPLICAS = {"edge": 2, "cloud": 1}
"""Of the pipeline that serves."""


def pods(ns: cases.Namespace, count: int, component: str, **labels: str) -> list[cases.Json]:
    """Those that are to stay, of which there are ``count``: what holds for each of none would say nothing."""
    selector = ",".join(f"{key}={value}" for key, value in {"app.kubernetes.io/component": component, **labels}.items())
    found: list[cases.Json] = []

    def settled() -> bool:
        found[:] = (
            pod for pod in ns.items("pods", f"--selector={selector}") if "deletionTimestamp" not in pod["metadata"]
        )
        return len(found) == count

    cases.wait(settled, seconds=60, what=lambda: f"{count} pods with {selector}, not {len(found)}")
    return found


def partitions(ns: cases.Namespace, tier: str) -> list[cases.Json]:
    """The pods of a tier's stage."""
    return pods(ns, REPLICAS[tier], "stage", **{"splitplane.dev/tier": tier})


async def test_a_pipeline_split_over_real_nodes_answers_as_the_whole_model(
    serving: cases.Measured, address: str
) -> None:
    assert np.abs(await ask(address, serving.name) - expected()).max() <= 1e-5


def test_stages_and_gateway_run_on_the_tainted_nodes_of_their_tier(serving: cases.Measured, kubectl: Kubectl) -> None:
    for tier in REPLICAS:
        on = {pod["spec"]["nodeName"] for pod in partitions(serving.ns, tier)}
        assert on <= nodes(kubectl, tier), tier
    (gateway,) = pods(serving.ns, 1, "gateway")
    assert gateway["spec"]["nodeName"] in nodes(kubectl, "edge")


def bare_pod(name: str, image: str, **spec: Any) -> cases.Json:
    """A pod of no controller that asks for an edge node."""
    container = {
        "name": "main", "image": image, "command": ["sleep", "60"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    whole = {
        "containers": [container],
        "nodeSelector": {"splitplane.dev/tier": "edge"},
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 0,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": whole | spec}


def test_a_tiers_taint_keeps_out_pods_that_do_not_tolerate_it(
    kind: Cluster, kubectl: Kubectl, make_namespace: Callable[[], cases.Namespace]
) -> None:
    ns, image = make_namespace(), images_in_use(kind).operator
    ns.apply(bare_pod("stranger", image))
    ns.apply(bare_pod("guest", image, tolerations=cases.tier("edge")["tolerations"]))
    ns("wait", "--for=condition=Ready", "pod/guest", "--timeout=60s")

    assert ns.get("pod", "guest")["spec"]["nodeName"] in nodes(kubectl, "edge")
    stranger = ns.get("pod", "stranger")
    (scheduled,) = [one for one in stranger["status"]["conditions"] if one["type"] == "PodScheduled"]
    assert (stranger["status"]["phase"], scheduled["reason"]) == ("Pending", "Unschedulable")
    assert "untolerated taint" in scheduled["message"]


@pytest.mark.parametrize("tier", REPLICAS)
def test_partitions_may_run_on_the_nodes_of_their_tier_and_nowhere_else(tier: str, serving: cases.Measured) -> None:
    (wanted,) = cases.tier(tier)["tolerations"]
    for pod in partitions(serving.ns, tier):
        assert pod["spec"]["nodeSelector"] == {"splitplane.dev/tier": tier}
        assert any(wanted.items() <= one.items() for one in pod["spec"]["tolerations"])


def test_what_belongs_to_no_tier_runs_on_none_of_their_nodes(kubectl: Kubectl) -> None:
    selectors = (
        ("--namespace=monitoring",),
        (f"--namespace={NAMESPACE}", "--selector=app.kubernetes.io/component=operator"),
    )
    for where in selectors:
        found = json.loads(kubectl("get", "pods", *where, "--output=json"))["items"]
        assert {pod["spec"]["nodeName"] for pod in found} == {CONTROL_PLANE}, where


PROCESS = """
import os
print(os.getuid(), os.getgid(), sorted(os.getgroups()))
status = open("/proc/self/status").read()
print(*[line.split()[1] for line in status.splitlines() if line.startswith(("CapBnd", "NoNewPrivs", "Seccomp:"))])
try:
    open("/written", "w")
except OSError as error:
    print(error.strerror)
open("/tmp/written", "w")
"""


@pytest.mark.parametrize(("component", "count"), [("gateway", 1), ("stage", sum(REPLICAS.values()))])
def test_pods_run_restricted_in_a_namespace_that_asks_for_it(
    component: str, count: int, serving: cases.Measured
) -> None:
    pod = pods(serving.ns, count, component)[0]["metadata"]["name"]
    said = serving.ns("exec", pod, "--", "python", "-c", PROCESS).splitlines()

    assert said[0] == "65532 65532 [65532]"
    assert said[1].split() == ["0000000000000000", "1", "2"]
    assert said[2] == "Read-only file system"


ASK_API = """
import ssl, sys, urllib.error, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
context = ssl.create_default_context(cafile=folder + "ca.crt")
headers = {"Authorization": "Bearer " + open(folder + "token").read(), "User-Agent": sys.argv[1]}
for path in sys.argv[2:]:
    request = urllib.request.Request("https://kubernetes.default.svc" + path, headers=headers)
    try:
        print(urllib.request.urlopen(request, timeout=10, context=context).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def test_only_the_gateway_has_a_token_and_it_opens_its_own_route_table_only(serving: cases.Measured) -> None:
    ns = serving.ns
    for pod in pods(ns, sum(REPLICAS.values()), "stage"):
        mounts = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]
        assert not [mount for mount in mounts if "serviceaccount" in mount]
    (gateway,) = pods(ns, 1, "gateway")
    tables = f"/apis/splitplane.dev/v1alpha1/namespaces/{ns.name}/routetables"
    paths = (
        f"{tables}?fieldSelector=metadata.name%3Dfirst",
        f"/api/v1/namespaces/{ns.name}/pods",
        f"{tables}?fieldSelector=metadata.name%3Dother",
        tables,
        "/api/v1/secrets",
        "/api/v1/pods",
    )
    said = ns("exec", gateway["metadata"]["name"], "--", "python", "-c", ASK_API, NOT_COUNTED, *paths).split()
    assert said == ["200", "200", "403", "403", "403", "403"]


ASK = """
import json, sys, urllib.request
url = f"http://first-gateway.{sys.argv[1]}.svc:8080/v2/models/first/infer"
body = {"inputs": [{"name": "features", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64}]}
request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=30))["outputs"][0]["shape"])
"""


def test_another_namespace_reaches_the_gateway_by_the_name_of_its_service(
    serving: cases.Measured, kubectl: Kubectl
) -> None:
    price_pod = ("exec", "--namespace=monitoring", "deployment/node-prices", "--")
    assert kubectl(*price_pod, "python", "-c", ASK, serving.ns.name).strip() == "[1, 8]"

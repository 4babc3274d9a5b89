"""Where a kubelet runs a pipeline's pods, as whom, and how others find them."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from kindcluster.cluster import NAMESPACE, Cluster
from tests.support import operator_cases as cases
from tests.support.operator_requests import ask, expected

Kubectl = Callable[..., str]


def nodes(kubectl: Kubectl, tier: str) -> set[str]:
    found = json.loads(kubectl("get", "nodes", f"--selector=splitplane.dev/tier={tier}", "--output=json"))["items"]
    return {node["metadata"]["name"] for node in found}


def pods(ns: cases.Namespace, **labels: str) -> list[cases.Json]:
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return ns.items("pods", f"--selector={selector}")


async def test_a_pipeline_split_over_real_nodes_answers_as_the_whole_model(
    serving: cases.Measured, address: str
) -> None:
    assert np.abs(await ask(address, serving.name) - expected()).max() <= 1e-5


def test_stages_and_gateway_run_on_the_tainted_nodes_of_their_tier(serving: cases.Measured, kubectl: Kubectl) -> None:
    stages = {
        tier: {pod["spec"]["nodeName"] for pod in pods(serving.ns, **{"splitplane.dev/tier": tier})}
        for tier in ("edge", "cloud")
    }
    assert stages["edge"] <= nodes(kubectl, "edge")
    assert stages["cloud"] == nodes(kubectl, "cloud")
    (gateway,) = pods(serving.ns, **{"app.kubernetes.io/component": "gateway"})
    assert gateway["spec"]["nodeName"] in nodes(kubectl, "edge")


def test_only_pods_that_tolerate_a_tiers_taint_run_on_its_nodes(kubectl: Kubectl, kind: Cluster) -> None:
    found = json.loads(kubectl("get", "pods", "--namespace=monitoring", "--output=json"))["items"]
    found += json.loads(
        kubectl("get", "pods", f"--namespace={NAMESPACE}", "--selector=app.kubernetes.io/component=operator",
                "--output=json")
    )["items"]  # fmt: skip
    assert {pod["spec"]["nodeName"] for pod in found} == {"splitplane-control-plane"}


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


@pytest.mark.parametrize("component", ["gateway", "stage"])
def test_pods_run_restricted_in_a_namespace_that_asks_for_it(component: str, serving: cases.Measured) -> None:
    pod = pods(serving.ns, **{"app.kubernetes.io/component": component})[0]["metadata"]["name"]
    said = serving.ns("exec", pod, "--", "python", "-c", PROCESS).splitlines()

    assert said[0] == "65532 65532 [65532]"
    assert said[1].split() == ["0000000000000000", "1", "2"]
    assert said[2] == "Read-only file system"


ASK_API = """
import ssl, sys, urllib.error, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
context = ssl.create_default_context(cafile=folder + "ca.crt")
headers = {"Authorization": "Bearer " + open(folder + "token").read()}
for path in sys.argv[1:]:
    request = urllib.request.Request("https://kubernetes.default.svc" + path, headers=headers)
    try:
        print(urllib.request.urlopen(request, timeout=10, context=context).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def test_only_the_gateway_has_a_token_and_it_opens_its_own_route_table_only(serving: cases.Measured) -> None:
    ns = serving.ns
    for pod in pods(ns, **{"app.kubernetes.io/component": "stage"}):
        mounts = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]
        assert not [mount for mount in mounts if "serviceaccount" in mount]
    (gateway,) = pods(ns, **{"app.kubernetes.io/component": "gateway"})
    tables = f"/apis/splitplane.dev/v1alpha1/namespaces/{ns.name}/routetables"
    paths = (
        f"{tables}/first",
        f"/api/v1/namespaces/{ns.name}/pods",
        f"{tables}/other",
        "/api/v1/secrets",
        "/api/v1/pods",
    )
    said = ns("exec", gateway["metadata"]["name"], "--", "python", "-c", ASK_API, *paths).split()
    assert said == ["200", "200", "403", "403", "403"]


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

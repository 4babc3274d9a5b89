"""Nodes of the embedded cluster: what they register, what they measure, and what their loss means for pods."""

import contextlib
import json
import os
import signal
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitplane.local.cluster import Cluster
from splitplane.local.config import TIER_LABEL
from tests.support.agent_pods import Kubectl, Object, Pods, container, pod, until

pytestmark = pytest.mark.integration

# A grandchild in a session of its own, as a daemon would be: it must not survive either.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def pods(kubectl: Kubectl, namespace: str) -> Pods:
    return Pods(kubectl, namespace)


def node(kubectl: Kubectl, name: str) -> Object:
    found: Object = json.loads(kubectl("get", "node", name, "-o", "json"))
    return found


def ready(kubectl: Kubectl, name: str) -> str:
    [condition] = [c for c in node(kubectl, name)["status"]["conditions"] if c["type"] == "Ready"]
    return str(condition["status"])


def schedulable(pods: Pods, node_name: str) -> bool:
    """Whether the scheduler gives the node to a pod that tolerates no cordon."""
    name = f"probe-{uuid.uuid4().hex[:8]}"
    pods.apply(pod(name, container("pass"), nodeSelector={"kubernetes.io/hostname": node_name}, tolerations=[]))

    def verdict() -> Object | None:
        conditions = pods.get(name)["status"].get("conditions", [])
        return next((each for each in conditions if each["type"] == "PodScheduled"), None)

    found = until(f"the scheduler's word on {name}", verdict)
    return bool(found["status"] == "True")


def agent_pid(state_home: Path, name: str) -> int | None:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            config = words[-2].decode() if len(words) > 1 else ""
            if b"splitplane.local.agent" in words and config.startswith(str(state_home)) and f"/{name}/" in config:
                return int(entry.parts[2])
    return None


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def family(pods: Pods, name: str) -> list[int]:
    until(f"the family of {name}", lambda: len(pods("logs", name).split()) == 2)
    return [int(word) for word in pods("logs", name).split()]


def figures(address: str, port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@pytest.fixture
def restored(cluster: Cluster, kubectl: Kubectl) -> Iterator[None]:
    """Has cloud-1 running and schedulable again afterwards."""
    yield
    cluster.start_node("cloud-1")
    until("cloud-1 ready", lambda: ready(kubectl, "cloud-1") == "True")
    kubectl("uncordon", "cloud-1")


def test_a_node_registers_what_it_is(kubectl: Kubectl) -> None:
    found = node(kubectl, "edge-1")
    labels, status = found["metadata"]["labels"], found["status"]
    assert labels["kubernetes.io/hostname"] == "edge-1"
    assert labels["kubernetes.io/os"] == "linux"
    assert labels["splitplane.dev/tier"] == "edge"
    assert {"key": "splitplane.dev/tier", "value": "edge", "effect": "NoSchedule"} in found["spec"]["taints"]
    assert set(status["allocatable"]) == {"cpu", "memory", "pods"}
    assert status["nodeInfo"]["containerRuntimeVersion"].startswith("splitplane-process://")
    assert "CPU limits" in found["metadata"]["annotations"]["local.splitplane.dev/not-enforced"]
    lease = json.loads(kubectl("get", "lease", "-n", "kube-node-lease", "edge-1", "-o", "json"))
    assert lease["spec"]["holderIdentity"] == "edge-1"
    assert lease["metadata"]["ownerReferences"][0]["uid"] == found["metadata"]["uid"]


def test_a_node_exports_its_price_and_the_use_of_its_pods(pods: Pods, kubectl: Kubectl, cluster: Cluster) -> None:
    hold = "import time; block = bytearray(50 << 20); sum(range(10**7)); print('x', flush=True); time.sleep(600)"
    pods.apply(pod("user", container(hold), nodeSelector={"kubernetes.io/hostname": "cloud-1"}))
    until("work done", lambda: pods.ready("user") and pods("logs", "user"))
    address = node(kubectl, "cloud-1")["status"]["addresses"][0]["address"]
    seen = figures(address, 10255)
    assert seen['node_total_hourly_cost{node="cloud-1"}'] == pytest.approx(0.4)
    where = f'{{container="main",namespace="{pods.namespace}",node="cloud-1",pod="user"}}'
    assert seen["container_memory_working_set_bytes" + where] > 50 << 20
    assert seen["container_cpu_usage_seconds_total" + where] > 0.05
    price = cluster.paths.node("cloud-1") / "price"
    before = price.read_text() if price.exists() else None
    try:
        price.write_text("1.25\n")
        assert figures(address, 10255)['node_total_hourly_cost{node="cloud-1"}'] == 1.25
        price.write_text("a lot")
        assert 'node_total_hourly_cost{node="cloud-1"}' not in figures(address, 10255)
    finally:
        if before is None:
            price.unlink()
        else:
            price.write_text(before)


def test_drain_moves_pods_elsewhere(pods: Pods, kubectl: Kubectl, restored: None) -> None:
    # Not the taint of a cordon: with that tolerated, replacements may land on the node that is drained.
    tolerations = [{"key": TIER_LABEL, "operator": "Exists"}]
    hold = container("import time; time.sleep(600)")
    whole = pod("web", hold, restartPolicy="Always", tolerations=tolerations)
    pods.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": whole["metadata"], "spec": whole["spec"]},
            },
        }
    )
    pods("rollout", "status", "deployment/web", "--timeout=120s")
    # The scheduler may learn of a cordon late, and bind a replacement to the node that drain has emptied.
    kubectl("cordon", "cloud-1")
    until("the scheduler knows of the cordon", lambda: not schedulable(pods, "cloud-1"))
    selector = "--pod-selector=app=web"
    kubectl("drain", "cloud-1", selector, "--ignore-daemonsets", "--timeout=120s")
    pods("rollout", "status", "deployment/web", "--timeout=120s")
    nodes = pods("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}").split()
    assert len(nodes) == 2
    assert "cloud-1" not in nodes


def test_a_killed_agent_takes_its_pods_along_and_its_successor_says_so(pods: Pods, state_home: Path) -> None:
    hosts = {"nodeSelector": {"kubernetes.io/hostname": "edge-2"}}
    pods.apply(
        pod("again", container(FAMILY), restartPolicy="Always", **hosts), pod("once", container(FAMILY), **hosts)
    )
    members = family(pods, "again") + family(pods, "once")
    address = pods.get("again")["status"]["podIP"]
    agent = agent_pid(state_home, "edge-2")
    assert agent is not None
    os.killpg(agent, signal.SIGKILL)
    until("all processes gone", lambda: not any(map(alive, members)), seconds=60)
    until("a new run", lambda: pods.status("again").get("restartCount") == 1 and pods.status("again")["ready"])
    last = pods.status("again")["lastState"]["terminated"]
    assert last["exitCode"] == 137
    assert "its agent was killed or crashed" in last["message"]
    assert pods.get("again")["status"]["podIP"] == address
    assert pods.phase("once", "Failed")["status"]["containerStatuses"][0]["restartCount"] == 0
    assert pods("logs", "again", "--previous").split() == [str(pid) for pid in members[:2]]


def test_a_stopped_node_loses_its_pods_and_serves_again_when_it_returns(
    pods: Pods, kubectl: Kubectl, cluster: Cluster, restored: None
) -> None:
    tolerations = [
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1},
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1},
    ]
    whole = pod("web", container(FAMILY), restartPolicy="Always", tolerations=tolerations)
    preferred = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["cloud-1"]}
    whole["spec"]["affinity"] = {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "preference": {"matchExpressions": [preferred]}}
            ]
        }
    }
    pods.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": whole["metadata"], "spec": whole["spec"]},
            },
        }
    )
    pods("rollout", "status", "deployment/web", "--timeout=120s")
    [name] = pods("get", "pods", "-o", "jsonpath={.items[*].metadata.name}").split()
    assert pods.get(name)["spec"]["nodeName"] == "cloud-1"
    members = family(pods, name)
    cluster.stop_node("cloud-1")
    until("all processes gone", lambda: not any(map(alive, members)), seconds=60)
    until("the node lost", lambda: ready(kubectl, "cloud-1") == "Unknown")

    def replacement() -> bool:
        items = json.loads(pods("get", "pods", "-o", "json"))["items"]
        return any(
            item["spec"]["nodeName"] == "system-1" and item["status"].get("phase") == "Running"
            for item in items
            if "nodeName" in item["spec"]
        )

    until("a replacement on another node", replacement)
    cluster.start_node("cloud-1")
    until("the node back", lambda: ready(kubectl, "cloud-1") == "True")
    until("the old pod gone", lambda: name not in pods("get", "pods", "-o", "name"))
    until("no unreachable taint", lambda: "unreachable" not in json.dumps(node(kubectl, "cloud-1")["spec"]))


def test_an_agent_that_is_asked_to_stop_ends_its_pods_in_peace(pods: Pods, state_home: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    program = (
        "import signal, sys, time\n"
        "def end(*_): open(sys.argv[1], 'a').write('bye'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\ntime.sleep(600)"
    )
    hosts = {"nodeSelector": {"kubernetes.io/hostname": "edge-2"}}
    pods.apply(pod("calm", container(program, str(trace)), restartPolicy="Always", **hosts))
    until("the handler is set", lambda: pods.ready("calm") and pods("logs", "calm"))
    agent = agent_pid(state_home, "edge-2")
    assert agent is not None
    os.kill(agent, signal.SIGTERM)
    until("a farewell", lambda: trace.exists() and trace.read_text() == "bye", seconds=60)
    until("a new run", lambda: pods.status("calm").get("restartCount") == 1 and pods.status("calm")["ready"])
    assert pods.status("calm")["lastState"]["terminated"]["exitCode"] == 0


def test_a_deleted_node_object_is_registered_again(kubectl: Kubectl) -> None:
    kubectl("delete", "node", "edge-2")
    until("the node back", lambda: "edge-2" in kubectl("get", "nodes", "-o", "name"))
    until("the node ready", lambda: ready(kubectl, "edge-2") == "True")
    assert "splitplane.dev/tier" in json.dumps(node(kubectl, "edge-2")["spec"]["taints"])

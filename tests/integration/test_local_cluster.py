"""The embedded cluster's life: up, down, again, interrupted, and with a part of it killed."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from splitplane.domain.times import timestamp
from splitplane.local import report
from splitplane.local.addresses import Addresses
from splitplane.local.cluster import Cluster
from splitplane.local.config import ClusterConfig
from splitplane.local.errors import LocalError
from splitplane.local.processes import Process, marked
from tests.support.agent_pods import Object, Pods, container, pod

pytestmark = pytest.mark.integration

Kubectl = Callable[..., str]
BARE = ClusterConfig(nodes=())
"""A control plane without nodes: enough to be started, stopped and broken."""


@pytest.fixture
def own(state_home: Path) -> Iterator[Cluster]:
    """A cluster of the test's own, not started."""
    cluster = Cluster.of(f"own-{os.getpid()}")
    yield cluster
    cluster.down(purge=True)


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("splitplane")), "local", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=120)


def until(condition: Callable[[], Any], seconds: float = 120.0, *, pause: float = 0.1) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(pause)
    return value


def processes(cluster: Cluster) -> list[Process]:
    return marked(str(cluster.paths.root))


def open_ports(addresses: Addresses) -> list[str]:
    found = []
    for name, port in addresses.ports.items():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                found.append(name)
    return found


def pids(cluster: Cluster) -> dict[str, int]:
    return {name: part["pid"] for name, part in cluster.status()["components"].items()}


def kubectl_of(cluster: Cluster, *arguments: str, stdin: str | None = None) -> str:
    result = subprocess.run(
        [cluster.binaries()["kubectl"], f"--kubeconfig={cluster.paths.kubeconfig}", *arguments],
        input=stdin, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.stdout + result.stderr


def test_a_second_up_is_a_no_op_and_down_leaves_nothing_but_state(own: Cluster) -> None:
    assert own.up(BARE)
    before = pids(own)
    addresses = Addresses.read(own.paths.addresses)
    assert addresses
    assert open_ports(addresses)
    kubectl_of(own, "create", "configmap", "kept", "--from-literal=a=b")

    assert not own.up()
    assert pids(own) == before
    with pytest.raises(LocalError, match="another configuration"):
        own.up(ClusterConfig.model_validate({"nodes": [{"name": "a"}]}))

    assert own.down()
    assert processes(own) == []
    assert open_ports(addresses) == []
    assert not own.down()

    assert own.up()
    assert Addresses.read(own.paths.addresses) == addresses
    assert kubectl_of(own, "get", "configmap", "kept", "-o", "jsonpath={.data.a}") == "b"

    own.down(purge=True)
    assert not own.paths.root.exists()
    assert processes(own) == []


def server(node: str) -> Object:
    """A pod on ``node`` that is ready when its probe says so."""
    probe = {"exec": {"command": ["python", "-c", ""]}, "periodSeconds": 1}
    sleeper = container("import time; time.sleep(10**6)", readinessProbe=probe)
    return pod("server", sleeper, nodeName=node, restartPolicy="Always", terminationGracePeriodSeconds=1)


def test_a_cluster_comes_back_with_its_pods_ready_and_without_nodes_taken_away(own: Cluster) -> None:
    def nodes(*names: str) -> ClusterConfig:
        return ClusterConfig.model_validate({"nodes": [{"name": name} for name in names]})

    own.up(nodes("a", "b"))
    pods = Pods(partial(kubectl_of, own), "default")
    pods.apply(server("a"))
    pods.ready("server")

    own.down()
    own.up(nodes("a"))
    assert kubectl_of(own, "get", "nodes", "-o", "name").split() == ["node/a"]
    until(lambda: pods.status("server")["restartCount"] == 1)
    pods.ready("server")

    own.down()
    own.up(nodes("a", "b"))
    assert kubectl_of(own, "get", "nodes", "-o", "name").split() == ["node/a", "node/b"]
    until(lambda: pods.status("server")["restartCount"] == 2)
    pods.ready("server")


def test_a_pod_that_another_marks_unready_is_ready_again_at_once(kubectl: Kubectl, namespace: str) -> None:
    pods = Pods(kubectl, namespace)
    pods.apply(server("system-1"))
    pods.ready("server")
    for _ in range(5):
        # As the node lifecycle controller does with the pods of a node that it holds for lost.
        unready = {"type": "Ready", "status": "False", "lastTransitionTime": timestamp(time.time())}
        pods("patch", "pod", "server", "--subresource=status", "-p", json.dumps({"status": {"conditions": [unready]}}))
        pods.ready("server")


def test_killed_components_come_back(own: Cluster) -> None:
    own.up(BARE)
    before = own.status()["components"]
    for name in ("kube-scheduler", "etcd", "kube-apiserver"):
        Process(before[name]["pid"], before[name]["started"]).signal(signal.SIGKILL)
    until(lambda: all(own.status()["components"][name]["restarts"] == 1 for name in ("etcd", "kube-apiserver")))
    until(lambda: all(part["ready"] for part in own.status()["components"].values()))
    assert own.status()["components"]["etcd"]["lastExit"] == "signal SIGKILL"
    assert "default" in until(lambda: kubectl_of(own, "get", "namespaces", "-o", "name"))


def test_down_ends_what_a_killed_supervisor_left(own: Cluster) -> None:
    own.up(BARE)
    supervisor = own.status()["supervisor"]
    Process(supervisor["pid"], supervisor["started"]).signal(signal.SIGKILL)
    until(lambda: not own.running)
    assert processes(own)
    assert own.down()
    assert processes(own) == []


def held(cluster: Cluster, part: str) -> Process:
    """The process of ``part`` as soon as it is there, stopped: the cluster cannot get ready without it."""

    def running() -> Process | None:
        status = cluster.status()
        found = {**status.get("components", {}), **status.get("nodes", {})}.get(part) or {}
        return Process(found["pid"], found["started"]) if found.get("pid") else None

    process: Process = until(running, pause=0.01)
    process.signal(signal.SIGSTOP)
    return process


@contextmanager
def started(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that runs; killed if the test has not ended it."""
    # A shell that runs the tests in its background has them ignore SIGINT, and so would the command.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heeding
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("part", "number"),
    [
        ("", signal.SIGINT),
        ("etcd", signal.SIGTERM),
        ("kube-apiserver", signal.SIGINT),
        ("kube-scheduler", signal.SIGTERM),
        ("edge-1", signal.SIGINT),
    ],
    ids=["at once", "etcd", "API server", "scheduler", "node agent"],
)
def test_an_up_interrupted_while_it_waits_for_a_part_leaves_no_process(
    own: Cluster, tmp_path: Path, part: str, number: int
) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text("nodes: [{name: edge-1, tier: edge}]")
    with started("up", "--name", own.paths.name, "--config", str(config)) as up:
        if part:
            held(own, part)
            assert own.status()["phase"] == "starting"
        else:
            until(own.paths.root.exists, pause=0.01)
        up.send_signal(number)
        output, _ = up.communicate(timeout=180)
    assert up.returncode == 130, output
    assert processes(own) == []
    assert not own.running


def test_a_cluster_that_cannot_start_says_why_and_ends(own: Cluster) -> None:
    own.paths.etcd.mkdir(parents=True)
    (own.paths.etcd / "member").write_text("not a folder")
    with pytest.raises(LocalError, match="etcd does not start"):
        own.up(BARE)
    assert processes(own) == []


def test_authentication_and_rights_are_on(cluster: Cluster, kubectl: Kubectl) -> None:
    addresses = Addresses.read(cluster.paths.addresses)
    assert addresses
    trusting = ssl.create_default_context(cafile=str(cluster.paths.pki / "ca.crt"))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{addresses.api_server}/api/v1/namespaces", context=trusting)
    trusting.load_cert_chain(cluster.paths.pki / "admin.crt", cluster.paths.pki / "admin.key")
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", addresses.port("etcd"))) as bare,
        trusting.wrap_socket(bare) as etcd,
    ):
        etcd.sendall(b"GET /health HTTP/1.1\r\nHost: etcd\r\n\r\n")
        with pytest.raises(ssl.SSLError):  # the API's own administrator is nobody to etcd
            etcd.recv(1)
    node = f"--kubeconfig={cluster.paths.node('edge-1') / 'kubeconfig'}"
    assert "forbidden" in kubectl(node, "get", "secrets", "-A", check=False)
    assert "forbidden" in kubectl(node, "label", "node", "edge-2", "a=b", check=False)
    prometheus = f"--kubeconfig={cluster.paths.kubeconfigs / 'prometheus'}"
    assert kubectl(prometheus, "auth", "can-i", "list", "pods", "-A").strip() == "yes"
    assert "forbidden" in kubectl(prometheus, "get", "secrets", "-A", check=False)
    for path in (cluster.paths.kubeconfig, *cluster.paths.pki.glob("*.key")):
        assert path.stat().st_mode & 0o077 == 0


def test_claims_get_file_backed_volumes_that_go_with_them(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }  # fmt: skip
    kubectl("apply", "-f", "-", stdin=claim)
    kubectl("wait", "-n", namespace, "pvc/data", "--for=jsonpath={.status.phase}=Bound", "--timeout=120s")
    volume = kubectl("get", "-n", namespace, "pvc/data", "-o", "jsonpath={.spec.volumeName}")
    folder = Path(kubectl("get", "pv", volume, "-o", "jsonpath={.spec.hostPath.path}"))
    assert folder.is_dir()
    assert folder.parent == cluster.paths.volumes
    kubectl("delete", "-n", namespace, "pvc/data", "--timeout=120s")
    until(lambda: not folder.exists())
    until(lambda: volume not in kubectl("get", "pv", "-o", "name"))


def test_the_cluster_says_where_prometheus_is(cluster: Cluster, kubectl: Kubectl) -> None:
    url = kubectl("get", "-n", "kube-public", "configmap/splitplane-local", "-o", "jsonpath={.data.prometheusUrl}")
    assert url == report.describe(cluster)["prometheusUrl"]


def test_status_tells_nodes_links_and_what_is_emulated(cluster: Cluster) -> None:
    name = cluster.paths.name
    assert run("link", "edge", "cloud", "--rate", "3Mbit", "--delay", "5ms", "--name", name).returncode == 0
    assert run("node", "price", "cloud-1", "1.25", "--name", name).returncode == 0
    value = json.loads(run("status", "--name", name, "--output", "json").stdout)
    assert value["phase"] == "ready"
    assert {node["name"]: (node["tier"], node["state"]) for node in value["nodes"]} == {
        "system-1": (None, "ready"), "edge-1": ("edge", "ready"), "edge-2": ("edge", "ready"),
        "cloud-1": ("cloud", "ready"),
    }  # fmt: skip
    assert value["links"] == [{"between": ["cloud", "edge"], "rate": "3Mbit", "delay": "5ms", "down": False}]
    assert {node["name"]: node["pricePerHour"] for node in value["nodes"]}["cloud-1"] == 1.25
    assert [text.split(":")[0] for text in value["emulated"]] == [
        "device speed",
        "machines of their own",
        "links between tiers",
    ]
    assert value["versions"]["kube-apiserver"].startswith("1.37.")
    assert value["residentBytes"] > 2**27
    table = run("status", "--name", name).stdout
    assert "Emulated" in table
    assert "3Mbit" in table
    run("link", "edge", "cloud", "--rate", "unlimited", "--delay", "0", "--name", name)
    run("node", "price", "cloud-1", "0.4", "--name", name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("link", "edge", "mars"), "no tier 'mars'"),
        (("link", "edge", "cloud", "--rate", "3"), "3Mbit"),
        (("node", "stop", "edge-9"), "no node 'edge-9'"),
        (("logs", "kubelet"), "no log of 'kubelet'"),
        (("up", "--config", "/no/such/file"), "Cannot read"),
    ],
)
def test_a_wrong_command_says_what_would_be_right(cluster: Cluster, arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments, "--name", cluster.paths.name)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_commands_for_a_cluster_that_is_not_there_say_how_to_start_it(state_home: Path) -> None:
    for arguments in (
        ("kubeconfig",), ("status",), ("node", "stop", "edge-1"), ("install",),
        ("link", "edge", "cloud", "--rate", "3Mbit"), ("node", "price", "cloud-1", "5"),
    ):  # fmt: skip
        result = run(*arguments, "--name", "nobody")
        assert result.returncode == 1
        assert "splitplane local up" in result.stderr

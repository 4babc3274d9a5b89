"""The gateway's own process on a real API server, with the rights that the operator grants it, over real stages."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitplane.api.pipelines import InferencePipeline
from splitplane.controller import children
from splitplane.domain.profiles import TensorSpec
from splitplane.local.cluster import Cluster
from splitplane.local.config import ClusterConfig
from splitplane.model import ModelSource, export

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "models"
sys.path.insert(0, str(EXAMPLES))

import pitch_tracker  # noqa: E402
import tritonclient.grpc as triton  # noqa: E402

from tests.support.gateway_rig import free_address  # noqa: E402
from tests.support.kubectl import Kubectl, kubectl_for  # noqa: E402

FRAMES = np.random.default_rng(5).standard_normal((2, 1024)).astype(np.float32)
SECONDS = 60.0


def wait(condition: Callable[[], Any], *, seconds: float = SECONDS, what: str = "the condition") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


class Process:
    """A pod's process at an address of its own."""

    def __init__(self, module: str, log: Path, **environment: str) -> None:
        self.ip, self.log = free_address(), log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stderr=file,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(EXAMPLES),
                    "SPLITPLANE_PIPELINE": "tracker",
                    "SPLITPLANE_POD_NAME": f"pod-{self.ip}",
                    "SPLITPLANE_POD_IP": self.ip,
                    **environment,
                },
            )

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with triton.InferenceServerClient(f"{self.ip}:9000") as client:
            try:
                return bool(client.is_server_ready())
            except triton.InferenceServerException:
                return False

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def api(start_cluster: Callable[[ClusterConfig | None], Cluster]) -> Cluster:
    """An API server with the custom resources and no node: the test plays kubelet and operator."""
    cluster = start_cluster(ClusterConfig(nodes=()))
    crds = [argument for file in sorted((ROOT / "crds").glob("*.yaml")) for argument in ("-f", str(file))]
    kubectl_for(cluster.paths.kubeconfig)("apply", "--server-side", *crds)
    kubectl_for(cluster.paths.kubeconfig)("wait", "--for=condition=Established", "crd", "--all", "--timeout=120s")
    return cluster


@pytest.fixture
def kubectl(api: Cluster) -> Kubectl:
    return kubectl_for(api.paths.kubeconfig)


@pytest.fixture
def ns(kubectl: Kubectl) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def account(kubectl: Kubectl, ns: str, folder: Path) -> Path:
    """The gateway's ServiceAccount as the operator makes it, and a kubeconfig with its token."""
    pipeline = InferencePipeline.model_construct(  # type: ignore[call-arg]  # only its name counts here
        metadata=type("Metadata", (), {"name": "tracker", "namespace": ns, "uid": "0"})()
    )
    rules = [
        {"apiGroups": ["splitplane.dev"], "resources": ["routetables"], "resourceNames": ["tracker"],
         "verbs": ["list", "watch"]},
        {"apiGroups": ["splitplane.dev"], "resources": ["routetables/status"], "resourceNames": ["tracker"],
         "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    ]  # fmt: skip
    for body in children.service_account_objects(pipeline, "tracker-gateway", "gateway", rules):
        body["metadata"].pop("ownerReferences", None)
        kubectl("apply", "-f", "-", stdin=body)
    token = kubectl("-n", ns, "create", "token", "tracker-gateway").strip()
    config = json.loads(kubectl("config", "view", "--raw", "-o", "json"))
    config["users"] = [{"name": "gateway", "user": {"token": token}}]
    config["contexts"] = [{"name": "g", "context": {"cluster": config["clusters"][0]["name"], "user": "gateway"}}]
    config["current-context"] = "g"
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def put_pod(kubectl: Kubectl, ns: str, stage: str, ip: str) -> None:
    labels = {
        "splitplane.dev/pipeline": "tracker",
        "app.kubernetes.io/component": "stage",
        "splitplane.dev/stage": stage,
    }
    spec = {"schedulerName": "none", "automountServiceAccountToken": False,
            "containers": [{"name": "stage", "image": "stage"}]}  # fmt: skip
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": stage, "namespace": ns, "labels": labels},
            "spec": spec}  # fmt: skip
    kubectl("create", "-f", "-", stdin=body)
    status = {"podIP": ip, "podIPs": [{"ip": ip}], "phase": "Running",
              "conditions": [{"type": "Ready", "status": "True"}]}  # fmt: skip
    kubectl("-n", ns, "patch", "pod", stage, "--subresource=status", "-p", json.dumps({"status": status}))


def table(ns: str, generation: int, *names: str) -> dict[str, Any]:
    edge, cloud = {"stage": "s-edge", "tier": "edge"}, {"stage": "s-cloud", "tier": "cloud"}
    routes = {
        "split": {"name": "split", "stages": [{**edge, "first": 0, "last": 3}, {**cloud, "first": 3, "last": 7}],
                  "codecs": ["fp32"], "maxRatePerSecond": "100"},
        "alone": {"name": "alone", "stages": [{**edge, "first": 0, "last": 7}], "maxRatePerSecond": "100"},
    }  # fmt: skip
    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "RouteTable",
        "metadata": {"name": "tracker", "namespace": ns},
        "spec": {
            "generation": generation,
            "model": {
                "name": "tracker",
                "inputs": [{"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}],
                "outputs": [{"name": "output_0", "datatype": "FP32", "shape": [-1, 360]}],
            },
            "routes": [routes[name] for name in names],
            "stages": ["s-edge", "s-cloud"],
        },
    }


def infer(gateway: Process) -> tuple[str, Any]:
    """(route that served, answer) of one request of an ordinary client."""
    tensor = triton.InferInput("frames", FRAMES.shape, "FP32")
    tensor.set_data_from_numpy(FRAMES)
    with triton.InferenceServerClient(f"{gateway.ip}:9000") as client:
        answer = client.infer("tracker", [tensor], client_timeout=30)
    return answer.get_response().parameters["splitplane_plan"].string_param, answer.as_numpy("output_0")


@pytest.mark.integration
def test_routes_are_followed_acknowledged_and_kept_while_stages_and_the_api_server_go_away(
    api: Cluster, kubectl: Kubectl, ns: str, tmp_path: Path
) -> None:
    weights = tmp_path / "tiny.safetensors"
    digest = pitch_tracker.save(weights, "tiny")
    source = ModelSource("tracker", "pitch_tracker:build_tiny", weights.as_uri(), digest,
                         (TensorSpec("frames", "FP32", (1024,)),))  # fmt: skip
    model = {"name": "tracker", "factory": source.factory, "weights": {"uri": weights.as_uri(), "sha256": digest},
             "inputs": [{"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}]}  # fmt: skip
    shared = {"SPLITPLANE_NAMESPACE": ns, "SPLITPLANE_MODEL": json.dumps(model),
              "SPLITPLANE_FINGERPRINT": export(source).fingerprint}  # fmt: skip
    own = {"SPLITPLANE_NAMESPACE": ns, "SPLITPLANE_TIER": "edge", "SPLITPLANE_ROUTE_TABLE": "tracker",
           "SPLITPLANE_STATE_DIR": str(tmp_path / "state"),
           "KUBECONFIG": str(account(kubectl, ns, tmp_path))}  # fmt: skip
    processes: list[Process] = []

    def start(module: str, name: str, **environment: str) -> Process:
        processes.append(Process(f"splitplane.runtime.{module}", tmp_path / f"{name}.log", **environment))
        return processes[-1]

    def status() -> dict[str, Any]:
        """Of the gateway that is furthest: one that ended leaves its own, for the operator to clear away."""
        told = json.loads(kubectl("-n", ns, "get", "rtable", "tracker", "-o", "json")).get("status", {})
        gateways = told.get("gateways", {}).values()
        return max(gateways, key=lambda gateway: gateway["acknowledgedGeneration"], default={})

    try:
        edge = start("stage", "edge", SPLITPLANE_TIER="edge", SPLITPLANE_RESIDENT="0:7", **shared)
        cloud = start("stage", "cloud", SPLITPLANE_TIER="cloud", SPLITPLANE_RESIDENT="3:7", **shared)
        gateway = start("gateway", "gateway", **own)
        kubectl("apply", "-f", "-", stdin=table(ns, 1))
        put_pod(kubectl, ns, "s-edge", edge.ip)
        put_pod(kubectl, ns, "s-cloud", cloud.ip)
        admitted = [{"name": "s-cloud", "ready": 1}, {"name": "s-edge", "ready": 1}]
        wait(lambda: sorted(status().get("stages", ()), key=lambda s: s["name"]) == admitted, what="two endpoints")
        assert status()["acknowledgedGeneration"] == 1
        assert not gateway.ready()

        kubectl("apply", "-f", "-", stdin=table(ns, 2, "split", "alone"))
        wait(gateway.ready, what="the gateway")
        wait(lambda: status()["acknowledgedGeneration"] == 2, what="generation 2")
        plan, split_answer = infer(gateway)
        assert plan == "split"

        kubectl("apply", "-f", "-", stdin=table(ns, 3, "alone"))
        wait(lambda: status()["acknowledgedGeneration"] == 3, what="generation 3")
        plan, whole_answer = infer(gateway)
        assert plan == "alone"
        assert np.abs(split_answer - whole_answer).max() <= 1e-5

        # A node is lost: the API still calls the pod ready, and the client must not notice.
        kubectl("apply", "-f", "-", stdin=table(ns, 4, "split", "alone"))
        wait(lambda: status()["acknowledgedGeneration"] == 4, what="generation 4")
        assert infer(gateway)[0] == "split"
        cloud.kill()
        assert infer(gateway)[0] == "alone"
        wait(lambda: {"name": "s-cloud", "ready": 0} in status()["stages"], what="the report of the loss")

        # The API server goes away, and so does the gateway: the next one goes on from its disk.
        api.down()
        assert infer(gateway)[0] == "alone"
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(40) == 0
        again = start("gateway", "again", **own)
        wait(again.ready, what="the restarted gateway")
        assert infer(again)[0] == "alone"

        api.up(None)
        kubectl("apply", "-f", "-", stdin=table(ns, 5, "alone"))
        wait(lambda: status()["acknowledgedGeneration"] == 5, what="generation 5")
        assert infer(again)[0] == "alone"
    finally:
        for process in processes:
            process.kill()

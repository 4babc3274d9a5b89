"""Resident memory of the operator that looks after ten pipelines on the embedded cluster.

The operator runs as the chart installs it and plans for the measured pitch tracker. The pods that would hold the model
name an image that does not exist, so that they wait and ten times a model's memory is not needed; the gateways are
real, so are the metrics.

    python -m benchmarks.operator_memory
"""

import json
import os
import subprocess
import tempfile
import time
from typing import Any

import psutil

from benchmarks._report import Row, row, write
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.profiles import from_profile
from splitplane.api.tensors import Tensor
from splitplane.controller.naming import profile_name
from splitplane.local import binaries, install
from splitplane.local.cluster import Cluster
from tests.support.planner_cases import crepe

PIPELINES = 10
LIMIT_MEGABYTES = 200.0
SETTLE_SECONDS = 45.0
NAMESPACE = "bench"


def main() -> list[Row]:
    """Megabytes of resident memory: with ten pipelines against the limit, and without any."""
    with tempfile.TemporaryDirectory() as state:
        before = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = state
        cluster = Cluster.of("bench-operator")
        try:
            cluster.up()
            return _measured(cluster)
        finally:
            cluster.down(purge=True)
            os.environ.pop("XDG_STATE_HOME")
            if before is not None:
                os.environ["XDG_STATE_HOME"] = before


def _measured(cluster: Cluster) -> list[Row]:
    install.install(cluster, helm=binaries.ensure("helm"), chart=install.find_chart())
    operator = _operator(cluster)
    idle = operator.memory_info().rss
    _kubectl(cluster, "create", "namespace", NAMESPACE)
    bodies = [_pipeline(f"tracker-{number}") for number in range(PIPELINES)]
    _kubectl(cluster, "apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": [_profile(bodies[0])]})
    _kubectl(cluster, "apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": bodies})
    deadline = time.monotonic() + 120
    while not all(pipeline.get("status", {}).get("decisions") for pipeline in _pipelines(cluster)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all pipelines were planned: {[p.get('status') for p in _pipelines(cluster)]}")
        time.sleep(1.0)
    peak = 0
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        peak = max(peak, operator.memory_info().rss)
        time.sleep(0.5)
    return [
        row(f"operator: memory with {PIPELINES} pipelines", peak / 1e6, "MB", LIMIT_MEGABYTES),
        row("operator: memory without pipelines", idle / 1e6, "MB"),
    ]


def _operator(cluster: Cluster) -> psutil.Process:
    """The operator's process, among those of this cluster."""
    for process in psutil.process_iter(["pid", "cmdline"]):
        if "splitplane.controller" in (process.info["cmdline"] or ()) and str(cluster.paths.root) in str(
            process.environ()
        ):
            return process
    raise RuntimeError("the operator's process was not found")


def _kubectl(cluster: Cluster, *arguments: str, stdin: Any = None) -> str:
    command = [str(binaries.ensure("kubectl")), f"--kubeconfig={cluster.paths.kubeconfig}", *arguments]
    text = None if stdin is None else json.dumps(stdin)
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=60).stdout


def _pipelines(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_kubectl(cluster, "-n", NAMESPACE, "get", "ipipe", "-o", "json"))["items"]
    return found


def _pipeline(name: str) -> dict[str, Any]:
    def tier(name: str, **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "nodeSelector": {"splitplane.dev/tier": name},
            "tolerations": [{"key": "splitplane.dev/tier", "operator": "Exists", "effect": "NoSchedule"}],
            "deviceClass": name,
            "replicas": {"max": 8},
            "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}},
            "pricePerHour": "0.10",
            **more,
        }

    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "InferencePipeline",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {
                "factory": "pitch_tracker:build",
                "image": "registry.example/nothing:1",
                "weights": {"uri": "file:///models/crepe.safetensors", "sha256": "0" * 64},
                "inputs": [{"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}],
            },
            "objectives": {"latencyP95Milliseconds": 900, "maxCostPerHour": "2", "rawInputStaysTrusted": True},
            "tiers": [tier("edge", trusted=True), tier("cloud")],
            "partitioning": {"codecs": ["fp32", "fp16", "int8"]},
            "replanning": {"intervalSeconds": 5, "cooldownSeconds": 5, "scaleDownWindowSeconds": 5},
            "gateway": {"tier": "edge"},
        },
    }


def _profile(pipeline: dict[str, Any]) -> dict[str, Any]:
    """The measurements of the pitch tracker, under the name that the operator looks for."""
    parsed = InferencePipeline.parse(pipeline)
    model = parsed.spec.model
    profile = crepe()
    tensor = tuple(Tensor(name=each.name, datatype=each.datatype, shape=each.shape) for each in model.inputs)
    spec = from_profile(
        profile, factory=model.factory, weights_sha256=model.weights.sha256, inputs=tensor, outputs=tensor,
        segment_names=[f"segment-{index}" for index in range(profile.segments)],
    )  # fmt: skip
    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "ModelProfile",
        "metadata": {"name": profile_name(parsed.spec, ""), "namespace": NAMESPACE},
        "spec": spec.dump(),
    }


if __name__ == "__main__":
    write("operator", main())

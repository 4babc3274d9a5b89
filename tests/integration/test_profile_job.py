"""A profile job on the real control plane: what it may touch, what it leaves, and that slower nodes measure slower."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitplane.domain.profiles import CODECS
from splitplane.domain.profiles_io import from_dict

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    sys.path.insert(0, str(EXAMPLES))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    digest = importlib.import_module("pitch_tracker").save(path, "tiny")
    return json.dumps(
        {
            "name": "tracker",
            "factory": "pitch_tracker:build_tiny",
            "weights": {"uri": path.as_uri(), "sha256": digest},
            "inputs": [{"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}],
        }
    )


@pytest.fixture
def credentials(kubectl: Kubectl, kubeconfig: Path, namespace: str, tmp_path: Path) -> Path:
    """A kubeconfig of a ServiceAccount that may get and patch the ConfigMap ``result`` and nothing else."""
    kubectl("-n", namespace, "create", "serviceaccount", "job")
    rights = ("--verb=patch", "--resource=configmaps", "--resource-name=result")
    kubectl("-n", namespace, "create", "role", "job", *rights)
    kubectl("-n", namespace, "create", "rolebinding", "job", "--role=job", f"--serviceaccount={namespace}:job")
    config = yaml.safe_load(kubeconfig.read_text())
    token = kubectl("-n", namespace, "create", "token", "job").strip()
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def profile(credentials: Path, namespace: str, model: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "splitplane.runtime.profile_job"],
        env={
            "PATH": os.environ["PATH"], "PYTHONPATH": str(EXAMPLES), "OMP_NUM_THREADS": "1",
            "KUBECONFIG": str(credentials), "SPLITPLANE_NAMESPACE": namespace, "SPLITPLANE_MODEL": model,
            "SPLITPLANE_RESULT_CONFIGMAP": "result", "SPLITPLANE_DEVICE_CLASS": "x86", **more,
        },
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def config_map(kubectl: Kubectl, namespace: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(kubectl("-n", namespace, "get", "configmap", "result", "-o", "json"))
    return body


def test_the_result_is_patched_in_beside_what_the_operator_wrote(
    kubectl: Kubectl, namespace: str, credentials: Path, model: str
) -> None:
    kubectl("-n", namespace, "create", "configmap", "result", "--from-literal=note=kept")
    kubectl("-n", namespace, "label", "configmap", "result", "app.kubernetes.io/name=splitplane")
    job = profile(credentials, namespace, model)
    assert job.returncode == 0, job.stderr
    body = config_map(kubectl, namespace)
    assert body["data"]["note"] == "kept"
    assert body["metadata"]["labels"] == {"app.kubernetes.io/name": "splitplane"}
    result = from_dict(json.loads(body["data"]["result.json"]))
    device = result.device
    assert result.model == "tracker"
    assert device.device_class == "x86"
    assert result.segment_names[0] == "conv1"
    assert list(device.prefix_seconds) == sorted(device.prefix_seconds)
    assert device.prefix_seconds[0] == 0.0 < device.prefix_seconds[-1]
    assert set(device.codec_times) == set(CODECS)
    assert device.overhead_seconds > 0.0
    assert device.base_memory_bytes > 50e6
    assert "result written" in job.stderr.splitlines()[-1]


def test_a_slower_emulated_node_measures_slower(
    kubectl: Kubectl, namespace: str, credentials: Path, model: str
) -> None:
    kubectl("-n", namespace, "create", "configmap", "result")
    seconds = []
    for factor in ("1", "20"):
        job = profile(credentials, namespace, model, SPLITPLANE_SPEED_FACTOR=factor)
        assert job.returncode == 0, job.stderr
        data = json.loads(config_map(kubectl, namespace)["data"]["result.json"])
        seconds.append(from_dict(data).device.prefix_seconds[-1])
    assert seconds[1] > 5 * seconds[0]  # twenty times, were the machine quiet


def test_a_result_without_a_place_to_go_is_told_and_given_up(namespace: str, credentials: Path, model: str) -> None:
    job = profile(credentials, namespace, model)
    assert job.returncode == 6
    assert "result" in job.stderr.splitlines()[-1]

"""An API server that holds the custom resources and nothing else: no node, no operator."""

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from splitplane.local import binaries
from splitplane.local.cluster import Cluster
from splitplane.local.config import ClusterConfig

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "splitplane"
Helm = Callable[..., str]
Ask = Callable[..., tuple[bool, str]]


@pytest.fixture(scope="package")
def api_kubeconfig(start_cluster: Callable[[ClusterConfig | None], Cluster]) -> Path:
    """The administrator's kubeconfig of a control plane without nodes."""
    return start_cluster(ClusterConfig(nodes=())).paths.kubeconfig


@pytest.fixture(scope="package")
def helm(api_kubeconfig: Path) -> Helm:
    """``helm("upgrade", ...)`` in the namespace splitplane-system; fails the test with Helm's own words."""
    program = binaries.ensure("helm")

    def run(*arguments: str) -> str:
        command = [str(program), f"--kubeconfig={api_kubeconfig}", "--namespace=splitplane-system", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            pytest.fail(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    return run


@pytest.fixture(scope="package")
def installed(helm: Helm) -> Iterator[None]:
    """The chart, installed by Helm."""
    helm("upgrade", "--install", "splitplane", str(CHART), "--create-namespace",
         "--set=prometheus.url=http://prometheus.example:9090")  # fmt: skip
    yield
    helm("uninstall", "splitplane")


@pytest.fixture(scope="package")
def ask(api_kubeconfig: Path) -> Ask:
    """``ask("get", "crd", user="system:...", stdin={...})``: whether kubectl succeeded, and all that it said."""
    program = binaries.ensure("kubectl")

    def run(*arguments: str, user: str = "", stdin: Any = None) -> tuple[bool, str]:
        command = [str(program), f"--kubeconfig={api_kubeconfig}", *([f"--as={user}"] if user else []), *arguments]
        text = None if stdin is None else json.dumps(stdin)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture
def restricted(ask: Ask, installed: None) -> Iterator[str]:
    """A fresh namespace that takes only pods of Pod Security's level ``restricted``."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    made, said = ask("create", "-f", "-", stdin=namespace)
    assert made, said
    yield name
    ask("delete", "namespace", name, "--wait=false")

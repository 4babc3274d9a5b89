"""`make manifest`: one file that installs Splitplane by kubectl alone, and takes all of it away."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from splitplane.local.addresses import Addresses
from splitplane.local.cluster import Cluster
from splitplane.local.config import ClusterConfig, NodeConfig
from tests.support import operator_cases as cases
from tests.support.kubectl import Kubectl, kubectl_for

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
NAMESPACE = "splitplane-system"
CHILDREN = (
    "deployments,jobs,services,configmaps,secrets,serviceaccounts,roles,rolebindings,"
    "poddisruptionbudgets,networkpolicies"
)


@pytest.fixture(scope="module")
def own(start_cluster: Callable[[ClusterConfig | None], Cluster]) -> Iterator[Cluster]:
    """A cluster of these tests' own, since they take the CRDs away: a node for the operator and one of a tier."""
    cluster = start_cluster(ClusterConfig(nodes=(NodeConfig(name="system-1"), NodeConfig(name="edge-1", tier="edge"))))
    yield cluster
    cluster.down(purge=True)


@pytest.fixture(scope="module")
def kubectl(own: Cluster) -> Kubectl:
    return kubectl_for(own.paths.kubeconfig)


def make_manifest(file: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--silent", "manifest", f"MANIFEST={file}", *settings]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PROMETHEUS"))}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )  # fmt: skip


@pytest.fixture(scope="module")
def manifest(own: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    addresses = Addresses.read(own.paths.addresses)
    assert addresses is not None
    file = tmp_path_factory.mktemp("manifest") / "build" / "install.yaml"
    done = make_manifest(file, f"PROMETHEUS_URL={addresses.prometheus_url}")
    assert done.returncode == 0, done.stderr
    return file


def ours(kubectl: Kubectl) -> list[str]:
    """Every object of the cluster that is Splitplane's, as kind/namespace/name."""
    kinds = ",".join(kubectl("api-resources", "--verbs=list", "--output=name").split())
    found = json.loads(kubectl("get", kinds, "--all-namespaces", "--output=json", timeout=120))["items"]
    names = []
    for item in found:
        metadata = item["metadata"]
        name = f"{item['kind']}/{metadata.get('namespace', '')}/{metadata['name']}"
        labels = metadata.get("labels", {}).get("app.kubernetes.io/name", "")
        if labels == "splitplane" or metadata["name"].endswith("splitplane.dev") or NAMESPACE in name:
            names.append(name)
    return sorted(names)


def test_one_file_installs_a_working_operator_is_unchanged_when_applied_again_and_leaves_nothing(
    kubectl: Kubectl, manifest: Path
) -> None:
    documents = [document for document in yaml.safe_load_all(manifest.read_text()) if document]
    assert documents[0]["kind"] == "Namespace"
    before = ours(kubectl)
    assert before == []

    said = kubectl("apply", "--filename", str(manifest)).splitlines()
    assert len(said) == len(documents)
    assert all(line.endswith(" created") for line in said)
    kubectl(
        f"--namespace={NAMESPACE}", "rollout", "status", "deployment/splitplane", "--timeout=90s", timeout=100
    )  # fmt: skip
    kubectl(
        f"--namespace={NAMESPACE}", "rollout", "status", "daemonset/splitplane-link-target", "--timeout=60s", timeout=70
    )  # fmt: skip

    kubectl("apply", "--filename=-", stdin=cases.pipeline("first", cases.model("0" * 64), cases.tier("edge")))
    cases.wait(lambda: "Deployment/default/first-gateway" in ours(kubectl), seconds=60,
               what="the gateway that the operator makes")  # fmt: skip

    again = kubectl("apply", "--filename", str(manifest)).splitlines()
    assert [line for line in again if not line.endswith(" unchanged")] == []
    assert len(again) == len(documents)

    # As docs/install.md says: the garbage collector needs the CRDs, to see that a child's owner has gone.
    kubectl("delete", "ipipe", "--all", "--all-namespaces")
    # It looks for new kinds each 30 s, and until then tries each child again after pauses that double: on busy cores a
    # child of a definition that is a minute old has stayed for more than two.
    kubectl("wait", "--for=delete", CHILDREN, "--selector=splitplane.dev/pipeline", "--all-namespaces",
            "--timeout=300s", timeout=330)  # fmt: skip
    kubectl("delete", "--filename", str(manifest), "--timeout=120s", timeout=150)
    cases.wait(lambda: ours(kubectl) == [], seconds=90, what=lambda: f"nothing left, not {ours(kubectl)}")


def test_without_the_address_of_prometheus_no_file_is_written_and_the_setting_is_named(tmp_path: Path) -> None:
    done = make_manifest(tmp_path / "install.yaml")
    assert done.returncode != 0
    assert "PROMETHEUS_URL" in done.stdout
    refused = make_manifest(tmp_path / "install.yaml", "PROMETHEUS_URL=prometheus:9090")
    assert refused.returncode != 0
    assert "prometheus" in refused.stderr
    assert not (tmp_path / "install.yaml").exists()

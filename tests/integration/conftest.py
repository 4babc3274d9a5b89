"""The embedded control plane for tests: one cluster for all of a process, a fresh namespace per test.

Fixtures last as long as these folders' tests: an idle cluster takes a sixth of a core from what runs after them.
"""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from splitplane.local.cluster import Cluster
from splitplane.local.config import ClusterConfig
from tests.support.kubectl import Kubectl, kubectl_for


@pytest.fixture(scope="package")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder of these tests' own: no test can meet a cluster of the user."""
    folder = tmp_path_factory.mktemp("state")
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="package")
def start_cluster(state_home: Path) -> Iterator[Callable[[ClusterConfig | None], Cluster]]:
    """Starts clusters with names of their own, and ends them with these tests, also when they are interrupted."""
    clusters: list[Cluster] = []
    before = signal.signal(signal.SIGTERM, _interrupt)

    def start(config: ClusterConfig | None = None) -> Cluster:
        cluster = Cluster.of(f"test-{uuid.uuid4().hex[:8]}")
        clusters.append(cluster)
        cluster.up(config)
        return cluster

    try:
        yield start
    finally:
        for cluster in clusters:
            cluster.down(purge=True)
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="package")
def cluster(start_cluster: Callable[[ClusterConfig | None], Cluster]) -> Cluster:
    """The cluster of these tests, with the default nodes."""
    return start_cluster(None)


@pytest.fixture(scope="package")
def kubeconfig(cluster: Cluster) -> Path:
    """The administrator's kubeconfig of that cluster."""
    return cluster.paths.kubeconfig


@pytest.fixture(scope="package")
def kubectl(kubeconfig: Path) -> Kubectl:
    """``kubectl("get", "pods", stdin=...)``: its output; fails the test with kubectl's own words."""
    return kubectl_for(kubeconfig)


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A fresh namespace. Its deletion is not awaited: that takes 5 s."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")

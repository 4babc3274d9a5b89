"""The operator as the chart installs it, on these tests' cluster, and a model that was really measured there once."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import pytest

from splitplane.local import binaries, install
from splitplane.local.addresses import Addresses
from splitplane.local.cluster import Cluster
from tests.support import operator_cases as cases


@pytest.fixture(scope="package")
def operator(cluster: Cluster) -> Callable[..., None]:
    """The chart, installed: the operator runs in a pod with the chart's ServiceAccount. Call it to change settings.

    Its windows span four of this cluster's scrapes, the shortest that the operator is made for.
    """

    def upgrade(*settings: str) -> None:
        windows = ("prometheus.windowSeconds=20", "prometheus.demandWindowSeconds=20")
        helm, chart = binaries.ensure("helm"), install.find_chart()
        install.install(cluster, helm=helm, chart=chart, settings=[*windows, *settings])

    upgrade()
    return upgrade


@pytest.fixture(scope="package")
def prometheus_url(cluster: Cluster) -> str:
    addresses = Addresses.read(cluster.paths.addresses)
    assert addresses is not None
    return addresses.prometheus_url


@pytest.fixture(scope="package")
def digest() -> str:
    return sha256(cases.weights()).hexdigest()


@pytest.fixture(scope="package")
def measured(kubectl: Callable[..., str], operator: Callable[..., None], digest: str) -> Iterator[cases.Measured]:
    """One pipeline of two tiers, from nothing to serving; it stays for the tests that only look at it."""
    with cases.Namespace.fresh(kubectl, cases.pipeline("first", cases.model(digest))) as ns:
        ns.wait_condition("first", "Ready", "True")
        yield cases.Measured(ns, "first", ns.get("mprof", ns.status("first")["profile"]))


@pytest.fixture
def profiled(kubectl: Callable[..., str], measured: cases.Measured) -> Iterator[cases.Namespace]:
    """A fresh namespace that has the measurements already."""
    with cases.Namespace.fresh(kubectl, measured.copy) as ns:
        yield ns


@pytest.fixture
def another_operator(
    kubectl: Callable[..., str], cluster: Cluster, prometheus_url: str, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts operators beside the installed one, each with a token of the chart's own ServiceAccount."""
    account = cases.wait(
        lambda: kubectl(
            "-n", install.NAMESPACE, "get", "deploy", "-l", "app.kubernetes.io/component=operator",
            "-o", "jsonpath={.items[0].spec.template.spec.serviceAccountName}",
        ),
        seconds=10, what="the operator's ServiceAccount",
    )  # fmt: skip
    token = kubectl("-n", install.NAMESPACE, "create", "token", account).strip()
    config = json.loads(kubectl("config", "view", "--raw", "-o", "json"))
    config["users"] = [{"name": "operator", "user": {"token": token}}]
    config["contexts"] = [
        {"name": "operator", "context": {"cluster": config["clusters"][0]["name"], "user": "operator"}}
    ]
    config["current-context"] = "operator"
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    kubeconfig.chmod(0o600)
    with ExitStack() as stack:

        def start(*, prometheus: str = prometheus_url, port: int) -> subprocess.Popen[bytes]:
            environment = {
                "KUBECONFIG": str(kubeconfig),
                "PATH": "/usr/bin:/bin",
                "SPLITPLANE_PROMETHEUS_URL": prometheus,
                "SPLITPLANE_RUNTIME_IMAGE": "splitplane/runtime:0.1.0",
                "SPLITPLANE_OPERATOR_IMAGE": "splitplane/operator:0.1.0",
                "SPLITPLANE_POD_IP": "127.0.0.1",
                "SPLITPLANE_HTTP_PORT": str(port),
            }
            log = (tmp_path / f"operator-{port}.log").open("wb")
            stack.callback(log.close)
            process = subprocess.Popen(
                [sys.executable, "-m", "splitplane.controller"], env=environment, stdout=log, stderr=log
            )
            return stack.enter_context(cases.running(process))

        yield start

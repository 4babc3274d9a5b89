"""One kind cluster for the session, and on it a pipeline of two edge replicas and one cloud replica that serves.

A cluster that was up before stays up, with what `make kind-up` puts there.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kindcluster import engine as engines
from kindcluster import firewall, lifecycle, machine
from kindcluster.cluster import PRICE_ANNOTATION, Cluster
from kindcluster.outside import expose
from splitplane.local.errors import LocalError
from tests.support import operator_cases as cases
from tests.support.firewall_rules import meaning

Kubectl = Callable[..., str]
SEGMENTS = 4
"""Of the small model: one for each layer."""


_LAST = ("test_kind_rights.py", "test_kind_uninstall.py")
"""The first looks at what all tests before it made the operator do; the second takes Splitplane away."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.kind)
    items.sort(key=lambda item: _LAST.index(item.path.name) + 1 if item.path.name in _LAST else 0)


def _say(text: str) -> None:
    Console(stderr=True).print(text)


@pytest.fixture(scope="session")
def machine_put_back() -> Iterator[None]:
    """Holds the machine after the session against the machine before it, where the cluster brings its own daemon."""
    before = None if engines.find() else machine.describe()
    yield
    if before is None:
        return
    assert engines.find() is None
    after = machine.describe()
    assert _rules(after) == _rules(before)
    # What the kernel has only since a module is loaded (nf_conntrack_max) was nothing before.
    assert {name: after["settings"][name] for name in before["settings"]} == before["settings"]
    assert not machine.new_bridges(before["links"], after["links"])
    assert after["modules"] == before["modules"]
    assert not any(str(engines.RUN) in line for line in Path("/proc/self/mounts").read_text().splitlines())
    assert not engines.RUN.exists()


def _rules(described: dict[str, Any]) -> dict[str, firewall.Tables]:
    rules = {command: meaning(firewall.parse(text)) for command, text in described["firewalls"].items()}
    return {command: tables for command, tables in rules.items() if tables}  # a firewall may be readable only since


@pytest.fixture(scope="session")
def kind(request: pytest.FixtureRequest, machine_put_back: None) -> Iterator[Cluster]:
    """The cluster with Prometheus and Splitplane in it. Where a test fails, its logs are kept."""
    lifecycle.stop_orderly()
    with lifecycle.running(Console(stderr=True), say=_say) as cluster:
        # Left there by a demo, they would outweigh the prices that the pipelines here name.
        cluster.run("annotate", "node", "--all", f"{PRICE_ANNOTATION}-")
        yield cluster
        if request.session.testsfailed:
            _say(f"Logs of the cluster: {cluster.export_logs()}")


@pytest.fixture(scope="session")
def kubectl(kind: Cluster) -> Kubectl:
    """``kubectl("get", "pods", stdin=...)``: its output; fails the test with kubectl's own words."""

    def run(*arguments: str, stdin: Any = None, timeout: float = 180) -> str:
        text = stdin if stdin is None or isinstance(stdin, str) else json.dumps(stdin)
        try:
            return kind.run(*arguments, stdin=text, timeout=timeout)
        except LocalError as error:
            pytest.fail(str(error))

    return run


@pytest.fixture(scope="session")
def digest() -> str:
    return sha256(cases.weights()).hexdigest()


@pytest.fixture(scope="session")
def make_namespace(kubectl: Kubectl) -> Iterator[Callable[[], cases.Namespace]]:
    """Fresh namespaces that take only pods of Pod Security's level ``restricted``, with the small model."""
    made: list[str] = []

    def make() -> cases.Namespace:
        name = f"test-{uuid.uuid4().hex[:8]}"
        made.append(name)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        kubectl("apply", "--filename=-", stdin=body)
        ns = cases.Namespace(kubectl, name)
        ns.apply(cases.code())
        return ns

    yield make
    for name in made:
        kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def two_tiers(**edge: Any) -> tuple[cases.Json, cases.Json]:
    """An edge tier of two replicas and a cloud tier of one."""
    memory = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "700Mi"}}
    return (
        cases.tier("edge", **{"replicas": {"min": 2, "max": 2}, "resources": memory, **edge}),
        cases.tier("cloud", replicas={"min": 1, "max": 1}, resources=memory),
    )


@pytest.fixture(scope="session")
def serving(make_namespace: Callable[[], cases.Namespace], digest: str) -> cases.Measured:
    """A pipeline, from nothing to serving: the first layer on edge nodes, the rest on the cloud node."""
    ns = make_namespace()
    split = cases.fixed(("edge", 0, 1), ("cloud", 1, SEGMENTS))
    ns.apply(cases.pipeline("first", cases.model(digest), *two_tiers(), partitioning=split))
    ns.wait_condition("first", "Ready", "True", seconds=240)
    whole(ns)
    return cases.Measured(ns, "first", ns.get("mprof", ns.status("first")["profile"]))


def whole(ns: cases.Namespace, *, seconds: float = 180) -> None:
    """Waits until every replica of the pipeline serves."""
    cases.wait(
        lambda: ns.status("first").get("replicas") == "edge 2/2, cloud 1/1",
        seconds=seconds, what=lambda: f"all replicas; status {ns.status('first')}",
    )  # fmt: skip


@pytest.fixture(scope="session")
def address(serving: cases.Measured, kind: Cluster) -> str:
    """The gateway's gRPC address for this machine."""
    return expose(kind, "first-gateway", namespace=serving.ns.name, port=9000)

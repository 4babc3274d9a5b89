"""Measurements on the embedded cluster: which of them run side by side."""

from collections.abc import Callable, Iterator

import pytest

from tests.support import operator_cases as cases

pytestmark = pytest.mark.integration

PROFILE_PODS = ("pods", "-l", "app.kubernetes.io/component=profile")


@pytest.fixture
def told_apart(kubectl: Callable[..., str]) -> Iterator[None]:
    """Labels which say that edge and cloud nodes are on different machines, though here they are not."""
    for tier in ("edge", "cloud"):
        kubectl("label", "nodes", "-l", f"splitplane.dev/tier={tier}", f"splitplane.dev/machine={tier}")
    yield
    kubectl("label", "nodes", "--all", "splitplane.dev/machine-")


def running(ns: cases.Namespace) -> set[str]:
    """Tiers on which a profile is being measured."""
    pods = [pod for pod in ns.items(*PROFILE_PODS) if pod["status"].get("phase") == "Running"]
    return {pod["metadata"]["labels"]["splitplane.dev/tier"] for pod in pods}


@pytest.mark.usefixtures("told_apart", "operator")
def test_device_classes_on_different_machines_are_measured_at_the_same_time(
    kubectl: Callable[..., str], digest: str
) -> None:
    tiers = cases.tier("edge"), cases.tier("cloud", deviceClass="other")
    with cases.Namespace.fresh(kubectl, cases.pipeline("pair", cases.model(digest), *tiers)) as ns:
        cases.wait(lambda: running(ns) == {"edge", "cloud"}, seconds=60, what=lambda: f"both to run, not {running(ns)}")
        ns.wait_condition("pair", "Ready", "True")
        profile = ns.get("mprof", ns.status("pair")["profile"])["spec"]
        assert {device["deviceClass"] for device in profile["devices"]} == {"small", "other"}

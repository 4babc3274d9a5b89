"""Measurements on the embedded cluster: which of them run side by side, and who may see real inputs."""

import base64
from collections.abc import Callable, Iterator
from hashlib import sha256

import pytest
import torch
from safetensors.torch import save

from tests.support import operator_cases as cases

pytestmark = pytest.mark.integration

PROFILE_PODS = ("pods", "-l", "app.kubernetes.io/component=profile")
CALIBRATION_PODS = ("pods", "-l", "app.kubernetes.io/component=calibration")
CORE_SECONDS = 40
"""Six times what the attacks need to be trained for long enough on a quiet machine."""


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


def real_inputs() -> bytes:
    """Few causes behind many numbers, as real inputs have: an attack has something to learn."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.randn(240, 3, generator=generator)
    return save({"features": torch.tanh(causes @ torch.randn(3, 64, generator=generator))})


def test_a_leak_is_measured_where_real_inputs_may_be_seen_and_kept_for_the_next_pipeline(
    kubectl: Callable[..., str], measured: cases.Measured, digest: str
) -> None:
    inputs, code, model = real_inputs(), cases.code(), cases.model(digest)
    code["binaryData"]["inputs.safetensors"] = base64.b64encode(inputs).decode()
    model["calibration"] = {
        "uri": "file:///models/inputs.safetensors",
        "sha256": sha256(inputs).hexdigest(),
        "budgetCoreSeconds": CORE_SECONDS,
    }
    guarded = cases.pipeline("guarded", model, objectives={"maxLeakage": "0.9999", "prefer": "Latency"})
    with cases.Namespace.fresh(kubectl, measured.copy, code, guarded) as ns:
        [pod] = cases.wait(lambda: ns.items(*CALIBRATION_PODS), seconds=60, what="the job's pod")
        assert pod["spec"]["nodeSelector"] == {"splitplane.dev/tier": "edge"}  # the trusted one
        assert ns.condition("guarded", "LimitsMeasured")["reason"] == "Measuring"
        told = ns.wait_condition("guarded", "LimitsMeasured", "True", "Measured", seconds=150)
        assert "lower bound, by this attack: inversion decoder" in told["message"]
        profile = ns.get("mprof", ns.status("guarded")["profile"])["spec"]
        assert profile["leakMeasurement"]["samples"] == 240
        assert float(profile["leakMeasurement"]["inputControl"]) >= 0.9
        assert all(cut["leakage"] for cut in profile["cuts"])
        cases.wait(lambda: not ns.items("jobs"), seconds=10, what="the job to go")
        ns.apply(cases.pipeline("second", model, objectives={"maxLeakage": "0.5"}))
        assert ns.wait_condition("second", "LimitsMeasured", "True", "Measured", seconds=60)
        assert not ns.items("jobs")

"""From an applied pipeline to answers, through changes, to nothing left."""

import time
from typing import Any

import numpy as np
import operator_cases as cases
import pytest
import torch
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

pytestmark = pytest.mark.integration

FEATURES = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


async def ask(address: str, name: str) -> np.ndarray[Any, Any]:
    client = InferenceServerClient(address)
    try:
        tensor = InferInput("features", list(FEATURES.shape), "FP32")
        tensor.set_data_from_numpy(FEATURES)
        result = await client.infer(name, [tensor], client_timeout=20)
        answer: np.ndarray[Any, Any] = result.as_numpy(result.get_response().outputs[0].name)
        return answer
    finally:
        await client.close()


def expected(wide: bool = False) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        answer: np.ndarray[Any, Any] = cases.module(wide)(torch.from_numpy(FEATURES)).numpy()
    return answer


async def test_an_applied_pipeline_is_measured_planned_and_answers_as_the_whole_model(
    measured: cases.Measured,
) -> None:
    answer = await ask(measured.ns.gateway(measured.name), measured.name)

    assert np.abs(answer - expected()).max() <= 1e-5


def test_the_status_says_what_serves_and_why(measured: cases.Measured) -> None:
    status = measured.ns.status(measured.name)

    assert status["observedGeneration"] == 1
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Ready": "True", "Progressing": "False", "Degraded": "False", "MetricsAvailable": "True",
        "PlanFeasible": "True", "Reconciling": "False", "Stalled": "False",
    }  # fmt: skip
    assert status["plan"]["summary"].startswith("edge:0-")
    assert status["plan"]["predictedP95Milliseconds"] >= 1
    assert status["decisions"][-1]["reason"] == "InitialPlan"
    started = [event for event in measured.ns.events(measured.name) if event["reason"] == "PlanStart"]
    assert len(started) == 1


def test_profile_jobs_leave_nothing_but_the_profile(measured: cases.Measured) -> None:
    assert {device["deviceClass"] for device in measured.profile["spec"]["devices"]} == {"small"}
    assert (
        measured.ns.items("jobs,roles,rolebindings,serviceaccounts", "-l", "app.kubernetes.io/component=profile") == []
    )


def test_a_waiting_pipeline_writes_nothing(measured: cases.Measured) -> None:
    def versions() -> list[str]:
        kinds = "ipipe,rtable,mprof,deployments,services,roles"
        return [item["metadata"]["generation"] for item in measured.ns.items(kinds) if "generation" in item["metadata"]]

    before = versions(), len(measured.ns.events(measured.name))
    time.sleep(12)
    assert (versions(), len(measured.ns.events(measured.name))) == before

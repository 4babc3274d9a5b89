"""From an applied pipeline to answers, through changes, to nothing left."""

import time

import numpy as np
import pytest

from tests.support import operator_cases as cases
from tests.support.operator_requests import ask, expected

pytestmark = pytest.mark.integration


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
        "PlanFeasible": "True", "CapacityGranted": "True", "Reconciling": "False", "Stalled": "False",
        "ModelMeasured": "True", "LimitsMeasured": "True",
    }  # fmt: skip
    assert status["plan"]["summary"].startswith("edge:0-")
    assert status["plan"]["predictedP95Milliseconds"] >= 1
    assert status["decisions"][-1]["reason"] == "InitialPlan"
    started = [event for event in measured.ns.events(measured.name) if event["reason"] == "PlanStart"]
    assert len(started) == 1


def test_a_drain_finds_a_budget_for_every_pod_that_serves(measured: cases.Measured) -> None:
    """As the API server's disruption controller counts them: it knows no budget's pods without their Deployment."""
    wanted = {body["metadata"]["name"]: body["spec"]["replicas"] for body in measured.ns.items("deployments")}

    def counted() -> dict[str, tuple[int, int]]:
        found = {body["metadata"]["name"]: body.get("status", {}) for body in measured.ns.items("poddisruptionbudgets")}
        return {
            name: (status.get("expectedPods", 0), status.get("disruptionsAllowed", 0)) for name, status in found.items()
        }

    assert len(wanted) >= 2
    half = {name: (count, (count + 1) // 2) for name, count in wanted.items()}
    cases.wait(lambda: counted() == half, seconds=30, what=lambda: f"budgets {half}, not {counted()}")


def test_a_policy_selects_the_pods_that_serve_as_stages_and_its_callers_are_there(measured: cases.Measured) -> None:
    """By the API server's own selectors. The embedded cluster enforces no policy."""
    policy = measured.ns.get("networkpolicy", f"{measured.name}-stages")

    def selected(selector: cases.Json) -> set[str]:
        terms = [f"{key}={value}" for key, value in selector.get("matchLabels", {}).items()]
        terms += [f"{each['key']} in ({','.join(each['values'])})" for each in selector.get("matchExpressions", ())]
        return {body["metadata"]["name"] for body in measured.ns.items("pods", f"--selector={','.join(terms)}")}

    def of(component: str) -> set[str]:
        return selected({"matchLabels": {"app.kubernetes.io/component": component}})

    rule, _ = policy["spec"]["ingress"]
    assert of("stage")
    assert of("gateway")
    assert selected(policy["spec"]["podSelector"]) == of("stage")
    assert selected(rule["from"][0]["podSelector"]) == of("gateway") | of("stage")
    (owner,) = policy["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("InferencePipeline", measured.name)


def test_profile_jobs_leave_nothing_but_the_profile(measured: cases.Measured) -> None:
    assert {device["deviceClass"] for device in measured.profile["spec"]["devices"]} == {"small"}
    assert (
        measured.ns.items("jobs,roles,rolebindings,serviceaccounts", "-l", "app.kubernetes.io/component=profile") == []
    )


def test_a_pipeline_at_rest_is_not_written_to(measured: cases.Measured) -> None:
    """Over two planning rounds, once what followed from the start has been told."""

    def versions() -> tuple[list[object], int]:
        items = measured.ns.items("ipipe,mprof,deployments,services,roles")
        # Their status is of gateways, which find an idle link of this machine a little faster or slower each time.
        tables = [(item["metadata"]["annotations"], item["spec"]) for item in measured.ns.items("rtable")]
        found = [*(item["metadata"]["resourceVersion"] for item in items), *tables]
        return found, len(measured.ns.events(measured.name))

    def at_rest() -> bool:
        before = versions()
        time.sleep(12)
        return versions() == before

    assert any(at_rest() for _ in range(5))

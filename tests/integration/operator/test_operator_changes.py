"""What a running pipeline goes through: another split, another model, a pause, its end; no request is lost by it."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import pytest

from tests.support import operator_cases as cases
from tests.support.operator_cases import fixed
from tests.support.operator_requests import ask, asking, expected

pytestmark = pytest.mark.integration

Started = Callable[[str], cases.Namespace]


async def until(probe: Any, *, seconds: float, what: str) -> Any:
    return await asyncio.to_thread(cases.wait, probe, seconds=seconds, what=what)


def segments(measured: cases.Measured) -> int:
    return len(measured.profile["spec"]["segments"])


@pytest.fixture(scope="module")
def started(kubectl: Callable[..., str], measured: cases.Measured, digest: str) -> Iterator[Started]:
    """The pipelines of these tests, each in a namespace of its own: started side by side, waited for when asked for."""
    model, whole = cases.model(digest), fixed(("edge", 0, segments(measured)))
    pipelines = (
        cases.pipeline("moving", model, partitioning=whole),
        cases.pipeline("changing", model, cases.tier("edge")),
        cases.pipeline("still", model, partitioning=whole),
        cases.pipeline("leaving", model, cases.tier("edge")),
    )
    with contextlib.ExitStack() as stack:
        found = {
            body["metadata"]["name"]: stack.enter_context(cases.Namespace.fresh(kubectl, measured.copy, body))
            for body in pipelines
        }

        def ready(name: str) -> cases.Namespace:
            found[name].wait_condition(name, "Ready", "True")
            return found[name]

        yield ready


async def test_another_split_then_a_higher_minimum_take_over_without_a_lost_request_and_old_pods_go(
    started: Started, measured: cases.Measured, digest: str
) -> None:
    end = segments(measured)
    ns = await asyncio.to_thread(started, "moving")
    before = {stage["deployment"] for stage in ns.status("moving")["plan"]["stages"]}

    async with asking(ns.gateway("moving"), "moving") as requests:
        ns.apply(cases.pipeline("moving", cases.model(digest), partitioning=fixed(("edge", 0, 1), ("cloud", 1, end))))
        summary = f"edge:0-1|cloud:1-{end} fp32"
        await until(lambda: ns.status("moving")["plan"]["summary"] == summary, seconds=120, what=f"plan {summary}")
        served = requests.answered
        await until(lambda: requests.answered > served + 5, seconds=60, what="answers by the new plan")
        kept = {stage["deployment"] for stage in ns.status("moving")["plan"]["stages"]}
        await until(
            lambda: {d["metadata"]["name"] for d in ns.items("deploy", "-l", "splitplane.dev/stage")} == kept,
            seconds=120, what=f"only {kept} is left of {before}",
        )  # fmt: skip

        two = cases.tier("edge", replicas={"min": 2, "max": 2}), cases.tier("cloud")
        split = fixed(("edge", 0, 1), ("cloud", 1, end))
        ns.apply(cases.pipeline("moving", cases.model(digest), *two, partitioning=split))
        await until(
            lambda: ns.status("moving").get("replicas") == "edge 2/2, cloud 1/1",
            seconds=120, what="two replicas on edge",
        )  # fmt: skip
    assert requests.failures == []
    status = ns.status("moving")
    assert status["lastSwitchMilliseconds"] > 0
    assert "drains" not in status
    switches = [decision for decision in status["decisions"] if decision["action"] == "Switch"]
    assert [decision["reason"] for decision in switches] == ["SpecChanged", "SpecChanged"]


async def test_another_model_takes_over_without_a_lost_request(started: Started) -> None:
    ns = await asyncio.to_thread(started, "changing")
    address = ns.gateway("changing")
    old = ns.status("changing")["profile"]
    assert abs(await ask(address, "changing") - expected()).max() <= 1e-5

    wide = cases.model(
        sha256(cases.weights(wide=True)).hexdigest(), factory="narrowing:build_wide", file="wide.safetensors"
    )
    async with asking(address, "changing", right=(expected(), expected(wide=True))) as requests:
        ns.apply(cases.pipeline("changing", wide, cases.tier("edge")))
        deadline = time.monotonic() + 180
        while abs(await ask(address, "changing") - expected(wide=True)).max() > 1e-5:
            assert time.monotonic() < deadline, ns.status("changing")
            await asyncio.sleep(0.5)
    assert requests.failures == []
    await until(
        lambda: old not in {item["metadata"]["name"] for item in ns.items("mprof")},
        seconds=120, what="the old model's profile goes with its last user",
    )  # fmt: skip


def test_a_suspended_pipeline_keeps_serving_and_makes_no_other_plan(
    started: Started, measured: cases.Measured, digest: str
) -> None:
    end = segments(measured)
    ns = started("still")
    generation = ns.status("still")["plan"]["generation"]

    split = fixed(("edge", 0, 1), ("cloud", 1, end))
    ns.apply(cases.pipeline("still", cases.model(digest), partitioning=split, suspend=True))
    ns.wait_condition("still", "Ready", "True", "Suspended")
    time.sleep(6)  # longer than the planning interval
    assert ns.status("still")["plan"]["generation"] == generation

    ns.apply(cases.pipeline("still", cases.model(digest), partitioning=split, suspend=False))
    cases.wait(lambda: "cloud" in ns.status("still")["plan"]["summary"], seconds=120, what="the plan goes on changing")


def test_a_deleted_pipeline_leaves_nothing_behind(started: Started) -> None:
    ns = started("leaving")
    kinds = "deployments,replicasets,pods,services,serviceaccounts,roles,rolebindings,jobs,configmaps,rtable,mprof"
    ours = ("-l", "app.kubernetes.io/name=splitplane")
    assert ns.items(kinds, *ours)

    ns("delete", "ipipe", "leaving")
    cases.wait(
        lambda: not ns.items(kinds, *ours), seconds=120,
        what=lambda: f"left: {[(i['kind'], i['metadata']['name']) for i in ns.items(kinds, *ours)]}",
    )  # fmt: skip

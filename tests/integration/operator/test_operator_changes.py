"""What a running pipeline goes through: another split, another model, a pause, its end; no request is lost by it."""

import asyncio
import time
from hashlib import sha256
from typing import Any

import pytest

from tests.support import operator_cases as cases
from tests.support.operator_cases import fixed
from tests.support.operator_requests import ask, asking, expected

pytestmark = pytest.mark.integration


async def until(probe: Any, *, seconds: float, what: str) -> Any:
    return await asyncio.to_thread(cases.wait, probe, seconds=seconds, what=what)


def segments(measured: cases.Measured) -> int:
    return len(measured.profile["spec"]["segments"])


async def test_another_split_then_a_higher_minimum_take_over_without_a_lost_request_and_old_pods_go(
    profiled: cases.Namespace, measured: cases.Measured, digest: str
) -> None:
    end = segments(measured)
    profiled.apply(cases.pipeline("moving", cases.model(digest), partitioning=fixed(("edge", 0, end))))
    await asyncio.to_thread(profiled.wait_condition, "moving", "Ready", "True")
    before = {stage["deployment"] for stage in profiled.status("moving")["plan"]["stages"]}

    async with asking(profiled.gateway("moving"), "moving") as requests:
        profiled.apply(
            cases.pipeline("moving", cases.model(digest), partitioning=fixed(("edge", 0, 1), ("cloud", 1, end)))
        )
        summary = f"edge:0-1|cloud:1-{end} fp32"
        await until(lambda: profiled.status("moving")["plan"]["summary"] == summary, seconds=60, what=f"plan {summary}")
        served = requests.answered
        await until(lambda: requests.answered > served + 5, seconds=20, what="answers by the new plan")
        kept = {stage["deployment"] for stage in profiled.status("moving")["plan"]["stages"]}
        await until(
            lambda: {d["metadata"]["name"] for d in profiled.items("deploy", "-l", "splitplane.dev/stage")} == kept,
            seconds=60, what=f"only {kept} is left of {before}",
        )  # fmt: skip

        two = cases.tier("edge", replicas={"min": 2, "max": 2}), cases.tier("cloud")
        split = fixed(("edge", 0, 1), ("cloud", 1, end))
        profiled.apply(cases.pipeline("moving", cases.model(digest), *two, partitioning=split))
        await until(
            lambda: profiled.status("moving").get("replicas") == "edge 2/2, cloud 1/1",
            seconds=60, what=lambda: f"two replicas on edge; status {profiled.status('moving')}",
        )  # fmt: skip
    assert requests.failures == []
    status = profiled.status("moving")
    assert status["lastSwitchMilliseconds"] > 0
    assert "drains" not in status
    switches = [decision for decision in status["decisions"] if decision["action"] == "Switch"]
    assert [decision["reason"] for decision in switches] == ["SpecChanged", "SpecChanged"]


async def test_another_model_takes_over_without_a_lost_request(profiled: cases.Namespace, digest: str) -> None:
    edge = cases.tier("edge")
    profiled.apply(cases.pipeline("changing", cases.model(digest), edge))
    await asyncio.to_thread(profiled.wait_condition, "changing", "Ready", "True")
    address = profiled.gateway("changing")
    old = profiled.status("changing")["profile"]
    assert abs(await ask(address, "changing") - expected()).max() <= 1e-5

    wide = cases.model(
        sha256(cases.weights(wide=True)).hexdigest(), factory="narrowing:build_wide", file="wide.safetensors"
    )
    async with asking(address, "changing") as requests:
        profiled.apply(cases.pipeline("changing", wide, edge))
        deadline = time.monotonic() + 90
        while abs(await ask(address, "changing") - expected(wide=True)).max() > 1e-5:
            assert time.monotonic() < deadline, profiled.status("changing")
            await asyncio.sleep(0.5)
    assert requests.failures == []
    await until(
        lambda: old not in {item["metadata"]["name"] for item in profiled.items("mprof")},
        seconds=60, what="the old model's profile goes with its last user",
    )  # fmt: skip


def test_a_suspended_pipeline_keeps_serving_and_makes_no_other_plan(
    profiled: cases.Namespace, measured: cases.Measured, digest: str
) -> None:
    end = segments(measured)
    start = cases.pipeline("still", cases.model(digest), partitioning=fixed(("edge", 0, end)))
    profiled.apply(start)
    profiled.wait_condition("still", "Ready", "True")
    generation = profiled.status("still")["plan"]["generation"]

    split = fixed(("edge", 0, 1), ("cloud", 1, end))
    profiled.apply(cases.pipeline("still", cases.model(digest), partitioning=split, suspend=True))
    profiled.wait_condition("still", "Ready", "True", "Suspended")
    time.sleep(6)  # longer than the planning interval
    assert profiled.status("still")["plan"]["generation"] == generation

    profiled.apply(cases.pipeline("still", cases.model(digest), partitioning=split, suspend=False))
    cases.wait(
        lambda: "cloud" in profiled.status("still")["plan"]["summary"], seconds=60, what="the plan goes on changing"
    )


def test_a_deleted_pipeline_leaves_nothing_behind(profiled: cases.Namespace, digest: str) -> None:
    profiled.apply(cases.pipeline("leaving", cases.model(digest), cases.tier("edge")))
    profiled.wait_condition("leaving", "Ready", "True")
    kinds = "deployments,replicasets,pods,services,serviceaccounts,roles,rolebindings,jobs,configmaps,rtable,mprof"
    ours = ("-l", "app.kubernetes.io/name=splitplane")
    assert profiled.items(kinds, *ours)

    profiled("delete", "ipipe", "leaving")
    cases.wait(
        lambda: not profiled.items(kinds, *ours), seconds=60,
        what=lambda: f"left: {[(i['kind'], i['metadata']['name']) for i in profiled.items(kinds, *ours)]}",
    )  # fmt: skip

"""Which measurements run side by side: those on machines that a label of their nodes tells apart, and no others."""

from dataclasses import replace
from typing import Any

import pytest

from splitplane.controller import telling
from splitplane.controller.machines import Nodes, share
from splitplane.controller.objects import MACHINE_LABEL
from tests.support.controller_cases import SETTINGS, node, pipeline_body, tier
from tests.support.controller_world import KEY, World

OTHER = ("shop", "other")


def on_machines(world: World, **machines: str) -> None:
    """Name the machines of these nodes."""
    for name, machine in machines.items():
        body = world.cluster.objects["Node", "", name]
        labels = {**body["metadata"]["labels"], MACHINE_LABEL: machine}
        world.cluster.put({**body, "metadata": {**body["metadata"], "labels": labels}})


def tiers_measured(world: World) -> list[str]:
    return sorted(job["metadata"]["labels"]["splitplane.dev/tier"] for job in world.cluster.of("Job").values())


def other_model() -> dict[str, Any]:
    return {**pipeline_body()["spec"]["model"], "factory": "other:build"}


def scheduled(job: dict[str, Any], where: str) -> dict[str, Any]:
    """A job's pod, running on a node."""
    labels = {**job["metadata"]["labels"], "job-name": job["metadata"]["name"]}
    return {
        "kind": "Pod", "apiVersion": "v1", "status": {"phase": "Running"},
        "spec": {"nodeName": where, "containers": []},
        "metadata": {"name": "measurer", "namespace": KEY[0], "labels": labels},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("machines", "expected"),
    [
        ({}, ["edge"]),
        ({"e1": "a", "e2": "b", "c1": "c"}, ["cloud", "edge"]),
        ({"e1": "a", "e2": "b", "c1": "b"}, ["edge"]),
        ({"e1": "a", "c1": "c"}, ["edge"]),  # the job may come to run on e2, and that may be on c1's machine
    ],
)
async def test_device_classes_are_measured_side_by_side_only_on_machines_that_are_told_apart(
    machines: dict[str, str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "_OBSERVED_EVERY_SECONDS", 0.0)
    world = World()
    on_machines(world, **machines)
    world.apply()
    await world.step(3, settle=False)
    assert tiers_measured(world) == expected
    if len(expected) == 1:
        messages = [condition["message"] for condition in world.status["conditions"]]
        assert any("measuring on tier cloud waits for tracker-profile-edge-" in message for message in messages)
        assert any("as they may share a machine" in message for message in messages)
    await world.step(15)
    assert world.condition("ModelMeasured") == ("True", "Measured")
    [profile] = world.cluster.of("ModelProfile").values()
    assert [device["deviceClass"] for device in profile["spec"]["devices"]] == ["cloud-device", "edge-device"]


async def test_where_a_job_runs_counts_and_not_where_it_might_have() -> None:
    world = World()
    on_machines(world, e1="a", e2="b", c1="b")
    world.apply()
    await world.step(2, settle=False)
    [(_, job)] = world.cluster.of("Job").items()
    world.cluster.put(scheduled(job, "e1"))
    await world.step(1, settle=False)
    assert tiers_measured(world) == ["cloud", "edge"]


async def test_what_another_pipeline_measures_is_not_measured_again_on_another_machine() -> None:
    world = World()
    on_machines(world, e1="a", e2="b", c1="c")
    world.apply()
    world.apply(OTHER)
    await world.step(3, settle=False, keys=(KEY, OTHER))
    assert tiers_measured(world) == ["cloud", "edge"]


async def test_a_first_profile_lets_a_calibration_on_another_machine_go_on() -> None:
    world = World()  # calibrations never end
    on_machines(world, e1="a", e2="b", c1="c")
    model = {
        **pipeline_body()["spec"]["model"],
        "calibration": {"uri": "pvc://inputs/f.safetensors", "sha256": "c" * 64},
    }
    world.apply(model=model, objectives={"maxLeakage": "0.5"})
    await world.step(15)
    [calibration] = world.cluster.of("Job")
    assert "-measure-edge-" in calibration
    world.apply(OTHER, model=other_model(), tiers=[tier("cloud")], gateway={"tier": "cloud"})
    await world.step(2, settle=False, keys=(KEY, OTHER))
    assert len(world.cluster.of("Job")) == 2  # it has not been stopped
    assert tiers_measured(world) == ["cloud", "edge"]
    assert calibration in world.cluster.of("Job")


def test_any_label_may_name_the_machines() -> None:
    nodes = [node(name, where) for name, where in (("e1", "edge"), ("c1", "cloud"))]
    for each in nodes:
        each["metadata"]["labels"]["kubernetes.io/hostname"] = each["metadata"]["name"]
    settings = replace(SETTINGS, machine_label="kubernetes.io/hostname")
    one, other = ({"splitplane.dev/tier": where} for where in ("edge", "cloud"))
    by_name, unnamed = Nodes(nodes, settings.machine_label), Nodes(nodes, SETTINGS.machine_label)
    assert not share(by_name.behind(one), by_name.behind(other))
    assert share(by_name.behind(one), by_name.behind(one))
    assert share(unnamed.behind(one), unnamed.behind(other))
    assert share(by_name.behind({"splitplane.dev/tier": "none"}), by_name.behind(one))  # nobody knows where

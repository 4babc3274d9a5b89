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
    metadata = job["metadata"]
    own = {"batch.kubernetes.io/job-name": metadata["name"], "batch.kubernetes.io/controller-uid": metadata["uid"]}
    labels = {**metadata["labels"], **own}
    return {
        "kind": "Pod", "apiVersion": "v1", "status": {"phase": "Running"},
        "spec": {"nodeName": where, "containers": []},
        "metadata": {"name": "measurer", "namespace": KEY[0], "labels": labels},
    }  # fmt: skip


def lose(world: World, name: str) -> None:
    """Let a node fall silent: the control plane no longer knows whether it is ready."""
    body = world.cluster.objects["Node", "", name]
    status = {**body["status"], "conditions": [{"type": "Ready", "status": "Unknown"}]}
    world.cluster.put({**body, "status": status})


async def test_a_measurement_whose_node_is_lost_is_made_anew() -> None:
    world = World()
    world.apply(tiers=[tier("edge")], gateway={"tier": "edge"})
    await world.step(2, settle=False)
    [(name, job)] = world.cluster.of("Job").items()
    world.cluster.put(scheduled(job, "e1"))
    await world.step(3, settle=False)
    assert world.cluster.of("Job")[name]["metadata"]["uid"] == job["metadata"]["uid"]
    lose(world, "e1")
    await world.step(3, settle=False)  # its pod stays, for nobody there says that it has ended
    again = world.cluster.of("Job")[name]
    assert again["metadata"]["uid"] != job["metadata"]["uid"]
    assert again["metadata"]["annotations"]["splitplane.dev/attempt"] == "2"
    told = "measuring the model on tier edge (device class edge-device)"
    assert [message for _, reason, message in world.cluster.events if reason == "Profiling"] == [
        told,
        f"{told}, attempt 2: the node e1 was lost",
    ]
    await world.step(15)
    assert world.condition("ModelMeasured") == ("True", "Measured")
    assert any(reason == "Profiled" and " ms for the whole of it" in text for _, reason, text in world.cluster.events)


async def test_a_failed_job_goes_when_the_pods_that_it_measured_with_are_changed() -> None:
    world = World(unmeasurable=frozenset({"edge-device"}))
    world.apply(tiers=[tier("edge")], gateway={"tier": "edge"})
    await world.step(3)
    [failed] = world.cluster.of("Job")
    assert world.condition("Degraded") == ("True", "ProfileFailed")
    world.unmeasurable = frozenset()
    more = {"requests": {"cpu": "1", "memory": "2Gi"}}
    world.apply(tiers=[tier("edge", resources=more)], gateway={"tier": "edge"})
    await world.step(1, settle=False)
    [again] = world.cluster.of("Job")
    assert again != failed
    assert {name for kind in ("ConfigMap", "Role", "ServiceAccount") for name in world.cluster.of(kind)} >= {again}
    assert failed not in {name for kind in ("ConfigMap", "Role", "ServiceAccount") for name in world.cluster.of(kind)}
    await world.step(10)
    assert world.condition("ModelMeasured") == ("True", "Measured")
    assert not world.cluster.of("Job")


async def test_a_result_that_was_deleted_is_measured_again() -> None:
    world = World()
    world.apply(tiers=[tier("edge")], gateway={"tier": "edge"})
    await world.step(1)
    [name] = world.cluster.of("Job")
    world.cluster.remove("ConfigMap", name, KEY[0])
    await world.step(1, settle=False)
    assert world.condition("Degraded") == ("True", "ProfileFailed")
    await world.step(10, seconds=5)
    assert world.condition("ModelMeasured") == ("True", "Measured")


async def test_a_new_attempt_tells_nothing_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "_OBSERVED_EVERY_SECONDS", 0.0)
    world = World(unmeasurable=frozenset({"edge-device"}))
    world.apply(tiers=[tier("edge")], gateway={"tier": "edge"})
    await world.step(1, settle=False)
    [(name, job)] = world.cluster.of("Job").items()
    left = scheduled(job, "e1")
    ended = {"terminated": {"exitCode": 1, "message": "out of luck"}}
    world.cluster.put({**left, "status": {"phase": "Failed", "containerStatuses": [{"state": ended}]}})
    world.cluster.put({**world.cluster.of("ConfigMap")[name], "data": {"progress": "57%: prefixes"}})
    await world.step(1)
    world.busy, world.unmeasurable = world.unmeasurable, frozenset()
    await world.step(20, seconds=5)
    told = next(each["message"] for each in world.status["conditions"] if each["type"] == "Progressing")
    assert told == "measuring the model on tier edge (device class edge-device)"


async def test_what_a_lost_node_holds_keeps_nobody_waiting() -> None:
    world = World()
    job = {"metadata": {"name": "gone-profile-edge", "uid": "u-9", "labels": {}}}
    left = scheduled(job, "e1")
    left["metadata"]["labels"] |= {"app.kubernetes.io/name": "splitplane", "app.kubernetes.io/component": "profile"}
    world.cluster.put(left)
    world.apply()
    await world.step(2, settle=False)
    assert tiers_measured(world) == []
    lose(world, "e1")
    await world.step(2, settle=False)
    assert tiers_measured(world) == ["edge"]


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


async def test_a_measurement_whose_result_is_still_to_be_taken_over_is_not_made_again() -> None:
    world = World()
    world.apply()
    world.apply(OTHER)
    await world.step(2, settle=False, keys=(KEY, OTHER))
    [first] = world.cluster.of("Job")
    world.settle()
    await world.step(3, settle=False, keys=(OTHER,))  # woken first
    assert list(world.cluster.of("Job")) == [first]
    await world.step(15, keys=(KEY, OTHER))
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

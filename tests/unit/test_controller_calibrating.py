"""Limits on leak and accuracy loss: who measures what they need, where, what is told meanwhile, and who shares it."""

from dataclasses import replace
from typing import Any

import pytest

from splitplane.api.profiles import ModelProfileSpec
from splitplane.controller import calibrating, telling
from splitplane.domain.calibrations import UNREAD, AccuracyFound, CalibrationRequest, CalibrationResult, LeakFound
from splitplane.domain.defences import Defence
from tests.support.controller_cases import pipeline, pipeline_body, tier
from tests.support.controller_world import KEY, World, measured
from tests.support.planner_cases import crepe

CALIBRATION = {"uri": "pvc://inputs/frames.safetensors", "sha256": "c" * 64}
OTHER = ("shop", "other")


def limited(calibration: dict[str, Any] | None = CALIBRATION, **more: Any) -> dict[str, Any]:
    model = pipeline_body()["spec"]["model"]
    if calibration is not None:
        model["calibration"] = calibration
    spec = {"model": model, "objectives": {"maxLeakage": "0.5", "maxAccuracyLoss": "0.01", "prefer": "Latency"}}
    return {**spec, "partitioning": {"codecs": ["fp32", "int8"]}, **more}


def found(request: CalibrationRequest, *, weakness: str = "") -> CalibrationResult:
    """A leak that falls with the depth, and codecs that lose nothing."""
    scores = {(cut, codec): round(0.8 - 0.1 * cut, 2) for cut, codec in request.leak}
    leak = LeakFound("an attack", "SSIM", 100, 0.99, 0.14, 0.02, weakness, scores, request.sha256)
    losses = dict.fromkeys(request.accuracy, 0.002)
    accuracy = AccuracyFound(request.metric or "top1", 900, 0.93, losses, request.sha256) if losses else None
    return CalibrationResult(crepe().fingerprint, accuracy, leak if scores else None)


def told(world: World) -> tuple[str, str, str]:
    condition = next(each for each in world.status["conditions"] if each["type"] == "LimitsMeasured")
    return condition["status"], condition["reason"], condition["message"]


async def test_a_weaker_attack_on_the_same_inputs_makes_no_cut_safer() -> None:
    def attacked(scores: dict[tuple[int, str], float], sha256: str = "c" * 64) -> CalibrationResult:
        leak = LeakFound("an attack", "SSIM", 100, 0.99, 0.14, 0.02, "", scores, sha256)
        return CalibrationResult(crepe().fingerprint, None, leak)

    def shares(profile: ModelProfileSpec) -> list[float]:
        return [float({each.codec: each.share for each in cut.leakage}["fp32"]) for cut in profile.cuts][:5]

    world = World(calibrated=found)
    world.apply(**limited())
    await world.step(25)
    [resource] = world.cluster.of("ModelProfile").values()
    fresh = ModelProfileSpec.parse(resource["spec"]).model_copy(update={"leak_measurement": None})
    long = calibrating.with_result(fresh, attacked({(1, "fp32"): 0.8, (3, "fp32"): 0.4}))
    again = calibrating.with_result(long, attacked({(1, "fp32"): 0.5, (2, "fp32"): 0.6, (3, "fp32"): 0.5}))
    assert shares(again) == [1.0, 0.8, 0.6, 0.5, 0.5]
    # Another file of inputs is another question.
    other = calibrating.with_result(again, attacked({(1, "fp32"): 0.3}, "d" * 64))
    assert shares(other) == [1.0, 0.3, 0.3, 0.3, 0.3]


async def test_without_real_inputs_the_user_is_told_what_to_run() -> None:
    world = World()
    world.apply(**limited(None))
    await world.step(15)
    status, reason, message = told(world)
    assert (status, reason) == ("False", "NotMeasured")
    profile = world.status["profile"]
    assert (
        "splitplane model leak pitch:build --input frames:FP32:-1,1024 --weights file:///PATH/full.safetensors"
        f" --sha256 {'a' * 64} --calibration FILE --profile {profile} --namespace shop"
    ) in message
    assert "splitplane model accuracy pitch:build" in message
    signed = limited(None)
    signed["model"]["weights"]["uri"] = "https://models.example/full.safetensors?X-Amz-Signature=abcdef0123"
    world.apply(**signed)
    await world.step(2)
    assert "--weights 'https://models.example/full.safetensors?...'" in told(world)[2]
    assert "abcdef" not in str(world.status)
    world.apply(**limited(None))
    await world.step(2)
    assert world.condition("Ready")[0] == "True"  # on trusted tiers alone
    assert {stage["tier"] for stage in world.status["plan"]["stages"]} == {"edge"}


async def test_leak_and_loss_are_measured_once_on_a_trusted_tier_and_shared_by_the_models_pipelines() -> None:
    world = World(calibrated=found)
    world.apply(**limited())
    await world.step(25)
    [(where, request)] = world.requests
    assert where == "edge"
    assert request.uri == "file:///calibration/inputs/frames.safetensors"
    assert request.seconds == 1200.0  # on one thread
    assert {codec for _, codec in request.leak} == {"fp32", "int8"}
    assert {codec for _, codec in request.accuracy} == {"int8"}
    assert {cut for cut, _ in request.leak} <= set(range(1, 6))
    status, reason, message = told(world)
    assert (status, reason) == ("True", "Measured")
    assert "lower bound, by this attack: an attack" in message
    assert "0.99 of the input itself, 0.14 of other inputs' activations, 0.02 beyond a blind guess." in message
    assert "what top1 falls by at most, with 95 % confidence, against labels, of which it gets 0.93 unsplit" in message
    assert "900 inputs drawn at random" in message
    assert world.cluster.of("Job") == {}
    [profile] = world.cluster.of("ModelProfile").values()
    leaks = [{each["codec"]: float(each["share"]) for each in cut["leakage"]} for cut in profile["spec"]["cuts"]]
    first = min(cut for cut, _ in request.leak)
    assert leaks[first]["fp32"] == pytest.approx(0.8 - 0.1 * first)
    assert leaks[first - 1]["fp32"] == 1.0 if first > 1 else leaks[0] != {}
    assert all(leaks[cut]["fp32"] >= leaks[cut + 1]["fp32"] for cut in range(1, 5))

    world.apply(OTHER, **limited())
    await world.step(15, keys=(KEY, OTHER))
    assert len(world.requests) == 1
    other = world.cluster.objects["InferencePipeline", *OTHER]["status"]["conditions"]
    assert next(each for each in other if each["type"] == "LimitsMeasured")["status"] == "True"


async def test_a_leak_that_an_older_version_measured_is_told_without_the_skill_of_its_control() -> None:
    world = World(calibrated=found)
    world.apply(**limited())
    await world.step(25)
    [profile] = world.cluster.of("ModelProfile").values()
    del profile["spec"]["leakMeasurement"]["shuffledSkill"]
    older = ModelProfileSpec.parse(profile["spec"])
    told_of = calibrating.told_of(pipeline(**limited()), older, calibrating.Shares(accuracy=False, leak=True))
    assert told_of.endswith("0.14 of other inputs' activations.")
    assert calibrating.missing(pipeline(**limited()), older, ()) == calibrating.Shares(accuracy=False, leak=False)


CHANGED = {**CALIBRATION, "sha256": "d" * 64}


async def test_another_file_of_inputs_is_measured_on_and_plans_go_by_the_one_before_meanwhile() -> None:
    world = World(calibrated=found)
    world.apply(**limited())
    await world.step(25)
    plan = world.status["plan"]["stages"]
    assert "inputs of the file with sha256 cccccccccccc;" in told(world)[2]
    world.calibrated = None
    world.apply(**limited(CHANGED))
    await world.step(10)
    status, reason, message = told(world)
    assert (status, reason) == ("False", "Measuring")
    assert "measured on another file than spec.model.calibration names; plans go by that until" in message
    assert world.status["plan"]["stages"] == plan

    world.calibrated = found
    await world.step(15)
    assert [request.sha256 for _, request in world.requests] == ["c" * 64, "d" * 64]
    [profile] = world.cluster.of("ModelProfile").values()
    assert profile["spec"]["leakMeasurement"]["calibrationSha256"] == "d" * 64
    assert profile["spec"]["accuracyMeasurement"]["calibrationSha256"] == "d" * 64
    assert told(world)[1] == "Measured"
    await world.step(15)
    assert len(world.requests) == 2


async def test_pipelines_that_name_different_files_do_not_have_a_model_measured_in_turns() -> None:
    world = World(calibrated=found)
    world.apply(**limited())
    await world.step(25)
    world.apply(OTHER, **limited(CHANGED))
    await world.step(25, keys=(KEY, OTHER))
    assert len(world.requests) == 1
    other = world.cluster.objects["InferencePipeline", *OTHER]["status"]["conditions"]
    message = next(each for each in other if each["type"] == "LimitsMeasured")["message"]
    assert "the file with sha256 cccccccccccc, which another pipeline with this model names" in message

    world.apply(**limited({**CALIBRATION, "sha256": "e" * 64}))  # now nobody names what it was measured on
    await world.step(25, keys=(KEY, OTHER))
    assert len(world.requests) == 2
    await world.step(15, keys=(KEY, OTHER))
    assert len(world.requests) == 2


async def test_another_file_is_measured_with_the_codecs_of_others_too_whose_losses_fall_away_with_it() -> None:
    world = World(calibrated=found)
    world.apply(**limited())
    await world.step(25)
    world.apply(**limited(CHANGED, partitioning={"codecs": ["fp32", "fp16"]}))
    await world.step(25)
    assert [request.sha256 for _, request in world.requests] == ["c" * 64, "d" * 64]
    assert {codec for _, codec in world.requests[1][1].accuracy} == {"fp16", "int8"}


async def test_a_weak_attack_on_another_file_leaves_what_is_known_as_it_is() -> None:
    world = World(calibrated=found)
    world.apply(**limited())
    await world.step(25)
    world.calibrated = lambda request: found(request, weakness="the attack gets only 0.40 of the input itself")
    world.apply(**limited(CHANGED))
    await world.step(25)
    assert told(world)[1] == "AttackTooWeak"
    assert "The leak counts as before: on 100 inputs" in told(world)[2]
    [profile] = world.cluster.of("ModelProfile").values()
    assert profile["spec"]["leakMeasurement"]["calibrationSha256"] == "c" * 64
    assert len(world.requests) == 2


async def test_wrong_labels_leave_the_leak_measured_and_are_told_until_the_file_changes() -> None:
    def mislabelled(request: CalibrationRequest) -> CalibrationResult:
        return replace(found(request), accuracy=None, refusal="the unsplit model gets none of 70 labels right")

    world = World(calibrated=mislabelled)
    world.apply(**limited())
    await world.step(25)
    assert told(world)[1] == "MeasuringFailed"
    assert "Accuracy loss was not measured: the unsplit model gets none of 70 labels right." in told(world)[2]
    [profile] = world.cluster.of("ModelProfile").values()
    assert "leakMeasurement" in profile["spec"]
    assert len(world.requests) == 1
    world.calibrated = found
    world.apply(**limited(CHANGED))
    await world.step(25)
    assert told(world)[:2] == ("True", "Measured")


async def test_no_budget_is_advised_where_the_attack_cannot_read_what_crosses() -> None:
    world = World(calibrated=lambda request: found(request, weakness=UNREAD))
    world.apply(**limited())
    await world.step(25)
    assert told(world)[1] == "AttackTooWeak"
    assert "No budget mends that: attack other cuts" in told(world)[2]
    assert "budgetCoreSeconds" not in told(world)[2]


async def test_accuracy_is_measured_by_the_metric_that_the_pipeline_names() -> None:
    world = World(calibrated=found)
    world.apply(**limited({**CALIBRATION, "metric": "r2"}))
    await world.step(25)
    assert "what r2 falls by at most" in told(world)[2]
    [profile] = world.cluster.of("ModelProfile").values()
    measured_cut = profile["spec"]["cuts"][world.requests[0][1].accuracy[0][0]]
    assert {"codec": "int8", "share": "0.002"} in measured_cut["accuracyLoss"]
    world.apply(**limited({**CALIBRATION, "metric": "cosine"}))
    await world.step(25)
    assert [request.metric for _, request in world.requests] == ["r2", "cosine"]
    assert told(world)[:2] == ("True", "Measured")
    assert "what cosine falls by at most" in told(world)[2]


async def test_what_was_measured_lets_the_plan_leave_the_trusted_tier() -> None:
    world = World(metrics=measured(rate=40.0))
    world.apply(**limited(objectives={"maxLeakage": "0.5", "prefer": "Latency"}, replanning={"minGainPercent": 1}))
    await world.step(15)
    before = {stage["tier"] for stage in world.status["plan"]["stages"]}
    world.calibrated = found
    await world.step(25, seconds=30)
    assert before == {"edge"}
    stages = world.status["plan"]["stages"]
    assert stages[-1]["tier"] == "cloud"
    assert stages[-1]["firstCut"] >= 3  # 0.8 - 0.1 x 3 is the limit


async def test_progress_is_told_and_a_weak_attack_changes_nothing_and_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telling, "_OBSERVED_EVERY_SECONDS", 0.0)
    world = World()
    world.apply(**limited())
    await world.step(15)
    [(name, job)] = world.cluster.of("Job").items()
    config_map = world.cluster.of("ConfigMap")[name]
    world.cluster.put({**config_map, "data": {"progress": "leak: cut 3 fp32 large: 0.71; 12 attacks to go"}})
    await world.step()
    status, reason, message = told(world)
    assert (status, reason) == ("False", "Measuring")
    assert "12 attacks to go" in message
    assert job["spec"]["activeDeadlineSeconds"] > 1200
    world.calibrated = lambda request: found(request, weakness="the attack gets only 0.40 of the input itself")
    await world.step(10)
    status, reason, message = told(world)
    assert (status, reason) == ("False", "AttackTooWeak")
    assert "only 0.40 of the input itself" in message
    assert "budgetCoreSeconds" in message
    [profile] = world.cluster.of("ModelProfile").values()
    assert "leakMeasurement" not in profile["spec"]
    assert len(world.requests) == 1
    world.apply(**limited({**CALIBRATION, "budgetCoreSeconds": 4000}))
    world.calibrated = found
    await world.step(10)
    assert told(world)[:2] == ("True", "Measured")
    assert world.requests[1][1].seconds == 4000.0


async def test_a_codec_that_is_allowed_later_is_measured_though_the_attack_was_too_weak() -> None:
    world = World(calibrated=lambda request: found(request, weakness="the attack gets only 0.40 of the input itself"))
    world.apply(**limited())
    await world.step(25)
    assert told(world)[1] == "AttackTooWeak"
    await world.step(25)
    assert len(world.requests) == 1
    world.apply(**limited(partitioning={"codecs": ["fp32", "int8", "int4"]}))
    await world.step(25)
    assert len(world.requests) == 2
    assert {codec for _, codec in world.requests[1][1].accuracy} == {"int8", "int4"}
    [profile] = world.cluster.of("ModelProfile").values()
    assert {each["codec"] for each in profile["spec"]["cuts"][2]["accuracyLoss"]} == {"int8", "int4"}


async def test_a_weak_attack_is_made_again_where_the_pods_get_more_memory() -> None:
    world = World(calibrated=lambda request: found(request, weakness="the attack gets only 0.40 of the input itself"))
    world.apply(**limited())
    await world.step(25)
    assert "on 100 inputs, the attack gets only 0.40" in told(world)[2]
    assert "raise that of tier edge" in told(world)[2]
    world.calibrated = found
    more = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "6Gi"}}
    world.apply(**limited(tiers=[tier("edge", resources=more), tier("cloud", trusted=False)]))
    await world.step(25)
    assert len(world.requests) == 2
    assert told(world)[:2] == ("True", "Measured")


def weak_everywhere() -> list[dict[str, Any]]:
    return [tier("edge", trusted=True), tier("cloud", trusted=True), tier("third")]


async def test_a_weak_attack_is_not_made_again_on_another_tier_when_its_node_is_lost() -> None:
    world = World(calibrated=lambda request: found(request, weakness="the attack gets only 0.40 of the input itself"))
    world.apply(**limited(tiers=weak_everywhere()))
    await world.step(25)
    assert [where for where, _ in world.requests] == ["edge"]
    nodes = {name: world.cluster.objects["Node", "", name] for name in ("e1", "e2")}
    for name in nodes:
        world.cluster.remove("Node", name, "")
    await world.step(10)
    assert told(world)[1] == "AttackTooWeak"
    for node in nodes.values():
        world.cluster.put(node)
    await world.step(10)
    assert len(world.requests) == 1


async def test_a_first_profile_stops_a_calibration_and_is_not_measured_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telling, "_OBSERVED_EVERY_SECONDS", 0.0)
    world = World()  # calibrations never end
    world.apply(**limited())
    await world.step(15)
    [running] = world.cluster.of("Job")
    assert "-measure-" in running
    # The job's pod outlives the job for a moment.
    pod = {
        "kind": "Pod", "apiVersion": "v1", "spec": {"nodeName": "e1", "containers": []}, "status": {"phase": "Running"},
        "metadata": {
            "name": "measurer", "namespace": "shop",
            "labels": {**world.cluster.of("Job")[running]["metadata"]["labels"], "job-name": running},
        },
    }  # fmt: skip
    world.cluster.put(pod)
    other = limited(None)
    other["model"]["factory"] = "other:build"
    world.apply(OTHER, **other)
    await world.step(5, keys=(KEY, OTHER))
    assert not world.cluster.of("Job")
    assert told(world)[:2] == ("False", "Measuring")
    world.cluster.remove("Pod", "measurer", "shop")
    await world.step(1, keys=(OTHER, KEY), settle=False)
    [profiling_job] = world.cluster.of("Job")
    assert "-profile-" in profiling_job
    assert f"once {profiling_job} has ended" in told(world)[2]
    await world.step(15, keys=(KEY, OTHER))
    assert [name for name in world.cluster.of("Job") if "-measure-" in name] == [running]
    assert len(world.cluster.of("ModelProfile")) == 2


async def test_one_pipeline_measures_a_model_for_all_that_wait_for_it() -> None:
    world = World()
    world.apply(**limited())
    world.apply(OTHER, **limited())
    await world.step(60, keys=(KEY, OTHER))
    assert len(world.cluster.of("Job")) == 1
    world.calibrated = found
    await world.step(20, keys=(KEY, OTHER))
    assert len(world.requests) == 1
    assert told(world)[:2] == ("True", "Measured")


async def test_untrusted_tiers_see_no_real_inputs() -> None:
    world = World(calibrated=found)
    for name in ("e1", "e2"):
        world.cluster.remove("Node", name, "")
    world.apply(**limited(gateway={"tier": "cloud"}))
    await world.step(15)
    assert told(world)[:2] == ("False", "NoTrustedNode")
    assert not world.requests


def test_no_limit_needs_no_measurement() -> None:
    assert not calibrating.limited(pipeline())
    assert not calibrating.limited(pipeline(objectives={"maxAccuracyLoss": "0.1"}))  # fp32 alone loses nothing
    trusted = [tier("edge", trusted=True), tier("cloud", trusted=True)]
    assert not calibrating.limited(pipeline(objectives={"maxLeakage": "0.1"}, tiers=trusted))


async def test_behind_a_defence_both_are_measured_with_it_and_fp32_loses_accuracy_too() -> None:
    world = World()
    world.apply(**limited(objectives={"maxAccuracyLoss": "0.01", "defence": {"noise": "0.5"}, "prefer": "Latency"}))
    world.metrics = measured(rate=40.0)
    await world.step(15)
    assert len(world.status["plan"]["stages"]) == 1  # no crossing is known to lose little
    world.calibrated = found
    await world.step(10)
    [(_, request)] = world.requests
    assert request.defence == Defence(noise=0.5)
    assert {codec for _, codec in request.accuracy} == {"fp32", "int8"}
    assert told(world)[:2] == ("True", "Measured")
    [profile] = world.cluster.of("ModelProfile").values()
    assert profile["spec"]["defence"] == {"noise": "0.5", "dropout": "0"}

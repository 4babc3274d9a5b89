"""A pipeline's way from applied to serving and beyond, against an API in memory: order, restarts, lost races, quiet."""

import contextlib
import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from splitplane.adapters.cluster import Conflict, Unavailable
from splitplane.adapters.metrics import MetricsSnapshot, PipelineMetrics
from splitplane.cli import app
from splitplane.controller import control as controls
from splitplane.controller.reconciling import Reconciler
from splitplane.controller.telemetry import Telemetry
from splitplane.domain.measurements import Error, Value
from splitplane.domain.snapshots import Decision
from splitplane.domain.times import timestamp
from splitplane.planner import load_call, plan
from tests.support.controller_cases import SETTINGS, node, pipeline_body, tier
from tests.support.controller_world import KEY, World, measured


@pytest.fixture
def world() -> World:
    return World()


async def serving(world: World, **spec: Any) -> None:
    world.apply(**spec)
    await world.step(15)
    assert world.condition("Ready")[0] == "True", world.status


def split(cut: int) -> dict[str, Any]:
    stages = [{"tier": "edge", "firstCut": 0, "lastCut": cut}, {"tier": "cloud", "firstCut": cut, "lastCut": 6}]
    return {"mode": "Fixed", "fixed": {"stages": stages, "codecs": ["fp32"]}, "codecs": ["fp32"]}


def heavier(**more: Any) -> dict[str, Any]:
    """A spec whose pods differ: the same split needs new ones."""
    resources = {"requests": {"cpu": "500m", "memory": "512Mi"}}
    tiers = [tier("edge", resources=resources), tier("cloud", resources=resources)]
    return {"partitioning": split(2), "tiers": tiers, **more}


async def test_a_pipeline_is_measured_tier_after_tier_and_then_served(world: World) -> None:
    world.apply()
    await world.step(settle=False)
    assert [job["metadata"]["labels"]["splitplane.dev/tier"] for job in world.cluster.of("Job").values()] == ["edge"]
    await world.step(15)
    assert world.cluster.of("Job") == {}
    assert world.condition("Ready") == ("True", "Serving")
    assert world.status["plan"]["generation"] == world.table["spec"]["generation"] == 1
    assert set(world.table["spec"]["stages"]) == set(world.stages())


async def test_each_stage_has_a_budget_of_its_own_which_goes_with_its_deployment(world: World) -> None:
    def owners() -> dict[str, str]:
        found = world.cluster.of("PodDisruptionBudget")
        assert found.pop("tracker-gateway")["metadata"]["ownerReferences"][0]["kind"] == "InferencePipeline"
        return {name: body["metadata"]["ownerReferences"][0]["uid"] for name, body in found.items()}

    def deployments() -> dict[str, str]:
        return {name: world.cluster.of("Deployment")[name]["metadata"]["uid"] for name in world.stages()}

    await serving(world, partitioning=split(2))
    assert owners() == deployments()
    (gone, *_) = world.stages()
    world.cluster.remove("Deployment", gone, KEY[0])  # and with it, by the garbage collector, its budget
    world.cluster.remove("PodDisruptionBudget", gone, KEY[0])
    await world.step(3)
    assert owners() == deployments()
    assert gone in owners()


async def test_stages_of_an_operator_without_budgets_get_theirs(world: World) -> None:
    await serving(world)
    for name in world.cluster.of("PodDisruptionBudget"):
        world.cluster.remove("PodDisruptionBudget", name, KEY[0])
    world.restart()
    await world.step()
    assert world.cluster.of("PodDisruptionBudget").keys() == {*world.stages(), "tracker-gateway"}


async def test_stages_are_closed_to_others_before_there_are_any(world: World) -> None:
    await serving(world)
    writes = [(kind, name) for verb, kind, name in world.cluster.writes if verb == "apply"]
    stages = [writes.index(("Deployment", name)) for name in world.stages()]
    assert stages
    assert writes.index(("NetworkPolicy", "tracker-stages")) < min(stages)
    (owner,) = world.cluster.of("NetworkPolicy")["tracker-stages"]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("InferencePipeline", "u-tracker")


async def test_a_decision_is_logged_with_all_that_it_takes_to_make_it_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="splitplane.controller.deciding"):
        await serving(world)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "splitplane.controller.deciding"]
    said, _, call = line.partition(": ")
    decision = plan(*load_call(call))
    assert said == "Start of shop/tracker"
    assert str(decision.target.plan) == world.status["plan"]["summary"]


async def test_a_hold_is_logged_once_and_the_line_explains_its_gate(
    world: World, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    await serving(world)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="splitplane.controller.deciding"):
        world.metrics = MetricsSnapshot(time=0.0, failure="Prometheus cannot be asked: refused")
        await world.step(60)
        (line,) = [record.getMessage() for record in caplog.records if record.name == "splitplane.controller.deciding"]
        log = tmp_path / "operator.log"
        log.write_text(f"2026-01-01 INFO {line}\n")
        told = CliRunner().invoke(app, ["explain", "--call", str(log)]).output
        assert line.startswith("Hold of shop/tracker: ")
        assert "MetricsMissing" in told
        assert "Held by gate: metrics" in told
        world.metrics = measured()
        await world.step(60)
        world.metrics = MetricsSnapshot(time=0.0, failure="Prometheus cannot be asked: refused")
        await world.step(60)
    told_twice = [each for each in caplog.records if each.getMessage().startswith("Hold of shop/tracker: ")]
    assert len(told_twice) == 2


async def test_a_settled_pipeline_is_left_in_peace(world: World) -> None:
    await serving(world)
    await world.step(70)
    writes, events = len(world.cluster.writes), len(world.cluster.events)
    await world.step(60)
    assert world.cluster.writes[writes:] == []
    assert world.cluster.events[events:] == []


async def test_a_restarted_operator_goes_on_where_the_last_one_stopped(world: World) -> None:
    await serving(world, partitioning=split(2))
    world.gateway_admits = False
    world.apply(**heavier())
    await world.step(3)
    before = world.stages()
    assert len(before) == 4
    world.restart()
    await world.step(3)
    assert (world.stages(), world.table["spec"]["generation"]) == (before, 1)
    world.gateway_admits = True
    await world.step(6)
    assert world.table["spec"]["generation"] == 2
    assert len(world.stages()) == 2
    assert set(world.table["spec"]["stages"]) == set(world.stages())


async def test_of_two_operators_one_wins_each_generation_and_both_end_at_the_same_plan(world: World) -> None:
    await serving(world, partitioning=split(2))
    first, second = world.operator, world.another()
    seen: dict[int, str] = {}
    for cut in (3, 2, 4):
        world.apply(partitioning=split(cut))
        for _ in range(12):
            for operator in (second, first):
                world.operator = operator
                await world.step(seconds=0.5)
                spec = world.table["spec"]
                routes = json.dumps(spec["routes"])
                assert seen.setdefault(spec["generation"], routes) == routes
        assert world.status["plan"]["summary"].startswith(f"edge:0-{cut}|")
    assert sorted(seen) == [2, 3, 4]


@pytest.mark.parametrize("what", ["spec", "state"])
async def test_a_stale_view_loses_the_race_and_changes_nothing(world: World, what: str) -> None:
    await serving(world, partitioning=split(2))
    world.apply(partitioning=split(3))
    stale = table = world.table
    if what == "spec":
        world.cluster.put({**table, "spec": {**table["spec"], "generation": 7}})
    else:
        state = controls.dump(replace(controls.load(table), last_switch_seconds=9.0))
        annotations = {controls.CONTROL_ANNOTATION: state}
        world.cluster.put({**table, "metadata": {**table["metadata"], "annotations": annotations}})
    theirs = world.table

    class Stale:
        def route_table(self, key: Any) -> Any:
            return stale

        def __getattr__(self, name: str) -> Any:
            return getattr(view, name)

    view = world.cluster.view()
    operator = Reconciler(
        cluster=world.cluster, view=Stale(), clock=world.clock, settings=SETTINGS, telemetry=Telemetry()  # type: ignore[arg-type]
    )  # fmt: skip
    before = world.stages()
    with pytest.raises(Conflict):
        await operator.reconcile(KEY, world.metrics)
    assert world.table == theirs
    assert world.stages() == before
    stale, world.operator = theirs, operator
    await world.step()
    generation = theirs["spec"]["generation"] + 1
    assert world.table["spec"]["generation"] == generation, "what was lost is decided again at once"
    assert world.status["plan"]["summary"].startswith("edge:0-3|")


async def test_what_gateways_report_while_it_is_decided_takes_no_decision_away(world: World) -> None:
    await serving(world, partitioning=split(2))
    world.apply(partitioning=split(3))
    apply, before = world.cluster.apply, world.table["spec"]["generation"]

    async def late(body: Any) -> Any:
        if body["kind"] == "RouteTable" and not reports:
            reports.append({**world.table["status"]["gateways"]["tracker-gateway-0"], "route": "another"})
            world.report(world.table, reports[0])
        return await apply(body)

    reports: list[Any] = []
    world.cluster.apply = late  # type: ignore[method-assign]
    await world.step(settle=False)
    assert world.table["spec"]["generation"] == before + 1
    assert world.table["status"]["gateways"] == {"tracker-gateway-0": reports[0]}


async def down(*_: Any, **__: Any) -> Any:
    raise Unavailable("the Kubernetes API cannot be reached")


async def test_a_decision_that_the_api_did_not_take_is_made_again_at_once_and_then_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await serving(world, partitioning=split(2))
    world.apply(partitioning=split(3))
    apply, before = world.cluster.apply, world.table["spec"]["generation"]
    world.cluster.apply = down  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO, logger="splitplane.controller.deciding"):
        with pytest.raises(Unavailable):
            await world.step()
        assert not caplog.messages
        world.cluster.apply = apply  # type: ignore[method-assign]
        await world.step(settle=False)
    assert world.table["spec"]["generation"] == before + 1
    assert [message.partition(":")[0] for message in caplog.messages] == ["Switch of shop/tracker"]


async def test_a_minute_is_learnt_of_once_however_often_the_api_refuses_what_comes_of_it(world: World) -> None:
    await serving(world, partitioning=split(2))
    learnt = world.operator._memories[KEY].corrections
    slow = replace(measured().pipelines[KEY], stage_seconds={("edge", 0, 2): Value(0.5)})
    world.metrics = replace(measured(), pipelines={KEY: slow})
    world.apply(partitioning=split(3))
    apply = world.cluster.apply
    world.cluster.apply = down  # type: ignore[method-assign]
    for _ in range(3):
        with pytest.raises(Unavailable):
            await world.step()
    assert world.operator._memories[KEY].corrections == learnt
    world.cluster.apply = apply  # type: ignore[method-assign]
    await world.step()
    assert world.operator._memories[KEY].corrections != learnt


async def test_a_decision_is_written_whatever_becomes_of_measuring(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serving(world, partitioning=split(2))
    world.apply(partitioning=split(3))
    before = world.table["spec"]["generation"]
    monkeypatch.setattr(world.operator._calibrations, "ensure", down)
    with pytest.raises(Unavailable):
        await world.step()
    assert world.table["spec"]["generation"] == before + 1


@pytest.mark.parametrize("error", [Conflict, Unavailable])
async def test_a_decision_is_listed_though_its_first_status_was_not_taken(world: World, error: type[Exception]) -> None:
    async def refused(*_: Any, **__: Any) -> Any:
        raise error("not now")

    await serving(world, partitioning=split(2))
    world.apply(partitioning=split(3))
    patch = world.cluster.patch_status
    world.cluster.patch_status = refused  # type: ignore[method-assign]
    with contextlib.suppress(Unavailable):
        await world.step()
    world.cluster.patch_status = patch  # type: ignore[method-assign]
    await world.step(20)
    assert [entry["action"] for entry in world.status["decisions"]][-2:] == ["Switch", "Start"]


async def test_when_a_tiers_last_node_goes_its_routes_go_at_once(world: World) -> None:
    await serving(world, partitioning=split(2))
    world.cluster.put(node("c1", "cloud", ready=False))
    await world.step(settle=False)
    left = {stage["tier"] for route in world.table["spec"]["routes"] for stage in route["stages"]}
    assert left == {"edge"}
    assert world.condition("Degraded") == ("True", "TierLost")
    world.cluster.put(node("c1", "cloud"))
    await world.step(3)
    assert "cloud" in world.table["spec"]["routes"][0]["name"]
    assert world.condition("Ready")[0] == "True"


async def test_without_metrics_the_plan_is_held_and_the_user_told_once(world: World) -> None:
    await serving(world)
    plan = world.status["plan"]["summary"]
    world.metrics = MetricsSnapshot(time=0.0, failure="Prometheus at http://prometheus cannot be asked: refused")
    await world.step(60)
    assert world.condition("MetricsAvailable") == ("False", "PrometheusUnreachable")
    assert (world.condition("Ready")[0], world.status["plan"]["summary"]) == ("True", plan)
    assert [reason for _, reason, _ in world.cluster.events].count("PrometheusUnreachable") == 1
    world.metrics = measured()
    await world.step(60)
    assert world.condition("MetricsAvailable")[0] == "True"


async def test_a_number_that_is_none_holds_the_plan(world: World) -> None:
    await serving(world)
    generation = world.table["spec"]["generation"]
    base = measured().pipelines[KEY]
    wrong = PipelineMetrics(Error("not a finite number: nan"), base.arrival_scv, base.p95_seconds)
    world.metrics = MetricsSnapshot(time=0.0, pipelines={KEY: wrong}, node_prices=measured().node_prices)
    await world.step(60)
    assert world.condition("MetricsAvailable") == ("False", "NotANumber")
    assert world.table["spec"]["generation"] == generation


async def test_arrivals_burstier_than_any_formula_bears_count_as_the_most_that_one_does(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    base = measured()
    wild = replace(base.pipelines[KEY], arrival_scv=Value(1e9))
    world.metrics = replace(base, pipelines={KEY: wild})
    await serving(world)
    (line,) = [each for each in caplog.messages if each.startswith("Start of shop/tracker: ")]
    assert load_call(line.partition(": ")[2])[0].arrival_scv == 25.0


async def test_more_demand_brings_more_replicas_and_holds_are_listed_once(world: World) -> None:
    await serving(world)
    before = sum(world.stages().values())
    world.metrics = measured(rate=30.0)
    await world.step(90)
    assert sum(world.stages().values()) > before
    reasons = [(entry["action"], entry["reason"]) for entry in world.status["decisions"]]
    assert all(a != b for a, b in itertools.pairwise(reasons) if a[0] == "Hold")
    assert len(reasons) <= 10


async def test_a_limit_that_is_broken_now_and_then_is_told_once_and_stays_true_in_the_status(world: World) -> None:
    dear = replace(measured(), node_prices={"e1": Value(20.0), "e2": Value(20.0), "c1": Value(20.0)})
    await serving(world, objectives={"maxCostPerHour": "2"}, replanning={"intervalSeconds": 5})
    started = len(world.cluster.events)
    for turn in range(20):
        world.metrics = measured() if turn % 2 else dear
        await world.step(6)
        assert world.condition("PlanFeasible")[0] == ("True" if turn % 2 else "False")
    reasons = [reason for _, reason, _ in world.cluster.events[started:]]
    assert (reasons.count("Infeasible"), reasons.count("LimitsKept")) == (1, 1)
    world.metrics = dear
    await world.step(130, seconds=5)
    assert [reason for _, reason, _ in world.cluster.events].count("Infeasible") == 2


async def test_a_plan_that_never_gets_ready_is_rolled_back_with_the_reason(world: World) -> None:
    await serving(world, partitioning=split(2))
    old = world.stages()
    world.gateway_admits = False
    world.apply(**heavier())
    await world.step(2)
    new = (set(world.stages()) - set(old)).pop()
    world.cluster.put({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "stuck", "namespace": "shop",
            "labels": {
                "app.kubernetes.io/component": "stage", "splitplane.dev/pipeline": "tracker",
                "splitplane.dev/stage": new,
            },
        },
        "spec": {"containers": []},
        "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "insufficient memory"}]},
    })  # fmt: skip
    await world.step(30, seconds=5)
    assert [entry["action"] for entry in world.status["decisions"]].count("RollBack") >= 1
    assert any(
        reason == "SwitchRolledBack" and ("insufficient memory" in message or "replicas ready" in message)
        for _, reason, message in world.cluster.events
    )
    assert world.status["plan"]["summary"] == "edge:0-2|cloud:2-6 fp32"
    assert set(world.stages()) >= set(old)
    assert world.status["setAside"][0]["reason"] == "NotReadyInTime"


async def test_a_switch_that_is_given_up_is_told(world: World) -> None:
    await serving(world)
    world.gateway_admits = False
    world.metrics = measured(rate=20.0)
    await world.step(2, seconds=60)
    assert world.condition("Progressing") == ("True", "Preparing")
    world.apply(replanning={"minGainPercent": 90, "intervalSeconds": 61})
    world.metrics = measured()
    await world.step(2)
    told = [message for _, reason, message in world.cluster.events if reason == "SwitchAbandoned"]
    assert len(told) == 1
    assert "is prepared no longer: keep " in told[0]


async def test_stages_that_download_their_weights_are_given_the_time_that_a_thin_line_takes(world: World) -> None:
    model = pipeline_body()["spec"]["model"]
    model["weights"]["uri"] = "https://models.example/full.safetensors"
    world.gateway_admits = False
    world.apply(model=model)
    await world.step(40)
    for _ in range(3):
        await world.step(seconds=50)
    assert world.condition("Progressing") == ("True", "Preparing")
    assert not world.status.get("setAside")
    await world.step(seconds=600)
    await world.step()
    assert world.status["setAside"]


async def test_while_stages_load_for_long_a_load_that_rises_is_planned_for(world: World) -> None:
    model = pipeline_body()["spec"]["model"]
    model["weights"]["uri"] = "https://models.example/full.safetensors"
    await serving(world, model=model)
    world.gateway_admits = False
    world.metrics = measured(rate=20.0)
    await world.step(5)
    preparing = sum(world.stages().values())
    world.metrics = measured(rate=45.0)
    await world.step(2, seconds=60)
    assert sum(world.stages().values()) == preparing
    await world.step(2)
    assert world.condition("Progressing") == ("True", "Preparing")
    assert not world.status.get("setAside")
    assert sum(world.stages().values()) > preparing


async def test_a_failed_measurement_is_told_in_the_jobs_own_words_and_tried_again(world: World) -> None:
    world.apply()
    await world.step(settle=False)
    [(name, job)] = world.cluster.of("Job").items()
    failed = {"type": "Failed", "status": "True", "lastTransitionTime": timestamp(world.clock.time)}
    world.cluster.put({**job, "status": {"conditions": [failed]}})
    ended = {"exitCode": 3, "message": "Traceback\nno module named pitch"}
    world.cluster.put({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": f"{name}-x", "namespace": "shop",
            "labels": {
                "batch.kubernetes.io/controller-uid": job["metadata"]["uid"], "splitplane.dev/pipeline": "tracker",
                "app.kubernetes.io/component": "profile",
            },
        },
        "spec": {"containers": []}, "status": {"containerStatuses": [{"state": {"terminated": ended}}]},
    })  # fmt: skip
    await world.step(3, settle=False)
    status, reason = world.condition("Degraded")
    assert (status, reason) == ("True", "ProfileFailed")
    messages = [message for _, reason, message in world.cluster.events if reason == "ProfileFailed"]
    assert any("no module named pitch" in message for message in messages)
    world.cluster.remove("Pod", f"{name}-x", "shop")
    await world.step(20, seconds=5)
    assert world.condition("Ready")[0] == "True"


async def test_what_the_api_refuses_is_told(world: World) -> None:
    from splitplane.adapters.cluster import Forbidden

    world.apply()

    async def refuse(body: Any) -> Any:
        raise Forbidden("patch deployments shop/tracker-gateway: forbidden")

    world.cluster.apply = refuse  # type: ignore[method-assign]
    await world.step(settle=False)
    assert world.condition("Degraded") == ("True", "ApiRefused")


async def test_a_fault_of_the_planner_is_not_told_as_one_of_the_spec(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*arguments: Any, **options: Any) -> Decision:
        raise ValueError("zero-size array to reduction operation")

    monkeypatch.setattr("splitplane.controller.deciding.plan", faulty)
    world.apply()
    with pytest.raises(ValueError, match="zero-size"):
        await world.step(15)
    assert world.condition("Degraded")[1] != "InvalidSpec"


async def test_a_suspended_pipeline_starts_nothing(world: World) -> None:
    world.apply(suspend=True)
    await world.step(5)
    assert set(world.cluster.of("Job")) | set(world.cluster.of("Deployment")) == set()


async def test_a_profile_goes_when_its_last_pipeline_has_another_model(world: World) -> None:
    await serving(world)
    [old] = world.cluster.of("ModelProfile")
    model = pipeline_body()["spec"]["model"] | {"factory": "pitch:build_other"}
    world.apply(model=model)
    await world.step(2, settle=False)
    assert set(world.cluster.of("ModelProfile")) == {old}, "what serves still needs it"
    await world.step(30)
    [new] = world.cluster.of("ModelProfile")
    assert new != old
    assert world.condition("Ready")[0] == "True"
    assert world.status["profile"] == new


async def test_a_leap_of_the_load_is_planned_for_at_once(world: World) -> None:
    await serving(world, replanning={"intervalSeconds": 600})
    before = sum(world.stages().values())
    world.metrics = measured(rate=3.3)
    await world.step(5)
    assert sum(world.stages().values()) == before  # nothing is broken: that waits for the interval
    world.metrics = measured(rate=30.0)
    await world.step(5)
    assert sum(world.stages().values()) > before
    assert world.condition("Ready") == ("True", "Serving")


async def test_a_restarted_operator_knows_which_plan_was_left_and_on_what(world: World) -> None:
    await serving(world)
    first = controls.load(world.table).active
    world.metrics = measured(rate=40.0)
    await world.step(120)
    world.restart()
    await world.step(3)
    serves = controls.load(world.table).active
    assert first is not None
    assert serves is not None
    assert serves.plan != first.plan
    assert [each.plan for each in serves.left] == [first.plan]
    assert serves.left[0].inputs == serves.inputs


async def test_a_restarted_operator_knows_how_slow_a_tier_was_found_to_be(world: World) -> None:
    await serving(world, partitioning=split(2))
    usual = measured()
    slow = replace(usual.pipelines[KEY], stage_seconds={("edge", 0, 2): Value(0.08), ("cloud", 2, 6): Value(0.04)})
    world.metrics = replace(usual, pipelines={KEY: slow})
    await world.step(300)
    found = controls.load(world.table).learnt
    assert sorted(each.tier for each in found) == ["cloud", "edge"]
    assert min(each.correction.offset(world.clock.now()) for each in found) > 0.02
    world.restart()
    world.metrics = usual
    await world.step(70)
    assert controls.load(world.table).learnt == found

"""The pod lifecycle as a pure function: order, restarts, back-off, termination, phases."""

from typing import Any

import pytest

from splitplane.local.agent import lifecycle, status
from splitplane.local.agent.lifecycle import Decision, decide
from splitplane.local.agent.state import ContainerRecord, Ended, Failure, PodRecord, Run, Waiting

NOW = 1_000_000.0


def pod(*names: str, init: tuple[Any, ...] = (), policy: str = "Always", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {
            "restartPolicy": policy,
            "containers": [{"name": name, "image": "i"} for name in names or ("main",)],
            "initContainers": [c if isinstance(c, dict) else {"name": c, "image": "i"} for c in init],
            **spec,
        },
    }


def deleted(item: dict[str, Any], grace: int = 7) -> dict[str, Any]:
    meta = {**item["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace}
    return {**item, "metadata": meta}


def sidecar(name: str) -> dict[str, Any]:
    return {"name": name, "image": "i", "restartPolicy": "Always"}


def running(*, ready: bool = True, runs: int = 1) -> ContainerRecord:
    run = Run(container_id="c", pid=1, start_ticks=1, started_at=NOW - 5)
    return ContainerRecord(runs=runs, run=run, started=ready, ready=ready)


def ended(code: int, *, at: float = NOW, runs: int = 1, reason: str = "") -> ContainerRecord:
    how = Ended(exit_code=code, reason=reason or ("Error" if code else "Completed"), started_at=at - 1, finished_at=at)
    return ContainerRecord(runs=runs, ended=how)


def record(**containers: ContainerRecord) -> PodRecord:
    return PodRecord(namespace="n", name="p", uid="u", ip="127.9.0.2", admitted_at=NOW - 60, containers=containers)


def test_all_containers_start_at_once() -> None:
    assert decide(pod("a", "b"), record(), NOW) == Decision(
        "Pending",
        start=("a", "b"),
        waiting={"a": Waiting(reason="ContainerCreating"), "b": Waiting(reason="ContainerCreating")},
    )


def test_init_containers_run_in_order_before_the_rest() -> None:
    item = pod(init=("i1", "i2"))
    first = decide(item, record(), NOW)
    assert first.start == ("i1",)
    assert first.waiting["main"].reason == "PodInitializing"
    assert decide(item, record(i1=running()), NOW).start == ()
    assert decide(item, record(i1=ended(0)), NOW).start == ("i2",)
    assert decide(item, record(i1=ended(0), i2=ended(0)), NOW).start == ("main",)


def test_a_failed_init_container_fails_a_pod_that_never_restarts() -> None:
    decision = decide(pod(init=("i",), policy="Never"), record(i=ended(3)), NOW)
    assert decision == Decision("Failed", over=True)


def test_a_failed_init_container_is_run_again_otherwise() -> None:
    assert decide(pod(init=("i",)), record(i=ended(3)), NOW).start == ("i",)


def test_the_rest_waits_until_a_sidecar_has_started_not_ended() -> None:
    item = pod(init=(sidecar("s"), "i"))
    assert decide(item, record(), NOW).start == ("s",)
    assert decide(item, record(s=running(ready=False)), NOW).start == ()
    assert decide(item, record(s=running()), NOW).start == ("i",)
    assert decide(item, record(s=running(), i=ended(0)), NOW).start == ("main",)


def test_a_sidecar_is_kept_running_beside_main_containers() -> None:
    assert decide(pod(init=(sidecar("s"),)), record(s=ended(0), main=running()), NOW).start == ("s",)


def test_a_completed_pod_ends_its_sidecars_last_to_first_and_then_succeeds() -> None:
    item = pod(init=(sidecar("s1"), sidecar("s2")), policy="Never")
    decision = decide(item, record(s1=running(), s2=running(), main=ended(0)), NOW)
    assert [stop.name for stop in decision.stop] == ["s2"]
    assert decide(item, record(s1=ended(143), s2=ended(143), main=ended(0)), NOW) == Decision("Succeeded", over=True)


@pytest.mark.parametrize(
    ("policy", "code", "starts", "phase"),
    [
        ("Always", 0, True, "Running"),
        ("Always", 1, True, "Running"),
        ("OnFailure", 0, False, "Succeeded"),
        ("OnFailure", 1, True, "Running"),
        ("Never", 0, False, "Succeeded"),
        ("Never", 1, False, "Failed"),
    ],
)
def test_restart_policies(policy: str, code: int, starts: bool, phase: str) -> None:
    decision = decide(pod(policy=policy), record(main=ended(code)), NOW)
    assert (bool(decision.start), decision.phase) == (starts, phase)


def test_one_container_at_work_keeps_the_pod_running() -> None:
    assert decide(pod("a", "b", policy="Never"), record(a=ended(1), b=running()), NOW).phase == "Running"


def test_backoff_doubles_from_ten_seconds_to_five_minutes_and_is_forgotten_after_quiet() -> None:
    backoff, seconds = None, []
    for _ in range(7):
        backoff = lifecycle.raised(backoff, NOW)
        seconds.append(backoff.seconds)
    assert seconds == [10, 20, 40, 80, 160, 300, 300]
    assert lifecycle.raised(backoff, NOW + 601).seconds == 10


def test_a_crashing_container_waits_for_its_backoff() -> None:
    crashed = ended(1, runs=2)
    crashed.backoff = lifecycle.raised(None, NOW - 3)
    decision = decide(pod(), record(main=crashed), NOW + 4)
    assert decision.start == ()
    assert decision.wake_at == NOW + 10
    assert decision.waiting["main"].reason == "CrashLoopBackOff"
    assert "back-off 10s restarting failed container=main pod=p_n(u)" in decision.waiting["main"].message
    assert decide(pod(), record(main=crashed), NOW + 10).start == ("main",)


def test_a_program_that_cannot_be_executed_says_so_while_it_waits() -> None:
    crashed = ended(128, runs=2, reason="StartError")
    crashed.backoff = lifecycle.raised(None, NOW)
    assert decide(pod(), record(main=crashed), NOW).waiting["main"].reason == "RunContainerError"


def test_a_start_that_failed_outside_is_tried_again_later() -> None:
    missing = Waiting(reason="CreateContainerConfigError", message="configmap not found")
    waiting = ContainerRecord(failure=Failure(waiting=missing, at=NOW, attempts=3))
    decision = decide(pod(), record(main=waiting), NOW + 1)
    assert (decision.start, decision.wake_at, decision.waiting["main"]) == ((), NOW + 4, missing)
    assert decide(pod(), record(main=waiting), NOW + 4).start == ("main",)


def test_a_failed_liveness_probe_stops_the_container_once() -> None:
    sick = running()
    sick.restart, sick.restart_grace = "failed liveness probe", 3.0
    decision = decide(pod(), record(main=sick), NOW)
    assert [(s.name, s.grace) for s in decision.stop] == [("main", 3.0)]
    sick.stopping = True
    assert decide(pod(), record(main=sick), NOW).stop == ()


def test_deletion_stops_main_containers_before_sidecars_within_its_grace() -> None:
    item = deleted(pod("a", "b", init=(sidecar("s"),)))
    decision = decide(item, record(a=running(), b=running(), s=running()), NOW)
    assert [(s.name, s.grace) for s in decision.stop] == [("a", 7.0), ("b", 7.0)]
    assert not decision.over
    later = decide(item, record(a=ended(143), b=ended(0), s=running()), NOW)
    assert [s.name for s in later.stop] == ["s"]


def test_a_deleted_pod_starts_nothing_and_ends_with_a_final_phase() -> None:
    assert decide(deleted(pod()), record(), NOW) == Decision("Failed", over=True)
    assert decide(deleted(pod()), record(main=ended(0)), NOW) == Decision("Succeeded", over=True)
    assert decide(deleted(pod()), record(main=ended(143)), NOW) == Decision("Failed", over=True)


def test_the_active_deadline_fails_the_pod() -> None:
    item = pod(activeDeadlineSeconds=60)
    decision = decide(item, record(main=running()), NOW)
    assert decision.fail is not None
    assert decision.fail.reason == "DeadlineExceeded"
    early = decide(item, record(main=running()), NOW - 1)
    assert (early.fail, early.wake_at) == (None, NOW)


def test_a_failed_pod_stops_everything_and_stays_failed() -> None:
    broken = record(main=running())
    broken.failed = Waiting(reason="OutOfcpu", message="too much")
    assert [s.name for s in decide(pod(), broken, NOW).stop] == ["main"]
    broken.containers = {}
    assert decide(pod(), broken, NOW) == Decision("Failed", over=True)


def test_a_finished_pod_never_starts_again() -> None:
    done = record(main=ended(0))
    done.phase = "Succeeded"
    assert decide(pod(), done, NOW) == Decision("Succeeded", over=True)


def shown(item: dict[str, Any], known: PodRecord) -> dict[str, Any]:
    return status.build(item, known, decide(item, known, NOW), node_address="127.9.0.1", now=NOW)


def conditions(built: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in built["conditions"]}


def test_status_of_a_ready_pod() -> None:
    known = record(main=running())
    known.volumes_ready = True
    built = shown(pod(), known)
    assert built["phase"] == "Running"
    assert (built["podIP"], built["podIPs"], built["hostIP"]) == ("127.9.0.2", [{"ip": "127.9.0.2"}], "127.9.0.1")
    assert set(conditions(built).values()) == {"True"}
    [container] = built["containerStatuses"]
    assert (container["ready"], container["started"], container["restartCount"]) == (True, True, 0)
    assert "running" in container["state"]


def test_status_names_containers_that_are_not_ready() -> None:
    built = shown(pod("a", "b"), record(a=running(), b=running(ready=False)))
    [ready] = [c for c in built["conditions"] if c["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "ContainersNotReady")
    assert ready["message"] == "containers with unready status: [b]"


def test_status_keeps_the_end_of_the_run_before() -> None:
    crashed = ended(3, runs=3)
    crashed.backoff = lifecycle.raised(None, NOW)
    [container] = shown(pod(), record(main=crashed))["containerStatuses"]
    assert container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert container["lastState"]["terminated"]["exitCode"] == 3
    assert container["restartCount"] == 2


def test_status_of_a_completed_pod() -> None:
    built = shown(pod(policy="Never"), record(main=ended(0)))
    assert built["phase"] == "Succeeded"
    [ready] = [c for c in built["conditions"] if c["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "PodCompleted")
    assert built["containerStatuses"][0]["state"]["terminated"]["reason"] == "Completed"


def test_status_of_a_refused_pod_has_no_containers_and_the_reason() -> None:
    refused = record()
    refused.failed, refused.ip = Waiting(reason="OutOfcpu", message="no room"), ""
    built = shown(pod(), refused)
    assert (built["phase"], built["reason"], built["message"]) == ("Failed", "OutOfcpu", "no room")
    assert "containerStatuses" not in built
    assert "podIP" not in built


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    item = pod()
    known = record(main=running())
    old = {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}
    item["status"] = {"conditions": [old]}
    [same] = [c for c in shown(item, known)["conditions"] if c["type"] == "Ready"]
    assert same["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    known.containers["main"].ready = False
    [new] = [c for c in shown(item, known)["conditions"] if c["type"] == "Ready"]
    assert new["lastTransitionTime"] != "2020-01-01T00:00:00Z"


def test_a_readiness_gate_holds_the_pod_back() -> None:
    item = pod(readinessGates=[{"conditionType": "example.com/routed"}])
    assert conditions(shown(item, record(main=running())))["Ready"] == "False"
    item["status"] = {"conditions": [{"type": "example.com/routed", "status": "True"}]}
    assert conditions(shown(item, record(main=running())))["Ready"] == "True"

"""The status that the API server shows for a pod: a pure function of its specification and of the agent's record."""

from collections.abc import Mapping
from typing import Any

from splitplane.domain.resources import is_sidecar
from splitplane.domain.times import timestamp
from splitplane.local.agent.lifecycle import Decision, Pod
from splitplane.local.agent.state import ContainerRecord, Ended, PodRecord

Object = dict[str, Any]


def build(pod: Pod, record: PodRecord, decision: Decision, *, node_address: str, now: float) -> Object:
    """The fields of ``status`` that are the node's. Conditions of others are not among them."""
    spec = pod["spec"]
    inits = [_container(c, record, decision, init=True) for c in spec.get("initContainers", [])]
    mains = [_container(c, record, decision, init=False) for c in spec["containers"]]
    status: Object = {
        "phase": decision.phase,
        "observedGeneration": pod["metadata"].get("generation"),
        "hostIP": node_address,
        "hostIPs": [{"ip": node_address}],
        "startTime": timestamp(record.admitted_at),
        "conditions": _conditions(pod, record, decision, mains, inits, now),
        "reason": record.failed.reason if record.failed else None,
        "message": record.failed.message if record.failed else None,
    }
    if record.ip:
        status |= {"podIP": record.ip, "podIPs": [{"ip": record.ip}]}
    if record.failed is None or record.containers:
        status["containerStatuses"] = mains
        if inits:
            status["initContainerStatuses"] = inits
    return status


def container_state(record: ContainerRecord, decision: Decision, name: str, *, restarts: bool) -> tuple[Object, Object]:
    """``state`` and ``lastState`` of a container."""
    last = record.ended
    if record.run is not None:
        return {"running": {"startedAt": timestamp(record.run.started_at)}}, _last(last)
    waiting = decision.waiting.get(name)
    if waiting is not None and (last is None or restarts):
        shown = {"reason": waiting.reason} | ({"message": waiting.message} if waiting.message else {})
        return {"waiting": shown}, _last(last)
    if last is not None:
        return {"terminated": _terminated(last)}, _last(record.before)
    # The pod ended before this container could run.
    return {"waiting": {"reason": "ContainerCreating" if decision.phase == "Pending" else "PodInitializing"}}, {}


def _container(container: Mapping[str, Any], record: PodRecord, decision: Decision, *, init: bool) -> Object:
    name = container["name"]
    own = record.look(name)
    state, last = container_state(own, decision, name, restarts=True)
    running = own.run is not None
    done = init and not is_sidecar(container) and "terminated" in state and state["terminated"]["exitCode"] == 0
    run_id = own.run.container_id if own.run else own.ended.container_id if own.ended else ""
    return {
        "name": name,
        "image": container["image"],
        "imageID": "",
        "containerID": run_id,
        "state": state,
        "lastState": last,
        "restartCount": own.restarts,
        "started": running and own.started,
        "ready": done or (running and own.ready),
    }


def _terminated(ended: Ended) -> Object:
    shown: Object = {
        "exitCode": ended.exit_code,
        "reason": ended.reason,
        "startedAt": timestamp(ended.started_at),
        "finishedAt": timestamp(ended.finished_at),
        "containerID": ended.container_id,
    }
    return shown | ({"message": ended.message} if ended.message else {})


def _last(ended: Ended | None) -> Object:
    return {} if ended is None else {"terminated": _terminated(ended)}


def _conditions(
    pod: Pod, record: PodRecord, decision: Decision, mains: list[Object], inits: list[Object], now: float
) -> list[Object]:
    terminal = decision.phase in {"Succeeded", "Failed"}
    done_reason = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(decision.phase, "")
    sidecars = {c["name"] for c in pod["spec"].get("initContainers", []) if is_sidecar(c)}
    begun = any(record.look(c["name"]).runs for c in pod["spec"]["containers"])
    pending = [c["name"] for c in inits if not (c["started"] if c["name"] in sidecars else c["ready"])]
    initialised = begun or not pending
    unready = [c["name"] for c in [*mains, *(c for c in inits if c["name"] in sidecars)] if not c["ready"]]
    ready_reason, ready_message = "", ""
    if terminal:
        ready_reason = done_reason
    elif unready:
        ready_reason, ready_message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    containers_ready = not terminal and not unready
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates", [])]
    have = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", [])}
    closed = [gate for gate in gates if have.get(gate) != "True"]
    ready = containers_ready and not closed
    if containers_ready and closed:
        ready_reason, ready_message = "ReadinessGatesNotReady", f"conditions not True: {', '.join(closed)}"
    wanted = [
        ("PodReadyToStartContainers", record.volumes_ready and not terminal, "", ""),
        (
            "Initialized",
            initialised or decision.phase == "Succeeded",
            "" if initialised else "ContainersNotInitialized",
            "" if initialised else f"containers with incomplete status: [{' '.join(pending)}]",
        ),
        ("Ready", ready, ready_reason, ready_message),
        (
            "ContainersReady",
            containers_ready,
            "" if containers_ready else ready_reason,
            "" if containers_ready else ready_message,
        ),
        ("PodScheduled", True, "", ""),
    ]
    earlier = {c["type"]: c for c in pod.get("status", {}).get("conditions", [])}
    return [_condition(earlier.get(kind), kind, holds, reason, message, now) for kind, holds, reason, message in wanted]


def _condition(earlier: Object | None, kind: str, holds: bool, reason: str, message: str, now: float) -> Object:
    state = "True" if holds else "False"
    since = timestamp(now)
    if earlier is not None and earlier["status"] == state:
        since = earlier.get("lastTransitionTime") or since
    # Null removes what an earlier patch has left.
    return {
        "type": kind,
        "status": state,
        "lastTransitionTime": since,
        "reason": reason or None,
        "message": message or None,
    }

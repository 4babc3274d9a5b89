"""Small pods and ways to wait for them, shared by the tests of the node agent."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

IMAGE = "registry.example/splitplane/runtime:test"

Object = dict[str, Any]
Kubectl = Callable[..., str]


def container(program: str, *arguments: str, name: str = "main", **more: Any) -> Object:
    """A container that runs a Python program."""
    return {"name": name, "image": IMAGE, "command": ["python", "-c", program, *arguments], **more}


def pod(name: str, *containers: Object, **spec: Any) -> Object:
    """A pod that tolerates every taint and ends quickly."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "containers": list(containers),
            "terminationGracePeriodSeconds": 5,
            "tolerations": [{"operator": "Exists"}],
            "restartPolicy": "Never",
            **spec,
        },
    }


def until(what: str, look: Callable[[], Any], *, seconds: float = 120.0) -> Any:
    """The first true value of `look()`; fails the test, saying what was awaited, when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}; last seen: {found!r}")
        time.sleep(0.15)


class Pods:
    """kubectl in one namespace, with parsed answers."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self.namespace = namespace

    def __call__(self, *arguments: str, **more: Any) -> str:
        return self._kubectl("-n", self.namespace, *arguments, **more)

    def apply(self, *objects: Object) -> None:
        """Create or change objects."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "-f", "-", stdin=json.dumps(items))

    def get(self, name: str) -> Object:
        """A pod."""
        found: Object = json.loads(self("get", "pod", name, "-o", "json"))
        return found

    def status(self, name: str, container_name: str = "main") -> Object:
        """A container's status; empty while there is none."""
        every = self.get(name).get("status", {})
        statuses = every.get("containerStatuses", []) + every.get("initContainerStatuses", [])
        found: Object = next((s for s in statuses if s["name"] == container_name), {})
        return found

    def phase(self, name: str, *wanted: str) -> Object:
        """Wait for a phase; returns the pod."""

        def look() -> Object | None:
            found = self.get(name)
            return found if found["status"].get("phase") in wanted else None

        found: Object = until(f"pod {name} in phase {wanted}", look)
        return found

    def ready(self, name: str) -> Object:
        """Wait until a pod is ready; returns it."""

        def look() -> Object | None:
            found = self.get(name)
            have = {c["type"]: c["status"] for c in found["status"].get("conditions", [])}
            return found if have.get("Ready") == "True" else None

        found: Object = until(f"pod {name} ready", look)
        return found

    def waiting(self, name: str, reason: str, container_name: str = "main") -> str:
        """Wait for a waiting reason; returns its message."""

        def look() -> Object | None:
            waiting: Object = self.status(name, container_name).get("state", {}).get("waiting", {})
            return waiting if waiting.get("reason") == reason else None

        return str(until(f"pod {name} waiting with {reason}", look).get("message", ""))

    def output(self, name: str) -> Any:
        """What a completed pod has printed, as JSON."""
        self.phase(name, "Succeeded")
        return json.loads(self("logs", name))

    def events(self, name: str) -> list[tuple[str, str]]:
        """(reason, message) of a pod's events."""
        answer = self("get", "events", f"--field-selector=involvedObject.name={name}", "-o", "json")
        return [(event["reason"], event["message"]) for event in json.loads(answer)["items"]]

    def event(self, name: str, reason: str) -> str:
        """Wait for an event of a pod; returns its message."""
        found = until(
            f"event {reason} of {name}", lambda: [message for why, message in self.events(name) if why == reason]
        )
        return str(found[-1])

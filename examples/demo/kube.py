"""The few things that the demo asks of the cluster, through kubectl: what a user would type."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class DemoError(Exception):
    """The demo can't go on; the message says what was seen."""


@dataclass(frozen=True, slots=True)
class Kube:
    """kubectl with one kubeconfig and one namespace."""

    kubectl: Path
    kubeconfig: Path
    namespace: str

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard output of a kubectl call. Raises ``DemoError`` with kubectl's own words."""
        done = subprocess.run(
            [self.kubectl, "--kubeconfig", self.kubeconfig, "--namespace", self.namespace, *arguments],
            input=stdin, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if done.returncode:
            raise DemoError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.run("get", *arguments, "--output", "json"))  # type: ignore[no-any-return]

    def pods(self, **labels: str) -> list[dict[str, Any]]:
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        items: list[dict[str, Any]] = self.get("pods", "--selector", selector)["items"]
        return items


@dataclass(frozen=True, slots=True)
class Change:
    """A decision that changed the plan, as the status remembers it."""

    at: float
    reason: str
    message: str
    predicted_p95: float
    """Milliseconds, as expected when it was decided; NaN where there was no finite number."""


@dataclass(frozen=True, slots=True)
class Active:
    """What the pipeline's status says of the plan that serves."""

    summary: str
    generation: int
    replicas: dict[str, int]
    cost_per_hour: float
    changes: tuple[Change, ...]
    """Oldest first."""
    ready: bool
    conditions: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        counts = ", ".join(f"{count} {tier}" for tier, count in self.replicas.items())
        return f"{self.summary} ({counts})" if self.summary else "none"

    @property
    def predicted_p95(self) -> float:
        """What this plan was expected to give when it was decided, in milliseconds."""
        return self.changes[-1].predicted_p95 if self.changes else float("nan")

    def changed_for(self, reasons: frozenset[str], since: float) -> bool:
        """Whether one of these reasons has changed the plan since then."""
        return any(change.at >= since and change.reason in reasons for change in self.changes)

    def why(self, since: float) -> str:
        """Reasons of the changes made since then, in their order, each once."""
        return ", ".join(dict.fromkeys(change.reason for change in self.changes if change.at >= since)) or "none"

    @property
    def cuts(self) -> tuple[str, ...]:
        return tuple(part.split()[0] for part in self.summary.split("|"))


def active(kube: Kube, pipeline: str) -> Active:
    status = kube.get("ipipe", pipeline).get("status", {})
    plan = status.get("plan") or {}
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    changes = [
        Change(
            at=datetime.fromisoformat(d["time"]).timestamp(),
            reason=d["reason"],
            message=d.get("message", ""),
            predicted_p95=float(d.get("predictedP95Milliseconds", "nan")),
        )
        for d in status.get("decisions", [])
        if d["action"] != "Hold"
    ]
    replicas: dict[str, int] = {}
    for stage in plan.get("stages", []):
        replicas[stage["tier"]] = replicas.get(stage["tier"], 0) + stage["replicas"]
    return Active(
        summary=plan.get("summary", ""),
        generation=plan.get("generation", 0),
        replicas=replicas,
        cost_per_hour=float(plan.get("costPerHour") or "nan"),
        changes=tuple(sorted(changes, key=lambda change: change.at)),
        ready=conditions.get("Ready", {}).get("status") == "True",
        conditions={
            name: f"{c['status']} {c.get('reason', '')}: {c.get('message', '')}" for name, c in conditions.items()
        },
    )


def wait_for(
    what: str, probe: Callable[[], T | None], *, seconds: float, every: float = 0.5, show: Callable[[], str] = str
) -> T:
    """The first true answer. Raises ``DemoError`` when time is up, with what ``show`` sees."""
    deadline = time.monotonic() + seconds
    while True:
        if found := probe():
            return found
        if time.monotonic() > deadline:
            raise DemoError(f"{what}: not within {seconds:.0f} s. {show()}")
        time.sleep(every)

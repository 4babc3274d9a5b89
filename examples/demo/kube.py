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
class Active:
    """What the pipeline's status says of the plan that serves. Times are milliseconds."""

    summary: str
    generation: int
    replicas: dict[str, int]
    predicted_p95: float
    cost_per_hour: float
    switches: tuple[tuple[float, str, str], ...]
    """(time, reason, message) of the remembered decisions that changed the plan, oldest first."""
    ready: bool
    conditions: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        counts = ", ".join(f"{count} {tier}" for tier, count in self.replicas.items())
        return f"{self.summary} ({counts})" if self.summary else "none"

    def why(self, since: float) -> str:
        """Reasons of the decisions made since then, in their order, each once."""
        return ", ".join(dict.fromkeys(reason for at, reason, _ in self.switches if at >= since)) or "none"

    @property
    def cuts(self) -> tuple[str, ...]:
        return tuple(part.split()[0] for part in self.summary.split("|"))


def active(kube: Kube, pipeline: str) -> Active:
    status = kube.get("ipipe", pipeline).get("status", {})
    plan = status.get("plan") or {}
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    switches = sorted(
        (datetime.fromisoformat(d["time"]).timestamp(), d["reason"], d.get("message", ""))
        for d in status.get("decisions", [])
        if d["action"] != "Hold"
    )
    replicas: dict[str, int] = {}
    for stage in plan.get("stages", []):
        replicas[stage["tier"]] = replicas.get(stage["tier"], 0) + stage["replicas"]
    return Active(
        summary=plan.get("summary", ""),
        generation=plan.get("generation", 0),
        replicas=replicas,
        predicted_p95=float(plan.get("predictedP95Milliseconds") or "nan"),
        cost_per_hour=float(plan.get("costPerHour") or "nan"),
        switches=tuple(switches),
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

"""The cluster that faults are done to: a small split pipeline that serves, a client that asks, hands to break it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from splitplane.local import binaries, install
from splitplane.local.cluster import Cluster
from splitplane.local.config import ClusterConfig
from splitplane.local.processes import Process, descendants
from tests.chaos import records
from tests.support import operator_cases as cases
from tests.support.operator_requests import FEATURES, expected

PIPELINE = "steady"
SEGMENTS = 4
RATE = 20.0
"""Requests per second."""
CONFIG = ClusterConfig.model_validate({
    "nodes": [
        {"name": "system-1"},
        {"name": "edge-1", "tier": "edge"},
        {"name": "edge-2", "tier": "edge"},
        {"name": "cloud-1", "tier": "cloud"},
        {"name": "cloud-2", "tier": "cloud"},
    ],
    "links": [{"between": ["edge", "cloud"], "rate": "100Mbit", "delay": "2ms"}],
})  # fmt: skip


def split(cut: int) -> cases.Json:
    return cases.fixed(("edge", 0, cut), ("cloud", cut, SEGMENTS))


WHOLE = cases.fixed(("edge", 0, SEGMENTS))


class Site:
    """One cluster with one pipeline. ``edge`` and ``cloud`` are the replicas of its tiers."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.log = folder / "requests.jsonl"
        self.spec: dict[str, Any] = {}
        kubectl = binaries.ensure("kubectl")

        def run(*arguments: str, stdin: Any = None, timeout: float = 60) -> str:
            done = subprocess.run(
                [str(kubectl), f"--kubeconfig={cluster.paths.kubeconfig}", *arguments],
                input=None if stdin is None else json.dumps(stdin),
                capture_output=True, text=True, check=False, timeout=timeout,
            )  # fmt: skip
            if done.returncode:
                raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
            return done.stdout

        self.ns = cases.Namespace(run, "chaos")
        self._kubectl = run

    # The pipeline.

    def begin(self) -> None:
        """From nothing to a split that serves, with two replicas of everything."""
        windows = ("prometheus.windowSeconds=20", "prometheus.demandWindowSeconds=20")
        install.install(self.cluster, helm=binaries.ensure("helm"), chart=install.find_chart(), settings=windows)
        self._kubectl("create", "namespace", self.ns.name)
        self.ns.apply(cases.code())
        self.apply(partitioning=split(1))
        self.settled("edge:0-1|cloud:1-4 fp32", edge=2, cloud=2, seconds=240)

    def apply(self, *, edge: int = 2, cloud: int = 2, image: str = "", **spec: Any) -> None:
        model = cases.model(sha256(cases.weights()).hexdigest())
        if image:
            model["image"] = image
        tiers = [
            cases.tier(name, replicas={"min": count, "max": count})
            for name, count in (("edge", edge), ("cloud", cloud))
        ]
        body = cases.pipeline(PIPELINE, model, *tiers, **spec)
        body["spec"]["gateway"]["replicas"] = 2
        self.ns.apply(body)

    def status(self) -> cases.Json:
        return self.ns.status(PIPELINE)

    def settled(self, summary: str, *, edge: int = 2, cloud: int = 2, seconds: float = 90, every: float = 0.3) -> None:
        """Wait until this plan serves with all its replicas and what served before has gone."""
        counts = f"edge {edge}/{edge}" + (f", cloud {cloud}/{cloud}" if "cloud" in summary else "")

        def done() -> bool:
            status = self.status()
            return (
                (status.get("plan") or {}).get("summary") == summary
                and status.get("replicas") == counts
                and not status.get("drains")
            )

        cases.wait(done, seconds=seconds, every=every, what=lambda: f"{summary} with {counts}; status {self.status()}")

    def pods(self, component: str, **labels: str) -> list[cases.Json]:
        selector = ",".join([f"app.kubernetes.io/component={component}", *(f"{k}={v}" for k, v in labels.items())])
        found = self.ns.items("pods", f"--selector={selector}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def gateways(self) -> list[str]:
        """Names of the gateway's pods that are ready."""
        return [pod["metadata"]["name"] for pod in self.pods("gateway") if _ready(pod)]

    # Hands.

    def kill(self, module: str, pod: str) -> None:
        """SIGKILL to a pod's process."""
        name = f"SPLITPLANE_POD_NAME={pod}".encode()
        for process in descendants(self.cluster.status()["supervisor"]["pid"]):
            with suppress(OSError):
                command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
                environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if f"splitplane.{module}".encode() in command and name in environment:
                    process.signal(signal.SIGKILL)
                    return
        raise AssertionError(f"no process runs splitplane.{module} in {pod}")

    def replace_operator(self) -> None:
        """End the operator at once, without a word, and let its Deployment start another."""
        self._kubectl("--namespace", install.NAMESPACE, "delete", "pod", "-l", "app.kubernetes.io/component=operator",
                      "--grace-period=0", "--force")  # fmt: skip

    def operator_ready(self) -> None:
        self._kubectl("--namespace", install.NAMESPACE, "wait", "deployment", "--for=condition=Available",
                      "-l", "app.kubernetes.io/component=operator", "--timeout=60s", timeout=70)  # fmt: skip

    def link(self, *, down: bool) -> None:
        self.cluster.set_link(("edge", "cloud"), down=down)

    @contextmanager
    def without(self, component: str) -> Iterator[None]:
        """A part of the control plane is gone: connections to it are refused."""
        status = self.cluster.status()
        recorded = (status["supervisor"], status["components"][component])
        supervisor, part = (Process(record["pid"], record["started"]) for record in recorded)
        supervisor.signal(signal.SIGSTOP)  # or it would start the part again
        try:
            part.signal(signal.SIGKILL)
            yield
        finally:
            supervisor.signal(signal.SIGCONT)

    # The client.

    @contextmanager
    def client(self) -> Iterator[None]:
        data = self.folder / "data.npz"
        np.savez(data, features=FEATURES, expected=expected())
        command = [sys.executable, "-m", "tests.chaos.client", f"--namespace={self.ns.name}", f"--pipeline={PIPELINE}",
                   f"--data={data}", f"--log={self.log}", f"--rate={RATE}"]  # fmt: skip
        environment = {**os.environ, "KUBECONFIG": str(self.cluster.paths.kubeconfig), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        try:
            self.wait_answers(1, seconds=60)
            yield
        finally:
            try:
                process.communicate(timeout=40)
            finally:
                process.kill()

    def wait_answers(self, count: int, *, seconds: float) -> None:
        before = len(records.read(self.log))
        cases.wait(lambda: len(records.read(self.log)) >= before + count, seconds=seconds, what=f"{count} answers")

    def between(self, start: float, end: float) -> list[records.Record]:
        return [record for record in records.read(self.log) if start <= record.sent < end]

    def wait_calm(self, *, seconds: float = 60) -> None:
        """Wait until three seconds' requests have been answered undisturbed."""

        def calm() -> bool:
            now = time.time()
            last = self.between(now - 4.0, now - 1.0)
            return len(last) > 2.5 * RATE and not any(record.disturbed for record in last)

        cases.wait(calm, seconds=seconds, what="calm")


def _ready(pod: cases.Json) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


@contextmanager
def site(say: Callable[[str], None]) -> Iterator[Site]:
    """A cluster of its own in a state folder of its own, gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = folder
        cluster = Cluster.of(f"chaos-{os.getpid()}")
        try:
            say("Starting a cluster of two edge and two cloud nodes")
            cluster.up(CONFIG)
            made = Site(cluster, Path(folder))
            say("Installing Splitplane, measuring and starting the pipeline")
            made.begin()
            with made.client():
                yield made
        finally:
            cluster.down(purge=True)
            os.environ.pop("XDG_STATE_HOME")
            if before is not None:
                os.environ["XDG_STATE_HOME"] = before

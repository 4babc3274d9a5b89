"""Faults on an embedded cluster: processes that are killed, links of the uplink proxies that are cut."""

import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from splitplane.local import binaries, install
from splitplane.local.cluster import Cluster
from splitplane.local.config import ClusterConfig
from splitplane.local.processes import Process, descendants
from tests.chaos.records import Span
from tests.chaos.site import HELD_SECONDS, WINDOWS, Site, is_serving
from tests.support import operator_cases as cases

OPERATOR = "app.kubernetes.io/component=operator"

# Nodes cost something, or no plan would gain by fewer replicas.
CONFIG = ClusterConfig.model_validate({
    "nodes": [
        {"name": "system-1"},
        {"name": "edge-1", "tier": "edge", "pricePerHour": 0.05},
        {"name": "edge-2", "tier": "edge", "pricePerHour": 0.05},
        {"name": "cloud-1", "tier": "cloud", "pricePerHour": 0.30},
        {"name": "cloud-2", "tier": "cloud", "pricePerHour": 0.30},
    ],
    "links": [{"between": ["edge", "cloud"], "rate": "100Mbit", "delay": "2ms"}],
})  # fmt: skip


class Embedded(Site):
    """Two edge nodes and two cloud nodes."""

    cloud_node, edge_node = "cloud-1", "edge-2"
    cloud_nodes = "one of two cloud nodes"

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__(binaries.ensure("kubectl"), cluster.paths.kubeconfig, folder)
        self.cluster = cluster

    def begin(self) -> None:
        self.upgrade("")
        super().begin()

    def upgrade(self, release: str) -> None:
        tags = [f"image.{name}.tag={release}" for name in ("operator", "runtime") if release]
        install.install(
            self.cluster, helm=binaries.ensure("helm"), chart=install.find_chart(), settings=(*WINDOWS, *tags)
        )

    def running(self) -> Counter[str]:
        """Pods, and processes of the whole cluster by their program."""
        found = super().running()
        for process in self.processes():
            with suppress(OSError):
                words = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
                found[next((word for word in words if word.startswith("splitplane.")), Path(words[0]).name)] += 1
        return found

    def processes(self) -> list[Process]:
        return descendants(self.cluster.status()["supervisor"]["pid"])

    def running_in(self, variable: str) -> dict[str, list[Process]]:
        """Processes with ``NAME=VALUE`` in their environment, by the module of Splitplane that they run."""
        found: dict[str, list[Process]] = {}
        for process in self.processes():
            with suppress(OSError):
                command = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
                if variable.encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                    module = next((word for word in command if word.startswith("splitplane.")), "")
                    found.setdefault(module, []).append(process)
        return found

    def process(self, module: str, pod: str) -> Process:
        found = self.running_in(f"SPLITPLANE_POD_NAME={pod}").get(f"splitplane.{module}", ())
        assert len(found) == 1, f"{len(found)} processes run splitplane.{module} in {pod}"
        return found[0]

    def kill(self, module: str, pod: str) -> Span:
        process = self.process(module, pod)
        with _held([process]) as began:
            died = time.time()
            process.signal(signal.SIGKILL)
        return began, died

    def operator_killer(self) -> Callable[[], None]:
        (name,) = self._operators()
        process = self.process("controller", name)
        return lambda: process.signal(signal.SIGKILL)

    def replace_operator(self) -> None:
        # Its container would start again by itself, but later each time.
        self._kubectl("--namespace", install.NAMESPACE, "delete", "pod", "-l", OPERATOR, "--grace-period=0", "--force")
        cases.wait(lambda: len(self._operators()) == 1, seconds=60, what="the operator")

    def _operators(self) -> list[str]:
        found = json.loads(self._kubectl("--namespace", install.NAMESPACE, "get", "pod", "-l", OPERATOR, "-o", "json"))
        return [pod["metadata"]["name"] for pod in found["items"] if is_serving(pod)]

    def link(self, *, down: bool) -> None:
        self.cluster.set_link(("edge", "cloud"), down=down)

    @contextmanager
    def off(self, node: str) -> Iterator[Span]:
        running = self.running_in(f"SPLITPLANE_NODE_NAME={node}")
        pods = [each for module in ("gateway", "stage") for each in running.get(f"splitplane.runtime.{module}", ())]
        with _held(pods) as began:
            died = time.time()
            self.cluster.stop_node(node)
        try:
            yield began, died
        finally:
            self.cluster.start_node(node)

    @contextmanager
    def without(self, component: str) -> Iterator[None]:
        status = self.cluster.status()
        recorded = (status["supervisor"], status["components"][component])
        supervisor, part = (Process(record["pid"], record["started"]) for record in recorded)
        supervisor.signal(signal.SIGSTOP)  # or it would start the part again
        try:
            part.signal(signal.SIGKILL)
            yield
        finally:
            supervisor.signal(signal.SIGCONT)


@contextmanager
def _held(processes: Sequence[Process]) -> Iterator[float]:
    """Processes that have stood still for ``HELD_SECONDS`` when the block begins: since when (Unix time)."""
    for process in processes:
        process.signal(signal.SIGSTOP)
    began = time.time()
    time.sleep(HELD_SECONDS)
    try:
        yield began
    finally:
        for process in processes:
            process.signal(signal.SIGCONT)  # if anything survived


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
            made = Embedded(cluster, Path(folder))
            say("Installing Splitplane, measuring and starting the pipeline")
            made.begin()
            with made.client():
                yield made
            running = made.processes()
            cluster.down(purge=True)
            assert not [process for process in running if process.alive], "a process has outlived its cluster"
        finally:
            cluster.down(purge=True)
            os.environ.pop("XDG_STATE_HOME")
            if before is not None:
                os.environ["XDG_STATE_HOME"] = before

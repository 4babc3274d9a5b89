"""Faults on kind: containers that are killed and paused, packets between nodes that are dropped."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from kindcluster import lifecycle
from kindcluster.cluster import Cluster
from kindcluster.outside import expose
from kindcluster.product_images import Images
from tests.chaos.records import Span
from tests.chaos.site import HELD_SECONDS, PIPELINE, WINDOWS, Site
from tests.support.kind_images import images_in_use, tag_on_nodes

# A process of a node's pods, by the name of its pod and its module: the init that has it as a child, and itself.
# They are held for a while before; says since when they were, and when they died.
KILL = """
exec 2>/dev/null
for process in /proc/[0-9]*; do
  if grep -qzx "SPLITPLANE_POD_NAME=$1" "$process/environ" && grep -qzx "splitplane.$2" "$process/cmdline"; then
    found="$found ${process#/proc/}"
  fi
done
test -z "$found" && exit
kill -STOP $found && date +%s.%N
sleep "$3"
date +%s.%N
kill -KILL $found || true
"""


class OnKind(Site):
    """Two edge nodes, and one cloud node with both replicas of its stage."""

    cloud_nodes = "the only cloud node"

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__(cluster.kubectl, cluster.kubeconfig, folder)
        self.cluster, self.images = cluster, images_in_use(cluster)

    def begin(self) -> None:
        self._clear()  # what a killed run has left
        for image in (self.images.operator, self.images.runtime):
            tag_on_nodes(self.cluster, image, f"{image}-{self.next_release}")
        self.upgrade("")
        super().begin()
        (self.cloud_node,) = {pod["spec"]["nodeName"] for pod in self.pods("stage", **{"splitplane.dev/tier": "cloud"})}

    def end(self) -> None:
        """The cluster as it was, for one that stays."""
        self._clear()
        self.cluster.install_chart(self.images)

    def upgrade(self, release: str) -> None:
        names = (f"{image}-{release}" if release else image for image in (self.images.operator, self.images.runtime))
        self.cluster.install_chart(Images(*names), *WINDOWS)

    def _clear(self) -> None:
        self._kubectl("delete", "namespace", self.ns.name, "--ignore-not-found", timeout=120)

    def kill(self, module: str, pod: str) -> Span:
        node = self.ns.get("pod", pod)["spec"]["nodeName"]
        said = self.cluster.engine.run("exec", node, "bash", "-c", KILL, "kill", pod, module, str(HELD_SECONDS))
        assert said, f"no process runs splitplane.{module} in {pod}"
        began, died = map(float, said.split())
        return began, died

    def link(self, *, down: bool) -> None:
        # Of pods only: the node itself goes on talking with the control plane.
        for way in ("--in-interface", "--out-interface"):
            self.cluster.engine.run("exec", self.cloud_node, "iptables", "--insert" if down else "--delete", "FORWARD",
                                    way, "eth0", "--jump", "DROP")  # fmt: skip

    @contextmanager
    def off(self, node: str) -> Iterator[Span]:
        self.cluster.pause(node)
        began = time.time()
        time.sleep(HELD_SECONDS)
        died = time.time()
        self.cluster.kill(node)
        try:
            yield began, died
        finally:
            self.cluster.start(node)

    @contextmanager
    def silent(self, node: str) -> Iterator[None]:
        self.cluster.pause(node)
        try:
            yield
        finally:
            self.cluster.unpause(node)

    def way_in(self) -> tuple[str, ...]:
        ports = {"grpc": 9000, "rest": 8080}
        service, namespace = f"{PIPELINE}-gateway", self.ns.name
        return tuple(
            f"--{protocol}={expose(self.cluster, service, namespace=namespace, port=port)}"
            for protocol, port in ports.items()
        )


@contextmanager
def site(say: Callable[[str], None]) -> Iterator[Site]:
    """The kind cluster of this machine; gone at the end where it was not up before."""
    lifecycle.stop_orderly()
    with (
        tempfile.TemporaryDirectory() as folder,
        lifecycle.running(Console(stderr=True), say=say) as cluster,
    ):
        made = OnKind(cluster, Path(folder))
        say("Measuring and starting the pipeline")
        try:
            made.begin()
            with made.client():
                yield made
        finally:
            made.end()

"""The demo on the embedded cluster: node agents that emulate slow devices and thin links on this machine."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console

from demo.kube import DemoError, Kube
from demo.scenario import FRAME_SECONDS, REPLICA_PRICES
from demo.sites import CLAIM, EXAMPLES, PIPELINE, PIPELINE_FILE, WEIGHTS, frame_seconds
from splitplane.local import binaries

CONFIG = Path(__file__).with_name("cluster.yaml")
CLOUD_NODE = "cloud-1"


class Embedded:
    """An embedded cluster of the demo's own."""

    patience = 1.0

    def __init__(
        self, *, name: str, keep: bool, out: Path, console: Console, say: Callable[[str], None],
        frame_seconds: Mapping[str, float] = FRAME_SECONDS,
    ) -> None:  # fmt: skip
        self.name, self.keep, self.out, self.console, self.say = name, keep, out, console, say
        self.frame_seconds = frame_seconds
        self.config = yaml.safe_load(CONFIG.read_text())
        self.kube: Kube

    @contextmanager
    def up(self) -> Iterator[Kube]:
        with self.console.status("Measuring this machine"):
            config = self._devices()
        try:
            with self.console.status("Starting the control plane, Prometheus and four nodes"):
                if "is down" in self._local("down", "--purge"):
                    self.say(f"The cluster '{self.name}' of an earlier run was removed")
                self._local("up", "--config", str(config))
            kubeconfig = Path(self._local("kubeconfig").strip())
            self.kube = Kube(binaries.ensure("kubectl"), kubeconfig, "default")
            yield self.kube
        finally:
            if self.keep:
                command = f"{Path(sys.executable).with_name('splitplane')} local"
                self.say(f"The cluster stays up. Look at it: {command} kubectl --name {self.name} -- get ipipe,pods")
                self.say(f"End it: {command} down --name {self.name} --purge")
            else:
                with self.console.status("Stopping the cluster"):
                    self._local("down", "--purge")

    def _devices(self) -> Path:
        """The cluster's configuration, with devices that take the scenario's time for a frame on whatever machine."""
        here = frame_seconds()
        for node in self.config["nodes"]:
            if tier := node.get("tier"):
                node["speedFactor"] = round(max(1.0, self.frame_seconds[tier] / here), 2)
                node["pricePerHour"] = self._node_price(node, REPLICA_PRICES[tier])
        path = self.out / "cluster.yaml"
        path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        emulated = ", ".join(f"{tier} devices {seconds * 1e3:.0f} ms" for tier, seconds in self.frame_seconds.items())
        self.say(f"One frame takes {here * 1e3:.0f} ms on one thread here; emulated: {emulated}")
        return path

    @staticmethod
    def _node_price(node: dict[str, str], replica_per_hour: float) -> float:
        """A replica asks for one of a node's cores."""
        return replica_per_hour * float(node["cpu"])

    def install(self) -> None:
        self._local("install")

    def weights(self) -> Path:
        self.kube.run("apply", "--filename", str(EXAMPLES / "pitch-tracker-weights.yaml"))
        self.kube.run("wait", "--for=condition=complete", "job/pitch-tracker-weights", "--timeout=90s")
        volume = self.kube.get("pvc", CLAIM)["spec"]["volumeName"]
        return Path(self.kube.get("pv", volume)["spec"]["hostPath"]["path"]) / WEIGHTS

    def pipeline(self) -> str:
        return PIPELINE_FILE.read_text()

    def gateway(self) -> str:
        pods = self.kube.pods(**{"splitplane.dev/pipeline": PIPELINE, "app.kubernetes.io/component": "gateway"})
        return next(f"{pod['status']['podIP']}:9000" for pod in pods if pod["status"]["phase"] == "Running")

    def limit_link(self, rate: str) -> None:
        self._local("link", "edge", "cloud", "--rate", rate)

    def set_cloud_price(self, replica_per_hour: float) -> None:
        (node,) = (node for node in self.config["nodes"] if node["name"] == CLOUD_NODE)
        self._local("node", "price", CLOUD_NODE, f"{self._node_price(node, replica_per_hour):g}")

    def lose_cloud(self) -> None:
        self._local("node", "stop", CLOUD_NODE)

    def shown(self) -> list[str]:
        return []  # its API server keeps no audit log

    def _local(self, *arguments: str) -> str:
        """Output of a `splitplane local` command on this cluster. Raises ``DemoError`` with its words."""
        command = [str(Path(sys.executable).with_name("splitplane")), "local", *arguments, "--name", self.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"splitplane local {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

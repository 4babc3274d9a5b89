"""The demo on kind: containers made slow by CPU limits, links shaped by tc, nodes that are paused and killed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from demo.kube import Kube
from demo.scenario import FAST_LINK, FRAME_SECONDS, REPLICA_PRICES
from demo.sites import CLAIM, EXAMPLES, PIPELINE, PIPELINE_FILE, WEIGHTS, frame_seconds, python
from kindcluster import lifecycle, rights
from kindcluster.cluster import SHARED_FOLDER, Cluster
from kindcluster.outside import expose
from splitplane.controller.capacity import amounts, dominant_share

_PAUSE_SECONDS = 2.0


class OnKind:
    """The one kind cluster of this machine."""

    patience = 3.0  # a program starts on a tenth of a core, and a cool-down lasts as long as three switches

    def __init__(self, *, keep: bool, console: Console, say: Callable[[str], None]) -> None:
        self.keep, self.console, self.say = keep, console, say
        self.cluster: Cluster
        self.kube: Kube
        self.since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.cores: dict[str, float] = {}
        """What a replica may use of a core, and asks for, by tier."""

    @contextmanager
    def up(self) -> Iterator[Kube]:
        with self.console.status("Measuring this machine"):
            self._devices()
        with lifecycle.running(self.console, say=self.say, keep=self.keep) as self.cluster:
            self.kube = Kube(self.cluster.kubectl, self.cluster.kubeconfig, "default")
            leftovers = (f"ipipe/{PIPELINE}", f"configmap/{PIPELINE}-code", f"service/{PIPELINE}-gateway-outside",
                         f"pvc/{CLAIM}", f"pv/{CLAIM}")  # fmt: skip
            self.kube.run("delete", "--ignore-not-found", *leftovers)
            for node in self._nodes("edge"):
                self._set_price(node, REPLICA_PRICES["edge"])
            self.set_cloud_price(REPLICA_PRICES["cloud"])
            self.limit_link(FAST_LINK)
            yield self.kube

    def _devices(self) -> None:
        """Shares of a core with which this machine's frame takes the scenario's time."""
        here = frame_seconds()
        self.cores = {tier: round(min(1.0, here / seconds), 3) for tier, seconds in FRAME_SECONDS.items()}
        limits = ", ".join(
            f"{tier} devices {here / cores * 1e3:.0f} ms by a limit of {cores * 1e3:.0f}m"
            for tier, cores in self.cores.items()
        )
        self.say(f"One frame takes {here * 1e3:.0f} ms on one core here; {limits}")

    def install(self) -> None:
        """`kindcluster` installed the chart with the images."""

    def weights(self) -> Path:
        folder = self.cluster.shared_folder / "models"
        folder.mkdir(exist_ok=True)
        python(str(EXAMPLES / "models" / "pitch_tracker.py"), "--save", str(folder / WEIGHTS))
        (folder / WEIGHTS).chmod(0o644)  # the pods' user is another
        folder.chmod(0o755)
        self.kube.run("apply", "--filename=-", stdin=yaml.safe_dump_all(_volume(f"{SHARED_FOLDER}/models")))
        return folder / WEIGHTS

    def pipeline(self) -> str:
        return yaml.safe_dump(self._manifest())

    def _manifest(self) -> dict[str, Any]:
        body: dict[str, Any] = yaml.safe_load(PIPELINE_FILE.read_text())
        for tier in body["spec"]["tiers"]:
            cpu = f"{self.cores[tier['name']] * 1e3:.0f}m"
            for resources in (tier["resources"]["requests"], tier["resources"]["limits"]):
                resources["cpu"] = cpu
        return body

    def gateway(self) -> str:
        """The gateway's Service, made reachable from outside of the cluster by a port of its nodes."""
        return expose(self.cluster, f"{PIPELINE}-gateway", namespace="default", port=9000)

    def limit_link(self, rate: str) -> None:
        for node in self._nodes("cloud"):
            self.cluster.limit_link(node, rate)

    def set_cloud_price(self, replica_per_hour: float) -> None:
        for node in self._nodes("cloud"):
            self._set_price(node, replica_per_hour)

    def lose_cloud(self) -> None:
        """Silent at first, as a node behind a cut cable, then dead."""
        for node in self._nodes("cloud"):
            self.cluster.pause(node)
        time.sleep(_PAUSE_SECONDS)
        for node in self._nodes("cloud"):
            self.cluster.kill(node)

    def shown(self) -> list[str]:
        """What the API server's audit log has that the operator, or a pod of the pipeline, had no right to."""
        found = rights.use(self.cluster)
        unused = ", ".join(f"{verb} {resource}" for _, resource, verb in sorted(found.unused))
        self.say(f"The operator has used {len(found.granted & found.asked)} of its {len(found.granted)} rights here")
        self.say(f"Not used: {unused} (the tests on kind use them: tests/kind/test_kind_rights.py)")
        pipelines = rights.handed_on(self.cluster.audit_events(), since=self.since)
        return [f"the operator may not {words}" for words in found.refused] + [
            f"the {component} may not {verb} {resource}"
            for component, use in pipelines.items()
            for _, resource, verb in sorted(use.lacking)
        ]

    def _set_price(self, node: str, replica_per_hour: float) -> None:
        body = self.kube.get("node", node)
        tier = body["metadata"]["labels"]["splitplane.dev/tier"]
        (spec,) = (spec for spec in self._manifest()["spec"]["tiers"] if spec["name"] == tier)
        share = dominant_share(body, amounts(spec["resources"]["requests"]))
        self.cluster.set_price(node, replica_per_hour / share)

    def _nodes(self, tier: str) -> list[str]:
        nodes = self.kube.get("nodes", "--selector", f"splitplane.dev/tier={tier}")["items"]
        return [node["metadata"]["name"] for node in nodes]


def _volume(path: str) -> list[dict[str, Any]]:
    """A folder of the nodes as a claim: kind has no provisioner where it was built without a registry."""
    size = {"storage": "1Gi"}
    return [
        {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CLAIM},
            "spec": {"capacity": size, "accessModes": ["ReadWriteMany"], "storageClassName": "",
                     "hostPath": {"path": path}, "claimRef": {"name": CLAIM, "namespace": "default"}},
        },
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM},
            "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": CLAIM,
                     "resources": {"requests": size}},
        },
    ]  # fmt: skip

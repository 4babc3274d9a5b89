"""The kind cluster: created, filled with the images, Prometheus and Splitplane's chart, and taken away again."""

import enum
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kindcluster import audit, links
from kindcluster import engine as engines
from kindcluster.engine import Engine, UnreachableError, run
from kindcluster.node_image import prometheus_image
from kindcluster.product_images import ROOT, Images
from splitplane.local.errors import LocalError
from splitplane.local.manifests import prometheus_config

NAME = "splitplane"
CONTROL_PLANE = f"{NAME}-control-plane"
RELEASE = "splitplane"
NAMESPACE = "splitplane-system"
PROMETHEUS_URL = "http://prometheus.monitoring:9090"
PRICE_ANNOTATION = "splitplane.dev/price-per-hour"
"""On a node: what `node_prices.py` exports of it."""
_RESTRICTED = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
}
_HERE = Path(__file__).parents[1]

SHARED_FOLDER = "/splitplane"
"""A folder of this machine that every node sees at this path: volumes that pods of several nodes read."""


class Presence(enum.Enum):
    """What there is of a cluster."""

    NONE = enum.auto()
    PARTIAL = enum.auto()
    """Nodes that an interrupted creation left."""
    WHOLE = enum.auto()
    FOREIGN = enum.auto()
    """A kind cluster of the same name that these commands did not make."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The one kind cluster that these commands know, running or not."""

    engine: Engine
    kind: Path
    kubectl: Path
    helm: Path

    @property
    def kubeconfig(self) -> Path:
        return engines.state() / "kubeconfig"

    @property
    def shared_folder(self) -> Path:
        """``SHARED_FOLDER`` as this machine sees it."""
        return engines.state() / "shared"

    def presence(self) -> Presence:
        """Whether there is a cluster, and whether it is one of ours and of use."""
        if NAME not in self._kind("get", "clusters").split():
            return Presence.NONE
        if not all(self._mounts_shared_folder(node) for node in self.nodes()):
            return Presence.FOREIGN
        return Presence.PARTIAL if self._unfinished.exists() else Presence.WHOLE

    def create(self, node_image: str) -> None:
        """Create the cluster that kind-config.yaml describes, and wait until its nodes are ready."""
        self.kubeconfig.unlink(missing_ok=True)
        self.shared_folder.mkdir(parents=True, exist_ok=True)
        self.shared_folder.chmod(0o755)  # pods read it as whatever user they are
        config = yaml.safe_load((ROOT / "kind-config.yaml").read_text())
        mount = {"hostPath": str(self.shared_folder), "containerPath": SHARED_FOLDER}
        for node in config["nodes"]:
            node.setdefault("extraMounts", []).append(mount)
        audit.enable(config, shared=self.shared_folder, mounted=SHARED_FOLDER)
        self._configuration.write_text(yaml.safe_dump(config, sort_keys=False))
        self._unfinished.touch()
        self._kind("create", "cluster", f"--config={self._configuration}", f"--image={node_image}", "--wait=120s",
                   f"--kubeconfig={self.kubeconfig}")  # fmt: skip
        self._unfinished.unlink()

    def revive(self) -> None:
        """Boot nodes that were paused or killed, and wait until all are ready."""
        self.boot()
        self.run("wait", "--for=condition=Ready", "node", "--all", "--timeout=120s")

    def boot(self) -> None:
        """Start nodes that were paused or killed; a running one goes on. No link of theirs is limited any more."""
        for node in self.nodes():
            if self.engine.run("inspect", "--format={{.State.Paused}}", node).strip() == "true":
                self.unpause(node)
            self.start(node)
            links.clear(self.engine, node)

    def delete(self) -> None:
        """Delete the cluster, whole or not, with its kubeconfig and all that its pods wrote."""
        self._kind("delete", "cluster", f"--kubeconfig={self.kubeconfig}")
        shutil.rmtree(self.shared_folder, ignore_errors=True)
        for file in (self.kubeconfig, self._configuration, self._unfinished):
            file.unlink(missing_ok=True)

    @property
    def _configuration(self) -> Path:
        return engines.state() / "kind-config.yaml"

    def _mounts_shared_folder(self, node: str) -> bool:
        """Tells a node that `create` has made, from its first moment on: a cluster of that name may be another's."""
        mounts = self.engine.run("inspect", "--format={{range .Mounts}}{{println .Source}}{{end}}", node)
        return str(self.shared_folder) in mounts.splitlines()

    @property
    def _unfinished(self) -> Path:
        """There from before the first node is made until the cluster is whole."""
        return engines.state() / "unfinished"

    def audit_events(self) -> list[dict[str, Any]]:
        """What the API server was asked by ServiceAccounts, but for Kubernetes' own, oldest first."""
        return audit.events(self.engine.run("exec", CONTROL_PLANE, "cat", audit.log_path(SHARED_FOLDER)))

    def save(self, images: Images) -> None:
        """Write the images into the shared folder, for ``load``. Needs no cluster."""
        self.shared_folder.mkdir(parents=True, exist_ok=True)
        for image in (images.operator, images.runtime):
            self.engine.run("save", f"--output={self.shared_folder / _archive(image)}", image)

    def load(self, images: Images) -> None:
        """Put the saved images on the nodes: the operator's on every one, the runtime's on the workers.

        As `kind load docker-image` does, but by files that every node sees rather than by a pipe to each, and with one
        copy on a node instead of two: several times faster, and half the room.
        """
        with ThreadPoolExecutor() as pool:
            for image, targets in self._places(images):
                list(pool.map(self._import, targets, [image] * len(targets)))
                (self.shared_folder / _archive(image)).unlink()

    def has(self, images: Images) -> bool:
        """Whether the images are on every node that runs them."""
        return all(self._on(node, image) for image, targets in self._places(images) for node in targets)

    def _places(self, images: Images) -> tuple[tuple[str, list[str]], tuple[str, list[str]]]:
        """Each image with the nodes that run it."""
        nodes = self.nodes()
        return (images.operator, nodes), (images.runtime, [node for node in nodes if "control-plane" not in node])

    def _import(self, node: str, image: str) -> None:
        self.engine.run(
            "exec", node, "ctr", "--namespace=k8s.io", "images", "import", "--local",
            "--discard-unpacked-layers", f"{SHARED_FOLDER}/{_archive(image)}",
        )  # fmt: skip

    def _bring_prometheus(self) -> None:
        """Put Prometheus' image where its pod runs; nodes that are made here hold it already."""
        image = prometheus_image()
        if self._on(CONTROL_PLANE, image):
            return
        try:
            self.engine.pull(image)
        except UnreachableError as error:
            raise LocalError(
                f"{image} is neither on the nodes nor in Docker, and no registry is reachable: docker load it, "
                f"or make nodes that hold it (NODE_IMAGE=build). {error}"
            ) from error
        archive = self.shared_folder / _archive(image)
        self.engine.run("save", f"--output={archive}", image)
        self._import(CONTROL_PLANE, image)
        archive.unlink()

    def _on(self, node: str, image: str) -> bool:
        """Whether a node holds an image of Docker Hub's names."""
        command = ("ctr", "--namespace=k8s.io", "images", "list", "--quiet")
        return f"docker.io/{image}" in self.engine.run("exec", node, *command).split()

    def nodes(self) -> list[str]:
        """The nodes' containers, which are called as the nodes are."""
        return self._kind("get", "nodes").split()

    def install_prometheus(self, images: Images) -> None:
        """Prometheus with the scrape configuration of the embedded cluster, and a source of nodes' prices beside it.

        Both are in the namespace ``monitoring``.
        """
        self._bring_prometheus()
        config = prometheus_config()
        config["scrape_configs"].append(
            {
                "job_name": "node-prices",
                "honor_labels": True,
                "static_configs": [{"targets": ["node-prices.monitoring:8080"]}],
            }
        )
        prices = (_HERE / "node-prices.yaml").read_text().replace("splitplane/operator", images.operator)
        for manifests, key, text in (
            ((_HERE / "prometheus.yaml").read_text(), "prometheus.yml", json.dumps(config)),
            (prices, "node_prices.py", (_HERE / "node_prices.py").read_text()),
        ):
            self.apply(yaml.safe_dump_all(configured(yaml.safe_load_all(manifests), key, text)))
        self.run("--namespace=monitoring", "rollout", "status", "deployment", "--timeout=120s")

    def limit_link(self, node: str, rate: str) -> None:
        """See :func:`kindcluster.links.shape`."""
        links.shape(self.engine, node, rate)

    def pause(self, node: str) -> None:
        """Stop every process of a node where it is: to the others it is silent, as after a cut cable."""
        self.engine.run("pause", node)

    def unpause(self, node: str) -> None:
        self.engine.run("unpause", node)

    def kill(self, node: str) -> None:
        """End a node as a power cut would; a paused one too."""
        self.engine.run("kill", node)

    def start(self, node: str) -> None:
        """Boot a node that was killed."""
        self.engine.run("start", node)

    def set_price(self, node: str, per_hour: float) -> None:
        """What a node costs from now on, as Prometheus hears it."""
        self.run("annotate", "node", node, "--overwrite", f"{PRICE_ANNOTATION}={per_hour:g}")

    def install_chart(self, images: Images, *settings: str) -> None:
        """Install or upgrade Splitplane, and wait until its pods are ready."""
        chosen = [
            f"image.{name}.{part}={value}"
            for name, image in (("operator", images.operator), ("runtime", images.runtime))
            for part, value in zip(("repository", "tag"), image.rsplit(":", 1), strict=True)
        ]
        self.apply(json.dumps(_RESTRICTED))
        command = [
            str(self.helm), "upgrade", "--install", RELEASE, str(ROOT / "charts" / "splitplane"),
            f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}",
            f"--set=prometheus.url={PROMETHEUS_URL}", *(f"--set={setting}" for setting in (*chosen, *settings)),
        ]  # fmt: skip
        run(*command)
        selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
        self.run(f"--namespace={NAMESPACE}", "rollout", "status", "deployment,daemonset", selector, "--timeout=180s")

    def apply(self, manifest: str) -> None:
        self.run("apply", "--filename=-", stdin=manifest)

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 300.0) -> str:
        """Standard output of a kubectl command. Raises ``LocalError`` with kubectl's own words."""
        return run(str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *arguments, stdin=stdin, timeout=timeout)

    def export_logs(self) -> Path:
        """Write the logs of nodes and pods, and what is in the cluster, into a folder of the checkout."""
        folder = ROOT / "build" / "kind-logs"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with suppress(LocalError):  # nodes that are made here lack some of what it calls; the rest is there
            self._kind("export", "logs", str(folder))
        (folder / "objects.yaml").write_text(self.run("get", "all,events", "--all-namespaces", "--output=yaml"))
        (folder / "nodes.txt").write_text(self.run("describe", "nodes"))
        return folder

    def get(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.run("get", *arguments, "--output=json"))  # type: ignore[no-any-return]

    def _kind(self, *arguments: str) -> str:
        return run(str(self.kind), *arguments, environment={**self.engine.environment, "KIND_CLUSTER_NAME": NAME})


def configured(manifests: Iterable[dict[str, Any]], key: str, text: str) -> Iterator[dict[str, Any]]:
    """Manifests of one Deployment, and before it the ConfigMap of its name: another text there gives new pods."""
    for body in manifests:
        if body["kind"] == "Deployment":
            metadata = {"name": body["metadata"]["name"], "namespace": body["metadata"]["namespace"]}
            yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {key: text}}
            annotations = body["spec"]["template"]["metadata"].setdefault("annotations", {})
            annotations["checksum/configuration"] = hashlib.sha256(text.encode()).hexdigest()
        yield body


def _archive(image: str) -> str:
    return re.sub(r"[/:]", "-", image) + ".tar"

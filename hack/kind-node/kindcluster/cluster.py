"""The kind cluster: created, filled with the images, Prometheus and Splitplane's chart, and taken away again."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kindcluster import audit, links
from kindcluster import engine as engines
from kindcluster.engine import Engine, run
from kindcluster.product_images import ROOT, Images
from splitplane.local.manifests import prometheus_config

NAME = "splitplane"
RELEASE = "splitplane"
NAMESPACE = "splitplane-system"
PROMETHEUS_URL = "http://prometheus.monitoring:9090"
PRICE_ANNOTATION = "splitplane.dev/price-per-hour"
"""On a node: what `node_prices.py` exports of it."""
_HERE = Path(__file__).parents[1]

SHARED_FOLDER = "/splitplane"
"""A folder of this machine that every node sees at this path: volumes that pods of several nodes read."""


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

    def exists(self) -> bool:
        return NAME in self._kind("get", "clusters").split()

    def create(self, node_image: str) -> None:
        """Create the cluster that kind-config.yaml describes, and wait until its nodes are ready."""
        self.shared_folder.mkdir(parents=True, exist_ok=True)
        self.shared_folder.chmod(0o777)  # pods write to it as whatever user they are
        config = yaml.safe_load((ROOT / "kind-config.yaml").read_text())
        mount = {"hostPath": str(self.shared_folder), "containerPath": SHARED_FOLDER}
        for node in config["nodes"]:
            node.setdefault("extraMounts", []).append(mount)
        audit.enable(config, shared=self.shared_folder, mounted=SHARED_FOLDER)
        own = engines.state() / "kind-config.yaml"
        own.write_text(yaml.safe_dump(config, sort_keys=False))
        self._kind("create", "cluster", f"--config={own}", f"--image={node_image}", "--wait=120s",
                   f"--kubeconfig={self.kubeconfig}")  # fmt: skip

    def revive(self) -> None:
        """Boot nodes that were paused or killed, and wait until all are ready."""
        for node in self.nodes():
            if self.engine.run("inspect", "--format={{.State.Paused}}", node).strip() == "true":
                self.unpause(node)
            self.start(node)
        self.run("wait", "--for=condition=Ready", "node", "--all", "--timeout=120s")

    def delete(self) -> None:
        self._kind("delete", "cluster", f"--kubeconfig={self.kubeconfig}")
        shutil.rmtree(self.shared_folder, ignore_errors=True)

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
        wanted = ((image, node) for image, targets in self._places(images) for node in targets)
        command = ("ctr", "--namespace=k8s.io", "images", "list", "--quiet")
        return all(f"docker.io/{image}" in self.engine.run("exec", node, *command).split() for image, node in wanted)

    def _places(self, images: Images) -> tuple[tuple[str, list[str]], tuple[str, list[str]]]:
        """Each image with the nodes that run it."""
        nodes = self.nodes()
        return (images.operator, nodes), (images.runtime, [node for node in nodes if "control-plane" not in node])

    def _import(self, node: str, image: str) -> None:
        self.engine.run(
            "exec", node, "ctr", "--namespace=k8s.io", "images", "import", "--local", "--all-platforms",
            "--discard-unpacked-layers", f"{SHARED_FOLDER}/{_archive(image)}",
        )  # fmt: skip

    def nodes(self) -> list[str]:
        """The nodes' containers, which are called as the nodes are."""
        return self._kind("get", "nodes").split()

    def install_prometheus(self, images: Images) -> None:
        """Prometheus with the scrape configuration of the embedded cluster, and a source of nodes' prices beside it.

        Both are in the namespace ``monitoring``.
        """
        config = prometheus_config()
        config["scrape_configs"].append(
            {
                "job_name": "node-prices",
                "honor_labels": True,
                "static_configs": [{"targets": ["node-prices.monitoring:8080"]}],
            }
        )
        self.apply((_HERE / "prometheus.yaml").read_text())
        self.apply(_config_map("prometheus", "prometheus.yml", json.dumps(config)))
        self.apply(_config_map("node-prices", "node_prices.py", (_HERE / "node_prices.py").read_text()))
        self.apply((_HERE / "node-prices.yaml").read_text().replace("splitplane/operator", images.operator))
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
        command = [
            str(self.helm), "upgrade", "--install", RELEASE, str(ROOT / "charts" / "splitplane"),
            f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}", "--create-namespace",
            f"--set=prometheus.url={PROMETHEUS_URL}", f"--set=image.operator.tag={images.tag(images.operator)}",
            f"--set=image.runtime.tag={images.tag(images.runtime)}", *(f"--set={setting}" for setting in settings),
        ]  # fmt: skip
        run(*command)
        selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
        self.run(f"--namespace={NAMESPACE}", "rollout", "status", "deployment,daemonset", selector, "--timeout=180s")

    def apply(self, manifest: str) -> None:
        self.run("apply", "--filename=-", stdin=manifest)

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 300.0) -> str:
        """Standard output of a kubectl command. Raises ``LocalError`` with kubectl's own words."""
        return run(str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *arguments, stdin=stdin, timeout=timeout)

    def get(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.run("get", *arguments, "--output=json"))  # type: ignore[no-any-return]

    def _kind(self, *arguments: str) -> str:
        return run(str(self.kind), *arguments, environment={**self.engine.environment, "KIND_CLUSTER_NAME": NAME})


def _config_map(name: str, key: str, text: str) -> str:
    metadata = {"name": name, "namespace": "monitoring"}
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {key: text}})


def _archive(image: str) -> str:
    return re.sub(r"[/:]", "-", image) + ".tar"

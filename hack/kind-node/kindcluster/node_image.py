"""The node image: kind's published one where a registry gives it, else one made here from sources.

The one made here holds the same programs, of the patch release of Kubernetes that the embedded cluster runs (1.37.2,
where kind publishes 1.37.0), and the images that kubeadm, kind and the cluster's Prometheus ask for, so that a cluster
of it pulls nothing.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kindcluster import base_image, programs
from kindcluster.engine import Engine, UnreachableError, run
from splitplane.local.binaries import Building, pinned_version
from splitplane.local.files import locked
from splitplane.local.paths import cache_home

PUBLISHED = "kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5"
"""The default of the pinned kind."""

POD_NETWORK_IMAGE = "splitplane-kind/pod-network:v1"
_NAME = "splitplane-kind/node"
_INSIDE = "splitplane-kind/inside/"
"""Before the names that images have inside the node: what is made here does not go by publishers' names in Docker."""
_SOURCES = Path(__file__).parents[1] / "node"


def ensure(engine: Engine, *, on_build: Callable[[Building], None], say: Callable[[str], None]) -> str:
    """Name of a node image that the engine has.

    ``$NODE_IMAGE`` decides where it is set; the word ``build`` asks for one from sources.

    Raises:
        LocalError: ``$NODE_IMAGE`` is not to be had, or a build fails.
    """
    wanted = os.environ.get("NODE_IMAGE")
    if wanted == "build":
        return _built(engine, on_build, say)
    if wanted:
        engine.pull(wanted)
        return wanted
    say(f"Node image {PUBLISHED.partition('@')[0]}")
    try:
        engine.pull(PUBLISHED)
    except UnreachableError as error:
        say(f"No image registry is reachable, so the node image is made here. {error}")
        return _built(engine, on_build, say)
    return PUBLISHED


def prometheus_image() -> str:
    """What `prometheus.yaml` asks for."""
    return f"prom/prometheus:v{pinned_version(programs.NODE['prometheus'])}"


def _built(engine: Engine, on_build: Callable[[Building], None], say: Callable[[str], None]) -> str:
    tag = f"{_NAME}:v{_kubernetes_version()}-{_digest()}"
    with locked(cache_home() / "kind" / "node-image.lock"):
        if not engine.has_image(tag):
            say("Building the node image from sources (once)")
            paths = programs.ensure_node(on_build)
            base = base_image.ensure(engine)
            _build(engine, tag, base, _context(paths))
            engine.remove_others(f"{_NAME}:*", tag)
    return tag


def _build(engine: Engine, tag: str, base: str, context: Path) -> None:
    kubeadm_images = run(
        str(context / "programs" / "kubeadm"), "config", "images", "list", "--kubernetes-version", _kubernetes_version()
    ).split()
    images = {name.rpartition("/")[2].partition(":")[0]: name for name in kubeadm_images}
    images["prometheus"] = f"docker.io/{prometheus_image()}"
    images["pod-network"] = f"docker.io/{POD_NETWORK_IMAGE}"
    arguments = {
        "BASE_IMAGE": base, "KUBERNETES_VERSION": f"v{_kubernetes_version()}", "PAUSE_IMAGE": images["pause"],
        "INSIDE": f"docker.io/{_INSIDE}",
    }  # fmt: skip
    own = {target: _INSIDE + image for target, image in images.items()}
    for target, image in own.items():
        engine.build(f"--target={target}", f"--tag={image}", str(context), arguments=arguments)
    engine.run("save", f"--output={context / 'images.tar'}", *own.values())
    engine.build("--target=node", f"--tag={tag}", str(context), arguments=arguments)
    engine.run("rmi", *own.values())
    shutil.rmtree(context)


def _context(paths: dict[str, Path]) -> Path:
    """The folder that the image is built from. Programs are links of the cache's files, not copies."""
    context = cache_home() / "kind" / "context"
    shutil.rmtree(context, ignore_errors=True)
    shutil.copytree(_SOURCES, context)
    shutil.copytree(programs.kind_sources() / "images/base/files", context / "kind", copy_function=_writable_copy)
    (context / "programs").mkdir()
    for name, path in paths.items():
        (context / "programs" / name).hardlink_to(path)
    return context


def _writable_copy(source: str, target: str) -> None:
    """Go's module cache is read-only, and its files have lost the right to be executed."""
    shutil.copyfile(source, target)
    is_program = Path(source).read_bytes().startswith(b"#!")
    Path(target).chmod(0o755 if is_program else 0o644)


def _kubernetes_version() -> str:
    return pinned_version(programs.NODE["kubelet"])


def _digest() -> str:
    """Of everything that decides what is in the image."""
    digest = hashlib.sha256(base_image.name().encode())
    for path in sorted(_SOURCES.iterdir()):
        digest.update(path.read_bytes())
    for tool in (programs.KIND, *programs.NODE.values()):  # of kind: the files of its base image
        digest.update(f"{tool.package} {pinned_version(tool)} {tool.tags} {tool.stamp}\n".encode())
    return digest.hexdigest()[:12]

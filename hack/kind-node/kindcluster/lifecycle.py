"""The cluster up and down: what `make kind-up`, the demo and the tests on kind all begin and end with."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from kindcluster import engine as engines
from kindcluster import node_image, product_images, programs
from kindcluster.cluster import Cluster
from kindcluster.engine import Engine
from kindcluster.product_images import Images
from splitplane.cli.progress import BuildProgress
from splitplane.local import binaries


def up(out: Console, *, say: Callable[[str], None]) -> Cluster:
    """Bring up a cluster with Prometheus and Splitplane; one that is up gets new images and the chart anew.

    Raises:
        LocalError: something is missing or fails; the message says what to do.
    """
    engine = engines.ensure()
    say(f"Docker answers at {engine.host or 'its usual address'}")
    cluster = _cluster(engine, out)
    images = product_images.build(engine, say=say)
    if cluster.exists():
        cluster.revive()
        if not cluster.has(images):
            say("Loading the images")
            cluster.save(images)
            cluster.load(images)
    else:
        _create(cluster, images, out, say)
    say("Installing Prometheus")
    cluster.install_prometheus(images)
    say("Installing Splitplane from its chart")
    cluster.install_chart(images)
    return cluster


def is_up(out: Console) -> bool:
    """Whether the cluster is there already."""
    engine = engines.find()
    return engine is not None and _cluster(engine, out).exists()


def _create(cluster: Cluster, images: Images, out: Console, say: Callable[[str], None]) -> None:
    with BuildProgress(out) as progress:
        node = node_image.ensure(cluster.engine, on_build=progress.building, say=say)
    say(f"Creating the cluster from {node}")
    with ThreadPoolExecutor() as pool:
        saved = pool.submit(cluster.save, images)
        cluster.create(node)
        saved.result()
    say("Loading the images")
    cluster.load(images)


def down(out: Console, *, say: Callable[[str], None]) -> None:
    """Delete the cluster; end the private Docker daemon, if one was started, and put the machine's network back."""
    engine = engines.find()
    if engine:
        _cluster(engine, out).delete()
    if engines.stop():
        say("The private Docker daemon has ended; the machine's network is as it was")


def _cluster(engine: Engine, out: Console) -> Cluster:
    with BuildProgress(out) as progress:
        kind = binaries.built(programs.KIND, on_build=progress.building)
        kubectl, helm = (binaries.ensure(name, on_build=progress.building) for name in ("kubectl", "helm"))
    return Cluster(engine, kind, kubectl, helm)

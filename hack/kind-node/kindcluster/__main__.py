"""`python -m kindcluster`: see `--help`. The Makefile's kind-* targets call this."""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from kindcluster import engine as engines
from kindcluster import node_image, product_images, programs
from kindcluster.cluster import Cluster
from kindcluster.engine import Engine
from splitplane.cli.progress import BuildProgress
from splitplane.local import binaries
from splitplane.local.errors import LocalError

_began = time.monotonic()
_out = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    _out.print(f"[dim]{time.monotonic() - _began:6.1f} s[/]  {text}")


def _cluster(engine: Engine) -> Cluster:
    with BuildProgress(_out) as progress:
        kind = binaries.built(programs.KIND, on_build=progress.building)
        kubectl, helm = (binaries.ensure(name, on_build=progress.building) for name in ("kubectl", "helm"))
    return Cluster(engine, kind, kubectl, helm)


def up() -> None:
    """Bring up a cluster with Prometheus and Splitplane; one that is up gets new images and the chart anew."""
    engine = engines.ensure()
    say(f"Docker answers at {engine.host or 'its usual address'}")
    cluster = _cluster(engine)
    images = product_images.build(engine, say=say)
    with ThreadPoolExecutor() as pool:
        saved = pool.submit(cluster.save, images)
        if not cluster.exists():
            with BuildProgress(_out) as progress:
                node = node_image.ensure(engine, on_build=progress.building, say=say)
            say(f"Creating the cluster from {node}")
            cluster.create(node)
        saved.result()
    say("Loading the images")
    cluster.load(images)
    say("Installing Prometheus")
    cluster.install_prometheus()
    say("Installing Splitplane from its chart")
    cluster.install_chart(images)
    say(f"Ready: export KUBECONFIG={cluster.kubeconfig}")


def down() -> None:
    """Delete the cluster; end the private Docker daemon, if one was started, and put the machine's network back."""
    engine = engines.find()
    if engine:
        _cluster(engine).delete()
    if engines.stop():
        say("The private Docker daemon has ended; the machine's network is as it was")


def images() -> None:
    """Build the operator's and the runtime's images."""
    product_images.build(engines.ensure(), say=say)


def node() -> None:
    """Fetch or build the node image."""
    with BuildProgress(_out) as progress:
        say(node_image.ensure(engines.ensure(), on_build=progress.building, say=say))


def main() -> int:
    commands = {command.__name__: command for command in (up, down, images, node)}
    parser = argparse.ArgumentParser(prog="kindcluster", description="Splitplane on a kind cluster of this machine.")
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, command in commands.items():
        parsers.add_parser(name, help=command.__doc__, description=command.__doc__)
    try:
        commands[parser.parse_args().command]()
    except LocalError as error:
        _out.print(str(error), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        _out.print("Interrupted.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

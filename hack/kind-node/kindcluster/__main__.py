"""`python -m kindcluster`: see `--help`. The Makefile's kind-* targets call this."""

import argparse
import sys
import time

from rich.console import Console

from kindcluster import engine as engines
from kindcluster import lifecycle, node_image, product_images
from splitplane.cli.progress import BuildProgress
from splitplane.local.errors import LocalError

_began = time.monotonic()
_out = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    _out.print(f"[dim]{time.monotonic() - _began:6.1f} s[/]  {text}")


def up() -> None:
    """Bring up a cluster with Prometheus and Splitplane; one that is up gets new images and the chart anew."""
    cluster = lifecycle.up(_out, say=say)
    say(f"Ready: export KUBECONFIG={cluster.kubeconfig}")


def down() -> None:
    """Delete the cluster; end the private Docker daemon, if one was started, and put the machine's network back."""
    lifecycle.down(_out, say=say)


def images() -> None:
    """Build the operator's and the runtime's images."""
    with lifecycle.alone():
        product_images.build(engines.ensure(), say=say)


def node() -> None:
    """Fetch or build the node image."""
    with lifecycle.alone(), BuildProgress(_out) as progress:
        say(node_image.ensure(engines.ensure(), on_build=progress.building, say=say))


def main() -> int:
    commands = {command.__name__: command for command in (up, down, images, node)}
    parser = argparse.ArgumentParser(prog="kindcluster", description="Splitplane on a kind cluster of this machine.")
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, command in commands.items():
        parsers.add_parser(name, help=command.__doc__, description=command.__doc__)
    lifecycle.stop_orderly()
    try:
        commands[parser.parse_args().command]()
    except LocalError as error:
        _out.print(str(error), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        _out.print("Interrupted: what this command had begun has been taken down.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``splitplane local``: the embedded cluster's commands."""

import functools
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console

from splitplane.cli.progress import BuildProgress, UpProgress
from splitplane.local import binaries
from splitplane.local import config as configuration
from splitplane.local.cluster import Cluster
from splitplane.local.errors import LocalError

app = typer.Typer(no_args_is_help=True, help="A real Kubernetes control plane on this machine, without root or Docker.")
node_app = typer.Typer(no_args_is_help=True, help="Switch nodes off and on, change their price.")
app.add_typer(node_app, name="node")

Name = Annotated[str, typer.Option("--name", "-n", help="Which cluster; several may run side by side.")]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_out = Console()
_err = Console(stderr=True)


def _told(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Errors as one message without a traceback; SIGTERM and SIGHUP clean up as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupt)
        try:
            return command(*args, **kwargs)
        except LocalError as error:
            _err.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            _err.print("Interrupted.")
            raise typer.Exit(130) from None

    return run


@app.command()
@_told
def up(
    name: Name = "default",
    config: Annotated[Path | None, typer.Option(help="Nodes and links (YAML); kept for later starts.")] = None,
) -> None:
    """Start the cluster and wait until it is ready. A cluster that is up is left as it is."""
    cluster = Cluster.of(name)
    wanted = configuration.load(config) if config else None
    with UpProgress(_err) as progress:
        started = cluster.up(wanted, progress=progress)
    if not started:
        _out.print(f"The cluster {name!r} is up already.")
        return
    _out.print(f"The cluster {name!r} is up: {len(cluster.config.nodes)} nodes. Device speeds and links are emulated.")
    _out.print(f"export KUBECONFIG={cluster.paths.kubeconfig}", highlight=False, soft_wrap=True)


@app.command()
@_told
def down(
    name: Name = "default", purge: Annotated[bool, typer.Option(help="Remove the cluster's state too.")] = False
) -> None:
    """End every process of the cluster. Its state stays, unless --purge."""
    with _err.status(f"Stopping {name}"):
        ran = Cluster.of(name).down(purge=purge)
    _out.print(f"The cluster {name!r} is down." if ran else f"The cluster {name!r} was not running.")


@app.command()
@_told
def kubeconfig(
    name: Name = "default",
    content: Annotated[bool, typer.Option("--content", help="Print the file instead of its path.")] = False,
) -> None:
    """Print the path of the administrator's kubeconfig."""
    path = Cluster.of(name).paths.kubeconfig
    if not path.exists():
        raise LocalError(f"The cluster {name!r} has never been up: start it with `splitplane local up`.")
    sys.stdout.write(path.read_text() if content else f"{path}\n")


@app.command()
@_told
def status(
    name: Name = "default",
    output: Annotated[str, typer.Option("--output", "-o", help="table or json")] = "table",
) -> None:
    """Show nodes, links, components, and what is emulated."""
    cluster = Cluster.of(name)
    value: dict[str, Any] = {"name": name, "running": cluster.running, **cluster.status()}
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


@app.command()
@_told
def build() -> None:
    """Find or build every program of the control plane, ahead of the first `up`."""
    with BuildProgress(_err) as progress:
        for tool in binaries.TOOLS:
            path = binaries.ensure(tool, on_build=progress.building)
            progress.done(tool, path)

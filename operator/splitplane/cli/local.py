"""``splitplane local``: the embedded cluster's commands. They translate; `splitplane.local` does the work."""

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import typer
from rich.console import Console

from splitplane.cli.progress import BuildProgress, UpProgress
from splitplane.cli.status import render
from splitplane.local import binaries, install, logs, report
from splitplane.local import config as configuration
from splitplane.local.cluster import Cluster
from splitplane.local.config import format_delay, format_rate
from splitplane.local.errors import LocalError

app = typer.Typer(no_args_is_help=True, help="A real Kubernetes control plane on this machine, without root or Docker.")
node_app = typer.Typer(no_args_is_help=True, help="Switch nodes off and on, change what they cost.")
app.add_typer(node_app, name="node")

Name = Annotated[str, typer.Option("--name", "-n", help="Which cluster; several may run side by side.")]
NodeName = Annotated[str, typer.Argument(metavar="NODE")]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


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
            _err.print(str(error), style="red", markup=False)
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
    _out.print(f"export KUBECONFIG={cluster.paths.kubeconfig}")


@app.command()
@_told
def down(
    name: Name = "default", purge: Annotated[bool, typer.Option("--purge", help="Remove its state too.")] = False
) -> None:
    """End every process of the cluster. Its state stays, unless --purge."""
    with _err.status(f"Stopping {name}"):
        ran = Cluster.of(name).down(purge=purge)
    _out.print(f"The cluster {name!r} is down." if ran else f"The cluster {name!r} was not running.")


@app.command()
@_told
def status(
    name: Name = "default",
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o")] = "table",
) -> None:
    """Show nodes, links, components, versions, and what is emulated."""
    cluster = Cluster.of(name)
    if not cluster.paths.config.exists():
        raise LocalError(f"There is no cluster {name!r}: start it with `splitplane local up`.")
    value = report.describe(cluster)
    if output == "json":
        sys.stdout.write(json.dumps(value, indent=1) + "\n")
    else:
        render(_out, value)


@app.command()
@_told
def kubeconfig(
    name: Name = "default",
    content: Annotated[bool, typer.Option("--content", help="Print the file instead of its path.")] = False,
) -> None:
    """Print the path of the administrator's kubeconfig."""
    path = Cluster.of(name).paths.kubeconfig
    if not path.exists():
        raise LocalError(f"There is no cluster {name!r}: start it with `splitplane local up`.")
    sys.stdout.write(path.read_text() if content else f"{path}\n")


@app.command("logs")
@_told
def show_logs(
    component: Annotated[str, typer.Argument(help="Such as kube-apiserver or agent-edge-1; none lists them.")] = "",
    name: Name = "default",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option(min=0, help="How many of the last lines to begin with; 0 is all.")] = 0,
) -> None:
    """Show what a component or a node's agent has written. Pods' logs are in `kubectl logs`."""
    folder = Cluster.of(name).paths.logs
    if not component:
        _out.print("\n".join(logs.names(folder)) or f"The cluster {name!r} has written no logs yet.")
        return
    for text in logs.read(folder, component, lines=lines, follow=follow):
        sys.stdout.write(text)
        sys.stdout.flush()


@app.command()
@_told
def link(
    first: Annotated[str, typer.Argument(metavar="TIER")],
    second: Annotated[str, typer.Argument(metavar="TIER")],
    name: Name = "default",
    rate: Annotated[
        str | None,
        typer.Option(help="Each way, shared by all nodes of a tier; such as 3Mbit, 500kbit, 1Gbit, or unlimited."),
    ] = None,
    delay: Annotated[str | None, typer.Option(help="One way, such as 5ms; 0 for none.")] = None,
    up: Annotated[bool | None, typer.Option("--up/--down", help="Cut the link, or mend it.")] = None,
) -> None:
    """Change the link between two tiers, also while the cluster runs; open connections see it at once."""
    changes: dict[str, Any] = {}
    try:
        if rate is not None:
            changes["rate"] = configuration.parse_rate(rate)
        if delay is not None:
            changes["delay"] = configuration.parse_delay(delay)
    except ValueError as error:
        raise LocalError(f"{error}.") from error
    if up is not None:
        changes["down"] = not up
    now = Cluster.of(name).set_link((first, second), **changes)
    state = "down" if now.down else f"rate {format_rate(now.rate)} in each direction, delay {format_delay(now.delay)}"
    _out.print(f"{' - '.join(now.key)}: {state}")


@node_app.command("stop")
@_told
def node_stop(node: NodeName, name: Name = "default") -> None:
    """Switch a node off as a power cut would."""
    Cluster.of(name).stop_node(node)
    _out.print(f"{node} is off.")


@node_app.command("start")
@_told
def node_start(node: NodeName, name: Name = "default") -> None:
    """Switch a node on, and wait until it is Ready."""
    with _err.status(f"Starting {node}"):
        Cluster.of(name).start_node(node)
    _out.print(f"{node} is ready.")


@node_app.command("price")
@_told
def node_price(
    node: NodeName,
    price: Annotated[float, typer.Argument(metavar="PRICE", min=0, help="Per hour.")],
    name: Name = "default",
) -> None:
    """Change what a node costs per hour, as Prometheus sees it."""
    Cluster.of(name).set_price(node, price)
    _out.print(f"{node} costs {price:g} per hour.")


@app.command()
@_told
def build() -> None:
    """Find or build every program of the control plane, ahead of the first `up`."""
    with BuildProgress(_err) as progress:
        for tool in binaries.TOOLS:
            path = binaries.ensure(tool, on_build=progress.building)
            progress.done(tool, path)


@app.command("install")
@_told
def install_chart(
    name: Name = "default",
    values: Annotated[
        list[Path] | None, typer.Option("--values", help="A file of chart values; may be repeated.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as for helm; may be repeated.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="The chart's folder.")] = None,
) -> None:
    """Install Splitplane from its chart, and wait until the operator is available."""
    with BuildProgress(_err) as progress:
        helm = binaries.ensure("helm", on_build=progress.building)
    with _err.status("Installing the chart"):
        install.install(
            Cluster.of(name),
            helm=helm,
            chart=chart or install.find_chart(),
            values=values or (),
            settings=settings or (),
        )
    _out.print(f"Splitplane is available in the namespace {install.NAMESPACE}.")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@_told
def kubectl(context: typer.Context, name: Name = "default") -> None:
    """Run kubectl against the cluster: `splitplane local kubectl -- get pods -A`."""
    cluster = Cluster.of(name)
    cluster.require_running()
    command = [cluster.binaries()["kubectl"], f"--kubeconfig={cluster.paths.kubeconfig}", *context.args]
    raise typer.Exit(subprocess.run(command, check=False).returncode)

"""A cluster's report as tables."""

from typing import Any

from rich.console import Console
from rich.table import Table

_STYLES = {"ready": "green", "starting": "yellow", "not ready": "yellow", "crashed": "red", "off": "red"}


def render(console: Console, report: dict[str, Any]) -> None:
    """Print what :func:`splitplane.local.report.describe` found."""
    console.print(f"Cluster {report['name']}: {_styled(report['phase'])} {report['message']}".rstrip())
    if report["apiServer"]:
        console.print(f"API server {report['apiServer']}, Prometheus {report['prometheusUrl']}")
    console.print(f"KUBECONFIG={report['kubeconfig']}\n")
    console.print(_nodes(report["nodes"]))
    if report["links"]:
        console.print(_links(report["links"]))
    if report["components"]:
        console.print(_components(report["components"], report["versions"]))
    console.print("Emulated on this machine:")
    for line in report["emulated"]:
        console.print(f"  {line}")
    console.print(f"Memory in use, pods included: {_mebibytes(report['residentBytes'])}")


def _nodes(nodes: list[dict[str, Any]]) -> Table:
    table = _table("NODE", "TIER", "STATE", "ADDRESS", "CPU", "MEMORY", "SLOWER BY", "PRICE/H", "IN USE")
    for node in nodes:
        table.add_row(
            node["name"], node["tier"] or "", _styled(node["state"]), node["address"] or "",
            node["cpu"], node["memory"], f"{node['speedFactor']:g}x", f"{node['pricePerHour']:g}",
            _mebibytes(node["residentBytes"]),
        )  # fmt: skip
    return table


def _links(links: list[dict[str, Any]]) -> Table:
    table = _table("LINK", "STATE", "RATE", "DELAY")
    for link in links:
        state = "[red]down[/]" if link["down"] else "[green]up[/]"
        table.add_row(" - ".join(link["between"]), state, link["rate"], link["delay"])
    return table


def _components(components: list[dict[str, Any]], versions: dict[str, str]) -> Table:
    table = _table("COMPONENT", "VERSION", "STATE", "PORT", "PID", "RESTARTS", "IN USE")
    for part in components:
        table.add_row(
            part["name"], versions.get(part["name"], ""), _styled(part["state"]), str(part["port"] or ""),
            str(part["pid"] or ""), str(part["restarts"]), _mebibytes(part["residentBytes"]),
        )  # fmt: skip
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _styled(state: str) -> str:
    style = _STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"

"""What a cluster looks like now, as plain data: ``splitplane local status`` prints it as a table or as JSON."""

from pathlib import Path
from typing import Any

from splitplane.local import binaries
from splitplane.local.addresses import PROXY_PORT, Addresses
from splitplane.local.cluster import Cluster
from splitplane.local.config import NodeConfig, format_delay, format_rate
from splitplane.local.processes import Process, descendants

EMULATED = (
    "device speed: a node's speed factor makes the runtime sleep after each range; cores are this machine's",
    "machines of their own: containers with a readiness or startup probe start in turns, which leaves a core free",
    "links between tiers: one for all nodes of a tier; rate and delay are applied by a proxy on each node's address",
)


def describe(cluster: Cluster) -> dict[str, Any]:
    """Everything that a user or a script may want to know of a cluster, with sizes in bytes."""
    running = cluster.running
    status = cluster.status() if running else {}
    addresses = Addresses.read(cluster.paths.addresses)
    components = [_component(name, part, addresses) for name, part in status.get("components", {}).items()]
    nodes = [_node(cluster, node, status.get("nodes", {}).get(node.name), addresses) for node in cluster.config.nodes]
    return {
        "name": cluster.paths.name,
        "phase": status.get("phase", "stopped") if running else "stopped",
        "message": status.get("message", ""),
        "stateFolder": str(cluster.paths.root),
        "kubeconfig": str(cluster.paths.kubeconfig),
        "apiServer": addresses.api_server if addresses and running else None,
        "prometheusUrl": addresses.prometheus_url if addresses and running else None,
        "versions": _versions(cluster),
        "components": components,
        "nodes": nodes,
        "links": [
            {
                "between": list(link.between),
                "rate": format_rate(link.rate),
                "delay": format_delay(link.delay),
                "down": link.down,
            }
            for link in cluster.links()
        ],
        "emulated": list(EMULATED),
        "residentBytes": sum(part["residentBytes"] for part in (*components, *nodes)) + _supervisor_bytes(status),
    }


def _component(name: str, part: dict[str, Any], addresses: Addresses | None) -> dict[str, Any]:
    process = _process(part)
    port = PROXY_PORT if name == "uplink" else addresses.ports.get(name) if addresses else None
    return {
        "name": name,
        "state": "ready" if part["ready"] else "starting" if process else "crashed",
        "port": port,
        "pid": part["pid"],
        "restarts": part["restarts"],
        "lastExit": part["lastExit"],
        "residentBytes": process.resident_bytes() if process else 0,
    }


def _node(
    cluster: Cluster, node: NodeConfig, part: dict[str, Any] | None, addresses: Addresses | None
) -> dict[str, Any]:
    process = _process(part) if part else None
    pods = descendants(process.pid) if process else []
    return {
        "name": node.name,
        "tier": node.tier,
        "state": _node_state(part),
        "address": addresses.node_address(node.name) if addresses and node.name in addresses.subnets else None,
        "cpu": node.cpu,
        "memory": node.memory,
        "speedFactor": node.speed_factor,
        "pricePerHour": _price(cluster, node),
        "pid": process.pid if process else None,
        "restarts": part["restarts"] if part else 0,
        "residentBytes": (process.resident_bytes() if process else 0) + sum(pod.resident_bytes() for pod in pods),
    }


def _node_state(part: dict[str, Any] | None) -> str:
    if part is None:
        return "stopped"
    if part["off"]:
        return "off"
    return "ready" if part["ready"] else "not ready"


def _price(cluster: Cluster, node: NodeConfig) -> float:
    try:
        return float(cluster.paths.node_price(node.name).read_text())
    except FileNotFoundError:
        return node.price_per_hour


def _versions(cluster: Cluster) -> dict[str, str]:
    """Of the programs that the cluster was last started with."""
    versions = {}
    for name, path in cluster.binaries().items():
        tool = binaries.TOOLS[name]
        if Path(path) == binaries.cached(tool):
            versions[name] = binaries.pinned_version(tool)
        else:
            versions[name] = binaries.program_version(Path(path), tool) or "unknown"
    return versions


def _process(part: dict[str, Any]) -> Process | None:
    process = Process(part["pid"], part["started"]) if part["pid"] else None
    return process if process and process.alive else None


def _supervisor_bytes(status: dict[str, Any]) -> int:
    supervisor = status.get("supervisor")
    return Process(supervisor["pid"], supervisor["started"]).resident_bytes() if supervisor else 0

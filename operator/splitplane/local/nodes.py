"""What the supervisor tells each node's agent, and the uplink proxy: pure builders over the cluster's configuration."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from splitplane.local.addresses import KUBELET_PORT, METRICS_PORT, PROXY_PORT, Addresses
from splitplane.local.agent.config import EMULATED_ANNOTATION
from splitplane.local.config import ClusterConfig, LinkConfig, NodeConfig
from splitplane.local.identities import Identities
from splitplane.local.paths import ClusterPaths

IMAGES = ("splitplane/operator", "splitplane/runtime")

LEASE_SECONDS = 4
"""Shorter than the controller manager's grace period of 6 s, with room for a busy machine."""


def agent_config(
    node: NodeConfig, config: ClusterConfig, paths: ClusterPaths, addresses: Addresses, identities: Identities
) -> dict[str, Any]:
    """The agent's ``agent.json``."""
    files = identities.nodes[node.name]
    address = addresses.node_address(node.name)
    programs = str(Path(sys.executable).parent)
    return {
        "node": node.name,
        "tier": node.tier,
        "labels": node.all_labels,
        "taints": [taint.model_dump() for taint in node.taints],
        "cpu": node.cpu,
        "memory": node.memory,
        "speedFactor": node.speed_factor,
        "pricePerHour": node.price_per_hour,
        "kubeconfig": str(files.kubeconfig),
        "stateDir": str(paths.node(node.name)),
        "nodeAddress": address,
        "podCidr": addresses.pod_cidr(node.name),
        "kubeletPort": KUBELET_PORT,
        "metricsPort": METRICS_PORT,
        "servingCert": str(files.serving.certificate),
        "servingKey": str(files.serving.key),
        "clientCa": str(identities.authority),
        "proxy": f"http://{address}:{PROXY_PORT}" if node.tier else None,
        "noProxy": _unshaped(node, config, addresses) if node.tier else [],
        "images": dict.fromkeys(IMAGES, programs),
        "apiServer": addresses.api_server,
        "clusterCa": str(identities.authority),
        "startsDir": str(paths.starts),
        "nodeLeaseSeconds": LEASE_SECONDS,
    }


def removed(present: Iterable[Mapping[str, Any]], config: ClusterConfig) -> list[str]:
    """Names of Node objects that agents of this cluster registered, and that its configuration no longer has."""
    configured = {node.name for node in config.nodes}
    return [
        node["metadata"]["name"]
        for node in present
        if node["metadata"]["name"] not in configured and EMULATED_ANNOTATION in node["metadata"].get("annotations", {})
    ]


def _unshaped(node: NodeConfig, config: ClusterConfig, addresses: Addresses) -> list[str]:
    """What a node reaches without the proxy: the control plane, its own tier, and nodes outside all tiers."""
    near = [other.name for other in config.nodes if other.tier in (node.tier, None)]
    return ["127.0.0.1/32", *(addresses.pod_cidr(name) for name in near)]


def uplink_config(config: ClusterConfig, paths: ClusterPaths, addresses: Addresses) -> dict[str, Any]:
    """The uplink proxy's ``uplink.json``."""
    return {
        "port": PROXY_PORT,
        "links": str(paths.links),
        "nodes": [
            {
                "name": node.name,
                "tier": node.tier,
                "address": addresses.node_address(node.name),
                "cidr": addresses.pod_cidr(node.name),
            }
            for node in config.nodes
        ],
    }


def links_file(links: tuple[LinkConfig, ...]) -> list[dict[str, Any]]:
    """The content of ``links.json``."""
    return [link.model_dump(mode="json", by_alias=True) for link in links]

"""Who is who in the cluster: certificates and kubeconfigs of the administrator, the components and the nodes."""

import base64
from dataclasses import dataclass
from pathlib import Path

import yaml

from splitplane.local.addresses import Addresses
from splitplane.local.files import write_atomically
from splitplane.local.paths import ClusterPaths
from splitplane.local.pki import Authority, KeyPair, service_account_keys

API_SERVER_NAMES = ("127.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "10.96.0.1")

PROMETHEUS_USER = "splitplane:prometheus"
PROVISIONER_USER = "splitplane:volume-provisioner"


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """What a node's agent proves its identity with."""

    kubeconfig: Path
    serving: KeyPair


@dataclass(frozen=True, slots=True)
class Identities:
    """Every certificate and kubeconfig of a running cluster."""

    authority: Path
    etcd_authority: Path
    etcd: KeyPair
    etcd_client: KeyPair
    api_server: KeyPair
    kubelet_client: KeyPair
    controller_manager: KeyPair
    scheduler: KeyPair
    service_accounts: tuple[Path, Path]
    provisioner: KeyPair
    nodes: dict[str, NodeFiles]


def issue_all(paths: ClusterPaths, addresses: Addresses) -> Identities:
    """Write fresh certificates from the kept authorities: no start meets an expired one."""
    authority = Authority(paths.pki, "ca")
    etcd_authority = Authority(paths.pki, "etcd-ca")  # apart, so that no user of the API can speak to etcd
    loopback = ("127.0.0.1", "localhost")
    server = f"https://127.0.0.1:{addresses.port('kube-apiserver')}"

    def kubeconfig(path: Path, name: str, user: str, *groups: str) -> KeyPair:
        pair = authority.issue(paths.pki, name, user=user, groups=groups)
        write_kubeconfig(path, cluster=paths.name, server=server, authority=authority.certificate, pair=pair)
        return pair

    kubeconfig(paths.kubeconfig, "admin", "kubernetes-admin", "system:masters")
    for component in ("kube-controller-manager", "kube-scheduler"):
        kubeconfig(paths.kubeconfigs / component, f"{component}-client", f"system:{component}")
    kubeconfig(paths.kubeconfigs / "prometheus", "prometheus-client", PROMETHEUS_USER)
    nodes = {}
    for node in addresses.subnets:
        path = paths.node(node) / "kubeconfig"
        kubeconfig(path, f"node-{node}", f"system:node:{node}", "system:nodes")
        serving = authority.issue(
            paths.node(node), "serving", user=f"system:node:{node}", groups=["system:nodes"],
            addresses=[addresses.node_address(node), node], client=False,
        )  # fmt: skip
        nodes[node] = NodeFiles(path, serving)
    return Identities(
        authority=authority.certificate,
        etcd_authority=etcd_authority.certificate,
        etcd=etcd_authority.issue(paths.pki, "etcd", user="etcd", addresses=loopback),
        etcd_client=etcd_authority.issue(paths.pki, "etcd-client", user="kube-apiserver"),
        api_server=authority.issue(
            paths.pki, "kube-apiserver", user="kube-apiserver", addresses=API_SERVER_NAMES, client=False
        ),
        kubelet_client=authority.issue(paths.pki, "kubelet-client", user="kube-apiserver-kubelet-client"),
        controller_manager=authority.issue(
            paths.pki, "kube-controller-manager", user="kube-controller-manager", addresses=loopback, client=False
        ),
        scheduler=authority.issue(paths.pki, "kube-scheduler", user="kube-scheduler", addresses=loopback, client=False),
        service_accounts=service_account_keys(paths.pki),
        provisioner=authority.issue(paths.pki, "volume-provisioner", user=PROVISIONER_USER),
        nodes=nodes,
    )


def write_kubeconfig(path: Path, *, cluster: str, server: str, authority: Path, pair: KeyPair) -> None:
    """A kubeconfig that holds everything itself, so that it can be copied elsewhere."""

    def encoded(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    context = f"splitplane-{cluster}"
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": context, "cluster": {"server": server, "certificate-authority-data": encoded(authority)}}
        ],
        "users": [
            {
                "name": context,
                "user": {"client-certificate-data": encoded(pair.certificate), "client-key-data": encoded(pair.key)},
            }
        ],
        "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        "current-context": context,
    }
    write_atomically(path, yaml.safe_dump(body, sort_keys=False))

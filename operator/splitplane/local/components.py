"""The control plane's command lines: pure functions of paths, addresses and identities."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from splitplane.local.addresses import PROXY_PORT, Addresses
from splitplane.local.identities import Identities
from splitplane.local.paths import ClusterPaths
from splitplane.local.pki import KeyPair

SERVICE_CIDR = "10.96.0.0/16"

# EndpointSlices refuse addresses of 127.0.0.0/8, so their controllers would retry for ever: left out on purpose.
CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "daemonset-controller",
    "deployment-controller",
    "disruption-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-protection-controller",
    "persistentvolumeclaim-protection-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "taint-eviction-controller",
    "ttl-after-finished-controller",
)


@dataclass(frozen=True, slots=True)
class Probe:
    """How to see that a component answers: an HTTP GET that gives 200, or (empty path) an open port."""

    url: str
    authority: Path | None = None
    client: KeyPair | None = None


@dataclass(frozen=True, slots=True)
class Component:
    """A process to keep running."""

    name: str
    command: tuple[str, ...]
    probe: Probe
    environment: Mapping[str, str] = field(default_factory=dict)


def control_plane(
    paths: ClusterPaths, addresses: Addresses, identities: Identities, binaries: Mapping[str, str]
) -> tuple[Component, ...]:
    """etcd, API server, controller manager, scheduler and Prometheus, in the order in which they are started."""
    return (
        _etcd(paths, addresses, identities, binaries["etcd"]),
        _api_server(addresses, identities, binaries["kube-apiserver"]),
        _controller_manager(paths, addresses, identities, binaries["kube-controller-manager"]),
        _scheduler(paths, addresses, identities, binaries["kube-scheduler"]),
        _prometheus(paths, addresses, binaries["prometheus"]),
    )


def uplink(paths: ClusterPaths, addresses: Addresses, node: str) -> Component:
    """The proxy that shapes traffic between tiers; ready when it listens on ``node``'s address."""
    return Component(
        "uplink",
        (sys.executable, "-m", "splitplane.local.uplink", "--config", str(paths.uplink)),
        Probe(f"tcp://{addresses.node_address(node)}:{PROXY_PORT}"),
    )


def agent_command(paths: ClusterPaths, node: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "splitplane.local.agent", "--config", str(paths.node(node) / "agent.json"))


def _etcd(paths: ClusterPaths, addresses: Addresses, identities: Identities, program: str) -> Component:
    client = f"https://127.0.0.1:{addresses.port('etcd')}"
    peer = f"https://127.0.0.1:{addresses.port('etcd-peer')}"
    pair, authority = identities.etcd, identities.etcd_authority
    return Component(
        "etcd",
        (
            program, "--name=default", f"--data-dir={paths.etcd}",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
            "--client-cert-auth", f"--trusted-ca-file={authority}",
            f"--cert-file={pair.certificate}", f"--key-file={pair.key}",
            "--peer-client-cert-auth", f"--peer-trusted-ca-file={authority}",
            f"--peer-cert-file={pair.certificate}", f"--peer-key-file={pair.key}",
            # State that may be lost in a power cut, for a start in seconds on slow disks.
            "--unsafe-no-fsync", "--auto-compaction-mode=periodic", "--auto-compaction-retention=5m",
            "--quota-backend-bytes=1073741824", "--log-level=warn",
        ),
        Probe(f"{client}/health", authority, identities.etcd_client),
    )  # fmt: skip


def _api_server(addresses: Addresses, identities: Identities, program: str) -> Component:
    port = addresses.port("kube-apiserver")
    public, private = identities.service_accounts
    return Component(
        "kube-apiserver",
        (
            program,
            f"--etcd-servers=https://127.0.0.1:{addresses.port('etcd')}",
            f"--etcd-cafile={identities.etcd_authority}",
            f"--etcd-certfile={identities.etcd_client.certificate}", f"--etcd-keyfile={identities.etcd_client.key}",
            "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--secure-port={port}",
            "--endpoint-reconciler-type=none", f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--anonymous-auth=false", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={identities.authority}",
            f"--tls-cert-file={identities.api_server.certificate}",
            f"--tls-private-key-file={identities.api_server.key}",
            f"--kubelet-certificate-authority={identities.authority}",
            f"--kubelet-client-certificate={identities.kubelet_client.certificate}",
            f"--kubelet-client-key={identities.kubelet_client.key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={public}", f"--service-account-signing-key-file={private}",
            "--default-not-ready-toleration-seconds=5", "--default-unreachable-toleration-seconds=5",
            "--profiling=false", "--event-ttl=1h",
        ),
        Probe(f"https://127.0.0.1:{port}/readyz", identities.authority, identities.provisioner),
        _quiet(),
    )  # fmt: skip


def _controller_manager(paths: ClusterPaths, addresses: Addresses, identities: Identities, program: str) -> Component:
    return _controller(
        "kube-controller-manager", identities.controller_manager, paths, addresses, identities, program,
        f"--controllers={','.join(CONTROLLERS)}", "--use-service-account-credentials=true",
        f"--root-ca-file={identities.authority}",
        f"--service-account-private-key-file={identities.service_accounts[1]}",
        # A lost node is noticed in seconds, so that demos and tests do not wait for minutes.
        "--node-monitor-period=1s", "--node-monitor-grace-period=6s",
        "--node-eviction-rate=10", "--secondary-node-eviction-rate=10", "--unhealthy-zone-threshold=1.0",
        "--pvclaimbinder-sync-period=5s",
    )  # fmt: skip


def _scheduler(paths: ClusterPaths, addresses: Addresses, identities: Identities, program: str) -> Component:
    return _controller("kube-scheduler", identities.scheduler, paths, addresses, identities, program)


def _controller(
    name: str, pair: KeyPair, paths: ClusterPaths, addresses: Addresses, identities: Identities, program: str,
    *more: str,
) -> Component:  # fmt: skip
    """A client of the API server that answers for its health alone: one of its kind, so it need not elect a leader."""
    port = addresses.port(name)
    return Component(
        name,
        (
            program, f"--kubeconfig={paths.kubeconfigs / name}", "--bind-address=127.0.0.1", f"--secure-port={port}",
            f"--tls-cert-file={pair.certificate}", f"--tls-private-key-file={pair.key}",
            "--authentication-skip-lookup=true", "--leader-elect=false", "--profiling=false", *more,
        ),
        Probe(f"https://127.0.0.1:{port}/healthz", identities.authority),
        _quiet(),
    )  # fmt: skip


def _prometheus(paths: ClusterPaths, addresses: Addresses, program: str) -> Component:
    port = addresses.port("prometheus")
    return Component(
        "prometheus",
        (
            program, f"--config.file={paths.prometheus / 'prometheus.yaml'}",
            f"--storage.tsdb.path={paths.prometheus / 'data'}", "--storage.tsdb.retention.time=2d",
            "--storage.tsdb.retention.size=1GB", f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        ),
        Probe(f"http://127.0.0.1:{port}/-/ready"),
        {"GOMAXPROCS": "1"},
    )  # fmt: skip


def _quiet() -> dict[str, str]:
    """Less memory for a bit more garbage collection: the machine is shared with the models."""
    return {"GOGC": os.environ.get("GOGC", "60")}

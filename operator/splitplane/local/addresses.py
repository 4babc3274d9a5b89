"""Ports and loopback subnets of a cluster: chosen where they are free, kept from then on while they stay free."""

import random
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from splitplane.local.errors import LocalError
from splitplane.local.files import read_json, write_json

KUBELET_PORT = 10250
METRICS_PORT = 10255
PROXY_PORT = 3128
_CLAIM_PORT = 10249
"""The supervisor listens here on each node's address, so that no second cluster takes the same subnet."""

PORTS = ("etcd", "etcd-peer", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "prometheus")
_FIRST_PORT, _LAST_PORT = 20000, 32000  # below the range that the kernel gives to outgoing connections
_SUBNETS = range(64, 255)  # 127.0.0.0/16 is everybody's, low ones are popular with other tools


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything of a cluster listens."""

    ports: dict[str, int]
    subnets: dict[str, int]
    """Node name to ``n`` of its ``127.<n>.0.0/16``."""

    def port(self, name: str) -> int:
        return self.ports[name]

    def node_address(self, node: str) -> str:
        return f"127.{self.subnets[node]}.0.1"

    def pod_cidr(self, node: str) -> str:
        return f"127.{self.subnets[node]}.0.0/16"

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.port('prometheus')}"

    @property
    def api_server(self) -> str:
        return f"https://127.0.0.1:{self.port('kube-apiserver')}"

    @classmethod
    def read(cls, path: Path) -> "Addresses | None":
        value = read_json(path)
        return value and cls(ports=value["ports"], subnets=value["subnets"])


@dataclass(slots=True)
class Claim:
    """Addresses, and the sockets that keep the subnets ours as long as this process lives."""

    addresses: Addresses
    sockets: list[socket.socket] = field(default_factory=list)

    def release(self) -> None:
        for claimed in self.sockets:
            claimed.close()


def claim(path: Path, nodes: Iterable[str]) -> Claim:
    """Take last time's addresses where they are still free, new ones elsewhere, and write them to ``path``.

    Raises:
        LocalError: this machine has no free loopback subnet or port left, or no 127.0.0.0/8.
    """
    before = Addresses.read(path) or Addresses({}, {})
    sockets: list[socket.socket] = []
    subnets: dict[str, int] = {}
    try:
        for node in nodes:
            candidates = [before.subnets[node]] if node in before.subnets else []
            candidates += [n for n in _SUBNETS if n not in before.subnets.values()]
            for n in candidates:
                if n not in subnets.values() and (claimed := _claim_subnet(n)):
                    sockets.append(claimed)
                    subnets[node] = n
                    break
            else:
                raise LocalError("No free loopback subnet is left; take other clusters down (`splitplane local down`).")
        ports: dict[str, int] = {}
        for name in PORTS:
            kept = before.ports.get(name)
            ports[name] = kept if kept and _free("127.0.0.1", kept) else _free_port(ports.values())
    except BaseException:
        for claimed in sockets:
            claimed.close()
        raise
    addresses = Addresses(ports, subnets)
    write_json(path, {"ports": ports, "subnets": subnets})
    return Claim(addresses, sockets)


def _free_port(taken: Iterable[int]) -> int:
    for _ in range(500):
        port = random.randint(_FIRST_PORT, _LAST_PORT)
        if port not in taken and _free("127.0.0.1", port):
            return port
    raise LocalError(f"No free port was found between {_FIRST_PORT} and {_LAST_PORT} on 127.0.0.1.")


def _free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _claim_subnet(n: int) -> socket.socket | None:
    address = f"127.{n}.0.1"
    claimed = socket.socket()
    claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        claimed.bind((address, _CLAIM_PORT))
        claimed.listen(1)
    except OSError:
        claimed.close()
        return None
    if not all(_free(address, port) for port in (KUBELET_PORT, METRICS_PORT, PROXY_PORT)):
        claimed.close()
        return None
    return claimed

"""A way from this machine to a Service of the cluster: a second Service, with a port of the nodes."""

import json
import socket
import time

from kindcluster.cluster import CONTROL_PLANE, Cluster
from splitplane.local.errors import LocalError

_CONNECT_SECONDS, _PAUSE_SECONDS = 2.0, 0.5


def expose(cluster: Cluster, service: str, *, namespace: str, port: int, seconds: float = 30.0) -> str:
    """``host:port`` at which this machine reaches a Service's port, once a connection is taken there.

    The Service that is made for it is called ``SERVICE-outside-PORT`` and selects the same pods.

    Raises:
        LocalError: no such Service, or no connection within ``seconds``.
    """
    there = f"--namespace={namespace}"
    selector = cluster.get("service", service, there)["spec"]["selector"]
    spec = {"type": "NodePort", "selector": selector, "ports": [{"port": port, "targetPort": port}]}
    name = f"{service}-outside-{port}"
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
    cluster.apply(json.dumps(body))
    node_port = cluster.get("service", name, there)["spec"]["ports"][0]["nodePort"]
    addresses = cluster.get("node", CONTROL_PLANE)["status"]["addresses"]
    host = next(str(address["address"]) for address in addresses if address["type"] == "InternalIP")
    deadline = time.monotonic() + seconds
    while not _answers(host, node_port):  # kube-proxy hears of it last
        if time.monotonic() > deadline:
            raise LocalError(f"{host}:{node_port}, the way to the Service {service}, takes no connection.")
        time.sleep(_PAUSE_SECONDS)
    return f"{host}:{node_port}"


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True

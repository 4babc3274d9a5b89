"""The node in the API: registration, the Ready condition, and lease heartbeats."""

import asyncio
import logging
import platform
import time
from importlib.metadata import version
from pathlib import Path

from splitplane.domain.times import micro_timestamp, timestamp
from splitplane.local.agent.api import TYPE_MERGE, Api, Object, path_of
from splitplane.local.agent.config import EMULATED_ANNOTATION, AgentConfig
from splitplane.local.agent.errors import ApiError

VERSION = version("splitplane")

log = logging.getLogger(__name__)

NOT_ENFORCED = (
    "CPU limits; securityContext (pods are processes of the user who runs the cluster); read-only mounts; "
    "network policy; own file system, PID and network namespaces; Service addresses, DNS and service links"
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_REFRESH_SECONDS = 5.0


def labels(config: AgentConfig) -> dict[str, str]:
    """Labels that the node always carries."""
    machine = platform.machine()
    return {
        "kubernetes.io/hostname": config.node,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": _ARCHITECTURES.get(machine, machine),
        **config.labels,
    }


def annotations(config: AgentConfig) -> dict[str, str]:
    """What is emulated or missing here, for whoever describes the node."""
    return {
        "local.splitplane.dev/not-enforced": NOT_ENFORCED,
        EMULATED_ANNOTATION: f"speed factor {config.speed_factor:g}"
        + (f"; traffic to other tiers through {config.proxy}" if config.proxy else "")
        + "; containers with probes start in turns with those of other nodes",
    }


def new_node(config: AgentConfig) -> Object:
    """The node as first registered."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": config.node, "labels": labels(config), "annotations": annotations(config)},
        "spec": {"taints": [taint.model_dump() for taint in config.taints]},
    }


def status(config: AgentConfig, *, ready: bool, earlier: Object, now: float) -> Object:
    """The node's status; `earlier` is the one that the API server has, for times of transition."""
    resources = {"cpu": config.cpu, "memory": config.memory, "pods": str(config.max_pods)}
    before: Object = next((c for c in earlier.get("conditions", []) if c["type"] == "Ready"), {})
    state = "True" if ready else "False"
    since = before.get("lastTransitionTime") if before.get("status") == state else None
    condition = {
        "type": "Ready",
        "status": state,
        "reason": "AgentReady" if ready else "AgentStopped",
        "message": "the node agent runs pods as processes" if ready else "the node agent was stopped",
        "lastHeartbeatTime": timestamp(now),
        "lastTransitionTime": since or timestamp(now),
    }
    return {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [condition],
        "addresses": [
            {"type": "InternalIP", "address": str(config.node_address)},
            {"type": "Hostname", "address": config.node},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": config.kubelet_port}},
        "nodeInfo": _node_info(),
    }


def _node_info() -> Object:
    machine = platform.machine()
    return {
        "machineID": _line("/etc/machine-id"),
        "systemUUID": "",
        "bootID": _line("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": platform.release(),
        "osImage": _os_name(),
        "containerRuntimeVersion": f"splitplane-process://{VERSION}",
        "kubeletVersion": f"v{VERSION}-splitplane-agent",
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": _ARCHITECTURES.get(machine, machine),
    }


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


class NodeRegistration:
    """Keeps the Node object and its lease alive."""

    def __init__(self, api: Api, config: AgentConfig) -> None:
        self._api = api
        self._config = config
        self._path = path_of("nodes", name=config.node)
        self._lease_path = path_of("leases", group="coordination.k8s.io", namespace="kube-node-lease", name=config.node)

    async def register(self) -> Object:
        """Create the node, or bring an earlier one's labels and annotations up to date; report it ready."""
        node = await self._look()
        if node is None:
            node = await self._api.create(path_of("nodes"), new_node(self._config))
        else:
            node = await self._renew_identity(node)
        return await self.report(node, ready=True)

    async def _renew_identity(self, node: Object) -> Object:
        have = {(t["key"], t["effect"]) for t in node["spec"].get("taints", [])}
        for taint in self._config.taints:
            if (taint.key, taint.effect) not in have:
                # A node may set its taints only when it registers (admission plugin NodeRestriction).
                log.warning("the node lacks its taint %s:%s; an administrator must add it", taint.key, taint.effect)
        patch = {"metadata": {"labels": labels(self._config), "annotations": annotations(self._config)}}
        return await self._api.patch(self._path, patch, content_type=TYPE_MERGE)

    async def report(self, node: Object, *, ready: bool) -> Object:
        """Write the node's status."""
        wanted = status(self._config, ready=ready, earlier=node.get("status", {}), now=time.time())
        return await self._api.patch(self._path + "/status", {"status": wanted})

    async def heartbeat(self) -> None:
        """Renew the lease four times within its duration, and the status when the control plane has doubted it."""
        pause = self._config.node_lease_seconds / 4
        looked = 0.0
        while True:
            began = time.monotonic()
            try:
                await self._renew_lease()
                if began - looked >= _REFRESH_SECONDS:
                    looked = began
                    await self._answer_doubt()
            except ApiError as error:
                log.warning("heartbeat failed: %s", error)
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))

    async def _renew_lease(self) -> None:
        spec = {
            "holderIdentity": self._config.node,
            "leaseDurationSeconds": self._config.node_lease_seconds,
            "renewTime": micro_timestamp(time.time()),
        }
        try:
            await self._api.patch(self._lease_path, {"spec": spec}, content_type=TYPE_MERGE)
        except ApiError as error:
            if error.status != 404:
                raise
            # A deleted node takes its lease along.
            node = await self._look() or await self.register()
            owner = {"apiVersion": "v1", "kind": "Node", "name": self._config.node, "uid": node["metadata"]["uid"]}
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": self._config.node,
                    "namespace": "kube-node-lease",
                    "ownerReferences": [owner],
                },
                "spec": spec,
            }
            await self._api.create(self._lease_path.rpartition("/")[0], lease)

    async def _look(self) -> Object | None:
        try:
            return await self._api.get(self._path, resourceVersion="0")
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    async def _answer_doubt(self) -> None:
        """After a silence (a suspended machine, a stopped process) the control plane holds the node for lost."""
        node = await self._look()
        if node is None:
            log.warning("the node was deleted; registering it again")
            await self.register()
            return
        conditions = {c["type"]: c["status"] for c in node.get("status", {}).get("conditions", [])}
        if conditions.get("Ready") != "True":
            log.info("reporting the node ready again (was %s)", conditions.get("Ready"))
            await self.report(node, ready=True)

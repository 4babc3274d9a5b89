"""The process that runs a cluster: ``python -m splitplane.local.supervisor FOLDER``, started by ``up``.

It claims addresses, issues certificates, starts every component in order, restarts what crashes, follows the user's
wishes about nodes (files in their folders), and tells what it knows in ``status.json``. Told to end, it ends all.
"""

import asyncio
import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import yaml

from splitplane.local import config as configuration
from splitplane.local import manifests, nodes
from splitplane.local.addresses import METRICS_PORT, Addresses, claim
from splitplane.local.components import Component, agent_command, control_plane, uplink
from splitplane.local.config import ClusterConfig
from splitplane.local.errors import LocalError
from splitplane.local.files import read_json, write_atomically, write_json
from splitplane.local.http import ApiClient, ApiError, Prober
from splitplane.local.identities import Identities, issue_all
from splitplane.local.paths import ClusterPaths
from splitplane.local.processes import MARKER, Process, descendants, end, kill_now, marked
from splitplane.local.supervision import Supervised
from splitplane.local.volumes import VolumeProvisioner

_log = logging.getLogger("splitplane.local")

_FATAL_RESTARTS = 3
_AGENT_GRACE_SECONDS = 8.0
_GRACE_SECONDS = 5.0


class Supervisor:
    """One cluster, from the first socket to the last process."""

    def __init__(self, paths: ClusterPaths, config: ClusterConfig, binaries: dict[str, str]) -> None:
        self._paths = paths
        self._config = config
        self._binaries = binaries
        self._claim = claim(paths.addresses, [node.name for node in config.nodes])
        self._identities: Identities = issue_all(paths, self.addresses)
        self._parts: dict[str, Supervised] = {}
        self._agents: dict[str, Supervised] = {}
        self._off: set[str] = set()
        self._ready_nodes: set[str] = set()
        self._phase = "starting"
        self._message = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._api: ApiClient | None = None

    @property
    def addresses(self) -> Addresses:
        return self._claim.addresses

    async def run(self, stop: asyncio.Event) -> int:
        """Until ``stop``, or until the cluster turns out to be unable to start. Returns the exit code."""
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(stop.wait())
        code = 0
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                try:
                    starting.result()
                    self._set_phase("ready")
                    await stopping
                except (LocalError, ApiError, OSError) as error:
                    _log.error("cannot start: %s", error)
                    self._set_phase("failed", str(error))
                    code = 1
        finally:
            starting.cancel()
            stopping.cancel()
            await self._stop(failed=code != 0)
        return code

    async def _start(self) -> None:
        self._write_files()
        for component in control_plane(self._paths, self.addresses, self._identities, self._binaries):
            if component.name == "prometheus":  # it would be refused before its rights are there
                await self._bootstrap()
            prober = self._launch(component)
            # The controllers come up side by side; all need the API server, which needs etcd.
            if component.name in ("etcd", "kube-apiserver"):
                await self._until_ready(component.name, prober)
        tiered = [node.name for node in self._config.nodes if node.tier]
        if tiered:
            self._launch(uplink(self._paths, self.addresses, tiered[0]))
        for node in self._config.nodes:
            self._agents[node.name] = self._supervised(f"agent-{node.name}", agent_command(self._paths, node.name), {})
        api = ApiClient(self.addresses.api_server, self._identities.authority, self._identities.provisioner)
        self._api = api
        provisioner = VolumeProvisioner(api, self._paths.volumes)
        self._tasks += [
            asyncio.create_task(self._follow_wishes(), name="wishes"),
            asyncio.create_task(self._watch_nodes(api), name="nodes"),
            asyncio.create_task(provisioner.run(), name="volumes"),
        ]
        while not await self._removed_nodes_gone(api):
            self._check_fatal()
            await asyncio.sleep(0.1)
        while not all(part.ready for part in self._parts.values()):
            self._check_fatal()
            await asyncio.sleep(0.1)
        while missing := {node.name for node in self._config.nodes} - self._ready_nodes - self._off:
            self._set_phase("starting", f"waiting for {', '.join(sorted(missing))}")
            self._check_fatal()
            await asyncio.sleep(0.1)

    def _write_files(self) -> None:
        paths, addresses = self._paths, self.addresses
        for node in self._config.nodes:
            write_json(
                paths.node(node.name) / "agent.json",
                nodes.agent_config(node, self._config, paths, addresses, self._identities),
            )
        write_json(paths.uplink, nodes.uplink_config(self._config, paths, addresses))
        if not paths.links.exists():
            write_json(paths.links, nodes.links_file(self._config.all_links(self._config.links)))
        prometheus = manifests.prometheus_config(
            kubeconfig=str(paths.kubeconfigs / "prometheus"),
            node_targets={
                node.name: f"{addresses.node_address(node.name)}:{METRICS_PORT}" for node in self._config.nodes
            },
        )
        write_atomically(paths.prometheus / "prometheus.yaml", yaml.safe_dump(prometheus, sort_keys=False))

    def _launch(self, component: Component) -> Prober:
        part = self._supervised(component.name, component.command, component.environment)
        self._parts[component.name] = part
        prober = Prober(component.probe)
        self._tasks.append(asyncio.create_task(self._watch_readiness(part, prober), name=f"probe {part.name}"))
        part.start()
        return prober

    def _supervised(self, name: str, command: tuple[str, ...], environment: Any) -> Supervised:
        return Supervised(
            name, command, log=self._paths.logs / f"{name}.log", environment=environment, on_change=self._publish
        )

    async def _until_ready(self, name: str, prober: Prober) -> None:
        while not await prober.ready():
            self._check_fatal()
            await asyncio.sleep(0.1)
        self._parts[name].ready = True
        self._publish()

    def _check_fatal(self) -> None:
        """A part that ends again and again before the cluster is up will not come up by waiting."""
        for part in (*self._parts.values(), *self._agents.values()):
            if part.restarts >= _FATAL_RESTARTS and not part.ready:
                log = self._paths.logs / f"{part.name}.log"
                tail = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
                raise LocalError(
                    "\n".join([f"{part.name} does not start ({part.last_exit}); the end of {log}:", *tail])
                )

    async def _watch_readiness(self, part: Supervised, prober: Prober) -> None:
        while True:
            ready = part.process is not None and await prober.ready()
            if ready != part.ready:
                part.ready = ready
                self._publish()
            await asyncio.sleep(2.0 if ready else 0.2)

    async def _bootstrap(self) -> None:
        facts = {
            "prometheusUrl": self.addresses.prometheus_url,
            "version": importlib.metadata.version("splitplane"),
            "emulated": "device speeds and links between tiers",
        }
        body = json.dumps(manifests.bootstrap(facts))
        for attempt in range(20):  # kube-public is made by the API server itself, a moment after it is ready
            kubectl = await asyncio.create_subprocess_exec(
                self._binaries["kubectl"], f"--kubeconfig={self._paths.kubeconfig}", "apply", "--server-side",
                "--force-conflicts", "--field-manager=splitplane-local", "-f", "-",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            output, _ = await kubectl.communicate(body.encode())
            if kubectl.returncode == 0:
                return
            _log.info("bootstrap, attempt %d: %s", attempt + 1, output.decode().strip())
            await asyncio.sleep(0.3)
        raise LocalError(f"The cluster's first objects were refused: {output.decode().strip()}")

    async def _follow_wishes(self) -> None:
        """Start and stop nodes as the files in their folders say."""
        while True:
            for name, agent in self._agents.items():
                wanted_off = self._paths.node_stopped(name).exists()
                if wanted_off and name not in self._off:
                    await self._power_off(name, agent)
                elif not wanted_off and (name in self._off or agent.process is None):
                    self._off.discard(name)
                    agent.start()
            await asyncio.sleep(0.1)

    async def _power_off(self, name: str, agent: Supervised) -> None:
        """As a power cut would: nobody on the node gets to say good-bye."""
        if process := agent.process:
            process.signal(signal.SIGSTOP)  # it must not see its children die one after another
            pods = descendants(process.pid)
            await agent.kill()
            kill_now(pods)
        self._off.add(name)
        self._ready_nodes.discard(name)
        _log.info("node %s is off", name)
        self._publish()

    async def _watch_nodes(self, api: ApiClient) -> None:
        while True:
            with contextlib.suppress(ApiError):
                items = (await api.get("/api/v1/nodes"))["items"]
                ready = {item["metadata"]["name"] for item in items if _is_ready(item)}
                if ready != self._ready_nodes:
                    self._ready_nodes = ready
                    self._publish()
            await asyncio.sleep(0.5 if self._phase == "starting" else 2.0)

    async def _removed_nodes_gone(self, api: ApiClient) -> bool:
        """Delete nodes that the configuration no longer has: nobody will make them ready again, or end their pods."""
        try:
            for name in nodes.removed((await api.get("/api/v1/nodes"))["items"], self._config):
                _log.info("node %s is no longer configured", name)
                await api.delete(f"/api/v1/nodes/{name}")
        except ApiError as error:
            _log.info("nodes not looked through yet: %s", error)
            return False
        return True

    async def _stop(self, *, failed: bool) -> None:
        if not failed:
            self._set_phase("stopping")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._api:
            await self._api.close()
        parts = list(self._parts.values())
        agents = [agent for name, agent in self._agents.items() if name not in self._off]
        await asyncio.gather(*(agent.stop(grace_seconds=_AGENT_GRACE_SECONDS) for agent in agents))
        api_server = [part for part in parts if part.name in ("kube-apiserver", "etcd")]
        others = [part for part in parts if part not in api_server]
        await asyncio.gather(*(part.stop(grace_seconds=_GRACE_SECONDS) for part in others))
        for part in reversed(api_server):
            await part.stop(grace_seconds=_GRACE_SECONDS)
        leftovers = [*marked(str(self._paths.root)), *descendants(os.getpid())]
        await asyncio.to_thread(end, leftovers, grace_seconds=1.0)
        self._claim.release()
        if not failed:
            self._paths.status.unlink(missing_ok=True)

    def _set_phase(self, phase: str, message: str = "") -> None:
        if (phase, message) != (self._phase, self._message):
            self._phase, self._message = phase, message
            self._publish()

    def _publish(self) -> None:
        me = Process.of(os.getpid())
        write_json(
            self._paths.status,
            {
                "phase": self._phase,
                "message": self._message,
                "supervisor": {"pid": os.getpid(), "started": me.started if me else 0},
                "components": {name: part.report() for name, part in self._parts.items()},
                "nodes": {
                    name: {**agent.report(), "ready": name in self._ready_nodes, "off": name in self._off}
                    for name, agent in self._agents.items()
                },
            },
        )


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


@contextlib.asynccontextmanager
async def _signals() -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    yield stop


async def _main(paths: ClusterPaths) -> int:
    async with _signals() as stop:
        try:
            supervisor = Supervisor(paths, configuration.load(paths.config), read_json(paths.binaries))
        except LocalError as error:
            write_json(paths.status, {"phase": "failed", "message": str(error), "components": {}, "nodes": {}})
            return 1
        return await supervisor.run(stop)


def _lock(path: Path) -> IO[str] | None:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    os.set_inheritable(file.fileno(), False)
    return file


def main(arguments: list[str]) -> int:
    """Run the cluster whose folder is the only argument."""
    paths = ClusterPaths(Path(arguments[0]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    lock = _lock(paths.supervisor_lock)
    if lock is None:
        _log.info("another supervisor runs this cluster")
        return 0
    os.environ[MARKER] = str(paths.root)
    os.chdir(paths.root)
    end(marked(str(paths.root)), grace_seconds=2.0)  # left by a supervisor that was killed
    with lock:
        return asyncio.run(_main(paths))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

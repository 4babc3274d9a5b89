"""What the commands do: bring a cluster up, take it down, look at it, change it while it runs."""

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitplane.local import binaries
from splitplane.local import config as configuration
from splitplane.local.config import ClusterConfig, LinkConfig, check_tiers
from splitplane.local.errors import LocalError
from splitplane.local.files import read_json, write_atomically, write_json
from splitplane.local.nodes import links_file
from splitplane.local.paths import ClusterPaths
from splitplane.local.processes import MARKER, Process, end, kill_now, marked, start_daemon

_START_SECONDS = 180.0
_STOP_SECONDS = 30.0
NEEDED = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "prometheus")


class Progress:
    """What a long command tells while it works; this one tells nothing."""

    def building(self, build: binaries.Building) -> None: ...

    def status(self, status: dict[str, Any]) -> None: ...


@dataclass(slots=True)
class Cluster:
    """A cluster of this machine, running or not."""

    paths: ClusterPaths

    @classmethod
    def of(cls, name: str) -> "Cluster":
        return cls(ClusterPaths.of(name))

    @property
    def running(self) -> bool:
        """Whether a supervisor is alive: it holds a lock that the kernel takes back with its life."""
        try:
            with self.paths.supervisor_lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @property
    def config(self) -> ClusterConfig:
        return configuration.load(self.paths.config) if self.paths.config.exists() else configuration.DEFAULT

    def status(self) -> dict[str, Any]:
        """What the supervisor last wrote; empty when there is none."""
        return read_json(self.paths.status) or {}

    def binaries(self) -> dict[str, str]:
        """The programs that the cluster was last started with, by name; empty before the first start."""
        return read_json(self.paths.binaries) or {}

    def require_running(self) -> None:
        """Refuse to go on without a running cluster.

        Raises:
            LocalError: it is down; the message says how to start it.
        """
        if not self.running:
            raise LocalError(f"The cluster {self.paths.name!r} is not running: start it with `splitplane local up`.")

    def up(self, config: ClusterConfig | None = None, *, progress: Progress | None = None) -> bool:
        """Bring the cluster up and wait until its control plane and its nodes are ready.

        Returns whether there was anything to do. On any failure, and on Ctrl-C, what was started is ended again.

        Raises:
            LocalError: it cannot be started; the message says why.
        """
        progress = progress or Progress()
        if not Path("/proc/self/stat").exists():
            raise LocalError("The embedded cluster needs Linux: its nodes live on 127.0.0.0/8 and it reads /proc.")
        self.paths.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _exclusively(self.paths.command_lock, self.paths.name):
            if self.running:
                if config and config != self.config:
                    raise LocalError(
                        f"The cluster {self.paths.name!r} is running with another configuration: "
                        "take it down first (`splitplane local down`); its state stays."
                    )
                if self.status().get("phase") == "ready":
                    return False
                raise LocalError(
                    f"The cluster {self.paths.name!r} is {self.status().get('phase', 'starting')}: "
                    "wait, or take it down (`splitplane local down`)."
                )
            found = {name: str(binaries.ensure(name, on_build=progress.building)) for name in NEEDED}
            write_json(self.paths.binaries, found)
            self._write_config(config)
            supervisor = self._launch()
            try:
                self._until_ready(supervisor, progress)
            except BaseException:
                self._stop()
                raise
        return True

    def down(self, *, purge: bool = False) -> bool:
        """End every process of the cluster, and with ``purge`` remove its state. Returns whether anything ran."""
        if not self.paths.root.exists():
            return False
        with _exclusively(self.paths.command_lock, self.paths.name):
            ran = self._stop()
            if purge:
                shutil.rmtree(self.paths.root)
        if purge:
            self.paths.command_lock.unlink(missing_ok=True)
        return ran

    def stop_node(self, name: str) -> None:
        """Switch a node off as a power cut would; returns when its processes are gone."""
        self._switch(name, off=True)

    def start_node(self, name: str) -> None:
        """Switch a node on again; returns when it is Ready."""
        self._switch(name, off=False)

    def set_price(self, name: str, price_per_hour: float) -> None:
        """Change what a node costs per hour; Prometheus sees it at its next scrape.

        Raises:
            LocalError: the cluster is down, or there is no such node.
        """
        self.require_running()
        self.config.node(name)
        write_atomically(self.paths.node_price(name), f"{price_per_hour:.10g}\n")

    def links(self) -> tuple[LinkConfig, ...]:
        """The links as they are set now."""
        stored = read_json(self.paths.links)
        known = self.config.links if stored is None else tuple(LinkConfig.model_validate(item) for item in stored)
        return self.config.all_links(known)

    def set_link(self, between: tuple[str, str], **changes: Any) -> LinkConfig:
        """Change rate, delay or ``down`` of a link; open connections see it within half a second.

        Raises:
            LocalError: the cluster is down, or there is no such link.
        """
        self.require_running()
        try:
            check_tiers(self.config, between)
        except ValueError as error:
            raise LocalError(f"{str(error)[0].upper()}{str(error)[1:]}.") from error
        key = LinkConfig(between=between).key
        links = tuple(link.model_copy(update=changes) if link.key == key else link for link in self.links())
        write_json(self.paths.links, links_file(links))
        return next(link for link in links if link.key == key)

    def _switch(self, name: str, *, off: bool) -> None:
        self.require_running()
        self.config.node(name)
        mark = self.paths.node_stopped(name)
        if off:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)

        def done() -> bool:
            node = self.status().get("nodes", {}).get(name, {})
            return bool(node.get("off")) if off else bool(node.get("ready")) and not node.get("off")

        deadline = time.monotonic() + 60
        while not done():
            self.require_running()
            if time.monotonic() > deadline:
                raise LocalError(
                    f"The node {name} did not follow within 60 s; see `splitplane local logs agent-{name}`."
                )
            time.sleep(0.05)

    def _write_config(self, config: ClusterConfig | None) -> None:
        effective = config or self.config
        if config and config.links != (
            configuration.load(self.paths.config).links if self.paths.config.exists() else ()
        ):
            self.paths.links.unlink(missing_ok=True)  # what the user just wrote wins over an earlier `link`
        write_atomically(self.paths.config, configuration.dump(effective))
        for node in effective.nodes:
            self.paths.node_stopped(node.name).unlink(missing_ok=True)
            if config:
                self.paths.node_price(node.name).unlink(missing_ok=True)

    def _launch(self) -> int:
        self.paths.status.unlink(missing_ok=True)
        self.paths.logs.mkdir(parents=True, exist_ok=True)
        return start_daemon(
            [sys.executable, "-m", "splitplane.local.supervisor", str(self.paths.root)],
            environment={**os.environ, MARKER: str(self.paths.root)},
            log=self.paths.logs / "supervisor.log",
        )

    def _until_ready(self, supervisor: int, progress: Progress) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            status = self.status()
            progress.status(status)
            if status.get("phase") == "ready":
                return
            if status.get("phase") == "failed":
                raise LocalError(f"The cluster cannot start: {status['message']}")
            if _reaped(supervisor):
                raise LocalError(f"The supervisor ended; see {self.paths.logs / 'supervisor.log'}.")
            if time.monotonic() > deadline:
                raise LocalError(
                    f"The cluster was not ready after {_START_SECONDS:.0f} s "
                    f"({status.get('message') or 'see the logs in ' + str(self.paths.logs)})."
                )
            time.sleep(0.1)

    def _stop(self) -> bool:
        """Ask the supervisor to end everything; then make sure, by the mark that all its processes carry."""
        ran = self.running
        recorded = self.status().get("supervisor")
        supervisor = Process(recorded["pid"], recorded["started"]) if recorded else None
        everything = marked(str(self.paths.root))
        if ran:
            chosen = supervisor if supervisor and supervisor.alive else None
            end([chosen] if chosen else _supervisors(everything), grace_seconds=_STOP_SECONDS)
        kill_now([process for process in {*everything, *marked(str(self.paths.root))} if process.alive])
        deadline = time.monotonic() + 5
        while (self.running or marked(str(self.paths.root))) and time.monotonic() < deadline:
            time.sleep(0.05)
        if supervisor:
            _reaped(supervisor.pid)
        self.paths.status.unlink(missing_ok=True)
        return ran or bool(everything)


def _supervisors(processes: list[Process]) -> list[Process]:
    """Those of ``processes`` that run the supervisor (it may not have written its id yet)."""
    found = []
    for process in processes:
        with suppress(OSError):
            if b"splitplane.local.supervisor" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                found.append(process)
    return found


@contextmanager
def _exclusively(path: Path, name: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalError(f"Another command is starting or stopping the cluster {name!r}: wait for it.") from None
        yield


def _reaped(pid: int) -> bool:
    """Whether our child ``pid`` has ended; takes its exit status away, so that it is no zombie."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True

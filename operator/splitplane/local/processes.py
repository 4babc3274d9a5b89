"""Processes, known by id *and* start time, so that a reused id is never signalled."""

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARKER = "SPLITPLANE_LOCAL_CLUSTER"
"""Environment variable that every process of a cluster inherits; its value is the cluster's folder."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine."""

    pid: int
    started: int
    """Clock ticks after boot (``/proc/<pid>/stat``, field 22)."""

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The living process with this id. A zombie does not count: it holds neither port nor memory."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self

    def signal(self, number: int) -> None:
        """Signal the process if it is still this one; the descriptor pins it between look and signal."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (ProcessLookupError, PermissionError):
            return
        try:
            if self.alive:
                signal.pidfd_send_signal(descriptor, number)
        except (ProcessLookupError, PermissionError):
            pass
        finally:
            os.close(descriptor)

    def resident_bytes(self) -> int:
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (FileNotFoundError, ProcessLookupError, PermissionError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def marked(value: str, *, variable: str = MARKER) -> list[Process]:
    """The user's living processes that carry ``variable=value`` in their environment."""
    wanted = f"{variable}={value}".encode()
    found = []
    for pid in _pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if wanted in environment.split(b"\0") and pid != os.getpid() and (process := Process.of(pid)):
            found.append(process)
    return found


def descendants(root: int) -> list[Process]:
    """Children, their children and so on of ``root``, which is not among them."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        parent = int(stat[stat.rindex(")") + 2 :].split()[1])
        children.setdefault(parent, []).append(pid)
    found: list[Process] = []
    queue = [root]
    while queue:
        for pid in children.get(queue.pop(), ()):
            queue.append(pid)
            if process := Process.of(pid):
                found.append(process)
    return found


def start_daemon(command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> int:
    """Start a process that outlives its starter and has nothing of it; returns its id. Output is appended to ``log``.

    It leads a session of its own: the terminal's Ctrl-C and the terminal's end are not for it. Descriptors that the
    starter was itself given are closed, or a lock that a shell holds would be held as long as the daemon lives.
    """
    inherited = [int(entry.name) for entry in Path("/proc/self/fd").iterdir() if int(entry.name) > 2]
    return os.posix_spawn(
        command[0],
        list(command),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in inherited),
        ],
        setsid=True,
    )


def kill_now(processes: Iterable[Process]) -> None:
    """SIGKILL, without a chance to clean up."""
    for process in processes:
        process.signal(signal.SIGKILL)


def end(processes: Iterable[Process], *, grace_seconds: float = 5.0) -> None:
    """Ask processes to end, then make them; returns when they are gone."""
    living = [process for process in processes if process.alive]
    for process in living:
        process.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while living and time.monotonic() < deadline:
        time.sleep(0.05)
        living = [process for process in living if process.alive]
    kill_now(living)
    deadline = time.monotonic() + 5.0
    while living and time.monotonic() < deadline:
        time.sleep(0.02)
        living = [process for process in living if process.alive]

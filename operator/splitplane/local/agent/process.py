"""Processes of containers: starting one in a session of its own, finding and ending all that belongs to it.

Linux only: it reads /proc, waits on pidfds and asks the kernel to end a process together with its parent.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARKER = "SPLITPLANE_CONTAINER_ID"
"""Variable by which a process is known to belong to a container even after it has left the session."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ProcessInfo:
    """One line of the process table. Memory in bytes; CPU in seconds, with that of children that have ended."""

    pid: int
    session: int
    start_ticks: int
    zombie: bool
    cpu_seconds: float
    resident: int


def inspect(pid: int) -> ProcessInfo | None:
    """What /proc tells about a process; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return ProcessInfo(
        pid=pid,
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        zombie=fields[0] in "ZX",
        cpu_seconds=sum(map(int, fields[11:15])) / _TICKS_PER_SECOND,
        resident=int(fields[21]) * _PAGE,
    )


def sessions() -> dict[int, list[ProcessInfo]]:
    """Every live process of this machine, grouped by session."""
    groups: dict[int, list[ProcessInfo]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - pathlib would make an object per process, each second
        if entry.isdecimal() and (info := inspect(int(entry))) is not None and not info.zombie:
            groups.setdefault(info.session, []).append(info)
    return groups


def unreclaimable(pids: Iterable[int]) -> int:
    """Bytes of anonymous and shared memory of processes: what a memory limit must count, without the page cache."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) * 1024
    return total


def same(pid: int, start_ticks: int) -> bool:
    """Whether `pid` is still the process that started at `start_ticks`, and not another that got its number."""
    info = inspect(pid)
    return info is not None and info.start_ticks == start_ticks


def members(leader: int, container_id: str) -> list[int]:
    """Live processes of a container: its session, and whatever left that but carries the container's marker."""
    found = [info.pid for info in sessions().get(leader, [])]
    mark = f"{MARKER}={container_id}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) not in found:
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def send(pids: Iterable[int], signum: signal.Signals) -> None:
    """Send a signal to processes; those that are gone are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


class Process:
    """A running first process of a container. Its output goes to `on_output` as bytes, None at the end."""

    def __init__(self, popen: subprocess.Popen[bytes], container_id: str, on_output: Callable[[bytes | None], object]):
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self._on_output = on_output
        self.container_id = container_id
        self.pid = popen.pid
        info = inspect(popen.pid)
        self.start_ticks = info.start_ticks if info else 0
        self._exit: asyncio.Future[int] = self._loop.create_future()
        assert popen.stdout is not None
        self._output = popen.stdout.fileno()
        os.set_blocking(self._output, False)
        self._loop.add_reader(self._output, self._read)
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._exited)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        container_id: str,
        on_output: Callable[[bytes | None], object],
    ) -> "Process":
        """Start `argv` as leader of a session of its own. Raises OSError where it cannot be executed."""
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # the parent went before the kernel was told
                os._exit(127)

        popen = subprocess.Popen(
            list(argv),
            env={**env, MARKER: container_id},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        return cls(popen, container_id, on_output)

    async def wait(self) -> int:
        """The exit code: as the process gave it, or 128 plus the signal that ended it."""
        return await asyncio.shield(self._exit)

    @property
    def running(self) -> bool:
        """Whether the first process has not been seen to end."""
        return not self._exit.done()

    def terminate(self) -> None:
        """Ask the process group to end (SIGTERM)."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End everything that belongs to the container, now."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        send(members(self.pid, self.container_id), signal.SIGKILL)

    def _exited(self) -> None:
        code = self._popen.poll()
        if code is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        # As when the first process of a PID namespace ends: nothing of the container stays behind.
        send(members(self.pid, self.container_id), signal.SIGKILL)
        self._drain()
        if not self._exit.done():
            self._exit.set_result(code if code >= 0 else 128 - code)

    def _read(self) -> None:
        try:
            data = os.read(self._output, 65536)
        except BlockingIOError:
            return
        if data:
            self._on_output(data)
        else:
            self._loop.remove_reader(self._output)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._output, 65536):
                self._on_output(data)
        self._loop.remove_reader(self._output)
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        self._on_output(None)

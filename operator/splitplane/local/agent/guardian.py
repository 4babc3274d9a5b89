"""Ends a dead agent's containers: a process of its own that outlives the agent by a moment.

The kernel kills only a container's first process together with the agent. This program holds the reading end of a
pipe whose writing end only the agent has; when the agent is gone, however it went, the pipe ends, and the guardian
kills every process of every container that the agent had named. Run as a script, with the standard library only, to
stay small.

Lines read: ``+ <pid> <start ticks> <container id>`` when a container starts, ``- <pid>`` when it has ended.
"""

import contextlib
import os
import signal
import sys

MARKER = b"SPLITPLANE_CONTAINER_ID="


def _stat(pid: str) -> tuple[int, int] | None:
    """Session and start ticks of a process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib would double this program's memory
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[3]), int(fields[19])


def _marker(pid: str) -> str | None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            entries = file.read().split(b"\0")
    except OSError:
        return None
    for entry in entries:
        if entry.startswith(MARKER):
            return entry[len(MARKER) :].decode(errors="replace")
    return None


def end_all(containers: dict[int, tuple[int, str]]) -> int:
    """Kill every process of the containers (by leader: start ticks and id). Returns how many were found."""
    ids = {container_id for _, container_id in containers.values()}
    found = 0
    for pid in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
        if int(pid) == os.getpid():
            continue
        info = _stat(pid)
        # A session's number cannot be given to another process while the session has members.
        if info is not None and (info[0] in containers or _marker(pid) in ids):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGKILL)
                found += 1
    return found


def main() -> None:
    """Follow standard input to its end, then end what is left."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    containers: dict[int, tuple[int, str]] = {}
    for line in sys.stdin:
        words = line.split()
        if words[0] == "+":
            containers[int(words[1])] = (int(words[2]), words[3])
        else:
            containers.pop(int(words[1]), None)
    for _ in range(5):  # a process may have been forking while the table was read
        if not containers or not end_all(containers):
            return


if __name__ == "__main__":
    main()

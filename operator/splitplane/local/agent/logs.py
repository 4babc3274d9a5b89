"""Container logs on disk, a file per run, in the line format of the container runtime interface.

A line: RFC 3339 time with nanoseconds, stream, tag ``F`` (whole line) or ``P`` (a part of one), text. Standard output
and error share one pipe, so that they keep their order; all lines say ``stdout``.
"""

import contextlib
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

MOST_LINE = 16 * 1024
MOST_FILE = 10 * 1024 * 1024
_KEEP_RUNS = 2
_FRACTION = re.compile(r"\.(\d{6})\d*")


def log_file(pod_dir: Path, container: str, run: int) -> Path:
    """The log of a container's run; runs count from 0."""
    return pod_dir / "logs" / container / f"{run}.log"


def rotated(path: Path) -> Path:
    """Where the older half of a log goes when it has grown too long."""
    return path.with_suffix(".log.1")


class LogWriter:
    """Writes what a container prints. Keeps the last two runs, and at most about 20 MB of each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        run = int(path.stem)
        for old in path.parent.iterdir():
            if int(old.name.split(".")[0]) <= run - _KEEP_RUNS:
                old.unlink(missing_ok=True)
        self._file: BinaryIO = path.open("ab")
        self._size = self._file.tell()
        self._rest = b""
        self._lossy = False

    def __call__(self, data: bytes | None) -> None:
        """Take output; None ends the log. Output that the disk has no room for is lost, not the container."""
        try:
            self._take(data)
        except OSError as error:
            if not self._lossy:
                log.warning("output of a container is lost: %s: %s", self._path, error.strerror)
            self._lossy = True

    def _take(self, data: bytes | None) -> None:
        if self._file.closed:
            return
        if data is None:
            if self._rest:
                self._write([(b"F", self._rest)])
            self._file.close()
            return
        *lines, rest = (self._rest + data).split(b"\n")
        parts: list[tuple[bytes, bytes]] = []
        for line in lines:
            while len(line) > MOST_LINE:
                parts.append((b"P", line[:MOST_LINE]))
                line = line[MOST_LINE:]
            parts.append((b"F", line))
        while len(rest) > MOST_LINE:
            parts.append((b"P", rest[:MOST_LINE]))
            rest = rest[MOST_LINE:]
        self._rest = rest
        if parts:
            self._write(parts)

    def _write(self, parts: list[tuple[bytes, bytes]]) -> None:
        nanoseconds = time.time_ns()
        moment = datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        head = f"{moment}.{nanoseconds % 10**9:09d}Z stdout ".encode()
        self._size += self._file.write(b"".join(head + tag + b" " + line + b"\n" for tag, line in parts))
        self._file.flush()
        if self._size > MOST_FILE:
            self._file.close()
            self._path.replace(rotated(self._path))
            self._file = self._path.open("ab")
            self._size = 0


@dataclass(frozen=True)
class Selection:
    """Which part of a log is asked for; the query parameters of the logs endpoint."""

    tail: int | None = None
    since: float | None = None
    """Seconds since the epoch."""
    timestamps: bool = False
    limit: int | None = None
    """Bytes."""


def shown(line: bytes, selection: Selection) -> bytes | None:
    """A stored line as it is sent; None if it is too old."""
    moment, _, rest = line.partition(b" ")
    _stream, _, rest = rest.partition(b" ")
    tag, _, text = rest.partition(b" ")
    if selection.since is not None:
        written = datetime.fromisoformat(_FRACTION.sub(r".\1", moment.decode(errors="replace"))).timestamp()
        if written < selection.since:
            return None
    body = text if tag == b"F" else text.rstrip(b"\n")
    return moment + b" " + body if selection.timestamps else body


def read(path: Path, selection: Selection) -> Iterator[bytes]:
    """The selected lines of a log, its rotated part first, without the byte limit."""
    lines: list[bytes] = []
    for part in (rotated(path), path):
        with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
            lines += file.readlines()
    picked = [text for line in lines if line.endswith(b"\n") and (text := shown(line, selection)) is not None]
    if selection.tail is not None:
        picked = picked[len(picked) - min(selection.tail, len(picked)) :]
    yield from picked


class Tail:
    """What is added to a log from now on, across its rotation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity, self._position = self._look()

    def _look(self) -> tuple[int, int]:
        try:
            info = self._path.stat()
        except FileNotFoundError:
            return 0, 0
        return info.st_ino, info.st_size

    def fresh(self) -> list[bytes]:
        """Whole stored lines that were added since the last call."""
        identity, size = self._look()
        lines: list[bytes] = []
        if identity != self._identity:
            lines += self._from(rotated(self._path))
            self._identity, self._position = identity, 0
        if size > self._position:
            lines += self._from(self._path)
        return lines

    def _from(self, path: Path) -> list[bytes]:
        try:
            with path.open("rb") as file:
                file.seek(self._position)
                lines = [line for line in file if line.endswith(b"\n")]
        except FileNotFoundError:
            return []
        self._position += sum(map(len, lines))
        return lines


def last_words(path: Path, *, lines: int = 80, limit: int = 2048) -> str:
    """The end of a log as a termination message, at most `limit` bytes."""
    text = b"".join(list(read(path, Selection(tail=lines))))
    return text[-limit:].decode(errors="replace")

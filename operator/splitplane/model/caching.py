"""A folder of downloaded weights that the pods of a node share: each file under its sha256, whole or not there.

A download that broke off goes on where it ended, in this process or in the next that wants the file. Of several
processes that want one file, one fetches it and the others wait.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from splitplane.domain.addresses import without_secrets
from splitplane.model.errors import WeightsError
from splitplane.model.remote import TransferError, open_stream, read_credentials

log = logging.getLogger(__name__)

CACHE_VARIABLE = "SPLITPLANE_WEIGHTS_CACHE"
CREDENTIALS_VARIABLE = "SPLITPLANE_WEIGHTS_CREDENTIALS"
ATTEMPTS = 6
"""Tries in a row that bring no byte further."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0
REPORT_SECONDS = 5.0


def fetched(uri: str, sha256: str, *, folder: Path | None = None) -> Path:
    """Where the file lies on this node, downloaded now if it is not there yet.

    ``folder`` defaults to ``$SPLITPLANE_WEIGHTS_CACHE``, then to the user's cache. Raises :class:`WeightsError`.
    """
    folder = folder or default_folder()
    told = os.environ.get(CREDENTIALS_VARIABLE)
    target = folder / sha256
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(
            _lock_of(target), f"weights {without_secrets(uri)} are being fetched by another process of this node"
        ):
            if target.exists():
                if sha256_of(target) == sha256:
                    status = target.stat()
                    os.utime(target, ns=(time.time_ns(), status.st_mtime_ns))  # lately used ones are kept longest
                    return target
                log.warning("%s is not what it was when it was downloaded: it is fetched again", target)
                target.unlink()
            _download(uri, sha256, target, read_credentials(Path(told) if told else None))
    except OSError as error:
        raise WeightsError(f"weights {without_secrets(uri)}: the cache {folder} cannot be written: {error}") from error
    return target


def default_folder() -> Path:
    """Where downloads are kept unless told otherwise."""
    if told := os.environ.get(CACHE_VARIABLE):
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitplane" / "weights"


FileState = tuple[int, int, int]
"""Inode, bytes, and time of change in ns: another one, where a file is replaced or written to."""


def state_of(file: Path | int) -> FileState:
    """Of a path, or of an open file's descriptor. Raises ``OSError``."""
    status = os.fstat(file) if isinstance(file, int) else file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def sha256_of(path: Path) -> str:
    """Digest of a file, read once for each of its states. Raises ``OSError``."""
    return sha256_and_state(path)[0]


def sha256_and_state(path: Path) -> tuple[str, FileState]:
    """With the state that a file has to be in still, once it was read, if the digest is to be of what was read."""
    state = state_of(path)
    return _sha256(path, state), state


@lru_cache(maxsize=8)
def _sha256(path: Path, _state: FileState) -> str:
    # The state is part of the key: a file that is replaced is hashed anew.
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong_digest(told: str, expected: str, got: str, size: int) -> str:
    """That a file is not the one that is meant. Its ``size`` in bytes tells a page that asks for a password, or what
    Git keeps in place of a large file."""
    return (
        f"weights {told} have the wrong sha256: expected {expected}, got {got} ({size:,} bytes): restore the file, or "
        "correct weights.sha256"
    )


def _download(uri: str, sha256: str, target: Path, credentials: Mapping[str, str]) -> None:
    part = target.with_suffix(".part")
    if part.exists() and sha256_of(part) == sha256:  # its process ended between the last byte and this line
        part.replace(target)
        return
    digest, at_once = _receive(uri, sha256, part, credentials)
    if digest != sha256 and not at_once:
        # What was here before, of an earlier process or line, may be of another state of the file.
        part.unlink()
        digest, _ = _receive(uri, sha256, part, credentials)
    if digest != sha256:
        got = part.stat().st_size
        part.unlink()
        raise WeightsError(wrong_digest(without_secrets(uri), sha256, digest, got))
    part.replace(target)


def _receive(uri: str, sha256: str, part: Path, credentials: Mapping[str, str]) -> tuple[str, bool]:
    """Download the rest of a file, again and again while that gets on.

    Returns the digest of all of it, and whether all of it came at once.
    """
    failures, progress = 0, _Progress(uri)
    with part.open("ab+") as file:
        while True:
            before = file.seek(0, os.SEEK_END)
            try:
                stream = open_stream(uri, sha256, before, credentials)
                if stream.start < before:
                    file.truncate(stream.start)
                    log.warning(
                        "weights %s: the server cannot resume, so they are fetched from the start", without_secrets(uri)
                    )
                _make_room(part, stream.size - stream.start)
                for chunk in stream.chunks:
                    file.write(chunk)
                    progress.tell(file.tell(), stream.size)
                if (got := file.tell()) >= stream.size:
                    file.flush()
                    os.fsync(file.fileno())
                    file.seek(0)
                    return hashlib.file_digest(file, "sha256").hexdigest(), stream.start == 0
                raise TransferError(f"the connection ended after {got} of {stream.size} bytes")
            except TransferError as error:
                failures = 0 if file.tell() > before else failures + 1
                if failures >= ATTEMPTS:
                    what = "weights.uri and AWS_ENDPOINT_URL" if uri.startswith("s3://") else "weights.uri"
                    raise WeightsError(
                        f"weights {without_secrets(uri)} cannot be fetched: {error}: check {what}"
                    ) from error
                pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**failures)
                log.warning(
                    "weights %s: %s; going on at byte %d in %.1f s", without_secrets(uri), error, file.tell(), pause
                )
                file.flush()
                time.sleep(pause)


class _Progress:
    """Says every few seconds how far a download is."""

    def __init__(self, uri: str) -> None:
        self._uri = without_secrets(uri)
        self._began = self._told = time.monotonic()
        self._first: int | None = None

    def tell(self, done: int, size: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if now - self._told >= REPORT_SECONDS or done == size:
            rate = (done - self._first) / max(now - self._began, 1e-3)
            self._told = now
            log.info("weights %s: %.0f of %.0f MB, %.1f MB/s", self._uri, done / 1e6, size / 1e6, rate / 1e6)


def _make_room(part: Path, needed: int) -> None:
    """Delete until ``needed`` bytes are free: downloads that nobody goes on with, then files by when they were used.

    Raises ``WeightsError``; where all of that would not do, nothing is deleted.
    """
    _refuse_what_never_fits(part, needed)
    for other in part.parent.glob("*.part"):
        if other != part and shutil.disk_usage(part.parent).free < needed:
            with contextlib.suppress(BlockingIOError), _alone(_lock_of(other), wait=False):
                log.info("removing the unfinished %s from the cache, for room", other)
                other.unlink(missing_ok=True)
    kept = sorted(_kept(part.parent, ""), key=lambda path: path.stat().st_atime_ns)
    while (free := shutil.disk_usage(part.parent).free) < needed:
        if not kept:
            raise _too_little(part, needed, free)
        # A process that reads such a file has it open, and loses nothing.
        log.info("removing %s from the cache, for room", kept[0])
        kept.pop(0).unlink(missing_ok=True)


def _refuse_what_never_fits(part: Path, needed: int) -> None:
    others = [path for path in _kept(part.parent, "([.]part)?") if path != part]
    most = shutil.disk_usage(part.parent).free + sum(path.stat().st_size for path in others)
    if most < needed:
        raise _too_little(part, needed, most)


def _kept(folder: Path, suffix: str) -> list[Path]:
    """Downloads whose names have this ending (a pattern): whatever else is in the folder is somebody's own."""
    return [path for path in folder.iterdir() if re.fullmatch(f"[0-9a-f]{{64}}{suffix}", path.name)]


def _too_little(part: Path, needed: int, free: int) -> WeightsError:
    return WeightsError(
        f"weights of {needed / 1e6:.0f} MB do not fit into the cache {part.parent}, where {free / 1e6:.0f} MB can be "
        "had: give it more room"
    )


def _lock_of(file: Path) -> Path:
    return file.with_name(f".{file.stem}.lock")


@contextlib.contextmanager
def _alone(lock: Path, waiting: str = "", *, wait: bool = True) -> Iterator[Any]:
    """Hold a lock file. The kernel frees it with its holder. Without ``wait``, raises ``BlockingIOError``."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            log.info(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""The uplink proxy: an HTTP proxy on every node's address that gives traffic to other tiers its link's rate and delay.

It stands outside the product: pods are pointed at it by ``grpc_proxy`` and ``http_proxy``, and what they reach without
it (their own tier, the control plane) is not shaped. A tier is a site: its nodes share one link to each other tier, as
machines behind one router do, and as the planner counts. Each direction of a link has one token bucket, whoever opened
the connection, and each connection a delay line that holds bytes back without lowering the rate. Settings are read
from ``links.json`` while it changes, for open connections too. A link that is down holds bytes and connections back,
as a cut cable would.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import json
import logging
import select
import selectors
import signal
import socket
import urllib.parse
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitplane.local.config import LinkConfig
from splitplane.local.shaping import Bucket, Link

_log = logging.getLogger("splitplane.local.uplink")

_WATCH_SECONDS = 0.1
_AT_ONCE_SECONDS = 1e-4
"""A read that takes less did not wait: its bytes were there already."""
_HEAD_LIMIT_BYTES = 64 * 1024
_SOCKET_BUFFER_BYTES = 256 * 1024
"""Small, so that a sender feels the link's rate instead of filling buffers on this machine."""


class PreciseSelector(selectors.EpollSelector):
    """epoll with time-outs in microseconds: plain epoll rounds up to milliseconds, which a 5 ms link would show."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            select.select([self.fileno()], [], [], timeout)
        return super().select(0)


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    tier: str | None
    address: str
    network: ipaddress.IPv4Network


@dataclass(slots=True)
class Way:
    """A connection's way to another tier and back."""

    outward: Bucket
    inward: Bucket


class Links:
    """Every link, by pair of tiers; kept up to date from the file that the user's commands write."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._links: dict[tuple[str, str], Link] = {}
        self._seen: tuple[int, int] = (0, 0)
        self.changed = asyncio.Condition()

    def between(self, first: str, second: str) -> Link:
        one, two = sorted((first, second))
        return self._links.setdefault((one, two), Link())

    async def follow(self) -> None:
        """Read the file whenever it changes, for ever."""
        while True:
            await self.refresh()
            await asyncio.sleep(_WATCH_SECONDS)

    async def refresh(self) -> None:
        try:
            stat = self._file.stat()
        except OSError:
            return
        if (stat.st_mtime_ns, stat.st_ino) == self._seen:
            return
        self._seen = (stat.st_mtime_ns, stat.st_ino)
        for item in json.loads(self._file.read_text()):
            config = LinkConfig.model_validate(item)
            link = self.between(*config.between)
            link.rate, link.delay, link.down = config.rate, config.delay, config.down
            _log.info("link %s-%s: %s", *config.key, link)
        async with self.changed:
            self.changed.notify_all()

    async def up(self, link: Link) -> None:
        """Wait until the link is up."""
        if link.down:
            async with self.changed:
                await self.changed.wait_for(lambda: not link.down)


@dataclass(slots=True)
class _DelayLine:
    """Bytes on their way, each with its time of arrival."""

    items: deque[tuple[float, bytes]] = field(default_factory=deque)
    filled: asyncio.Event = field(default_factory=asyncio.Event)


class Uplink:
    """The proxies of all nodes of a cluster."""

    def __init__(self, nodes: list[Node], port: int, links: Links) -> None:
        self._nodes = nodes
        self._port = port
        self._links = links
        self._buckets: dict[tuple[str, str], Bucket] = {}

    async def serve(self, stop: asyncio.Event) -> None:
        """Listen on every tiered node's address until ``stop``."""
        await self._links.refresh()
        following = asyncio.create_task(self._links.follow())
        servers = [await self._listen(node) for node in self._nodes if node.tier]
        try:
            await stop.wait()
        finally:
            following.cancel()
            for server in servers:
                server.close()

    async def _listen(self, node: Node) -> asyncio.Server:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
        listener.bind((node.address, self._port))

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._connection(node, reader, writer)
            writer.close()

        return await asyncio.start_server(accept, sock=listener, limit=_HEAD_LIMIT_BYTES)

    def _path(self, source: Node, address: str) -> Way | None:
        """The shaped way from a node to an address; None within a tier and to what has no tier."""
        ip = ipaddress.ip_address(address)
        target = next((node for node in self._nodes if ip in node.network), None)
        if not (source.tier and target and target.tier) or target.tier == source.tier:
            return None
        return Way(self._bucket(source.tier, target.tier), self._bucket(target.tier, source.tier))

    def _bucket(self, source: str, target: str) -> Bucket:
        """What everything that goes from one tier to another has to pass."""
        return self._buckets.setdefault((source, target), Bucket(self._links.between(source, target)))

    async def _connection(self, node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _read_request(reader)
        if request is None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        path = self._path(node, request.host) if _is_address(request.host) else None
        if path:
            # A connection costs a round trip on a real link too.
            await self._links.up(path.outward.link)
            await asyncio.sleep(path.outward.link.delay + path.inward.link.delay)
        try:
            far_reader, far_writer = await asyncio.open_connection(request.host, request.port, limit=_HEAD_LIMIT_BYTES)
        except OSError as error:
            message = f"{request.host}:{request.port}: {error.strerror}\n".encode()
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(message))
            writer.write(message)
            await writer.drain()
            return
        for one in (writer, far_writer):
            one.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not request.preface:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            outward = self._pump(reader, far_writer, path.outward if path else None, request.preface)
            inward = self._pump(far_reader, writer, path.inward if path else None)
            await _both(outward, inward)
        finally:
            far_writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bucket: Bucket | None, first: bytes = b""
    ) -> None:
        """Carry ``first`` and what follows it one way until the end of the stream."""
        if bucket is None:
            writer.write(first)
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        else:
            line = _DelayLine()
            await _both(self._depart(reader, bucket, line, first), self._arrive(writer, bucket.link, line))
        if writer.can_write_eof():
            writer.write_eof()

    async def _depart(self, reader: asyncio.StreamReader, bucket: Bucket, line: _DelayLine, first: bytes) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            asked = loop.time()
            data = first or await reader.read(bucket.chunk_bytes())
            first = b""
            queued = loop.time() - asked < _AT_ONCE_SECONDS
            await self._links.up(bucket.link)
            left = bucket.departure(len(data), loop.time(), queued=queued)
            line.items.append((left + bucket.link.delay, data))
            line.filled.set()
            if (wait := left - loop.time()) > 0:
                await asyncio.sleep(wait)

    async def _arrive(self, writer: asyncio.StreamWriter, link: Link, line: _DelayLine) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not line.items:
                line.filled.clear()
                await line.filled.wait()
            arrival, data = line.items.popleft()
            if (wait := arrival - loop.time()) > 0:
                await asyncio.sleep(wait)
            await self._links.up(link)
            if not data:
                return
            writer.write(data)
            await writer.drain()


@dataclass(frozen=True, slots=True)
class _Request:
    host: str
    port: int
    preface: bytes
    """What goes to the far end first (a forwarded request's head); empty for a tunnel."""


async def _read_request(reader: asyncio.StreamReader) -> _Request | None:
    """The head of ``CONNECT host:port`` or ``GET http://host/...``; None for anything else."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, rest = head.split(b"\r\n", 1)
        method, target, version = first.decode("ascii").split(" ")
        if method == "CONNECT":
            url = urllib.parse.urlsplit(f"//{target}")
            return _Request(url.hostname or "", url.port or 443, b"") if url.hostname else None
        url = urllib.parse.urlsplit(target)
        if url.scheme != "http" or not url.hostname:
            return None
        local = url._replace(scheme="", netloc="").geturl() or "/"
        # One request per connection: the next one may be meant for another host.
        lines = [line for line in rest.split(b"\r\n") if not line.lower().startswith((b"connection:", b"proxy-"))]
        preface = f"{method} {local} {version}\r\nConnection: close\r\n".encode() + b"\r\n".join(lines)
        return _Request(url.hostname, url.port or 80, preface)
    except (ValueError, asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        return None


async def _both(first: Any, second: Any) -> None:
    """Run two halves until both end; when one fails, the other is not left behind."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(first)
            group.create_task(second)
    except* (ConnectionError, OSError) as errors:
        raise ConnectionResetError(str(errors.exceptions[0])) from errors


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _main(config: dict[str, Any]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    nodes = [
        Node(item["name"], item["tier"], item["address"], ipaddress.IPv4Network(item["cidr"]))
        for item in config["nodes"]
    ]
    await Uplink(nodes, config["port"], Links(Path(config["links"]))).serve(stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = json.loads(arguments.config.read_text())
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(PreciseSelector())) as runner:
        runner.run(_main(config))


if __name__ == "__main__":
    main()

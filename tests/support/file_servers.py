"""Servers of files on loopback: a web server with ranges, an S3-compatible store, an OCI registry, and a bad line."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

PEERS = Path(__file__).parents[2] / "build" / "peers" / "bin" / "python"


class Line:
    """A TCP relay that breaks connections, the next after ``breaks[0]`` bytes of answer, and so on."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self.breaks: list[int] = []
        self.requests: list[str] = []
        """The head of each request, in lower case."""
        self.port = 0

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        left = self.breaks.pop(0) if self.breaks else None
        upstream, sender = await asyncio.open_connection("127.0.0.1", self._target)

        async def ask() -> None:
            while data := await reader.read(1 << 16):
                self.requests.append(data.decode("latin-1").lower())
                sender.write(data)
            sender.close()

        asking = asyncio.create_task(ask())
        try:
            while data := await upstream.read(1 << 16):
                if left is not None:
                    data, left = data[:left], left - len(data)
                writer.write(data)
                await writer.drain()
                if left is not None and left <= 0:
                    writer.transport.abort()
                    return
        except ConnectionError:
            pass
        finally:
            asking.cancel()
            for each in (writer, sender):
                each.close()
                with contextlib.suppress(ConnectionError):
                    await each.wait_closed()
            self._tasks.discard(task)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.contextmanager
def line(target: int) -> Iterator[Line]:
    """A relay to a port of this machine."""
    relay = Line(target)

    async def serve(ready: threading.Event, end: asyncio.Event) -> None:
        server = await asyncio.start_server(relay.relay, "127.0.0.1", 0)
        relay.port = server.sockets[0].getsockname()[1]
        ready.set()
        await end.wait()
        server.close()
        await relay.end()

    with _loop_thread(serve):
        yield relay


@contextlib.contextmanager
def web_server(folder: Path, *, token: str | None = None) -> Iterator[int]:
    """A web server of a folder's files, which wants a bearer token if there is one."""
    ports: list[int] = []

    @web.middleware
    async def guard(request: web.Request, handler):
        if token is not None and request.headers.get("Authorization") != f"Bearer {token}":
            return web.Response(status=401)
        return await handler(request)

    async def serve(ready: threading.Event, end: asyncio.Event) -> None:
        app = web.Application(middlewares=[guard])
        app.router.add_static("/", folder)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ports.append(runner.addresses[0][1])
        ready.set()
        await end.wait()
        await runner.cleanup()

    with _loop_thread(serve):
        yield ports[0]


@contextlib.contextmanager
def _loop_thread(serve) -> Iterator[None]:
    ready, ends = threading.Event(), []

    async def main() -> None:
        end = asyncio.Event()
        ends.append((asyncio.get_running_loop(), end))
        await serve(ready, end)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        loop, end = ends[0]
        loop.call_soon_threadsafe(end.set)
        thread.join(10)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """moto's server, which wants signed requests for what is private; it holds nothing yet."""
    assert PEERS.exists(), "its environment is missing: run `make peers`"
    with _program([str(PEERS), "-m", "moto.server", "-H", "127.0.0.1", "-p"], folder / "s3.log", "/moto-api/") as port:
        yield port


def put_object(port: int, bucket: str, key: str, content: bytes) -> None:
    """Store a private object."""
    for path, data in ((bucket, b""), (f"{bucket}/{key}", content)):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{quote(path)}", data=data, method="PUT")
        request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request")
        request.add_header("Content-Type", "application/octet-stream")
        urllib.request.urlopen(request, timeout=10).close()


USER, PASSWORD = "reader", "open sesame"
_HASHED = "$2b$04$5DEFq.9uZd1.xvi6WCEoSOJF9uL9KU3LTfisbpgljSFrPN8LIJyg6"


@contextlib.contextmanager
def oci_registry(program: Path, folder: Path, *, guarded: bool) -> Iterator[int]:
    """The reference registry, with all in memory; ``guarded``: for ``USER`` with ``PASSWORD`` alone."""
    config: dict[str, object] = {"version": 0.1, "storage": {"inmemory": {}}, "log": {"level": "error"}}
    if guarded:
        (folder / "htpasswd").write_text(f"{USER}:{_HASHED}\n")
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}

    def command(port: int) -> list[str]:
        config["http"] = {"addr": f"127.0.0.1:{port}"}
        (folder / "registry.yaml").write_text(json.dumps(config))
        return [str(program), "serve", str(folder / "registry.yaml")]

    with _program(command, folder / "registry.log", "/v2/") as port:
        yield port


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _program(command, log: Path, path: str) -> Iterator[int]:
    port = _free_port()
    words = command(port) if callable(command) else [*command, str(port)]
    with log.open("w") as file:
        environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
                break
            except urllib.error.HTTPError:
                break  # it answers
            except OSError:
                time.sleep(0.1)
        else:
            raise AssertionError(f"{words[0]} does not answer: {log.read_text()}")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def docker_config(registry: str) -> str:
    """What ``docker login`` writes for ``USER`` with ``PASSWORD``."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    return json.dumps({"auths": {registry: {"auth": auth}}})

"""The kubelet's HTTPS endpoint: container logs, for clients whose certificate the cluster's authority has signed."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from splitplane.domain.times import instant
from splitplane.local.agent import logs
from splitplane.local.agent.config import AgentConfig
from splitplane.local.agent.logs import Selection, Tail
from splitplane.local.agent.manager import PodManager
from splitplane.local.agent.pod import PodWorker

_LOOK_SECONDS = 0.2


def tls(config: AgentConfig) -> ssl.SSLContext:
    """Server side of mutual TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(config.client_ca))
    context.load_cert_chain(config.serving_cert, config.serving_key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def application(manager: PodManager) -> web.Application:
    """The routes."""
    server = LogServer(manager)
    app = web.Application()
    app.router.add_get("/healthz", server.healthz)
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", server.container_logs)
    for verb in ("exec", "attach", "portForward", "run"):
        app.router.add_route("*", f"/{verb}/{{namespace}}/{{pod}}{{rest:.*}}", server.not_offered)
    return app


class LogServer:
    """Handlers over the node's pods."""

    def __init__(self, manager: PodManager) -> None:
        self._manager = manager

    async def healthz(self, _request: web.Request) -> web.Response:
        """Alive."""
        return web.Response(text="ok")

    async def not_offered(self, request: web.Request) -> web.Response:
        """Exec, attach, port-forward."""
        worker = self._worker(request)
        return web.Response(
            status=501,
            text=f"not offered by the embedded cluster; the pod's address {worker.record.ip} is reachable directly\n",
        )

    def _worker(self, request: web.Request) -> PodWorker:
        info = request.match_info
        worker = self._manager.find(info["namespace"], info["pod"])
        if worker is None:
            raise web.HTTPNotFound(text=f'pod "{info["namespace"]}/{info["pod"]}" is not on this node\n')
        return worker

    async def container_logs(self, request: web.Request) -> web.StreamResponse:
        """The log of a container's latest run, or of the one before."""
        worker = self._worker(request)
        name = request.match_info["container"]
        query = request.query
        try:
            selection = selected(query)
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        record = worker.record.containers.get(name)
        run = record.runs - 1 if record else -1
        if query.get("previous") == "true":
            run -= 1
            if run < 0:
                raise web.HTTPBadRequest(text=f'previous terminated container "{name}" not found\n')
        if run < 0:
            raise web.HTTPBadRequest(text=f'container "{name}" is waiting to start\n')
        path = logs.log_file(worker.directory, name, run)
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        follow = query.get("follow") == "true" and query.get("previous") != "true"
        await _stream(response, path, selection, follow=follow, worker=worker, name=name, run=run)
        return response


def selected(query: Mapping[str, str]) -> Selection:
    """Which lines a request asks for. Raises ValueError."""

    def number(name: str) -> int | None:
        value = query.get(name)
        if value is None:
            return None
        if not value.isdecimal():
            raise ValueError(f"{name}={value!r} must be a whole number, zero or more")
        return int(value)

    since = number("sinceSeconds")
    return Selection(
        tail=number("tailLines"),
        since=time.time() - since if since is not None else instant(query.get("sinceTime")),
        timestamps=query.get("timestamps") == "true",
        limit=number("limitBytes"),
    )


async def _stream(
    response: web.StreamResponse,
    path: Path,
    selection: Selection,
    *,
    follow: bool,
    worker: PodWorker,
    name: str,
    run: int,
) -> None:
    left = selection.limit if selection.limit is not None else float("inf")

    async def send(data: bytes) -> bool:
        nonlocal left
        data = data if left == float("inf") else data[: int(left)]
        left -= len(data)
        if data:
            await response.write(data)
        return left > 0

    tail = Tail(path)
    for line in logs.read(path, selection):
        if not await send(line):
            return
    while follow:
        alive = worker.record.container(name).runs - 1 == run and worker.record.container(name).run is not None
        for line in tail.fresh():
            text = logs.shown(line, Selection(timestamps=selection.timestamps))
            if text is not None and not await send(text):
                return
        if not alive:
            return
        await asyncio.sleep(_LOOK_SECONDS)

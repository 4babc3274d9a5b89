"""A REST server's life: bound, serving, and leaving without losing a request that is on its way on an open connection.

Left to itself, aiohttp loses some when it stops: it drops what is still to come of a request's body, and closes a
connection over which the next request has just arrived.
"""

import asyncio
import contextlib
import select
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from splitplane.runtime.rest_errors import Connection

LINGER_SECONDS = 0.5
"""How long open connections are kept when no new ones are taken any more: the last may not have been used yet."""
LOOK_SECONDS = 0.02
"""Between looks for connections that have nothing to answer; their ends have no event of their own."""
TURNS = 4
"""Of the event loop, in which what has been read becomes a request whose handler has begun."""
CUT_SECONDS = 0.5
"""How long requests whose time is up are waited for, and once more after they were cancelled."""

AFTER: web.RequestKey[Callable[[], None]] = web.RequestKey("after")
"""Under it a handler may leave in its request what is to be called once the answer is written, or given up."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """One application on one port, once it is started.

    A request whose client has hung up is cancelled, as gRPC does it: nobody is there to take its answer.
    """

    def __init__(self, app: web.Application) -> None:
        self._leaving = False
        self._busy: set[Any] = set()
        """Connections with a request that is not answered to its last byte."""
        app.middlewares.insert(0, self._answer)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=CUT_SECONDS
        )

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Raises ``OSError`` when the port (0: any) is taken."""
        await self._runner.setup()
        await _Site(self._runner, host, port, ssl_context=tls).start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._runner.addresses[0][:2]
        return host, port

    def leave(self) -> None:
        """Serve on, but the last answer due on a connection closes it, so that clients find themselves another."""
        self._leaving = True

    async def stop(self, grace_seconds: float) -> None:
        """Take no more connections; those that are open may be used until all is answered, then they are closed.

        What is not answered after ``grace_seconds`` is cut.
        """
        self.leave()
        for site in self._runner.sites:
            await site.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._dismiss()
        await self._runner.cleanup()

    async def _dismiss(self) -> None:
        server = self._runner.server
        if server is None or not server.connections:
            return
        await asyncio.sleep(LINGER_SECONDS)
        while server.connections:
            if not self._busy:
                await self._close_idle(server.connections)
            await asyncio.sleep(LOOK_SECONDS)

    async def _close_idle(self, connections: Sequence[RequestHandler]) -> None:
        idle = [(each, each.transport) for each in connections if each.transport is not None]
        for _, transport in idle:
            transport.pause_reading()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        for connection, transport in idle:
            if connection in self._busy or _has_more(transport):
                transport.resume_reading()
            else:
                connection.force_close()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._busy.add(request.protocol)
        try:
            response = await handler(request)
            if self._leaving and not _has_next(request.protocol):
                response.force_close()
            # aiohttp would do this just after, and then finds it done; here it is known when it is.
            with contextlib.suppress(ConnectionError):
                await response.prepare(request)
                await response.write_eof()
            if isinstance(response, web.Response):
                response.body = None  # an idle connection keeps its last answer
            return response
        finally:
            self._busy.discard(request.protocol)
            if AFTER in request:
                request[AFTER]()


class _Site(web.TCPSite):
    """Whose connections are :class:`Connection`."""

    __slots__ = ()

    async def start(self) -> None:
        await web.BaseSite.start(self)
        loop, manager = asyncio.get_running_loop(), self._runner.server
        assert manager is not None  # the runner is set up
        self._server = await loop.create_server(
            lambda: Connection(manager, loop=loop, access_log=None, auto_decompress=False),  # type: ignore[arg-type]
            self._host, self._port, ssl=self._ssl_context, backlog=self._backlog,
        )  # fmt: skip


async def serve(app: web.Application, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> Server:
    """Bind and serve, over HTTPS with ``tls``. Raises ``OSError`` when the port is taken."""
    server = Server(app)
    try:
        await server.start(host, port, tls)
    except BaseException:
        await server.stop(0)
        raise
    return server


def _has_next(connection: RequestHandler) -> bool:
    """Whether a request has come that waits for the present one's answer: clients may send several in a row."""
    return bool(connection._messages)


def _has_more(transport: asyncio.BaseTransport) -> bool:
    """Whether something has come over a connection that the event loop has not seen yet."""
    socket = transport.get_extra_info("socket")
    if socket is None or socket.fileno() < 0:
        return False
    looking = select.poll()
    looking.register(socket, select.POLLIN)
    return bool(looking.poll(0))

"""Answers and log lines for requests that aiohttp refuses by itself, before any handler: they are not HTTP, or not such
that it takes. Left to itself it answers in plain text and logs, of each, a traceback with the bytes that are wrong: a
client's token may be among them, and a log that anybody can fill.
"""

import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from splitplane.runtime.faults import Faults

LOG_SECONDS = 60.0
"""Of a kind of malformed requests, one line for so long."""

LOG = logging.getLogger(__name__)
FAULTS = Faults(LOG)

_CLIENTS_OWN = (HttpProcessingError, web.RequestPayloadError)


class Malformed:
    """Tells ``log`` of malformed requests: what they are and from where, and never what is in them."""

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._told: dict[type[BaseException], float] = {}
        """By kind, of which a library has a few."""
        self._untold: dict[type[BaseException], int] = {}

    def tell(self, error: BaseException, peer: str | None) -> None:
        kind, now = type(error), self._clock()
        if now - self._told.get(kind, -LOG_SECONDS) < LOG_SECONDS:
            self._untold[kind] = self._untold.get(kind, 0) + 1
            return
        self._told[kind] = now
        more = self._untold.pop(kind, 0)
        self._log.info(
            "a request from %s is no HTTP that can be read (%s)%s",
            peer or "nobody known", kind.__name__, f"; {more} more like it before" if more else "",
        )  # fmt: skip


MALFORMED = Malformed(LOG)


class Connection(web.RequestHandler):
    """Of an HTTP server; its own errors have the form of all others, ``{"error": ...}``."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002, as it quotes the request
    ) -> web.StreamResponse:
        """What answers a request that could not be read, or whose answer failed; the connection ends with it."""
        self._tell(exc, request.remote)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if isinstance(exc, _CLIENTS_OWN):
            text = f"this is no HTTP request that can be read: {type(exc).__name__}"
        else:
            text = f"{type(exc).__name__}; the server's log says more" if exc else HTTPStatus(status).phrase
        response = web.json_response({"error": text}, status=status)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """aiohttp's own refusal of a request that it has read (``Expect``), which no middleware sees, included."""
        if isinstance(resp, web.HTTPError):
            refusal, resp = resp, web.json_response({"error": resp.text or resp.reason}, status=resp.status)
            if hdrs.ALLOW in refusal.headers:
                resp.headers[hdrs.ALLOW] = refusal.headers[hdrs.ALLOW]
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def log_exception(self, *_args: Any, **kw: Any) -> None:
        """What went wrong outside any handler, as what follows a request that was answered early."""
        error = kw.get("exc_info")
        self._tell(error if isinstance(error, BaseException) else None, self._peer())

    def _peer(self) -> str | None:
        found = None if self.transport is None else self.transport.get_extra_info("peername")
        return str(found[0]) if found else None

    @staticmethod
    def _tell(error: BaseException | None, peer: str | None) -> None:
        if isinstance(error, _CLIENTS_OWN):
            MALFORMED.tell(error, peer)
        elif error is not None:
            FAULTS.tell(error)

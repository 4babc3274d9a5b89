"""Who may ask a gateway: holders of a bearer token, of a certificate, or anybody (docs/security.md).

Tokens and certificates are the files of Secrets, and may change while the gateway serves. What tells of the gateway's
health and of its metrics is open to all: kubelets and Prometheus have no token.
"""

import hashlib
import hmac
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from aiohttp import hdrs, web

from splitplane.runtime.environment import SettingsError
from splitplane.runtime.grpc_refusing import refuse
from splitplane.runtime.grpc_standard import HEALTH
from splitplane.runtime.inference import InferRequest
from splitplane.runtime.mtls import CHECK_SECONDS, Credentials, Identity
from splitplane.runtime.oip_grpc import SERVICE

OPEN_PATHS = frozenset({"/", "/metrics", "/v2/health/live", "/v2/health/ready"})
OPEN_METHODS = (f"/{HEALTH}/", f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady")
REFUSAL = "a bearer token is needed: send the header 'authorization: Bearer <token>'"
WRONG = "this bearer token is not one of those that the gateway takes"

LOG = logging.getLogger(__name__)

HOLDER: ContextVar[str] = ContextVar("holder", default="")
"""Which of the tokens the request under way has shown, by its digest; empty where none is asked for."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RefusedError(Exception):
    """A request may not come in. The text goes to the client."""


class Tokens:
    """The tokens in a folder, one to a file. Kept as digests, so that no memory dump or log can show one."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ``SettingsError`` when the folder cannot be read."""
        self._folder, self._clock, self._looked_at = folder, clock, clock()
        try:
            self._digests = _digests(folder)
        except OSError as error:
            raise SettingsError(f"SPLITPLANE_CLIENT_TOKENS_DIR: {error}") from error
        if not self._digests:
            LOG.warning("the Secret of clients' tokens is empty: every request is refused")

    def holder(self, authorization: str) -> str:
        """The digest of the token that a request shows in its ``Authorization`` (empty: none).

        Raises :class:`RefusedError` when that is none of the tokens.
        """
        if not (token := _bearer(authorization)):
            raise RefusedError(REFUSAL)
        self._look()
        shown = _digest(token)
        # All are compared, so that how long it takes tells nothing about which.
        known = [hmac.compare_digest(shown, digest) for digest in self._digests]
        if not any(known):
            raise RefusedError(WRONG)
        return shown.hex()

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_at < CHECK_SECONDS:
            return
        self._looked_at = now
        try:
            found = _digests(self._folder)
        except OSError as error:
            LOG.warning("the tokens of clients cannot be read, those known before still hold: %s", error)
            return
        if found != self._digests:
            self._digests = found
            LOG.info("clients' tokens have changed: %d are taken", len(found))


def _digests(folder: Path) -> frozenset[bytes]:
    # A kubelet's own entries begin with dots.
    files = [file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file()]
    return frozenset(_digest(token) for file in files if (token := file.read_bytes().strip()))


def _bearer(authorization: str) -> bytes:
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def client_of(request: InferRequest) -> str:
    """Whose turn a request takes: by the token or the certificate that it had to show, else by its address."""
    if holder := HOLDER.get():
        return f"token {holder}"
    return f"certificate {','.join(request.identity)}" if request.identity else request.client


def rest_guard(tokens: Tokens) -> Any:
    """Middleware that answers 401 to requests without a token."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS:
            return await handler(request)
        authorization = request.headers.get(hdrs.AUTHORIZATION, "")
        try:
            HOLDER.set(tokens.holder(authorization))
        except RefusedError as refusal:
            challenge = 'Bearer realm="splitplane"' + (', error="invalid_token"' if str(refusal) == WRONG else "")
            return web.json_response({"error": str(refusal)}, status=401, headers={hdrs.WWW_AUTHENTICATE: challenge})
        return await handler(request)

    return guard


@web.middleware
async def open_paths_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """For the port in clear text of a gateway whose clients must show a certificate."""
    if request.path not in OPEN_PATHS:
        raise web.HTTPNotFound
    return await handler(request)


class GrpcGuard(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Answers ``UNAUTHENTICATED`` to calls without a token."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if handler_call_details.method.startswith(OPEN_METHODS):
            return await continuation(handler_call_details)
        shown = [value for key, value in handler_call_details.invocation_metadata or () if key == "authorization"]
        authorization = str(shown[0]) if shown else ""
        try:
            HOLDER.set(self._tokens.holder(authorization))
        except RefusedError as refusal:
            return _refusing(str(refusal))
        return await continuation(handler_call_details)


def _refusing(why: str) -> Any:
    async def handle(_requests: Any, context: Any) -> Any:
        await refuse(context, grpc.StatusCode.UNAUTHENTICATED, why)
        yield  # never reached; makes this the answer to calls of every arity

    return grpc.stream_stream_rpc_method_handler(handle)


def tls_context(identity: Identity) -> ssl.SSLContext:
    """For an HTTPS server that takes nobody without a certificate of the identity's authorities, whichever are now."""
    context = _Newest(ssl.PROTOCOL_TLS_SERVER)
    context.follow(identity)
    return context


class _Newest(ssl.SSLContext):
    """Begins each connection in a context of the newest credentials.

    A context of its own for each of them, and not one that changes: a session is resumed without a look at the client's
    certificate, and only within the context that it began in. So none outlives the authorities that let it in.
    """

    _identity: Identity
    _given: Credentials
    _context: ssl.SSLContext

    def follow(self, identity: Identity) -> None:
        self._identity, self._given = identity, identity.current()
        self._context = _context(identity, self._given)

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        if (current := self._identity.current()) is not self._given:
            try:
                self._context, self._given = _context(self._identity, current), current
            except (OSError, ssl.SSLError) as error:
                LOG.warning("the new certificate is not used for HTTPS, the old one still is: %s", error)
        return self._context.wrap_bio(*arguments, **named)


def _context(identity: Identity, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=credentials.authorities.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    # Tickets would let a client in after its certificate has expired.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.load_cert_chain(identity.folder / "tls.crt", identity.folder / "tls.key")
    context.set_alpn_protocols(["http/1.1"])
    return context

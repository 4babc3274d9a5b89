"""Requests to the cluster's own servers with client certificates.

The official Kubernetes client costs 1.4 s and 60 MB per process; the supervisor and ``status`` need three verbs.
"""

import asyncio
import ssl
import urllib.parse
from pathlib import Path
from typing import Any

import aiohttp

from splitplane.local.components import Probe
from splitplane.local.pki import KeyPair


class ApiError(Exception):
    """The API server refused, or could not be reached."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 when there was no answer."""


def tls(authority: Path, client: KeyPair | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority))
    if client:
        context.load_cert_chain(client.certificate, client.key)
    return context


class ApiClient:
    """A few verbs of the Kubernetes API, in plain JSON."""

    def __init__(self, server: str, authority: Path, client: KeyPair) -> None:
        connector = aiohttp.TCPConnector(ssl=tls(authority, client), limit=4)
        self._session = aiohttp.ClientSession(server, connector=connector, timeout=aiohttp.ClientTimeout(total=10))

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str, **query: str) -> Any:
        return await self._request("GET", path, query=query)

    async def create(self, path: str, body: Any) -> Any:
        return await self._request("POST", path, body=body)

    async def delete(self, path: str) -> Any:
        return await self._request("DELETE", path)

    async def _request(self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None) -> Any:
        try:
            async with self._session.request(method, path, params=query, json=body) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(f"{method} {path}: {error or type(error).__name__}") from error
        if response.status >= 400:
            message = answer.get("message") if isinstance(answer, dict) else None
            raise ApiError(f"{method} {path}: {message or response.reason}", response.status)
        return answer


class Prober:
    """Asks a component whether it is ready; the TLS context is made once, when its files exist."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._tls: ssl.SSLContext | None = None

    async def ready(self) -> bool:
        url = urllib.parse.urlsplit(self._probe.url)
        try:
            if url.scheme == "tcp":
                return await self._port_open(url.hostname or "", url.port or 0)
            if self._probe.authority and not self._tls:
                self._tls = tls(self._probe.authority, self._probe.client)
            timeout = aiohttp.ClientTimeout(total=5)
            connector = aiohttp.TCPConnector(ssl=self._tls or True)
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get(self._probe.url) as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    @staticmethod
    async def _port_open(host: str, port: int) -> bool:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 2)
        writer.close()
        await writer.wait_closed()
        return True

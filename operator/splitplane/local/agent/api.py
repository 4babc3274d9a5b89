"""The agent's door to the API server: plain dictionaries over the Kubernetes client's asyncio transport.

Typed models are left aside: a node agent passes most of a pod through untouched, and reading them costs more than
running the pods. Proxy settings of the user's environment are ignored, for the API server is on this machine.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import load_kube_config

from splitplane.local.agent.errors import ApiError

TYPE_JSON = "application/json"
TYPE_MERGE = "application/merge-patch+json"
TYPE_STRATEGIC = "application/strategic-merge-patch+json"

Object = dict[str, Any]


def path_of(
    resource: str, *, group: str = "", namespace: str | None = None, name: str | None = None, sub: str = ""
) -> str:
    """The URL path of a resource of version v1, such as ``/api/v1/namespaces/a/pods/b/status``."""
    parts = ["/apis", group, "v1"] if group else ["/api", "v1"]
    if namespace is not None:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(resource)
    if name is not None:
        parts.append(quote(name, safe=""))
    if sub:
        parts.append(sub)
    return "/".join(parts)


class Api:
    """Requests to the API server as the node."""

    def __init__(self, rest: RESTClientObject, host: str) -> None:
        self._rest = rest
        self._host = host.rstrip("/")

    @classmethod
    async def connect(cls, kubeconfig: Path) -> "Api":
        """A client with the credentials of a kubeconfig. No request is made yet."""
        configuration = Configuration(connection_pool_maxsize=0, client_session_kwargs={"trust_env": False})
        await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
        )
        return cls(RESTClientObject(configuration), configuration.host)

    async def close(self) -> None:
        """Close the connections."""
        await self._rest.close()

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = TYPE_JSON,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        url = self._host + path + ("?" + urlencode(query) if query else "")
        headers = {"Content-Type": content_type, "Accept": TYPE_JSON, "User-Agent": "splitplane-node-agent"}
        try:
            answer = await self._rest.request(  # type: ignore[no-untyped-call]
                method, url, headers=headers, body=body, _request_timeout=timeout or aiohttp.ClientTimeout(total=15)
            )
            response: aiohttp.ClientResponse = answer.response
            if response.status < 300:
                return response
            text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{method} {path}: {error or type(error).__name__}") from error
        try:
            message = json.loads(text)["message"]
        except (ValueError, KeyError, TypeError):
            message = text.strip()[:200]
        raise ApiError(response.status, f"{method} {path}: {message}")

    async def _object(self, method: str, path: str, **more: Any) -> Object:
        response = await self._send(method, path, **more)
        try:
            result: Object = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiError(0, f"{method} {path}: the answer broke off ({error or type(error).__name__})") from error
        return result

    async def get(self, path: str, **query: Any) -> Object:
        """Read one object or a list."""
        return await self._object("GET", path, query=query)

    async def create(self, path: str, body: Object) -> Object:
        """Create an object (or ask for a token, at a sub-resource)."""
        return await self._object("POST", path, body=body)

    async def patch(self, path: str, body: Object, *, content_type: str = TYPE_STRATEGIC) -> Object:
        """Patch an object or its sub-resource."""
        return await self._object("PATCH", path, body=body, content_type=content_type)

    async def update(self, path: str, body: Object) -> Object:
        """Replace an object."""
        return await self._object("PUT", path, body=body)

    async def delete(self, path: str, body: Object | None = None) -> Object:
        """Delete an object."""
        return await self._object("DELETE", path, body=body or {})

    async def watch(self, path: str, *, resource_version: str, **query: Any) -> AsyncIterator[tuple[str, Object]]:
        """Events from `resource_version` on, as (type, object), until the server ends the stream.

        Raises :class:`ApiError` (410 where the version is too old) when the stream cannot be had or breaks.
        """
        query |= {"watch": "1", "resourceVersion": resource_version, "allowWatchBookmarks": "true"}
        # A broken peer is noticed by the silence: the API server ends a stream after timeoutSeconds by itself.
        query["timeoutSeconds"] = 240
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=300)
        response = await self._send("GET", path, query=query, timeout=timeout)
        try:
            async for line in response.content:
                event = json.loads(line)
                kind, item = event["type"], event["object"]
                if kind == "ERROR":
                    raise ApiError(int(item.get("code", 500)), f"watch of {path}: {item.get('message', item)}")
                yield kind, item
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiError(0, f"watch of {path}: {error or type(error).__name__}") from error
        finally:
            response.close()


T = TypeVar("T")


async def retrying(
    attempt: Callable[[], Awaitable[T]], *, first: float = 0.2, most: float = 5.0, until: float = 30.0
) -> T:
    """Await `attempt()` again while it fails with a retriable :class:`ApiError`, for about `until` seconds."""
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + until, first
    while True:
        try:
            return await attempt()
        except ApiError as error:
            if not error.retriable or loop.time() + pause > deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, most)

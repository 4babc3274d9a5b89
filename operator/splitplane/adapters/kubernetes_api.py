"""The port ``Cluster`` over the official client's asynchronous dynamic client."""

import contextlib
import json
import os
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.dynamic import DynamicClient, Resource

from splitplane.adapters.cluster import (
    Change,
    ClusterError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Object,
    Unavailable,
)
from splitplane.adapters.following import Expired, follow
from splitplane.adapters.kinds import EVENT, Kind, kind_of
from splitplane.domain.times import timestamp

FIELD_MANAGER = "splitplane"

# The client ships inline annotations for a part of its code only.
_DynamicClient: Any = DynamicClient
_Resource: Any = Resource

_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30)
# The API server sends a bookmark about once a minute: a stream silent for longer than this has a dead peer.
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=150)
_WATCH_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Credentials:
    """What another client needs to reach the same API server as the same user. Empty where it does not apply."""

    server: str
    ca_path: str
    token: str
    certificate_path: str
    private_key_path: str


class KubernetesCluster:
    """:class:`Cluster` over the official client. Make it with :func:`connecting.connect`; close it when done."""

    def __init__(self, api: ApiClient, *, component: str) -> None:
        self._api: Any = api
        self._client = _DynamicClient(api)  # not awaited: that would start discovery, which kinds.py makes needless
        self._component = component

    async def close(self) -> None:
        await self._api.close()

    async def credentials(self) -> Credentials:
        """The credentials in use, read again where they rotate."""
        configuration = self._api.configuration
        header = await configuration.get_api_key_with_prefix("BearerToken") or ""
        return Credentials(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert or "",
            token=header.removeprefix("Bearer ").removeprefix("bearer "),
            certificate_path=configuration.cert_file or "",
            private_key_path=configuration.key_file or "",
        )

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Object:
        return await self._object("get", kind, name=name, namespace=namespace)

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", name: str = "") -> list[Object]:
        return list((await self._list(kind, namespace, labels, name))["items"])

    def watch(
        self, kind: Kind, namespace: str = "", *, labels: str = "", name: str = ""
    ) -> AsyncGenerator[Change, None]:
        return follow(
            lambda: self._list(kind, namespace, labels, name),
            lambda version: self._stream(kind, namespace, labels, name, version),
            what=kind.plural,
        )

    async def create(self, body: Object) -> Object:
        kind = kind_of(body["apiVersion"], body["kind"])
        namespace = body["metadata"].get("namespace", "")
        return await self._object("post", kind, namespace=namespace, body=body, field_manager=FIELD_MANAGER)

    async def apply(self, body: Object) -> Object:
        kind = kind_of(body["apiVersion"], body["kind"])
        return await self._object(
            "patch", kind, name=body["metadata"]["name"], namespace=body["metadata"].get("namespace", ""), body=body,
            content_type="application/apply-patch+yaml", field_manager=FIELD_MANAGER, force_conflicts="true",
        )  # fmt: skip

    async def merge(self, kind: Kind, name: str, namespace: str, patch: Mapping[str, Any]) -> Object:
        return await self._object(
            "patch",
            kind,
            name=name,
            namespace=namespace,
            body=dict(patch),
            content_type="application/merge-patch+json",
            field_manager=FIELD_MANAGER,
        )

    async def patch_status(
        self, kind: Kind, name: str, namespace: str, status: Mapping[str, Any], *, resource_version: str = ""
    ) -> Object:
        body: Object = {"status": dict(status)}
        if resource_version:
            body["metadata"] = {"resourceVersion": resource_version}
        return await self._object(
            "patch", kind, name=name, namespace=namespace, subresource="status", body=body,
            content_type="application/merge-patch+json", field_manager=FIELD_MANAGER,
        )  # fmt: skip

    async def delete(self, kind: Kind, name: str, namespace: str = "", *, uid: str = "") -> None:
        body: Object = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        with contextlib.suppress(NotFound):
            await self._call("delete", kind, name=name, namespace=namespace, body=body)

    async def create_event(self, regarding: Object, *, type: str, reason: str, message: str) -> None:  # noqa: A002
        metadata = regarding["metadata"]
        now = timestamp(time.time())
        namespace = metadata.get("namespace", "default")
        reference = {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion") if key in metadata}
        await self.create({
            "apiVersion": EVENT.api_version, "kind": EVENT.name,
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": namespace},
            "involvedObject": {"apiVersion": regarding["apiVersion"], "kind": regarding["kind"], **reference},
            "type": type, "reason": reason, "message": message[:1024], "action": reason, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": self._component},
            "reportingComponent": self._component, "reportingInstance": os.environ.get("SPLITPLANE_POD_NAME", ""),
        })  # fmt: skip

    async def _list(self, kind: Kind, namespace: str, labels: str, name: str) -> Object:
        page = await self._object(
            "get", kind, namespace=namespace, label_selector=labels or None, field_selector=_by_name(name)
        )
        for item in page["items"]:  # items of a list come without what get and watch tell of them
            item.setdefault("apiVersion", kind.api_version)
            item.setdefault("kind", kind.name)
        return page

    async def _stream(
        self, kind: Kind, namespace: str, labels: str, name: str, version: str
    ) -> AsyncGenerator[tuple[Any, Object], None]:
        response = await self._call(
            "get", kind, namespace=namespace, label_selector=labels or None, field_selector=_by_name(name),
            resource_version=version, watch="true", timeout_seconds=_WATCH_SECONDS,
            query_params=[("allowWatchBookmarks", "true")], serialize=False, _request_timeout=_WATCH_TIMEOUT,
        )  # fmt: skip
        try:
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    if event["object"].get("code") == 410:
                        raise Expired
                    raise Unavailable(event["object"].get("message", "the watch ended with an error"))
                yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, json.JSONDecodeError) as error:
            raise Unavailable(f"the watch broke off ({error or type(error).__name__})") from error
        finally:
            response.close()

    async def _object(self, method: str, kind: Kind, **options: Any) -> Object:
        body: Object = await self._call(method, kind, **options)
        return body

    async def _call(
        self, method: str, kind: Kind, *, name: str = "", namespace: str = "", subresource: str = "",
        **options: Any,
    ) -> Any:  # fmt: skip
        prefix = "apis" if kind.group else "api"
        resource = _Resource(
            prefix=prefix, group=kind.group, api_version=kind.version, kind=kind.name, name=kind.plural,
            namespaced=kind.namespaced, client=self._client,
        )  # fmt: skip
        path = resource.path(name=name or None, namespace=namespace or None)
        if subresource:
            path = f"{path}/{subresource}"
        where = f"{method} {kind.plural} {namespace}/{name}".rstrip("/")
        options.setdefault("_request_timeout", _REQUEST_TIMEOUT)
        try:
            return await self._client.request(method, path, serializer=lambda _, data: data, **options)
        except ApiException as error:
            raise _typed(error, where) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"{where}: the Kubernetes API cannot be reached ({error or type(error).__name__})"
            ) from error


def _typed(error: ApiException, where: str) -> ClusterError:
    try:
        message = json.loads(error.body or "")["message"]
    except (TypeError, ValueError, KeyError):
        message = error.reason or str(error.body)
    text = f"{where}: {message}"
    match error.status:
        case 401 | 403:
            return Forbidden(text)
        case 404:
            return NotFound(text)
        case 409:
            return Conflict(text)
        case 400 | 405 | 415 | 422:
            return Invalid(text)
        case 410:
            return Expired(text)
        case _:
            return Unavailable(text)


def _by_name(name: str) -> str | None:
    return f"metadata.name={name}" if name else None

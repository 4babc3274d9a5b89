"""The Kubernetes API as Splitplane needs it: a port that fits on one screen, and its implementation.

The implementation sits on the official client's asynchronous dynamic client and speaks plain dictionaries. Errors say
what the caller should do next::

    ClusterError
    ├── Conflict       somebody else was faster: read again, decide again
    ├── NotFound       the object (or its namespace) is gone
    ├── Forbidden      tell the user which permission is missing; retrying alone does not help
    ├── Invalid        the API server refused the object: a bug, or a user's value; tell the user
    └── Unavailable    the API server cannot be reached or is busy: retry later
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import aiohttp
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.dynamic import DynamicClient, Resource

from splitplane.adapters.kinds import EVENT, Kind, kind_of
from splitplane.domain.times import timestamp

FIELD_MANAGER = "splitplane"
SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

Object = dict[str, Any]
"""A Kubernetes object as its JSON."""

# The client ships inline annotations for a part of its code only.
_load_incluster_config: Any = kubernetes_config.load_incluster_config
_load_kube_config: Any = kubernetes_config.load_kube_config
_DynamicClient: Any = DynamicClient
_Resource: Any = Resource

_log = logging.getLogger(__name__)

_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30)
# The API server sends a bookmark about once a minute: a stream silent for longer than this has a dead peer.
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=150)
_WATCH_SECONDS = 600
_WATCH_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
_TOKEN_REFRESH_SECONDS = 60.0


class ClusterError(Exception):
    """A request to the Kubernetes API failed; the subclass says what to do next."""


class Conflict(ClusterError):  # noqa: N818 - the name of the HTTP status
    """Another writer was faster, or the object exists already. Read again and decide again."""


class NotFound(ClusterError):  # noqa: N818
    """The object, its namespace or its kind does not exist."""


class Forbidden(ClusterError):  # noqa: N818
    """This ServiceAccount lacks a permission. The message names it: tell the user."""


class Invalid(ClusterError):  # noqa: N818
    """The API server refused the object. The message names the field: tell the user."""


class Unavailable(ClusterError):  # noqa: N818
    """The API server cannot be reached or is overloaded. Retry later."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change that a watch saw. ``SYNCED`` (without an object) follows each complete list."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "SYNCED"]
    object: Object = field(default_factory=dict)


class Cluster(Protocol):
    """What Splitplane asks of a Kubernetes cluster. Every method raises :class:`ClusterError`."""

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Object:
        """Read one object."""

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", name: str = "") -> list[Object]:
        """Read all objects of a kind, in one namespace or (``""``) everywhere."""

    def watch(self, kind: Kind, namespace: str = "", *, labels: str = "", name: str = "") -> AsyncIterator[Change]:
        """Present objects as ``ADDED``, then ``SYNCED``, then changes, for ever.

        Reconnects by itself; what was missed meanwhile arrives as changes, deletions included. Raises only
        :class:`Forbidden`, :class:`Invalid` and, when the kind does not exist, :class:`NotFound`.
        """

    async def create(self, body: Object) -> Object:
        """Create an object; :class:`Conflict` when it exists already."""

    async def apply(self, body: Object) -> Object:
        """Server-side apply. A ``metadata.resourceVersion`` in ``body`` is a precondition (:class:`Conflict`)."""

    async def merge(self, kind: Kind, name: str, namespace: str, patch: Mapping[str, Any]) -> Object:
        """Merge a few fields into an object whose other fields are left alone, such as a number of replicas."""

    async def patch_status(
        self, kind: Kind, name: str, namespace: str, status: Mapping[str, Any], *, resource_version: str = ""
    ) -> Object:
        """Merge ``status`` (lists are replaced, ``None`` removes), if the object is still at ``resource_version``."""

    async def delete(self, kind: Kind, name: str, namespace: str = "", *, uid: str = "") -> None:
        """Delete an object and, in the background, its dependents; it is no error if it is gone already."""

    async def create_event(self, regarding: Object, *, type: str, reason: str, message: str) -> None:  # noqa: A002
        """Tell the user, on the object's own page (``kubectl describe``). ``type`` is ``Normal`` or ``Warning``."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What another client needs to reach the same API server as the same user. Empty where it does not apply."""

    server: str
    ca_path: str
    token: str
    certificate_path: str
    private_key_path: str


class KubernetesCluster:
    """:class:`Cluster` over the official client. Make it with :func:`connect`; close it when done."""

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

    async def watch(
        self, kind: Kind, namespace: str = "", *, labels: str = "", name: str = ""
    ) -> AsyncGenerator[Change, None]:
        seen: dict[tuple[str, str], Object] = {}
        failures = 0
        version = ""
        while True:
            try:
                if not version:
                    page = await self._list(kind, namespace, labels, name)
                    for change in _differences(seen, page["items"]):
                        yield change
                    yield Change("SYNCED")
                    version = page["metadata"]["resourceVersion"]
                started = time.monotonic()
                async with contextlib.aclosing(self._stream(kind, namespace, labels, name, version)) as stream:
                    async for event_type, body in stream:
                        failures = 0
                        version = body["metadata"]["resourceVersion"]
                        if event_type == "BOOKMARK":
                            continue
                        if event_type == "DELETED":
                            seen.pop(_key(body), None)
                        else:
                            seen[_key(body)] = body
                        yield Change(event_type, body)
                if time.monotonic() - started < 1.0:
                    raise Unavailable("the watch was closed at once")
            except _Expired:
                version = ""
            except Unavailable as error:
                delay = _WATCH_RETRY_SECONDS[min(failures, len(_WATCH_RETRY_SECONDS) - 1)]
                failures += 1
                _log.log(
                    logging.INFO if failures < len(_WATCH_RETRY_SECONDS) else logging.WARNING,
                    "watching %s: %s; trying again in %.1f s", kind.plural, error, delay,
                )  # fmt: skip
                await asyncio.sleep(delay)

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
                        raise _Expired
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


class _Expired(Unavailable):
    """The resource version of a watch is too old: list again."""


async def connect(*, component: str = "splitplane", kubeconfig: str = "") -> KubernetesCluster:
    """Connect with the pod's own ServiceAccount if it has one, else with ``kubeconfig`` or ``$KUBECONFIG``.

    Raises:
        Forbidden: no usable credentials; the message says where they were looked for.
    """
    configuration: Any = Configuration()
    try:
        if not kubeconfig and os.path.exists(SERVICE_ACCOUNT_TOKEN):  # noqa: ASYNC240, PTH110 - a local file, once
            _load_incluster_config(client_configuration=configuration)
        else:
            path = kubeconfig or os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")  # noqa: ASYNC240, PTH111
            await _load_kube_config(config_file=path, client_configuration=configuration, persist_config=False)
            configuration.refresh_api_key_hook = _KubeconfigRefresh(path)
    except (ConfigException, OSError) as error:
        raise Forbidden(f"no usable Kubernetes credentials: {error}. Set KUBECONFIG, or run in a pod.") from error
    return KubernetesCluster(ApiClient(configuration), component=component)


class _KubeconfigRefresh:
    """Reads a kubeconfig again now and then: its ``tokenFile`` is rotated."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._next = time.monotonic() + _TOKEN_REFRESH_SECONDS

    async def __call__(self, configuration: Any) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _TOKEN_REFRESH_SECONDS
        fresh = Configuration()
        with contextlib.suppress(ConfigException, OSError):  # half-written: the old token serves until the next time
            await _load_kube_config(config_file=self._path, client_configuration=fresh, persist_config=False)
            configuration.api_key.update(fresh.api_key)


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
            return _Expired(text)
        case _:
            return Unavailable(text)


def _by_name(name: str) -> str | None:
    return f"metadata.name={name}" if name else None


def _key(body: Object) -> tuple[str, str]:
    return body["metadata"].get("namespace", ""), body["metadata"]["name"]


def _differences(seen: dict[tuple[str, str], Object], items: list[Object]) -> list[Change]:
    """Changes that lead from ``seen`` to ``items``; ``seen`` is brought up to date."""
    fresh = {_key(item): item for item in items}
    changes = [Change("DELETED", seen.pop(key)) for key in list(seen) if key not in fresh]
    for key, item in fresh.items():
        before = seen.get(key)
        if before is None:
            changes.append(Change("ADDED", item))
        elif before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            changes.append(Change("MODIFIED", item))
        seen[key] = item
    return changes

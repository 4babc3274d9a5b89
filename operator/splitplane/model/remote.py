"""Weights that lie elsewhere, as a stream of bytes from any offset: https, S3-compatible stores, OCI registries.

Everything is addressed by the caller's sha256 in the end, so what a server claims of a file (its time, its tag) is
never relied on. Credentials are files of a folder, as a Secret is mounted; see ``docs/models.md`` for their names.
"""

import base64
import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from splitplane.domain.addresses import hide, without_secrets
from splitplane.model.errors import WeightsError
from splitplane.model.logins import DOCKER_HUB_KEY, api_host, is_docker_hub, login_for

SCHEMES = frozenset({"http", "https", "s3", "oci"})
CHUNK_BYTES = 1 << 16
"""So many that came since the last ones may be lost where a line breaks."""
_S3_KEYS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL",
)  # fmt: skip
_S3_IDENTITIES = (
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)  # fmt: skip
"""What says who asks: keys, or a pod's own identity. That of its node is not asked for: it takes half a minute to find
that there is none."""
_DOCKER_CONFIG = ".dockerconfigjson"
_NO_SIZE = "Content-Length Header missing"
_OUT_OF_RANGE = f" {HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE.value} "
"""In what the library says of answers."""
_CONNECT_SECONDS, _READ_SECONDS, _TOTAL = 10, 60, "24h"


class TransferError(Exception):
    """The connection broke, or the server had trouble: trying again may help."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A file's bytes from ``start`` on; ``start`` is 0 where the server cannot begin elsewhere."""

    size: int
    start: int
    chunks: Iterator[bytes]
    """Raises :class:`TransferError`."""


def open_stream(uri: str, sha256: str, offset: int, credentials: Mapping[str, str]) -> Stream:
    """Begin to read a file at ``offset``.

    Raises :class:`WeightsError` where trying again is in vain, :class:`TransferError` where it is not.
    """
    parts = urlsplit(uri)
    if parts.fragment or (parts.query and parts.scheme not in ("http", "https")):
        raise WeightsError(
            f"weights {without_secrets(uri)}: an address with # is not supported, nor with ? but of https://: give keys"
            " in weights.secretRef"
        )
    try:
        if parts.scheme == "oci":
            return _open_blob(uri, sha256, offset, credentials)
        return _open_object(uri, offset, credentials)
    except ImportError as error:
        raise WeightsError(f"weights {without_secrets(uri)}: {error}: pip install 'splitplane[runtime]'") from error


def read_credentials(folder: Path | None) -> dict[str, str]:
    """The contents of the files in a folder by name; of a mounted Secret, its keys. Raises :class:`WeightsError`."""
    if folder is None:
        return {}
    try:
        return {path.name: path.read_text().strip() for path in folder.iterdir() if path.is_file()}
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"cannot read the credentials of the weights in {folder}: {error}") from error


def _open_object(uri: str, offset: int, credentials: Mapping[str, str]) -> Stream:
    """From a web server or an S3-compatible store."""
    import obstore
    from obstore.exceptions import BaseError, NotSupportedError, PermissionDeniedError, UnauthenticatedError

    try:
        store, path = _store(uri, credentials)
        try:
            found = obstore.get(store, path, options={"range": {"offset": offset}} if offset else {})
            start = offset
        except (FileNotFoundError, PermissionDeniedError, UnauthenticatedError):
            raise
        except BaseError as error:
            # A server without ranges answers with the whole file, which the library takes for an error; and what is
            # here may be longer than the file. Of any other trouble what is here already is no part.
            if not offset or not (isinstance(error, NotSupportedError) or _OUT_OF_RANGE in str(error)):
                raise
            found, start = obstore.get(store, path), 0
    except (PermissionDeniedError, UnauthenticatedError) as error:
        advice = "check weights.secretRef"
        if urlsplit(uri).scheme == "s3":
            advice = "check weights.secretRef; the role of a pod's node is not asked for"
        if urlsplit(uri).query:
            advice = "if the address was signed, that may have run out: sign weights.uri anew"
        raise WeightsError(f"weights {without_secrets(uri)}: access denied: {advice} ({_told(error, uri)})") from error
    except FileNotFoundError as error:
        raise WeightsError(f"weights {without_secrets(uri)}: there is no such file: correct weights.uri") from error
    except (BaseError, ValueError) as error:
        if _NO_SIZE in str(error):
            raise WeightsError(
                f"weights {without_secrets(uri)}: the server does not say how long the file is (no Content-Length), as "
                "is so of answers that are made, or compressed, while they are sent: have it served as a plain file"
            ) from error
        raise TransferError(_told(error, uri)) from error

    def chunks() -> Iterator[bytes]:
        try:
            for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)
        except (BaseError, OSError) as error:
            raise TransferError(_told(error, uri)) from error

    return Stream(found.meta["size"], start, chunks())


def _store(uri: str, credentials: Mapping[str, str]) -> tuple[Any, str]:
    from obstore.store import HTTPStore, S3Store

    parts = urlsplit(uri)
    retries: Any = {"max_retries": 2}
    options: dict[str, Any] = {
        "connect_timeout": f"{_CONNECT_SECONDS}s", "read_timeout": f"{_READ_SECONDS}s", "timeout": _TOTAL,
    }  # fmt: skip
    if "ca.crt" in credentials:
        options["root_certificate"] = credentials["ca.crt"].encode()
    path = unquote(parts.path).lstrip("/")
    if parts.scheme == "s3":
        config: dict[str, Any] = {key.lower(): credentials[key] for key in _S3_KEYS if key in credentials}
        endpoint = config.get("aws_endpoint_url") or os.environ.get("AWS_ENDPOINT_URL", "")
        _check_s3_keys(uri, {**os.environ, **credentials}, endpoint)
        options["allow_http"] = endpoint.startswith("http://")
        if not any(name in credentials or name in os.environ for name in _S3_IDENTITIES):
            config["skip_signature"] = True  # nobody has given a key: it is a public bucket, or the store will say so
        if not path:
            raise WeightsError(f"weights {without_secrets(uri)}: it names a bucket, and no file: s3://bucket/key")
        return S3Store(parts.netloc, config=config, client_options=options, retry_config=retries), path  # type: ignore[arg-type]
    authorization = _authorization(credentials)
    if authorization:
        if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            raise WeightsError(f"weights {without_secrets(uri)}: credentials are not sent without TLS: use https://")
        options["default_headers"] = {"Authorization": authorization}
    options["allow_http"] = parts.scheme == "http"
    root = (
        f"{parts.scheme}://{parts.netloc}{f'?{parts.query}' if parts.query else ''}"  # the path goes before the query
    )
    return HTTPStore.from_url(root, client_options=options, retry_config=retries), path  # type: ignore[arg-type]


def _check_s3_keys(uri: str, keys: Mapping[str, str], endpoint: str) -> None:
    """What the library would find out late, or die of."""
    pair = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
    lacking = [key for key in pair if not keys.get(key)]
    if len(lacking) == 1:
        other = pair[1 - pair.index(lacking[0])]
        raise WeightsError(
            f"weights {without_secrets(uri)}: {other} is given without {lacking[0]}: correct weights.secretRef"
        )
    if endpoint and not (endpoint.startswith(("https://", "http://")) and urlsplit(endpoint).hostname):
        raise WeightsError(
            f"weights {without_secrets(uri)}: AWS_ENDPOINT_URL must be https://host or http://host, with a :port if it "
            f"has one, not {hide(endpoint, endpoint)}: correct weights.secretRef"
        )


def _authorization(credentials: Mapping[str, str]) -> str | None:
    if "token" in credentials:
        return f"Bearer {credentials['token']}"
    if "username" in credentials:
        pair = f"{credentials['username']}:{credentials.get('password', '')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"
    return None


def _open_blob(uri: str, sha256: str, offset: int, credentials: Mapping[str, str]) -> Stream:
    """A layer of an OCI artifact: the one whose digest is the file's own."""
    import requests

    reference = uri.removeprefix("oci://")
    try:
        registry, container = _registry(reference, credentials)
        manifest: dict[str, Any] = registry.get_manifest(container)
        if "manifests" in manifest:
            digests = ", ".join(str(each.get("digest")) for each in manifest["manifests"][:5])
            raise WeightsError(
                f"weights {without_secrets(uri)}: an index of several artifacts ({digests}): name the one that holds "
                "the file by its digest, as oci://registry/repository@sha256:..."
            )
        layers = manifest.get("layers") or []
        size = next((int(layer["size"]) for layer in layers if layer["digest"] == f"sha256:{sha256}"), None)
        if size is None:
            raise WeightsError(
                f"weights {without_secrets(uri)}: no layer has the digest sha256:{sha256}; it has "
                f"{_layers(layers)}: push the file itself, not an archive of it (oras push REFERENCE "
                "model.safetensors), or correct weights.sha256"
            )
        # What is compressed on the way has another size, and cannot be resumed.
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={offset}-"} if offset else {})}
        url = f"{registry.prefix}://{container.get_blob_url(f'sha256:{sha256}')}"
        response = registry.do_request(url, "GET", headers=headers, stream=True)
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # what is here is longer than the file
            response.close()
            del headers["Range"]
            response = registry.do_request(url, "GET", headers=headers, stream=True)
        if response.status_code not in (200, 206):
            raise TransferError(f"{response.status_code} {response.reason}")
    except requests.RequestException as error:
        raise TransferError(_told(error, uri)) from error
    except ValueError as error:  # what the client raises for every answer but 200
        if any(word in str(error) for word in ("404", "Not Found", "not found", "unknown")):
            raise WeightsError(
                f"weights {without_secrets(uri)}: there is no such artifact ({_told(error, uri)})"
            ) from error
        if any(word in str(error) for word in ("401", "403", "authentic", "nauthorized", "enied")):
            raise WeightsError(
                f"weights {without_secrets(uri)}: access denied: check weights.secretRef ({_told(error, uri)})"
            ) from error
        raise TransferError(_told(error, uri)) from error

    def chunks() -> Iterator[bytes]:
        try:
            yield from response.iter_content(CHUNK_BYTES)
        except (requests.RequestException, OSError) as error:
            raise TransferError(_told(error, uri)) from error
        finally:
            response.close()

    start = offset if response.status_code == 206 else 0
    return Stream(size, start, chunks())


def _registry(reference: str, credentials: Mapping[str, str]) -> tuple[Any, Any]:
    """A client of the registry that a reference names, and the reference as the client has it."""
    import oras.container
    import oras.provider
    import requests

    class Client(oras.provider.Registry):  # type: ignore[misc]
        # Its own retries would hold a refusal back for two minutes; ours are those of `caching`.
        do_request = oras.provider.Registry.do_request.__wrapped__

    container = oras.container.Container(reference)
    named = container.registry
    container.registry = api_host(named)
    plain = _is_loopback(named.partition(":")[0])
    scheme = "http" if plain else "https"
    asked = requests.get(f"{scheme}://{container.registry}/v2/", timeout=(_CONNECT_SECONDS, _READ_SECONDS))
    kind = "basic" if asked.headers.get("Www-Authenticate", "").lower().startswith("basic") else "token"
    client = Client(hostname=container.registry, insecure=plain, auth_backend=kind)
    client.session.request = _with_timeout(client.session.request)  # the client sets none
    if login := _registry_login(named, container.api_prefix, credentials):
        client.auth.set_basic_auth(*login)
    else:  # of the user who runs this, if it is a user's own machine
        own = oras.container.Container(reference)
        own.registry = DOCKER_HUB_KEY if is_docker_hub(named) else named
        client.auth.load_configs(own)
    if kind == "basic" and not hasattr(client.auth, "_basic_auth"):
        raise WeightsError(
            f"weights oci://{reference}: access denied: the registry wants a user: set weights.secretRef"
        )
    return client, container


def _registry_login(registry: str, repository: str, credentials: Mapping[str, str]) -> tuple[str, str] | None:
    if "username" in credentials:
        return credentials["username"], credentials.get("password", "")
    try:
        return login_for(registry, repository, credentials[_DOCKER_CONFIG]) if _DOCKER_CONFIG in credentials else None
    except ValueError as error:
        raise WeightsError(f"{_DOCKER_CONFIG} in weights.secretRef: {error}") from error


def _with_timeout(request: Any) -> Any:
    def timed(*arguments: Any, **keywords: Any) -> Any:
        return request(*arguments, **{"timeout": (_CONNECT_SECONDS, _READ_SECONDS), **keywords})

    return timed


def _layers(layers: list[dict[str, Any]]) -> str:
    told = [
        f"{layer['digest']} ({(layer.get('annotations') or {}).get('org.opencontainers.image.title', 'untitled')})"
        for layer in layers[:5]
    ]
    return ", ".join(told) or "no layers"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _told(error: Exception, uri: str) -> str:
    return hide(" ".join(str(error).partition("Debug source")[0].split()), uri)[:300]

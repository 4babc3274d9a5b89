"""The login that a Docker config holds for a registry, as kubelets read it: in any spelling that ``docker login`` and
``kubectl create secret docker-registry`` write."""

import base64
import binascii
import json
from fnmatch import fnmatchcase
from typing import Any

DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""What the entry of Docker Hub is called in a Docker config, and in a store of credentials."""
_DOCKER_HUB_API = "registry-1.docker.io"


def api_host(registry: str) -> str:
    """Where the registry of a reference answers (``host[:port]``): Docker Hub does so elsewhere than its name says."""
    return _DOCKER_HUB_API if is_docker_hub(registry) else registry


def is_docker_hub(registry: str) -> bool:
    return registry in (DOCKER_HUB, "index.docker.io", _DOCKER_HUB_API)


def login_for(registry: str, repository: str, config: str) -> tuple[str, str] | None:
    """User and password for a repository (``team/model``) of a registry (``host[:port]``), if the config has any.

    Of keys with a path the longest that the repository begins with is taken.

    Raises ``ValueError`` where the text is no Docker config.
    """
    try:
        auths = json.loads(config)["auths"]
        for key, entry in sorted(auths.items(), key=lambda item: len(_path(item[0])), reverse=True):
            if _names(key, registry, repository) and (login := _login(entry)):
                return login
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f'not {{"auths": {{"<registry>": {{"auth": ...}}}}}} ({type(error).__name__})') from error
    return None


def _names(key: str, registry: str, repository: str) -> bool:
    """Whether a key is of this registry, by globs for the parts of its name, and of this repository."""
    host, path = key.rpartition("://")[2].partition("/")[0], _path(key)
    patterns, parts = host.split("."), registry.split(".")
    same = len(patterns) == len(parts) and all(map(fnmatchcase, parts, patterns))
    if not same and not (is_docker_hub(host) and is_docker_hub(registry)):
        return False
    return not path or f"{repository}/".startswith(f"{path}/")


def _path(key: str) -> str:
    """Of a key; that of the interface (``/v1/``, ``/v2/``) is none."""
    path = key.rpartition("://")[2].partition("/")[2].strip("/")
    return "" if path in ("v1", "v2") else path.removeprefix("v1/").removeprefix("v2/")


def _login(entry: dict[str, Any]) -> tuple[str, str] | None:
    if entry.get("auth"):
        user, password = base64.b64decode(entry["auth"], validate=True).decode().split(":", 1)
        return user, password
    return (entry["username"], entry.get("password", "")) if entry.get("username") else None

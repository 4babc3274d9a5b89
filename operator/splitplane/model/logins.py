"""The login that a Docker config holds for a registry, as kubelets read it: in any spelling that ``docker login`` and
``kubectl create secret docker-registry`` write."""

import base64
import binascii
import json
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


def login_for(registry: str, config: str) -> tuple[str, str] | None:
    """User and password for a registry (``host[:port]``); ``None`` where the config has none for it.

    Raises ``ValueError`` where the text is no Docker config.
    """
    try:
        auths = json.loads(config)["auths"]
        for key, entry in auths.items():
            host = key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]
            if (host == registry or (is_docker_hub(host) and is_docker_hub(registry))) and (login := _login(entry)):
                return login
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f'not {{"auths": {{"<registry>": {{"auth": ...}}}}}} ({type(error).__name__})') from error
    return None


def _login(entry: dict[str, Any]) -> tuple[str, str] | None:
    if entry.get("auth"):
        user, password = base64.b64decode(entry["auth"], validate=True).decode().split(":", 1)
        return user, password
    return (entry["username"], entry.get("password", "")) if entry.get("username") else None

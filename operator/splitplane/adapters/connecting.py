"""Ways to the API server: the pod's own ServiceAccount or a kubeconfig, with tokens that are replaced while in use."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config.config_exception import ConfigException

from splitplane.adapters.cluster import Forbidden
from splitplane.adapters.kubernetes_api import KubernetesCluster

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

# The client ships inline annotations for a part of its code only.
_load_incluster_config: Any = kubernetes_config.load_incluster_config
_load_kube_config: Any = kubernetes_config.load_kube_config

_TOKEN_REFRESH_SECONDS = 60.0


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

"""A client of the API server whose token is replaced while it runs, as kubelets replace those of pods."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from splitplane.adapters import connecting
from splitplane.adapters.cluster import Cluster, Forbidden
from splitplane.adapters.connecting import connect
from splitplane.adapters.kinds import CONFIG_MAP

pytestmark = pytest.mark.integration

Kubectl = Callable[..., str]


async def asked_again_and_again(client: Cluster, namespace: str) -> None:
    """Until it is refused; for a while the API server remembers a token that it found good."""
    async with asyncio.timeout(40):
        while True:
            await client.get(CONFIG_MAP, "kube-root-ca.crt", namespace)
            await asyncio.sleep(0.3)


async def test_a_token_that_was_replaced_in_its_file_is_used_without_a_restart(
    kubectl: Kubectl, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def token(secret: str) -> str:
        """A token that ends with ``secret``."""
        bound = ("--bound-object-kind=Secret", f"--bound-object-name={secret}")
        return kubectl("-n", namespace, "create", "token", "reader", *bound).strip()

    monkeypatch.setattr(connecting, "_TOKEN_REFRESH_SECONDS", 0.2)
    kubectl("-n", namespace, "create", "serviceaccount", "reader")
    kubectl("-n", namespace, "create", "role", "reader", "--verb=get", "--resource=configmaps")
    kubectl("-n", namespace, "create", "rolebinding", "r", "--role=reader", f"--serviceaccount={namespace}:reader")
    for secret in ("first", "second"):
        kubectl("-n", namespace, "create", "secret", "generic", secret)
    config = yaml.safe_load(kubectl("config", "view", "--raw"))
    file = tmp_path / "token"
    file.write_text(token("first"))
    config["users"] = [{"name": user["name"], "user": {"tokenFile": str(file)}} for user in config["users"]]
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))

    client = await connect(kubeconfig=str(tmp_path / "kubeconfig"))
    try:
        await client.get(CONFIG_MAP, "kube-root-ca.crt", namespace)
        kubectl("-n", namespace, "delete", "secret", "first")
        with pytest.raises(Forbidden, match="Unauthorized"):
            await asked_again_and_again(client, namespace)

        file.write_text(token("second"))
        await asyncio.sleep(0.3)
        await client.get(CONFIG_MAP, "kube-root-ca.crt", namespace)
        assert (await client.credentials()).token == file.read_text()
    finally:
        await client.close()

"""Logins of registries are found in Docker configs however these spell the registry."""

import base64
import json

import pytest

from splitplane.model.logins import api_host, login_for

ENTRY = {"auth": base64.b64encode(b"user:pass:word").decode()}


def config(**auths: object) -> str:
    return json.dumps({"auths": auths})


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("ghcr.io", "ghcr.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://ghcr.io/v2/", "ghcr.io"),
        ("http://127.0.0.1:5000", "127.0.0.1:5000"),
        ("registry.example.com:5000/team", "registry.example.com:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "index.docker.io"),
        ("*.azurecr.io", "shop.azurecr.io"),
    ],
)
def test_keys_are_read_as_kubelets_read_them(key: str, registry: str) -> None:
    assert login_for(registry, "team/model", config(**{key: ENTRY})) == ("user", "pass:word")
    assert login_for("other.example.com", "team/model", config(**{key: ENTRY})) is None


def test_the_longest_path_that_the_repository_begins_with_is_taken() -> None:
    def entry(user: str) -> dict[str, str]:
        return {"username": user, "password": "p"}

    keys = {
        "ghcr.io/other": entry("a"),
        "ghcr.io": entry("b"),
        "https://ghcr.io/team": entry("c"),
        "ghcr.io/tea": entry("d"),
    }
    found = {
        each: login_for("ghcr.io", each, config(**keys)) for each in ("team/model", "team", "mine/model", "other/x")
    }
    assert {each: login and login[0] for each, login in found.items()} == {
        "team/model": "c", "team": "c", "mine/model": "b", "other/x": "a",
    }  # fmt: skip
    assert login_for("a.b.azurecr.io", "x", config(**{"*.azurecr.io": entry("a")})) is None


def test_an_entry_may_name_user_and_password() -> None:
    assert login_for("ghcr.io", "team/model", config(**{"ghcr.io": {"username": "u", "password": "p"}})) == ("u", "p")
    assert login_for("ghcr.io", "team/model", config(**{"ghcr.io": {}})) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"auths": []}', '{"auths": {"a": {"auth": "?"}}}', '{"auths": {"a": 1}}']
)
def test_what_is_no_docker_config_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not .*auths"):
        login_for("a", "b", text)


def test_docker_hub_answers_elsewhere_than_its_name_says() -> None:
    assert [api_host(each) for each in ("docker.io", "ghcr.io")] == ["registry-1.docker.io", "ghcr.io"]

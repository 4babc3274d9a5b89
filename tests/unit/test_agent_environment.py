"""A container's environment: values, references, the downward API, and what stays out."""

import base64
from pathlib import Path
from typing import Any

import pytest

from splitplane.local.agent import environment
from splitplane.local.agent.environment import NodeFacts, Sources
from splitplane.local.agent.errors import StartError

NODE = NodeFacts(name="edge-1", address="127.9.0.1", cpu="4", memory="8Gi")


def pod(**container: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "u-1",
            "labels": {"app": "web", "b": 'q"uote'}, "annotations": {"note/x": "hello"},
        },
        "spec": {
            "serviceAccountName": "runner",
            "containers": [{"name": "main", "image": "i", **container}],
        },
    }  # fmt: skip


def build(sources: Sources | None = None, base: dict[str, str] | None = None, **container: Any) -> dict[str, str]:
    whole = pod(**container)
    return environment.build(
        whole,
        whole["spec"]["containers"][0],
        base=base or {},
        sources=sources or Sources(),
        pod_ip="127.9.0.2",
        node=NODE,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(C)", "$(C)"),
        ("$A ${A}", "$A ${A}"),
        ("$(A", "$(A"),
    ],
)
def test_references_expand_as_in_kubernetes(text: str, expected: str) -> None:
    assert environment.expand(text, {"A": "1", "B": "2"}) == expected


def test_a_value_sees_only_variables_before_it() -> None:
    env = build(env=[{"name": "A", "value": "$(B)"}, {"name": "B", "value": "b"}, {"name": "C", "value": "$(B)"}])
    assert (env["A"], env["C"]) == ("$(B)", "b")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "web-0"),
        ("metadata.namespace", "shop"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['note/x']", "hello"),
        ("metadata.labels['none']", ""),
        ("spec.nodeName", "edge-1"),
        ("spec.serviceAccountName", "runner"),
        ("status.podIP", "127.9.0.2"),
        ("status.hostIP", "127.9.0.1"),
    ],
)
def test_downward_fields(path: str, expected: str) -> None:
    assert build(env=[{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}])["X"] == expected


def test_all_labels_are_lines_with_quoted_values() -> None:
    text = environment.field_value(pod(), "metadata.labels", pod_ip="", node=NODE)
    assert text == 'app="web"\nb="q\\"uote"'


def test_an_unknown_field_is_a_configuration_error() -> None:
    with pytest.raises(StartError, match=r"spec\.volumes") as caught:
        build(env=[{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.volumes"}}}])
    assert caught.value.reason == "CreateContainerConfigError"


@pytest.mark.parametrize(
    ("resource", "divisor", "expected"),
    [
        ("limits.cpu", "1m", "1500"),
        ("limits.cpu", "0", "2"),
        ("requests.memory", "1Mi", "64"),
        ("limits.memory", "1Gi", "8"),
        ("requests.cpu", None, "0"),
    ],
)
def test_resource_fields_round_up_in_units_of_the_divisor(resource: str, divisor: str | None, expected: str) -> None:
    reference = {"resource": resource} | ({"divisor": divisor} if divisor else {})
    resources = {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}
    env = build(resources=resources, env=[{"name": "X", "valueFrom": {"resourceFieldRef": reference}}])
    assert env["X"] == expected


def test_env_wins_over_env_from_and_both_over_the_base() -> None:
    sources = Sources(config_maps={"c": {"data": {"A": "map", "B": "map"}}})
    env = build(
        sources, base={"A": "base", "D": "base"},
        envFrom=[{"configMapRef": {"name": "c"}, "prefix": ""}], env=[{"name": "B", "value": "env"}],
    )  # fmt: skip
    assert env == {"A": "map", "B": "env", "D": "base"}


def test_secrets_are_decoded_and_prefixed() -> None:
    sources = Sources(secrets={"s": {"data": {"K": base64.b64encode(b"v").decode()}}})
    env = build(
        sources, envFrom=[{"secretRef": {"name": "s"}, "prefix": "P_"}],
        env=[{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "K"}}}],
    )  # fmt: skip
    assert env == {"P_K": "v", "X": "v"}


def test_an_optional_source_that_is_missing_sets_nothing() -> None:
    sources = Sources(config_maps={"c": None})
    env = build(
        sources, envFrom=[{"configMapRef": {"name": "c", "optional": True}}],
        env=[{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k", "optional": True}}}],
    )  # fmt: skip
    assert env == {}


def test_a_required_source_that_is_missing_is_named() -> None:
    with pytest.raises(StartError, match='configmap "c" not found'):
        build(Sources(config_maps={"c": None}), envFrom=[{"configMapRef": {"name": "c"}}])
    reference = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    with pytest.raises(StartError, match="couldn't find key k in Secret s"):
        build(Sources(secrets={"s": {"data": {}}}), env=[reference])


def test_references_of_a_container_are_found() -> None:
    container = {
        "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}],
        "env": [
            {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
            {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "d", "key": "k"}}},
        ],
    }
    assert environment.referenced(container) == ({"a", "c"}, {"b", "d"})


def test_the_base_leaves_the_users_environment_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", "/secret")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    env = environment.base_variables(
        bin_dir=tmp_path / "bin", home=tmp_path, temporary=tmp_path, hostname="p", speed_factor=2.5,
        memory_bytes=environment.memory_limit({"resources": {"limits": {"memory": "1Gi"}}}),
        proxy="http://127.9.0.1:3128", no_proxy=("127.9.0.0/16",),
    )  # fmt: skip
    assert not {"KUBECONFIG", "XDG_CACHE_HOME", "VIRTUAL_ENV"} & env.keys()
    assert env["PATH"].startswith(f"{tmp_path}/bin:")
    assert env["SPLITPLANE_SPEED_FACTOR"] == "2.5"
    assert env["SPLITPLANE_MEMORY_BYTES"] == str(1 << 30)
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["grpc_proxy"] == env["http_proxy"] == "http://127.9.0.1:3128"
    assert env["no_grpc_proxy"].endswith(",127.9.0.0/16")

"""What the API server's audit log tells about rights that are handed on: too many are found, and too few."""

from typing import Any

import pytest

from kindcluster import rights
from kindcluster.rights import Right

OPERATOR = "system:serviceaccount:splitplane-system:splitplane"
GATEWAY = "system:serviceaccount:shop:tracker-gateway"
LIST, WATCH, PATCH = (
    ("", "pods", "list"), ("", "pods", "watch"), ("splitplane.dev", "routetables/status", "patch"),
)  # fmt: skip
RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": ["splitplane.dev"], "resources": ["routetables/status"], "resourceNames": ["tracker"],
     "verbs": ["patch"]},
]  # fmt: skip


def event(user: str, right: Right, *, at: int = 30, code: int = 200, **more: Any) -> dict[str, Any]:
    """A line of the log of second ``at``, with what is read of it."""
    group, path, verb = right
    resource, _, subresource = path.partition("/")
    reference = {"resource": resource, "namespace": "shop", "name": "tracker", "apiGroup": group}
    return {
        "verb": verb,
        "user": {"username": user},
        "userAgent": "OpenAPI-Generator/36.0.2/python",
        "objectRef": reference | ({"subresource": subresource} if subresource else {}),
        "responseStatus": {"code": code},
        "requestReceivedTimestamp": f"2026-01-31T12:00:{at:02}.000001Z",
        "annotations": {"authorization.k8s.io/decision": "forbid" if code == 403 else "allow"},
        **more,
    }


def role(*, rules: list[dict[str, Any]] = RULES, component: str = "gateway", at: int = 20) -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": component}
    body = {"kind": "Role", "metadata": {"name": "tracker-gateway", "namespace": "shop", "labels": labels}}
    right = ("rbac.authorization.k8s.io", "roles", "patch")
    return event(OPERATOR, right, at=at, code=201, responseObject={**body, "rules": rules})


def used(*wanted: Right, user: str = GATEWAY, **more: Any) -> list[dict[str, Any]]:
    return [event(user, right, **more) for right in wanted]


def test_a_role_whose_every_right_is_used_is_as_wide_as_it_has_to_be() -> None:
    found = rights.handed_on([role(), *used(LIST, WATCH, PATCH)])["gateway"]
    assert found.granted == found.asked == {LIST, WATCH, PATCH}
    assert (found.unused, found.lacking, found.refused) == (set(), set(), [])


def test_a_right_that_no_pod_of_the_component_used_is_found() -> None:
    wide = [*RULES, {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
    found = rights.handed_on([role(rules=wide), *used(LIST, WATCH, PATCH)])["gateway"]
    assert found.unused == {("", "secrets", "get")}


def test_a_request_without_a_right_is_found_and_one_before_the_role_is_there_only_told() -> None:
    found = rights.handed_on([*used(LIST, at=19, code=403), role(), *used(LIST, WATCH, PATCH)])["gateway"]
    assert found.lacking == set()
    assert found.refused == ["list pods shop/tracker"]
    found = rights.handed_on([role(), *used(("", "secrets", "get"), code=403)])["gateway"]
    assert found.lacking == {("", "secrets", "get")}


@pytest.mark.parametrize(
    "others",
    [
        used(PATCH, user=OPERATOR),
        used(PATCH, user="system:serviceaccount:elsewhere:tracker-gateway"),
        used(PATCH, userAgent=rights.NOT_COUNTED),
        used(PATCH, at=9),
    ],
    ids=["the operator", "another namespace", "a test", "an earlier session"],
)
def test_what_others_ask_for_is_no_use_of_a_role(others: list[dict[str, Any]]) -> None:
    found = rights.handed_on([role(), *used(LIST, WATCH), *others], since="2026-01-31T12:00:10Z")
    assert found["gateway"].unused == {PATCH}
    assert set(found) == {"gateway"}


def test_pods_without_a_role_that_ask_are_found() -> None:
    stage = "system:serviceaccount:shop:default"
    found = rights.handed_on([role(), *used(LIST, WATCH, PATCH), *used(LIST, user=stage)])
    assert found["serviceaccounts"].lacking == {LIST}
    assert found["gateway"].unused == set()

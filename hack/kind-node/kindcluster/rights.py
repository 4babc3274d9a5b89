"""Rights of the operator, and those that it hands on, held against what was asked of the API server."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kindcluster.cluster import NAMESPACE, Cluster

Right = tuple[str, str, str]
"""API group, resource (with its subresource), verb."""

_ACCOUNTS = f"system:serviceaccount:{NAMESPACE}:"
_DECISION = "authorization.k8s.io/decision"
"""Missing where the API server was too busy to decide."""
_SELECTOR = "--selector=app.kubernetes.io/name=splitplane"

NOT_COUNTED = "splitplane-tests"
"""User agent of requests that a test makes with a pod's token, to see what that opens."""


@dataclass(slots=True)
class Use:
    """What became of rights."""

    granted: set[Right] = field(default_factory=set)
    asked: set[Right] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    """Requests that the API server did not allow, such as ``get secrets default/token``."""

    @property
    def unused(self) -> set[Right]:
        return self.granted - self.asked

    @property
    def lacking(self) -> set[Right]:
        """Asked for without a right to it at any time. What is asked before or after a Role's life is refused only."""
        return self.asked - self.granted


def use(cluster: Cluster) -> Use:
    """The rights that the chart gives the operator now, and what it has asked for since they were made."""
    found = cluster.get("clusterroles", _SELECTOR)["items"]
    (role,) = [role for role in found if not role["metadata"]["name"].endswith((":edit", ":view"))]
    own = cluster.get("roles", _SELECTOR, f"--namespace={NAMESPACE}")["items"]
    events = [
        event
        for event in cluster.audit_events()
        if event["user"]["username"].startswith(_ACCOUNTS)
        # Of this installation: one that is being removed loses its rights before it ends.
        and event["requestReceivedTimestamp"] > role["metadata"]["creationTimestamp"]
    ]
    return Use(granted(rule for body in (role, *own) for rule in body["rules"]), set(asked(events)), _refused(events))


def handed_on(events: Iterable[dict[str, Any]], *, since: str = "") -> dict[str, Use]:
    """The rights that the operator has handed on since then, by the component whose Roles give them, and their use.

    A Role goes with its pipeline or job, so what it gave is read from the log too. A component's pods are taken
    together: one that lived for a second may have used nothing. ``serviceaccounts`` stands for accounts in
    pipelines' namespaces that were given no Role.

    Args:
        events: all of the log.
        since: an instant as Kubernetes writes it (``2026-01-31T12:00:00Z``).
    """
    counted = [
        event for event in events if event["requestReceivedTimestamp"] > since and event.get("userAgent") != NOT_COUNTED
    ]
    found: dict[str, Use] = {}
    components: dict[str, str] = {}
    namespaces: set[str] = set()
    for event in counted:
        role = event.get("responseObject", {})
        if event["user"]["username"].startswith(_ACCOUNTS) and role.get("kind") == "Role":
            metadata = role["metadata"]
            component = metadata["labels"]["app.kubernetes.io/component"]
            components[f"system:serviceaccount:{metadata['namespace']}:{metadata['name']}"] = component
            namespaces.add(metadata["namespace"])
            found.setdefault(component, Use()).granted |= granted(role["rules"])
    for event in counted:
        account = event["user"]["username"]
        if account.startswith("system:serviceaccount:") and account.split(":")[2] in namespaces:
            use = found.setdefault(components.get(account, "serviceaccounts"), Use())
            use.asked |= set(asked([event]))
            use.refused += _refused([event])
    return found


def asked(events: Iterable[dict[str, Any]]) -> Iterator[Right]:
    """The rights that requests took."""
    for event in events:
        at = event.get("objectRef", {})
        if "resource" in at:
            resource = "/".join(filter(None, (at["resource"], at.get("subresource"))))
            group = at.get("apiGroup", "")
            yield group, resource, event["verb"]
            if event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201:
                yield group, resource, "create"  # server-side apply of what was not there asks for both


def granted(rules: Iterable[dict[str, Any]]) -> set[Right]:
    """The rights that rules of roles give; to which objects of a kind is left out."""
    return {right for rule in rules for right in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])}


def _refused(events: Iterable[dict[str, Any]]) -> list[str]:
    return [_words(event) for event in events if event.get("annotations", {}).get(_DECISION) == "forbid"]


def _words(event: dict[str, Any]) -> str:
    at = event.get("objectRef", {})
    return f"{event['verb']} {at.get('resource')} {at.get('namespace', '')}/{at.get('name', '')}"

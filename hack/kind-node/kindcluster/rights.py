"""The operator's rights, held against what it has asked of the API server: no fewer, no more."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kindcluster.cluster import NAMESPACE, Cluster

Right = tuple[str, str, str]
"""API group, resource (with its subresource), verb."""

_ACCOUNTS = f"system:serviceaccount:{NAMESPACE}:"
_SELECTOR = "--selector=app.kubernetes.io/name=splitplane"


@dataclass(frozen=True, slots=True)
class Use:
    """What became of an installation's rights."""

    granted: set[Right]
    asked: set[Right]
    refused: list[str]
    """Requests that the API server did not allow, such as ``get secrets default/token``."""

    @property
    def unused(self) -> set[Right]:
        return self.granted - self.asked


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
    refused = [event for event in events if event["annotations"]["authorization.k8s.io/decision"] == "forbid"]
    return Use(granted(rule for body in (role, *own) for rule in body["rules"]), set(asked(events)),
               [_words(event) for event in refused])  # fmt: skip


def asked(events: Iterable[dict[str, Any]]) -> Iterator[Right]:
    """The rights that requests took."""
    for event in events:
        at = event.get("objectRef", {})
        if "resource" in at:
            resource = "/".join(filter(None, (at["resource"], at.get("subresource"))))
            group = at.get("apiGroup", "")
            yield group, resource, event["verb"]
            if event["verb"] == "patch" and event["responseStatus"]["code"] == 201:
                yield group, resource, "create"  # server-side apply of what was not there asks for both


def granted(rules: Iterable[dict[str, Any]]) -> set[Right]:
    """The rights that rules of roles give; to which objects of a kind is left out."""
    return {right for rule in rules for right in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])}


def _words(event: dict[str, Any]) -> str:
    at = event.get("objectRef", {})
    return f"{event['verb']} {at.get('resource')} {at.get('namespace', '')}/{at.get('name', '')}"

"""The operator's rights against what it asked of the API server in the tests before: no fewer, no more."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator

from kindcluster import audit
from kindcluster.cluster import NAMESPACE, Cluster
from tests.support import operator_cases as cases

Right = tuple[str, str, str]
"""API group, resource (with its subresource), verb."""

NOT_SEEN_HERE = {
    ("", "configmaps", "get"),  # handed on to a profile job's Role, which went with its job
    (
        "splitplane.dev",
        "modelprofiles",
        "patch",
    ),  # when a second pipeline comes to share a profile: no test here has two
}
OPERATOR = f"system:serviceaccount:{NAMESPACE}:"


def asked(events: Iterable[cases.Json]) -> Iterator[Right]:
    for event in events:
        at = event.get("objectRef", {})
        if "resource" in at:
            resource = "/".join(filter(None, (at["resource"], at.get("subresource"))))
            group = at.get("apiGroup", "")
            yield group, resource, event["verb"]
            if event["verb"] == "patch" and event["responseStatus"]["code"] == 201:
                yield group, resource, "create"  # server-side apply of what was not there asks for both


def granted(rules: Iterable[cases.Json]) -> set[Right]:
    return {right for rule in rules for right in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])}


def test_the_operator_asks_for_nothing_that_it_may_not_do_and_may_do_nothing_that_it_never_asks_for(
    kind: Cluster, serving: cases.Measured, kubectl: Callable[..., str]
) -> None:
    found = json.loads(kubectl("get", "clusterrole", "--selector=app.kubernetes.io/name=splitplane", "--output=json"))
    (role,) = [role for role in found["items"] if not role["metadata"]["name"].endswith((":edit", ":view"))]
    events = [
        event
        for event in audit.requests(kind.shared_folder)
        if event["user"]["username"].startswith(OPERATOR)
        # Of this installation: one that is being removed loses its rights before it ends.
        and event["requestReceivedTimestamp"] > role["metadata"]["creationTimestamp"]
    ]
    refused = [event for event in events if event["annotations"]["authorization.k8s.io/decision"] == "forbid"]
    assert [(event["verb"], event["objectRef"]) for event in refused] == []

    passed_on = granted(rule for made in serving.ns.items("roles") for rule in made["rules"])
    unused = granted(role["rules"]) - set(asked(events)) - passed_on
    assert unused <= NOT_SEEN_HERE

"""How much of a pipeline a drain may take at once (PodDisruptionBudgets), as pure functions. Golden tests pin them.

Pods that are not ready may always be evicted: a broken one never holds up a drain. A single replica may be, too, as
its node could never be drained otherwise.
"""

from collections.abc import Mapping

from splitplane.controller.objects import Object, labels_of


def gateway_budget(metadata: Object, match: Mapping[str, str]) -> Object:
    """One gateway at a time: the next one starts in a second."""
    return _budget(metadata, match, 1)


def stage_budget(deployment: Object) -> Object:
    """Half of a stage's replicas: nodes can be drained one by one, even where none has room for what another held.

    Args:
        deployment: as the API server has it; it owns the budget, which goes with it.
    """
    known = deployment["metadata"]
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": known["name"], "uid": known["uid"]}
    metadata = {
        "name": known["name"],
        "namespace": known["namespace"],
        "labels": dict(labels_of(deployment)),
        "ownerReferences": [{**reference, "controller": True}],
    }
    return _budget(metadata, deployment["spec"]["selector"]["matchLabels"], "50%")


def _budget(metadata: Object, match: Mapping[str, str], most: int | str) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata,
        "spec": {
            "maxUnavailable": most,
            "selector": {"matchLabels": dict(match)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }

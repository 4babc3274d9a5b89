"""Who may connect to a pipeline's stages (NetworkPolicies), as a pure function. Golden tests pin it.

A stage takes routes over gRPC, and calls the addresses in them: so that port is for those who write routes, gateways
and the stages before it. Probes and metrics are for kubelets and Prometheus, wherever it runs.
"""

from collections.abc import Iterable, Mapping

from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.children import finished, metadata_of
from splitplane.controller.naming import peers_name, stages_name
from splitplane.controller.objects import APP, COMPONENT_LABEL, NAME_LABEL, PIPELINE_LABEL, Object
from splitplane.controller.pods import GRPC_PORT, HTTP_PORT, labels


def stage_policy(metadata: Object, match: Mapping[str, str], callers: Iterable[str]) -> Object:
    """For the pods that ``match``: gRPC from gateways and stages of the pipelines ``callers``, HTTP from anywhere."""
    senders = {
        "matchLabels": {NAME_LABEL: APP},
        "matchExpressions": [
            {"key": COMPONENT_LABEL, "operator": "In", "values": ["gateway", "stage"]},
            {"key": PIPELINE_LABEL, "operator": "In", "values": sorted(callers)},
        ],
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": dict(match)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": senders}], "ports": [{"port": GRPC_PORT, "protocol": "TCP"}]},
                {"ports": [{"port": HTTP_PORT, "protocol": "TCP"}]},
            ],
        },
    }


def stages_policy(pipeline: InferencePipeline, *, sites: Iterable[str] = ()) -> Object:
    """NetworkPolicy of all stages of a pipeline. ``sites`` are the pipelines that share its replicas."""
    name = pipeline.metadata.name
    callers = {name, peers_name(pipeline), *sites}
    metadata = metadata_of(pipeline, stages_name(name), "stage")
    return finished(stage_policy(metadata, labels(name, "stage"), callers))

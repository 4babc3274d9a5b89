"""A pipeline, nodes and pods for the controller's tests."""

from typing import Any

from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.children import StageKey
from splitplane.controller.control import PublishedRoute, RouteStep, Serving, StageSet
from splitplane.controller.settings import Settings
from splitplane.domain.plans import Plan, Prediction, Stage

Json = dict[str, Any]

SETTINGS = Settings(
    prometheus_url="http://prometheus", runtime_image="splitplane/runtime:1", operator_image="splitplane/operator:1"
)


def tier(name: str, **more: Any) -> Json:
    return {
        "name": name,
        "nodeSelector": {"splitplane.dev/tier": name},
        "tolerations": [{"key": "splitplane.dev/tier", "operator": "Equal", "value": name, "effect": "NoSchedule"}],
        "deviceClass": f"{name}-device",
        "trusted": name == "edge",
        "replicas": {"min": 0, "max": 4},
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        **more,
    }


def pipeline_body(**spec: Any) -> Json:
    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "InferencePipeline",
        "metadata": {"name": "tracker", "namespace": "shop", "uid": "u-1", "generation": 3, "resourceVersion": "10"},
        "spec": {
            "model": {
                "factory": "pitch:build",
                "weights": {"uri": "pvc://models/crepe/full.safetensors", "sha256": "a" * 64},
                "inputs": [{"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}],
                "env": [{"name": "PYTHONPATH", "value": "/code"}],
                "volumes": [{"name": "code", "configMap": {"name": "code"}}],
                "volumeMounts": [{"name": "code", "mountPath": "/code", "readOnly": True}],
            },
            "objectives": {"latencyP95Milliseconds": 200},
            "tiers": [tier("edge"), tier("cloud", trusted=False)],
            "gateway": {"tier": "edge"},
            **spec,
        },
    }


def pipeline(**spec: Any) -> InferencePipeline:
    return InferencePipeline.parse(pipeline_body(**spec))


def node(name: str, tier: str, *, ready: bool = True, cpu: str = "4", **more: Any) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"splitplane.dev/tier": tier}},
        "spec": {"taints": [{"key": "splitplane.dev/tier", "value": tier, "effect": "NoSchedule"}], **more},
        "status": {
            "allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
        },
    }


def pod(name: str, node: str, *, cpu: str = "1", labels: Json | None = None, **status: Any) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels or {}},
        "spec": {"nodeName": node, "containers": [{"resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}]},
        "status": {"phase": "Running", **status},
    }


def serving(split: int = 3, *, name: str = "a", edge: int = 2, cloud: int = 1, model: str = "m") -> Serving:
    """A plan over edge and cloud, cut at ``split`` of 7, on Deployments called after ``name``."""
    plan = Plan((Stage("edge", 0, split, 0, split, edge), Stage("cloud", split, 7, split, 7, cloud)), ("int8",))
    stages = (
        StageSet(f"edge-{name}", StageKey("edge", 0, split, "f"), edge),
        StageSet(f"cloud-{name}", StageKey("cloud", split, 7, "f"), cloud),
    )
    steps = (RouteStep(f"edge-{name}", "edge", 0, split), RouteStep(f"cloud-{name}", "cloud", split, 7))
    route = PublishedRoute(str(plan), steps, ("int8",), 10.0)
    return Serving(plan, Prediction(0.1, 0.08, 0.4, 10.0), stages, (route,), model)

"""Objects that every embedded cluster has from its first minute: pure builders."""

from collections.abc import Mapping
from typing import Any

from splitplane.local.identities import PROMETHEUS_USER, PROVISIONER_USER

STORAGE_CLASS = "local-file"
PROVISIONER = "splitplane.dev/local-file"

_RBAC = "rbac.authorization.k8s.io"


def bootstrap(facts: Mapping[str, str]) -> dict[str, Any]:
    """RBAC of Prometheus and of the volume provisioner, the default StorageClass, and the ConfigMap with ``facts``."""
    items = [
        *_reader("prometheus", PROMETHEUS_USER, [_rule("", ["pods", "nodes"], ["get", "list", "watch"])]),
        *_reader(
            "volume-provisioner",
            PROVISIONER_USER,
            [
                _rule("", ["persistentvolumeclaims"], ["get", "list"]),
                _rule("", ["persistentvolumes"], ["get", "list", "create", "delete"]),
                _rule("", ["nodes"], ["get", "list", "delete"]),
            ],
        ),
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "splitplane-local", "namespace": "kube-public"},
            "data": dict(facts),
        },
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _rule(group: str, resources: list[str], verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _reader(name: str, user: str, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    full_name = f"splitplane-local:{name}"
    return [
        {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": full_name}, "rules": rules},
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": full_name},
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": full_name},
            "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": user}],
        },
    ]


_META = "__meta_kubernetes_pod"
_PIPELINE = f"{_META}_label_splitplane_dev_pipeline"


def prometheus_config(
    *, kubeconfig: str | None = None, node_targets: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Prometheus' configuration: annotated running pods, and the nodes' own metrics.

    Whose a sample is, its pod's metadata say and not the pod: no pod can speak for a pipeline that it is no part of,
    nor of what a node costs (docs/prometheus.md).

    Args:
        kubeconfig: path of the kubeconfig that Prometheus finds pods with; None where it runs in the cluster itself.
        node_targets: node name to ``address:port`` of its metrics.
    """
    discovery = {"role": "pod"} if kubeconfig is None else {"role": "pod", "kubeconfig_file": kubeconfig}
    prices = {"source_labels": ["__name__"], "regex": "node_total_hourly_cost", "action": "drop"}
    pretence = {"source_labels": ["__name__", "pipeline"], "regex": "splitplane_.+;.+", "action": "drop"}
    pipelines = [
        {"source_labels": [_PIPELINE], "regex": ".+", "action": "keep"},
        {"source_labels": [_PIPELINE], "target_label": "pipeline"},
    ]
    others = [{"source_labels": [_PIPELINE], "regex": ".+", "action": "drop"}]
    return {
        "global": {"scrape_interval": "5s", "scrape_timeout": "4s", "evaluation_interval": "15s"},
        "scrape_configs": [
            _pods("pipelines", discovery, relabel=pipelines, filters=[prices]),
            _pods("pods", discovery, relabel=others, filters=[prices, pretence]),
            {
                "job_name": "nodes",
                "honor_labels": True,
                "static_configs": [
                    {"targets": [target], "labels": {"node": node}}
                    for node, target in sorted((node_targets or {}).items())
                ],
            },
        ],
    }


def _pods(
    job: str, discovery: Mapping[str, str], *, relabel: list[dict[str, Any]], filters: list[dict[str, Any]]
) -> dict[str, Any]:
    """One scrape job. A pod is discovered once per port; targets that come out alike are scraped once."""
    annotation = f"{_META}_annotation_prometheus_io"
    return {
        "job_name": job,
        "honor_labels": False,
        "kubernetes_sd_configs": [dict(discovery)],
        "relabel_configs": [
            {"source_labels": [f"{annotation}_scrape"], "regex": "true", "action": "keep"},
            {"source_labels": [f"{_META}_phase"], "regex": "Running", "action": "keep"},
            {
                "source_labels": [f"{_META}_ip", f"{annotation}_port"],
                "regex": r"(.+);(\d+)",
                "replacement": "$1:$2",
                "target_label": "__address__",
            },
            {"source_labels": [f"{annotation}_path"], "regex": "(.+)", "target_label": "__metrics_path__"},
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            {"source_labels": [f"{_META}_name"], "target_label": "pod"},
            {"source_labels": [f"{_META}_node_name"], "target_label": "node"},
            *relabel,
        ],
        "metric_relabel_configs": filters,
    }

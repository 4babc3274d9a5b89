"""The chart on a real API server: what it installs, what it may do there, and what outlives it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from splitplane.api.pipelines import InferencePipeline
from splitplane.controller import children, network_policies
from splitplane.controller.disruptions import stage_budget
from splitplane.controller.settings import Settings

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "splitplane"
OPERATOR = "system:serviceaccount:splitplane-system:splitplane"
SETTINGS = Settings(
    prometheus_url="http://p", runtime_image="splitplane/runtime:1", operator_image="splitplane/operator:1"
)
Ask = Callable[..., tuple[bool, str]]
Helm = Callable[..., str]
Object = dict[str, Any]


def _pipeline() -> Object:
    resource: Object = yaml.safe_load((ROOT / "examples" / "pitch-tracker.yaml").read_text())
    return resource


@pytest.fixture
def pipeline(ask: Ask, restricted: str) -> InferencePipeline:
    """The pitch tracker as the API server keeps it."""
    made, said = ask("create", f"--namespace={restricted}", "--output=json", "-f", "-", stdin=_pipeline())
    assert made, said
    return InferencePipeline.parse(json.loads(said))


def _made_for(pipeline: InferencePipeline) -> list[Object]:
    """One of each kind of object that the operator makes for a pipeline, all but the RouteTable."""
    key = children.StageKey(tier="edge", resident_first=0, resident_last=3, fingerprint="f")
    edge = pipeline.spec.tiers[0]
    return [
        network_policies.stages_policy(pipeline),
        *children.gateway_objects(pipeline, SETTINGS),
        *children.profile_objects(pipeline, edge, name="profile-edge", profile="f", attempt=1, settings=SETTINGS),
        children.stage_deployment(pipeline, key, replicas=1, settings=SETTINGS),
    ]


def _route_table(pipeline: InferencePipeline, generation: int) -> Object:
    tensors = [tensor.dump() for tensor in pipeline.spec.model.inputs]
    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "RouteTable",
        "metadata": {"name": pipeline.metadata.name, "namespace": pipeline.metadata.namespace},
        "spec": {
            "generation": generation,
            "model": {"name": pipeline.metadata.name, "inputs": tensors, "outputs": tensors},
        },
    }


def _apply(ask: Ask, resource: Object, *, user: str = "") -> tuple[bool, str]:
    return ask("apply", "--server-side", "--field-manager=splitplane", "-f", "-", user=user, stdin=resource)


def test_operator_may_make_everything_that_a_pipeline_needs(ask: Ask, pipeline: InferencePipeline) -> None:
    *others, stage = _made_for(pipeline)
    for resource in [*others, _route_table(pipeline, 1)]:
        made, said = _apply(ask, resource, user=OPERATOR)
        assert made, said
    made, said = ask("apply", "--server-side", "--output=json", "-f", "-", user=OPERATOR, stdin=stage)
    assert made, said
    made, said = _apply(ask, stage_budget(json.loads(said)), user=OPERATOR)
    assert made, said


def test_operator_may_not_grant_what_it_does_not_hold(ask: Ask, pipeline: InferencePipeline) -> None:
    (role,) = [item for item in children.gateway_objects(pipeline, SETTINGS) if item["kind"] == "Role"]
    role["rules"].append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]})
    made, said = _apply(ask, role, user=OPERATOR)
    assert not made
    assert "attempting to grant RBAC permissions not currently held" in said


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("create", "pods"),
        ("delete", "namespaces"),
        ("update", "inferencepipelines.splitplane.dev"),
        ("deletecollection", "inferencepipelines.splitplane.dev"),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
    ],
)
def test_operator_may_not(ask: Ask, installed: None, verb: str, resource: str) -> None:
    allowed, said = ask("auth", "can-i", verb, resource, "--all-namespaces", user=OPERATOR)
    assert not allowed
    assert said.splitlines()[-1] == "no"


@dataclass(frozen=True)
class Gateway:
    """Requests in the gateway's own name; each answers with the HTTP status."""

    api: client.CustomObjectsApi
    namespace: str

    def patch(self, table: str, patched: Object, *, status: bool) -> int:
        patch = self.api.patch_namespaced_custom_object_status if status else self.api.patch_namespaced_custom_object
        return _status(patch, "splitplane.dev", "v1alpha1", self.namespace, "routetables", table, patched)

    def read(self, plural: str, name: str) -> int:
        """By a selector of one name, which is how its watch begins."""
        found = partial(self.api.list_namespaced_custom_object, field_selector=f"metadata.name={name}")
        return _status(found, "splitplane.dev", "v1alpha1", self.namespace, plural)

    def delete(self, table: str) -> int:
        delete = self.api.delete_namespaced_custom_object
        return _status(delete, "splitplane.dev", "v1alpha1", self.namespace, "routetables", table)


def _status(call: Callable[..., Any], *arguments: Any) -> int:
    try:
        call(*arguments)
    except client.ApiException as error:
        return int(error.status)
    return 200


def test_gateway_may_acknowledge_its_own_routes_and_nothing_else(
    ask: Ask, api_kubeconfig: Path, pipeline: InferencePipeline
) -> None:
    name, namespace = pipeline.metadata.name, pipeline.metadata.namespace
    other = _route_table(pipeline, 1)
    other["metadata"]["name"] = "other"
    for resource in [*children.gateway_objects(pipeline, SETTINGS), _route_table(pipeline, 1), other]:
        made, said = _apply(ask, resource)
        assert made, said
    report = {"acknowledgedGeneration": 1, "inFlight": [{"generation": 1, "requests": 3}]}
    acknowledged = {"status": {"gateways": {"pod-0": report}}}
    with config.new_client_from_config(str(api_kubeconfig)) as connection:
        connection.set_default_header("Impersonate-User", f"system:serviceaccount:{namespace}:{name}-gateway")
        gateway = Gateway(client.CustomObjectsApi(connection), namespace)
        assert gateway.read("routetables", name) == 200
        assert gateway.patch(name, acknowledged, status=True) == 200
        assert gateway.patch(name, {"spec": {"generation": 9}}, status=False) == 403
        assert gateway.patch("other", acknowledged, status=True) == 403
        assert gateway.read("routetables", "other") == 403
        assert gateway.read("inferencepipelines", name) == 403
        assert gateway.delete(name) == 403
    _, generation = ask(
        "get",
        "rtable",
        name,
        f"--namespace={namespace}",
        "--output=jsonpath={.status.gateways.pod-0.acknowledgedGeneration}",
    )
    assert generation == "1"


def test_generation_of_routes_never_falls_back(ask: Ask, pipeline: InferencePipeline) -> None:
    assert _apply(ask, _route_table(pipeline, 8), user=OPERATOR)[0]
    done, said = _apply(ask, _route_table(pipeline, 7), user=OPERATOR)
    assert not done
    assert "spec.generation" in said
    assert "may only grow" in said
    assert _apply(ask, _route_table(pipeline, 8), user=OPERATOR)[0]


def test_every_pod_meets_the_restricted_standard(ask: Ask, helm: Helm, pipeline: InferencePipeline) -> None:
    chart = [item for item in yaml.safe_load_all(helm("get", "manifest", "splitplane")) if item]
    workloads = [item for item in (*_made_for(pipeline), *chart) if "template" in item.get("spec", {})]
    assert sorted(item["kind"] for item in workloads) == ["DaemonSet", "Deployment", "Deployment", "Deployment", "Job"]
    for workload in workloads:
        spec = workload["spec"]["template"]["spec"]
        # Only the security is in question here: a pod of one's own may not name another namespace's ServiceAccount.
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": pipeline.metadata.namespace},
               "spec": {**spec, "serviceAccountName": "default"}}  # fmt: skip
        accepted, said = ask("create", "--dry-run=server", "-f", "-", stdin=pod)
        assert accepted or "serviceaccount" in said, said
        assert "PodSecurity" not in said


def test_columns_tell_how_a_pipeline_is(ask: Ask, pipeline: InferencePipeline) -> None:
    namespace = pipeline.metadata.namespace
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Serving",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    stage = {"tier": "edge", "firstCut": 0, "lastCut": 3, "residentFirst": 0, "residentLast": 3, "replicas": 2}
    status = {
        "observedGeneration": 1,
        "conditions": [ready],
        "replicas": "edge 2/2",
        "slo": "112 of 900 ms",
        "plan": {"summary": "edge:0-3", "stages": [stage], "observedP95Milliseconds": 112, "costPerHour": "0.50"},
    }
    done, said = ask(
        "patch", "ipipe", pipeline.metadata.name, f"--namespace={namespace}", "--subresource=status", "--type=merge",
        f"--patch={json.dumps({'status': status})}",
    )  # fmt: skip
    assert done, said
    _, table = ask("get", "ipipe", f"--namespace={namespace}")
    header, row = table.splitlines()[:2]
    assert header.split() == ["NAME", "READY", "REASON", "PLAN", "REPLICAS", "P95", "SLO", "COST/H", "AGE"]
    assert row.split()[:-1] == [
        "pitch-tracker",
        "True",
        "Serving",
        "edge:0-3",
        "edge",
        "2/2",
        "112",
        *["112", "of", "900", "ms"],
        "0.50",
    ]


def test_upgrade_brings_the_new_schema(ask: Ask, helm: Helm, installed: None, tmp_path: Path) -> None:
    newer = tmp_path / "splitplane"
    shutil.copytree(CHART, newer)
    crd = newer / "files" / "crds" / "splitplane.dev_modelprofiles.yaml"
    crd.write_text(crd.read_text().replace("- mprof", "- mprof\n    - profile"))
    try:
        helm("upgrade", "splitplane", str(newer), "--reuse-values")
        _, names = ask("get", "crd", "modelprofiles.splitplane.dev", "--output=jsonpath={.spec.names.shortNames}")
        assert json.loads(names) == ["mprof", "profile"]
    finally:
        helm("upgrade", "splitplane", str(CHART), "--reuse-values")
    _, names = ask("get", "crd", "modelprofiles.splitplane.dev", "--output=jsonpath={.spec.names.shortNames}")
    assert json.loads(names) == ["mprof"]


def _second(helm: Helm, *arguments: str) -> str:
    """What Helm would do with another release, in another namespace."""
    return helm("install", "second", str(CHART), "--namespace=default", "--dry-run=server",
                "--set=prometheus.url=http://prometheus.example:9090", *arguments)  # fmt: skip


def test_a_second_release_is_refused_since_it_would_operate_the_same_pipelines(helm: Helm, installed: None) -> None:
    told = "already installed, as splitplane-system/splitplane, and operates the pipelines of all namespaces"
    with pytest.raises(pytest.fail.Exception, match=told):
        _second(helm, "--set=crds.install=false")


def test_uninstall_leaves_pipelines_alone_and_the_next_install_takes_them_over(
    ask: Ask, helm: Helm, pipeline: InferencePipeline
) -> None:
    helm("uninstall", "splitplane")
    try:
        found, _ = ask("get", "ipipe", pipeline.metadata.name, f"--namespace={pipeline.metadata.namespace}")
        assert found
        assert not ask("get", "deployment", "splitplane", "--namespace=splitplane-system")[0]
        # As docs/install.md says: the definitions still name their release, and another one has to take them.
        with pytest.raises(pytest.fail.Exception, match="invalid ownership metadata"):
            _second(helm)
        assert "kind: Deployment" in _second(helm, "--take-ownership")
    finally:
        helm("install", "splitplane", str(CHART), "--set=prometheus.url=http://prometheus.example:9090")
    found, said = ask("get", "ipipe", pipeline.metadata.name, f"--namespace={pipeline.metadata.namespace}")
    assert found, said

"""The pods that the chart makes: where they run, as whom, and by which probes they count as well."""

import json
from typing import Any

import pytest
import yaml

from splitplane.controller import children, loop
from splitplane.controller.children import StageKey
from splitplane.controller.settings import Settings
from tests.support.chart import PROMETHEUS, one, pod, render, template
from tests.support.controller_cases import pipeline


@pytest.fixture(scope="module")
def rendered() -> list[dict[str, Any]]:
    return render()


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet"])
def test_pods_meet_the_restricted_pod_security_standard(rendered: list[dict[str, Any]], kind: str) -> None:
    spec, container = pod(one(rendered, kind))
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all("hostPath" not in volume for volume in spec["volumes"])


def test_one_operator_at_a_time_that_prometheus_scrapes(rendered: list[dict[str, Any]]) -> None:
    deployment = one(rendered, "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    _, container = pod(deployment)
    (port,) = container["ports"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port["name"]}


def test_selectors_match_their_own_pods_only(rendered: list[dict[str, Any]]) -> None:
    workloads = [one(rendered, "Deployment"), one(rendered, "DaemonSet")]
    for workload in workloads:
        wanted = workload["spec"]["selector"]["matchLabels"].items()
        matched = [w for w in workloads if wanted <= w["spec"]["template"]["metadata"]["labels"].items()]
        assert matched == [workload]


def test_link_targets_run_on_every_node_of_a_tier_whatever_its_taints(rendered: list[dict[str, Any]]) -> None:
    daemon_set = one(rendered, "DaemonSet")
    spec, container = pod(daemon_set)
    assert daemon_set["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == "link-target"
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "splitplane.dev/tier", "operator": "Exists"}]}
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["automountServiceAccountToken"] is False
    assert {"name": "grpc", "containerPort": 9000} in container["ports"]


def test_link_targets_can_be_left_out() -> None:
    assert "DaemonSet" not in {document["kind"] for document in render("--set", "linkTarget.enabled=false")}


def assert_patient_for_a_minute(probe: dict[str, Any]) -> None:
    assert probe["failureThreshold"] >= 3
    assert probe["timeoutSeconds"] >= 3
    assert probe["failureThreshold"] * probe["periodSeconds"] <= 60


def test_an_operator_whose_loop_has_stalled_is_restarted_in_three_minutes_and_not_at_the_first_slow_answer(
    rendered: list[dict[str, Any]],
) -> None:
    probe = pod(one(rendered, "Deployment"))[1]["livenessProbe"]
    assert probe["httpGet"] == {"path": "/healthz", "port": "http"}
    assert loop._STALL_SECONDS + probe["failureThreshold"] * probe["periodSeconds"] == 3 * 60  # docs/install.md
    assert_patient_for_a_minute(probe)


def test_a_link_target_that_answers_no_more_is_restarted_within_a_minute(rendered: list[dict[str, Any]]) -> None:
    probe = pod(one(rendered, "DaemonSet"))[1]["livenessProbe"]
    assert probe["httpGet"] == {"path": "/v2/health/live", "port": "http"}
    assert_patient_for_a_minute(probe)


def test_pods_are_ready_when_they_answer(rendered: list[dict[str, Any]]) -> None:
    for kind, path, seconds in (("Deployment", "/healthz", 2), ("DaemonSet", "/v2/health/ready", 10)):
        _, container = pod(one(rendered, kind))
        probe = container["readinessProbe"]
        assert probe["httpGet"] == {"path": path, "port": "http"}
        assert probe["periodSeconds"] <= seconds
        assert {"name": "http", "containerPort": 8080} in container["ports"]


@pytest.mark.parametrize("policy", ["Always", "Never"])
def test_images_are_pulled_by_the_policy_that_the_user_names(policy: str) -> None:
    documents = render("--set", f"image.operator.pullPolicy={policy}")
    assert {pod(one(documents, kind))[1]["imagePullPolicy"] for kind in ("Deployment", "DaemonSet")} == {policy}


def test_the_operator_prefers_nodes_of_no_tier_unless_the_user_says_otherwise(rendered: list[dict[str, Any]]) -> None:
    spec, _ = pod(one(rendered, "Deployment"))
    assert spec["affinity"] == {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 100,
                    "preference": {"matchExpressions": [{"key": "splitplane.dev/tier", "operator": "DoesNotExist"}]},
                }
            ]
        }
    }
    zone = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
    required = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": zone}}}
    mine, _ = pod(one(render("--set-json", f"affinity={json.dumps(required)}"), "Deployment"))
    assert mine["affinity"]["nodeAffinity"].items() >= required["nodeAffinity"].items()


def test_pods_know_their_own_address_and_may_write_to_tmp_alone(rendered: list[dict[str, Any]]) -> None:
    for kind in ("Deployment", "DaemonSet"):
        spec, container = pod(one(rendered, kind))
        variables = {each["name"]: each.get("valueFrom") for each in container["env"]}
        assert variables["SPLITPLANE_POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}
        assert variables["SPLITPLANE_NAMESPACE"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
        assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
        assert spec["volumes"] == [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}]


def test_each_program_has_its_own_command_and_the_resources_of_the_values() -> None:
    documents = render("--set", "resources.limits.memory=1Gi,linkTarget.resources.limits.memory=99Mi")
    for kind, module, memory in (
        ("Deployment", "splitplane.controller", "1Gi"),
        ("DaemonSet", "splitplane.runtime.link_target", "99Mi"),
    ):
        _, container = pod(one(documents, kind))
        assert container["args"] == ["python", "-m", module]
        assert container["resources"]["limits"]["memory"] == memory
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize(("kind", "prefix"), [("Deployment", ""), ("DaemonSet", "linkTarget.")])
def test_pods_carry_the_annotations_and_priority_that_the_user_gives_each(kind: str, prefix: str) -> None:
    documents = render("--set", f"{prefix}podAnnotations.team=edge,{prefix}priorityClassName=high")
    plain = render()
    (other,) = {"Deployment", "DaemonSet"} - {kind}
    template = one(documents, kind)["spec"]["template"]
    before = one(plain, kind)["spec"]["template"]
    known = before["metadata"].get("annotations", {})
    assert template["metadata"]["annotations"] == {**known, "team": "edge"}
    assert template["spec"] == {**before["spec"], "priorityClassName": "high"}
    assert one(documents, other)["spec"] == one(plain, other)["spec"]


def test_an_annotation_of_the_user_takes_the_place_of_the_charts_own() -> None:
    done = template(
        *PROMETHEUS, "--set-string", r"podAnnotations.prometheus\.io/scrape=false,podAnnotations.prometheus\.io/path="
    )
    assert done.stdout.count("prometheus.io/scrape:") == 1  # twice, and clients differ on which one counts
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    own, before = (
        one(each, "Deployment")["spec"]["template"]["metadata"]["annotations"] for each in (documents, render())
    )
    assert own == {**before, "prometheus.io/scrape": "false", "prometheus.io/path": ""}


def operators_settings(documents: list[dict[str, Any]]) -> Settings:
    _, container = pod(one(documents, "Deployment"))
    return Settings.from_environment({each["name"]: each.get("value", "10.0.0.1") for each in container["env"]})


def user_of(template: dict[str, Any]) -> list[Any]:
    safety = template["spec"]["template"]["spec"]["securityContext"]
    assert safety["runAsNonRoot"] is True
    return [safety.get(name) for name in ("runAsUser", "runAsGroup")]


@pytest.mark.parametrize(("value", "user"), [("65532", 65532), ("1000680000", 1000680000), ("null", None)])
def test_all_pods_run_as_the_user_of_the_values_or_as_whom_the_platform_chooses(value: str, user: int | None) -> None:
    documents = render("--set-json", f"runAsUser={value}")  # a float, as of a file of values
    settings = operators_settings(documents)
    resource = pipeline()
    edge = resource.spec.tiers[0]
    made = children.gateway_objects(resource, settings)
    made += children.profile_objects(resource, edge, name="n", profile="f", attempt=1, settings=settings)
    made += [children.stage_deployment(resource, StageKey("edge", 0, 3, "f"), replicas=1, settings=settings)]
    workloads = [each for each in (*documents, *made) if "template" in each.get("spec", {})]
    assert len(workloads) == 5
    users = [user_of(each) for each in workloads]
    assert users == [[user, user]] * 5
    assert not any(isinstance(each, float) for pair in users for each in pair)
    for kind in ("Deployment", "DaemonSet"):
        assert repr(pod(one(documents, kind))[0]["securityContext"].get("fsGroup")) == repr(user)


def test_network_policies_let_in_what_each_pod_serves_and_nothing_else() -> None:
    assert "NetworkPolicy" not in {document["kind"] for document in render()}
    documents = render("--set", "networkPolicy.enabled=true")
    for kind, component in (("Deployment", "operator"), ("DaemonSet", "link-target")):
        workload = one(documents, kind)
        policy = one(documents, "NetworkPolicy", component)["spec"]
        assert policy["podSelector"]["matchLabels"] == workload["spec"]["selector"]["matchLabels"]
        assert policy["policyTypes"] == ["Ingress"]
        served = [{"port": port["name"], "protocol": "TCP"} for port in pod(workload)[1]["ports"]]
        assert policy["ingress"] == [{"ports": served}]
    few = render("--set", "networkPolicy.enabled=true,linkTarget.enabled=false")
    one(few, "NetworkPolicy", "operator")
    assert len([each for each in few if each["kind"] == "NetworkPolicy"]) == 1

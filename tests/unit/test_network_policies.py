"""Who may connect to a pipeline's stages, as a network that enforces policies reads what the operator makes."""

from dataclasses import dataclass
from typing import Any

import pytest

from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.children import StageKey, gateway_objects, profile_objects, stage_deployment
from splitplane.controller.network_policies import stage_policy, stages_policy
from splitplane.controller.pods import GRPC_PORT, HTTP_PORT, labels
from tests.support.controller_cases import SETTINGS, pipeline, pipeline_body

NAMESPACE = "shop"


@dataclass(frozen=True)
class Pod:
    labels: dict[str, str]
    namespace: str = NAMESPACE


def named(name: str, **more: str) -> InferencePipeline:
    body = pipeline_body()
    body["metadata"] |= {"name": name, "labels": more}
    return InferencePipeline.parse(body)


def pods(name: str = "tracker") -> dict[str, Pod]:
    """A pod of each kind that the operator makes for a pipeline of this name, by component."""
    of, key = named(name), StageKey("edge", 0, 3, "f")
    made = [
        *gateway_objects(of, SETTINGS),
        *profile_objects(of, of.spec.tiers[0], name="job", profile="p", attempt=1, settings=SETTINGS),
        stage_deployment(of, key, replicas=1, settings=SETTINGS),
    ]
    found = [body["spec"]["template"]["metadata"]["labels"] for body in made if "template" in body.get("spec", {})]
    return {each["app.kubernetes.io/component"]: Pod(each) for each in found}


def matches(selector: dict[str, Any], pod: Pod) -> bool:
    """As ``metav1.LabelSelector`` is defined."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    wanted = selector.get("matchLabels", {}).items()
    listed = selector.get("matchExpressions", [])
    assert {each["operator"] for each in listed} <= {"In"}
    return wanted <= pod.labels.items() and all(pod.labels.get(each["key"]) in each["values"] for each in listed)


def connects(policy: dict[str, Any], target: Pod, port: int, source: Pod) -> bool:
    """Whether ``source`` reaches ``port`` of ``target`` where this policy is the only one: a pod that none selects is
    open, and a peer without a namespace selector is of the policy's own namespace."""
    spec, namespace = policy["spec"], policy["metadata"]["namespace"]
    if target.namespace != namespace or not matches(spec["podSelector"], target):
        return True
    assert spec["policyTypes"] == ["Ingress"]

    def admits(rule: dict[str, Any]) -> bool:
        assert all(peer.keys() == {"podSelector"} for peer in rule.get("from", ()))
        here = source.namespace == namespace
        peers = [matches(peer["podSelector"], source) and here for peer in rule.get("from", ())]
        return port in [each["port"] for each in rule["ports"]] and (any(peers) or "from" not in rule)

    return any(admits(rule) for rule in spec["ingress"])


STRANGERS = {
    "another pipeline's gateway": pods("other")["gateway"],
    "another pipeline's stage": pods("other")["stage"],
    "a job of the pipeline's own": pods()["profile"],
    "its gateway's namesake in another namespace": Pod(pods()["gateway"].labels, "elsewhere"),
    "Prometheus": Pod({"app.kubernetes.io/name": "prometheus"}, "monitoring"),
    "a pod without labels": Pod({}),
}


@pytest.mark.parametrize("caller", ["gateway", "stage"])
def test_a_pipelines_own_gateways_and_stages_reach_its_stages(caller: str) -> None:
    assert connects(stages_policy(pipeline()), pods()["stage"], GRPC_PORT, pods()[caller])


@pytest.mark.parametrize("caller", STRANGERS.values(), ids=STRANGERS)
def test_others_reach_what_kubelets_and_prometheus_read_and_no_more(caller: Pod) -> None:
    policy = stages_policy(pipeline())
    assert not connects(policy, pods()["stage"], GRPC_PORT, caller)
    assert connects(policy, pods()["stage"], HTTP_PORT, caller)


def test_gateways_and_jobs_and_other_pipelines_are_left_alone() -> None:
    policy = stages_policy(pipeline())
    for target in (pods()["gateway"], pods()["profile"], pods("other")["stage"]):
        assert connects(policy, target, GRPC_PORT, STRANGERS["Prometheus"])


def test_what_sites_share_is_reached_from_each_of_them() -> None:
    shared = stages_policy(pipeline(), sites=["tracker-north", "tracker-south"])
    for site in ("tracker-north", "tracker-south"):
        for caller in ("gateway", "stage"):
            assert connects(shared, pods()["stage"], GRPC_PORT, pods(site)[caller])
    assert not connects(shared, pods()["stage"], GRPC_PORT, pods("tracker-west")["gateway"])


def test_stages_of_a_site_that_shares_are_reached_from_there_and_from_what_it_shares() -> None:
    at_site = labels("tracker", "site", **{"splitplane.dev/shared-tier": "cloud"})
    policy = stages_policy(named("tracker-north", **at_site))
    stage = pods("tracker-north")["stage"]
    assert connects(policy, stage, GRPC_PORT, pods("tracker-north")["gateway"])
    assert connects(policy, stage, GRPC_PORT, pods("tracker")["stage"])
    assert not connects(policy, stage, GRPC_PORT, pods("tracker-south")["gateway"])


def test_a_policy_says_the_same_whatever_the_order_of_its_callers() -> None:
    assert stage_policy({}, {}, ["b", "a"]) == stage_policy({}, {}, ["a", "b"])

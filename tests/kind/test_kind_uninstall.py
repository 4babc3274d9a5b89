"""Splitplane's own end."""

import json
from collections.abc import Callable

from kindcluster.cluster import NAMESPACE, RELEASE, Cluster
from kindcluster.engine import run
from tests.kind.conftest import images_in_use
from tests.support import operator_cases as cases

Kubectl = Callable[..., str]


def test_an_uninstall_leaves_nothing_but_what_it_says(
    kind: Cluster, kubectl: Kubectl, make_namespace: Callable[[], cases.Namespace], digest: str
) -> None:
    """The last test: no pipeline outlives it."""
    images = images_in_use(kind)
    ns = make_namespace()
    ns.apply(cases.pipeline("first", cases.model(digest), cases.tier("edge")))
    ns.wait_condition("first", "Ready", "True", seconds=180)
    ns("delete", "ipipe", "first")
    made = "pods,deployments,services,jobs,serviceaccounts,roles,rolebindings,rtable"
    cases.wait(
        lambda: [item for item in ns.items(made) if item["metadata"]["name"] != "default"] == [],
        seconds=120, what=lambda: f"nothing left of the pipeline: {ns('get', made)}",
    )  # fmt: skip
    try:
        run(str(kind.helm), "uninstall", RELEASE, f"--kubeconfig={kind.kubeconfig}", f"--namespace={NAMESPACE}")
        left = kubectl("get", "clusterroles,clusterrolebindings", "--output=name")
        assert "splitplane" not in left
        everything = ("get", "all", f"--namespace={NAMESPACE}")
        cases.wait(lambda: json.loads(kubectl(*everything, "--output=json"))["items"] == [], seconds=90,
                   what=lambda: f"nothing left of Splitplane: {kubectl(*everything)}")  # fmt: skip
        crds = kubectl("get", "crd", "--output=name").split()
        assert [crd for crd in crds if crd.endswith(".splitplane.dev")]  # kept, as NOTES.txt says
        kubectl("delete", "crd", "inferencepipelines.splitplane.dev", "modelprofiles.splitplane.dev",
                "routetables.splitplane.dev")  # fmt: skip
        assert "splitplane.dev" not in kubectl("api-resources", "--output=name")
    finally:
        kind.install_chart(images)

"""Rights of the operator and of pipelines' pods against what they asked for in the tests before: no fewer, no more."""

from collections.abc import Callable

from kindcluster import rights
from kindcluster.cluster import Cluster
from tests.support import operator_cases as cases

UNUSED = {
    ("splitplane.dev", "inferencepipelines", "delete"): "a site's pipeline goes minutes after its last node",
}
"""Rights that no test on kind uses, with what they are there for."""


def test_operator_and_pipelines_ask_for_nothing_that_they_may_not_do_and_may_do_nothing_that_they_never_ask_for(
    kind: Cluster, serving: cases.Measured, make_namespace: Callable[[], cases.Namespace], digest: str
) -> None:
    # Two pipelines of one model share its profile: that is patched for the second one.
    split = cases.fixed(("edge", 0, 4))
    serving.ns.apply(cases.pipeline("second", cases.model(digest), cases.tier("edge"), partitioning=split))
    profile = serving.profile["metadata"]["name"]

    def owners() -> int:
        return len(serving.ns.get("mprof", profile)["metadata"]["ownerReferences"])

    cases.wait(lambda: owners() == 2, seconds=60, what="a profile of both pipelines")
    serving.ns("delete", "ipipe", "second")
    # The Role of a profile job goes with the job.
    ns = make_namespace()
    ns.apply(cases.pipeline("measured", cases.model(digest), cases.tier("edge")))
    cases.wait(lambda: ns.items("roles", "--selector=app.kubernetes.io/component=profile"),
               seconds=60, what="a profile job's Role")  # fmt: skip
    ns("delete", "ipipe", "measured")
    # Pipelines are made for sites alone, and taken away once no node has named the site for minutes.
    at_sites = cases.pipeline("all", cases.model(digest), cases.tier("edge"), partitioning=split)
    ns.apply({**at_sites, "spec": {**at_sites["spec"], "sites": {"topologyKey": "kubernetes.io/hostname"}}})
    cases.wait(lambda: len(ns.items("ipipe")) > 1, seconds=60, what="pipelines of sites")
    ns("delete", "ipipe", "all")

    found = rights.use(kind)
    assert found.refused == []
    session = serving.ns.get("namespace", serving.ns.name)["metadata"]["creationTimestamp"]
    pipelines = rights.handed_on(kind.audit_events(), since=session)
    assert set(pipelines) >= {"gateway", "profile"}, "an older cluster writes none of it down: make kind-down"
    for component, use in pipelines.items():
        assert use.lacking == set(), component
        assert use.unused <= set(UNUSED), component
    # The operator has to hold what it hands on.
    assert found.unused - {right for use in pipelines.values() for right in use.asked} <= set(UNUSED)

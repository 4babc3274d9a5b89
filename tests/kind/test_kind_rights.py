"""The operator's rights against what it asked of the API server in the tests before: no fewer, no more."""

from collections.abc import Callable

from kindcluster import rights
from kindcluster.cluster import Cluster
from tests.support import operator_cases as cases


def handed_on(ns: cases.Namespace, component: str) -> set[rights.Right]:
    """What a Role that the operator makes for a pipeline's pods allows; it has to hold these rights itself."""
    roles = ns.items("roles", f"--selector=app.kubernetes.io/component={component}")
    return rights.granted(rule for role in roles for rule in role["rules"])


def test_the_operator_asks_for_nothing_that_it_may_not_do_and_may_do_nothing_that_it_never_asks_for(
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
    of_job = cases.wait(lambda: handed_on(ns, "profile"), seconds=60, what="a profile job's Role")
    ns("delete", "ipipe", "measured")
    # Pipelines are made for sites alone, and taken away once no node has named the site for minutes.
    at_sites = cases.pipeline("all", cases.model(digest), cases.tier("edge"), partitioning=split)
    ns.apply({**at_sites, "spec": {**at_sites["spec"], "sites": {"topologyKey": "kubernetes.io/hostname"}}})
    cases.wait(lambda: len(ns.items("ipipe")) > 1, seconds=60, what="pipelines of sites")
    ns("delete", "ipipe", "all")

    found = rights.use(kind)
    assert found.refused == []
    later = {("splitplane.dev", "inferencepipelines", "delete")}
    assert found.unused <= handed_on(serving.ns, "gateway") | of_job | later

"""What goes wrong on real nodes, and that clients see none of it where another replica can serve."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kindcluster.cluster import Cluster
from splitplane.local.errors import LocalError
from tests.kind.conftest import two_tiers, whole
from tests.support import operator_cases as cases
from tests.support.operator_requests import asking

Kubectl = Callable[..., str]

# Many small eaters: where a limit is passed, the kernel takes the largest process, which is the stage.
EAT_MEMORY = """
import os, time
for _ in range(16):
    if os.fork() == 0:
        eaten = bytearray(os.urandom(1)) * (60 << 20)
        time.sleep(30)
        os._exit(0)
time.sleep(30)
"""


def stages(ns: cases.Namespace, tier: str) -> list[cases.Json]:
    selector = f"app.kubernetes.io/component=stage,splitplane.dev/tier={tier}"
    return [pod for pod in ns.items("pods", f"--selector={selector}") if "deletionTimestamp" not in pod["metadata"]]


def edge_nodes(kubectl: Kubectl) -> set[str]:
    found = json.loads(kubectl("get", "nodes", "--selector=splitplane.dev/tier=edge", "--output=json"))["items"]
    return {node["metadata"]["name"] for node in found}


def test_a_stage_that_the_kernel_kills_for_its_memory_restarts_while_its_twin_serves(
    kind: Cluster, serving: cases.Measured, address: str
) -> None:
    ns = serving.ns
    victim = stages(ns, "edge")[0]["metadata"]["name"]

    def last_end() -> str:
        status = ns.get("pod", victim)["status"]["containerStatuses"][0]
        return str(status["lastState"].get("terminated", {}).get("reason", ""))

    async def run() -> list[str]:
        async with asking(address, serving.name) as requests:
            await asyncio.to_thread(eat, kind, ns, victim)
            await asyncio.to_thread(cases.wait, lambda: last_end() == "OOMKilled", seconds=60, what="OOMKilled")
            await asyncio.to_thread(whole, ns)
        return requests.failures

    assert asyncio.run(run()) == []


def eat(kind: Cluster, ns: cases.Namespace, pod: str) -> None:
    """Take memory in a pod until the kernel ends the stage; the command that takes it ends with the container."""
    with suppress(LocalError):
        kind.run(f"--namespace={ns.name}", "exec", pod, "--", "python", "-c", EAT_MEMORY)


def test_an_image_that_cannot_be_pulled_is_named_and_the_old_plan_goes_on(
    serving: cases.Measured, address: str, digest: str
) -> None:
    ns = serving.ns
    good = ns.get("ipipe", serving.name)["spec"]["model"]
    absent = {**good, "image": "registry.invalid/absent:1"}

    async def run() -> list[str]:
        async with asking(address, serving.name) as requests:
            ns("patch", "ipipe", serving.name, "--type=merge", "--patch", json.dumps({"spec": {"model": absent}}))
            await asyncio.to_thread(
                cases.wait,
                lambda: "registry.invalid/absent:1" in json.dumps(ns.status(serving.name).get("conditions")),
                seconds=120, what=lambda: f"the image's name in {ns.status(serving.name).get('conditions')}",
            )  # fmt: skip
            assert ns.condition(serving.name, "Ready")["status"] == "True"
            removal = [{"op": "remove", "path": "/spec/model/image"}]
            ns("patch", "ipipe", serving.name, "--type=json", "--patch", json.dumps(removal))
            await asyncio.to_thread(ns.wait_condition, serving.name, "Progressing", "False", seconds=120)
            await asyncio.to_thread(whole, ns)
        return requests.failures

    assert asyncio.run(run()) == []


def ready(pod: dict[str, Any]) -> bool:
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


@contextmanager
def restored(kubectl: Kubectl, node: str) -> Iterator[None]:
    try:
        yield
    finally:
        kubectl("uncordon", node)


def test_a_drain_of_an_edge_node_moves_its_stage_without_a_failed_request(
    serving: cases.Measured, kubectl: Kubectl, address: str
) -> None:
    """The one gateway is on another node: a drain of its own node is a gap until it has started elsewhere."""
    ns = serving.ns
    (gateway,) = ns.items("pods", "--selector=app.kubernetes.io/component=gateway")
    (drained,) = edge_nodes(kubectl) - {gateway["spec"]["nodeName"]}

    async def run() -> list[str]:
        async with asking(address, serving.name) as requests:
            with restored(kubectl, drained):
                await asyncio.to_thread(
                    kubectl, "drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=150s"
                )
                await asyncio.to_thread(whole, ns)
                assert drained not in {pod["spec"]["nodeName"] for pod in stages(ns, "edge")}
        return requests.failures

    assert asyncio.run(run()) == []


def test_a_drain_of_a_gateways_node_costs_no_request_where_there_are_two(
    serving: cases.Measured, kubectl: Kubectl, address: str
) -> None:
    ns = serving.ns

    def gateways() -> list[str]:
        """The nodes of those that serve."""
        pods = ns.items("pods", "--selector=app.kubernetes.io/component=gateway")
        return [pod["spec"]["nodeName"] for pod in pods if "deletionTimestamp" not in pod["metadata"] and ready(pod)]

    def set_replicas(count: int) -> None:
        change = {"spec": {"gateway": {"replicas": count}}}
        ns("patch", "ipipe", serving.name, "--type=merge", "--patch", json.dumps(change))
        cases.wait(lambda: len(gateways()) == count, seconds=120, what=f"{count} gateways that serve")

    async def run() -> list[str]:
        async with asking(address, serving.name) as requests:
            drained = gateways()[0]
            with restored(kubectl, drained):
                await asyncio.to_thread(
                    kubectl, "drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=150s"
                )
                await asyncio.to_thread(whole, ns)
                assert drained not in gateways()
        return requests.failures

    set_replicas(2)
    try:
        assert len(set(gateways())) == 2
        assert asyncio.run(run()) == []
    finally:
        set_replicas(1)


def test_a_cloud_node_that_stands_still_costs_no_request_where_edge_nodes_can_serve(
    kind: Cluster, serving: cases.Measured, address: str
) -> None:
    """Edge stages hold the rest of the model for this; the split serves again when the node does."""
    (lost,) = {pod["spec"]["nodeName"] for pod in stages(serving.ns, "cloud")}

    async def run() -> list[str]:
        async with asking(address, serving.name) as requests:
            await asyncio.to_thread(cases.wait, lambda: requests.answered > 5, seconds=30, what="first answers")
            kind.pause(lost)
            try:
                await asyncio.sleep(5)  # within two seconds the gateway knows
                before = requests.answered
                await asyncio.sleep(10)
                assert requests.answered - before > 20
            finally:
                kind.unpause(lost)
            await asyncio.to_thread(whole, serving.ns)
        return requests.failures

    assert asyncio.run(run()) == []


def test_a_cloud_node_that_falls_silent_is_replaced_and_taken_again_when_it_is_back(
    kind: Cluster, make_namespace: Callable[[], cases.Namespace], kubectl: Kubectl, digest: str
) -> None:
    """A pipeline that may run on edge nodes alone: it does while the cloud node is away, and is away itself before."""
    ns = make_namespace()
    edge, cloud = two_tiers(pricePerHour="0.90")  # the cloud is cheaper, so it is used while it is there
    edge["replicas"] = {"min": 0, "max": 2}
    cloud["replicas"] = {"min": 0, "max": 1}
    ns.apply(cases.pipeline("roaming", cases.model(digest), edge, cloud))
    ns.wait_condition("roaming", "Ready", "True", seconds=240)
    assert "cloud" in ns.status("roaming")["plan"]["summary"]
    (lost,) = {pod["spec"]["nodeName"] for pod in stages(ns, "cloud")}
    kind.pause(lost)

    def replaced() -> bool:
        status = ns.status("roaming")
        return "cloud" not in status["plan"]["summary"] and ns.condition("roaming", "Ready")["status"] == "True"

    try:
        cases.wait(replaced, seconds=180, what=lambda: f"a plan without the lost node; status {ns.status('roaming')}")
    finally:
        kind.unpause(lost)
    kubectl("wait", "--for=condition=Ready", f"node/{lost}", "--timeout=120s")
    cases.wait(
        lambda: "cloud" in ns.status("roaming")["plan"]["summary"],
        seconds=180, what=lambda: f"the cloud node in use again; status {ns.status('roaming')}",
    )  # fmt: skip

"""How many replicas a tier can hold, and what one costs there."""

import pytest

from splitplane.controller.capacity import Placement, capacity, replica_price, tolerates
from splitplane.domain.measurements import Error, Missing, Value
from tests.support.controller_cases import node, pod

EDGE = Placement(
    {"splitplane.dev/tier": "edge"},
    [{"key": "splitplane.dev/tier", "operator": "Equal", "value": "edge", "effect": "NoSchedule"}],
    {"cpu": 1.0, "memory": float(1 << 30)},
)


def nobody(_: object) -> bool:
    return False


def test_slots_are_what_other_pods_leave_on_ready_nodes() -> None:
    nodes = [node("e1", "edge"), node("e2", "edge"), node("c1", "cloud")]
    held = capacity(nodes, {"e1": [pod("other", "e1", cpu="1500m")]}, EDGE, is_own=nobody)
    assert (held.matching, held.ready, held.slots, held.free) == (2, ("e1", "e2"), 6, 6)


def test_a_pipelines_own_replicas_count_as_slots_that_are_taken() -> None:
    held = capacity([node("e1", "edge")], {"e1": [pod("own", "e1")]}, EDGE, is_own=lambda _: True)
    assert (held.slots, held.free) == (4, 3)


def test_pods_that_have_ended_hold_nothing() -> None:
    ended = pod("done", "e1", cpu="4", phase="Succeeded")
    assert capacity([node("e1", "edge")], {"e1": [ended]}, EDGE, is_own=nobody).slots == 4


@pytest.mark.parametrize(
    "closed",
    [node("e1", "edge", ready=False), node("e1", "edge", unschedulable=True),
     node("e1", "edge", taints=[{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}])],
    ids=["not ready", "cordoned", "unreachable"],
)  # fmt: skip
def test_nodes_that_take_no_pods_have_no_slots_though_they_match(closed: dict[str, object]) -> None:
    held = capacity([closed], {}, EDGE, is_own=nobody)
    assert (held.matching, held.ready, held.slots) == (1, (), 0)


def test_the_scarcest_resource_decides() -> None:
    hungry = Placement(EDGE.node_selector, EDGE.tolerations, {"cpu": 0.1, "memory": 3.0 * (1 << 30)})
    assert capacity([node("e1", "edge")], {}, hungry, is_own=nobody).slots == 2


def test_without_requests_the_nodes_limit_on_pods_decides() -> None:
    modest = Placement(EDGE.node_selector, EDGE.tolerations, {})
    assert capacity([node("e1", "edge")], {"e1": [pod("a", "e1")]}, modest, is_own=nobody).slots == 109


def test_a_pods_sidecars_and_overhead_take_room_too() -> None:
    body = pod("a", "e1", cpu="500m")
    body["spec"]["initContainers"] = [{"restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}}]
    assert capacity([node("e1", "edge")], {"e1": [body]}, EDGE, is_own=nobody).slots == 3
    body["spec"]["overhead"] = {"cpu": "250m"}
    assert capacity([node("e1", "edge")], {"e1": [body]}, EDGE, is_own=nobody).slots == 2


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "k", "operator": "Exists"}, True),
        ({"key": "k", "operator": "Equal", "value": "v"}, True),
        ({"key": "k", "value": "v", "effect": "NoSchedule"}, True),
        ({"key": "k", "value": "other"}, False),
        ({"key": "other", "operator": "Exists"}, False),
        ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, False),
        ({}, False),
    ],
)
def test_tolerations_match_taints_as_the_scheduler_has_it(toleration: dict[str, str], tolerated: bool) -> None:
    assert tolerates([toleration], {"key": "k", "value": "v", "effect": "NoSchedule"}) is tolerated


def test_a_replica_costs_its_dominant_share_of_its_nodes_mean_price() -> None:
    nodes = [node("e1", "edge"), node("e2", "edge", cpu="2")]
    prices = {"e1": Value(0.4), "e2": Value(0.8)}
    # A quarter of e1's CPU and half of e2's: 0.1 and 0.4.
    assert replica_price(nodes, prices, EDGE.requests, otherwise=9.0) == Value(0.25)


def test_the_written_price_stands_in_and_a_missing_one_is_missing_not_free() -> None:
    nodes = [node("e1", "edge")]
    assert replica_price(nodes, {}, EDGE.requests, otherwise=0.05) == Value(0.05)
    assert isinstance(replica_price(nodes, {}, EDGE.requests, otherwise=None), Missing)
    assert replica_price(nodes, {}, EDGE.requests, otherwise=None, failure="down") == Error("down")
    assert isinstance(replica_price(nodes, {"e1": Error("NaN")}, EDGE.requests, otherwise=None), Error)

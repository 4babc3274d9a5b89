"""Which route and which endpoints a request gets, and which tables are believed."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitplane.runtime.gateway.choosing import HASTE, PATIENCE, Choice, Chooser, Wait
from splitplane.runtime.gateway.endpoints import LONGEST_EJECTION_SECONDS, Endpoints, Pod
from splitplane.runtime.gateway.tables import Table, TableError, parse_table


def table_object(generation: int = 1, *, uid: str = "u1", routes: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    split = {
        "name": "edge:0-3|cloud:3-7 int8",
        "stages": [
            {"stage": "p-edge", "tier": "edge", "first": 0, "last": 3},
            {"stage": "p-cloud", "tier": "cloud", "first": 3, "last": 7},
        ],
        "codecs": ["int8"],
        "maxRatePerSecond": "13.4",
    }
    alone = {
        "name": "edge:0-7",
        "stages": [{"stage": "p-edge", "tier": "edge", "first": 0, "last": 7}],
        "codecs": [],
        "maxRatePerSecond": "2",
    }
    return {
        "metadata": {"name": "p", "uid": uid},
        "spec": {
            "generation": generation,
            "model": {
                "name": "p",
                "inputs": [{"name": "frames", "datatype": "FP32", "shape": [-1, 4]}],
                "outputs": [{"name": "output_0", "datatype": "FP32", "shape": [-1, 2]}],
            },
            "routes": [split, alone] if routes is None else routes,
            "stages": ["p-edge", "p-cloud"],
            "links": [{"source": "edge", "target": "cloud", "probes": ["127.0.0.1:9000"]}],
            "queue": {"maxInFlight": 8, "timeoutMilliseconds": 2500},
        },
    }


def admitted(*pods: tuple[str, str]) -> Endpoints:
    endpoints = Endpoints()
    endpoints.replace(Pod(address, stage, address, ready=True) for stage, address in pods)
    for endpoint in endpoints.take_due(0.0):
        endpoints.checked(endpoint, healthy=True, now=0.0)
    return endpoints


def chosen(answer: Choice | Wait) -> Choice:
    assert isinstance(answer, Choice), answer
    return answer


TABLE = parse_table(table_object())


def test_a_table_is_read_with_its_limits() -> None:
    assert TABLE.generation == 1
    assert [route.name for route in TABLE.routes] == ["edge:0-3|cloud:3-7 int8", "edge:0-7"]
    assert TABLE.routes[0].max_rate_per_second == 13.4
    assert TABLE.max_in_flight == 8
    assert TABLE.timeout_seconds == 2.5
    assert TABLE.routes[0].crossings("edge") == (("edge", "cloud"),)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: spec.pop("generation"), "generation"),
        (lambda spec: spec["model"].pop("inputs"), "inputs"),
        (lambda spec: spec["routes"][0].update(codecs=[]), "needs 1 codecs"),
        (lambda spec: spec["routes"][0]["stages"][1].update(first=4), "starts at cut 4, not 3"),
        (lambda spec: spec["routes"][0].update(stages=[]), "no stages"),
        (lambda spec: spec.update(generation="soon"), "malformed"),
        (lambda spec: spec.update(routes="none"), "malformed"),
    ],
)
def test_a_malformed_table_is_refused_with_the_field_that_is_wrong(change: Any, words: str) -> None:
    obj = table_object()
    change(obj["spec"])
    with pytest.raises(TableError, match=words):
        parse_table(obj)


@given(old=st.integers(0, 50), new=st.integers(0, 50), same=st.booleans())
def test_a_lower_generation_of_the_same_object_never_supersedes(old: int, new: int, same: bool) -> None:
    before = parse_table(table_object(old))
    after = parse_table(table_object(new, uid="u1" if same else "u2"))
    assert after.supersedes(before) == (new >= old or not same)


def test_the_first_route_with_an_endpoint_for_each_stage_is_taken() -> None:
    both = admitted(("p-edge", "e1:1"), ("p-cloud", "c1:1"))
    assert chosen(Chooser(both).choose(TABLE, 0.0)).route.name.startswith("edge:0-3|cloud")
    alone = admitted(("p-edge", "e1:1"))
    assert chosen(Chooser(alone).choose(TABLE, 0.0)).route.name == "edge:0-7"
    assert isinstance(Chooser(admitted(("p-cloud", "c1:1"))).choose(TABLE, 0.0), Wait)


def test_a_fallback_is_never_given_more_than_its_rate() -> None:
    chooser = Chooser(admitted(("p-edge", "e1:1")))
    taken = 0
    for tenth in range(200):
        while isinstance(chooser.choose(TABLE, tenth / 10), Choice):
            taken += 1
    assert taken <= 1 + 2 * 20
    answer = chooser.choose(TABLE, 19.9)
    assert isinstance(answer, Wait)
    assert answer.seconds is not None
    assert isinstance(chooser.choose(TABLE, 19.9 + answer.seconds + 1e-6), Choice)


def ranged(*spans: tuple[tuple[int, int | None], ...], names: tuple[str, ...] = ("slow", "middle", "fast")) -> Table:
    """A table of routes over one stage each, the last one first, as that of the plan; each best in its spans."""
    routes = [
        {
            "name": name,
            "stages": [{"stage": name, "tier": "edge", "first": 0, "last": 7}],
            "codecs": [],
            "maxRatePerSecond": "5",
            "bestBetween": [
                {"fromBytesPerSecond": low}
                if high is None
                else {"fromBytesPerSecond": low, "belowBytesPerSecond": high}
                for low, high in each
            ],
        }
        for name, each in zip(names, spans, strict=True)
    ]
    table = table_object(routes=routes[::-1])
    table["spec"]["link"] = {"source": "edge", "target": "cloud"}
    return parse_table(table)


RANGED = ranged(((0, 1000),), ((1000, 5000),), ((5000, None),))
ALL = admitted(("slow", "s:1"), ("middle", "m:1"), ("fast", "f:1"))


@pytest.mark.parametrize(
    ("bandwidth", "name"),
    [
        (10.0, "slow"), (999.0, "slow"), (1000.0, "middle"), (4999.0, "middle"), (5000.0, "fast"), (1e12, "fast"),
        (None, "fast"),
    ],
)  # fmt: skip
def test_the_route_that_is_best_at_the_bandwidth_is_taken_and_without_a_number_the_plans_own(
    bandwidth: float | None, name: str
) -> None:
    assert chosen(Chooser(ALL).choose(RANGED, 0.0, bandwidth=bandwidth)).route.name == name


def test_an_estimate_that_wanders_about_an_edge_changes_no_route() -> None:
    chooser = Chooser(ALL)
    taken = [chosen(chooser.choose(RANGED, tick, bandwidth=1000.0 * (1 + 0.05 * (-1) ** tick))) for tick in range(40)]
    assert {choice.route.name for choice in taken} == {taken[0].route.name}
    assert chosen(chooser.choose(RANGED, 60.0, bandwidth=1200.0)).route.name == "middle"
    assert chosen(chooser.choose(RANGED, 61.0, bandwidth=950.0)).route.name == "middle"
    assert chosen(chooser.choose(RANGED, 62.0, bandwidth=850.0)).route.name == "slow"


@given(st.lists(st.floats(1.0, 1e5), max_size=30))
def test_whatever_the_bandwidth_does_the_route_is_the_best_at_it_or_nearly(bandwidths: list[float]) -> None:
    chooser = Chooser(ALL)
    for bandwidth in bandwidths:
        place = chooser.prefer(RANGED, bandwidth)
        assert place is not None
        assert RANGED.routes[place].best_at(bandwidth, slack=0.1)


def test_a_route_that_suits_the_bandwidth_gets_no_more_than_its_rate_and_the_rest_goes_the_plans_own_way() -> None:
    chooser = Chooser(ALL)
    taken = [chosen(chooser.choose(RANGED, tick / 50, bandwidth=10.0)).route.name for tick in range(500)]
    assert 40 <= taken.count("slow") <= 1 + 5 * (10 + PATIENCE)
    assert set(taken) == {"slow", "fast"}


def sharing(*routes: tuple[str, str, int, list[int | None] | None]) -> Table:
    """Routes over the same two stages: name, rate of the pods, bytes on the link, where it is the best."""
    written = [
        {
            "name": name,
            "stages": [
                {"stage": "p-edge", "tier": "edge", "first": 0, "last": place + 1},
                {"stage": "p-cloud", "tier": "cloud", "first": place + 1, "last": 7},
            ],
            "codecs": ["int8"],
            "maxRatePerSecond": rate,
            "linkBytesPerRequest": link_bytes,
            "bestBetween": [
                {"fromBytesPerSecond": best[0]} | ({} if best[1] is None else {"belowBytesPerSecond": best[1]})
            ] if best else [],
        }
        for place, (name, rate, link_bytes, best) in enumerate(routes)
    ]  # fmt: skip
    table = table_object(routes=written)
    table["spec"]["link"] = {"source": "edge", "target": "cloud"}
    return parse_table(table)


SHARING = sharing(("deep", "3.84", 1_000, [0, 50_000]), ("early", "13.35", 12_000, [50_000, None]))
BOTH = (("p-edge", "e1:1"), ("p-cloud", "c1:1"))


def taken_at(table: Table, load: float, bandwidth: float, *, seconds: float = 60.0, seed: int = 1) -> dict[str, int]:
    """How many requests of random arrivals each route gets."""
    chooser, rng, now = Chooser(admitted(*BOTH)), random.Random(seed), 0.0
    counts: dict[str, int] = {}
    while (now := now + rng.expovariate(load)) < seconds:
        name = chosen(chooser.choose(table, now, bandwidth=bandwidth)).route.name
        counts[name] = counts.get(name, 0) + 1
    return counts


def test_after_the_link_has_recovered_the_best_route_carries_the_load_that_the_plans_own_does_not_bear() -> None:
    assert set(taken_at(SHARING, 3.0, 25_000)) == {"deep"}
    assert set(taken_at(SHARING, 12.0, 2_500_000)) == {"early"}


def test_what_no_route_bears_goes_where_most_is_borne() -> None:
    counts = taken_at(SHARING, 30.0, 2_500_000)
    assert set(counts) == {"early"}
    slow = taken_at(SHARING, 30.0, 25_000)
    assert slow["deep"] > 60 * 29


def test_a_route_gets_no_more_than_the_link_bears_of_it_at_the_bandwidth_now() -> None:
    table = sharing(("deep", "10", 1_000, None), ("early", "13.35", 12_000, [0, None]))
    counts = taken_at(table, 8.0, 24_000)
    assert counts["early"] <= 2.0 * (60 + PATIENCE) + 1
    assert counts["deep"] >= 60 * 5


@pytest.mark.parametrize("seed", range(5))
def test_routes_on_the_same_pods_together_get_no_more_than_these_bear(seed: int) -> None:
    table = sharing(("deep", "4", 1_000, [0, None]), ("middle", "6", 1_000, None), ("early", "13", 1_000, None))
    counts = taken_at(table, 10.0, 2_500_000, seconds=300.0, seed=seed)
    assert counts["deep"] / 4 + counts.get("middle", 0) / 6 + counts["early"] / 13 <= 300 + 2 * PATIENCE + 1
    assert counts["deep"] > 100  # the best goes on having what there is room for


def test_bursts_stay_on_the_best_route_as_long_as_it_bears_the_load() -> None:
    table = sharing(("deep", "20", 1_000, [0, None]), ("early", "60", 1_000, None))
    counts = taken_at(table, 16.0, 2_500_000, seconds=300.0)
    assert counts.get("early", 0) <= 0.001 * sum(counts.values())


def test_what_the_plans_own_route_had_to_do_keeps_nobody_from_a_way_out_once_its_pods_are_gone() -> None:
    endpoints = admitted(*BOTH)
    chooser = Chooser(endpoints)
    for tick in range(400):
        chosen(chooser.choose(TABLE, tick / 40, bandwidth=1e6))
    endpoints.replace([Pod("e1:1", "p-edge", "e1:1", ready=True)])
    taken = [isinstance(chooser.choose(TABLE, 10.0), Choice) for _ in range(10)]
    assert taken.count(True) == 1 + int(2 * HASTE) - 1


def test_a_route_over_a_link_that_is_down_or_without_pods_is_not_taken_whatever_the_bandwidth() -> None:
    assert chosen(Chooser(admitted(("fast", "f:1"))).choose(RANGED, 0.0, bandwidth=10.0)).route.name == "fast"
    object_ = table_object()
    object_["spec"]["link"] = {"source": "edge", "target": "cloud"}
    object_["spec"]["routes"][0]["bestBetween"] = [{"fromBytesPerSecond": 0}]
    both = admitted(("p-edge", "e1:1"), ("p-cloud", "c1:1"))
    down = chosen(
        Chooser(both).choose(parse_table(object_), 0.0, source_tier="edge", bandwidth=1e6, down={("edge", "cloud")})
    )
    assert down.route.name == "edge:0-7"


def test_a_new_table_is_chosen_from_by_its_own_edges() -> None:
    chooser = Chooser(ALL)
    assert chosen(chooser.choose(RANGED, 0.0, bandwidth=3000.0)).route.name == "middle"
    moved = ranged(((0, 10_000),), ((10_000, 50_000),), ((50_000, None),))
    assert chosen(chooser.choose(moved, 1.0, bandwidth=3000.0)).route.name == "slow"


def test_looking_takes_nothing_from_a_fallback() -> None:
    chooser = Chooser(admitted(("p-edge", "e1:1")))
    for _ in range(10):
        chosen(chooser.choose(TABLE, 0.0, take=False))
    chosen(chooser.choose(TABLE, 0.0))


def test_the_first_route_carries_whatever_comes() -> None:
    chooser = Chooser(admitted(("p-edge", "e1:1"), ("p-cloud", "c1:1")))
    for _ in range(100):
        assert len(chosen(chooser.choose(TABLE, 0.0)).hops) == 2


def test_a_route_over_a_link_that_is_down_is_the_last_resort() -> None:
    chooser = Chooser(admitted(("p-edge", "e1:1"), ("p-cloud", "c1:1")))
    down = {("edge", "cloud")}
    assert chosen(chooser.choose(TABLE, 0.0, source_tier="edge", down=down)).route.name == "edge:0-7"
    split_only = parse_table(table_object(routes=table_object()["spec"]["routes"][:1]))
    assert chosen(chooser.choose(split_only, 0.0, source_tier="edge", down=down)).route.name.startswith("edge:0-3")


def test_the_least_loaded_endpoint_comes_first_and_the_others_are_alternates() -> None:
    endpoints = admitted(("p-edge", "e1:1"), ("p-edge", "e2:1"), ("p-edge", "e3:1"), ("p-edge", "e4:1"))
    endpoints.begin(["e1:1", "e1:1", "e2:1"])
    assert endpoints.pick("p-edge") == ("e3:1", "e4:1", "e2:1")
    endpoints.end(["e1:1", "e1:1"])
    assert endpoints.pick("p-edge", avoid={"e3:1", "e4:1"})[0] == "e1:1"


def test_equally_loaded_endpoints_take_turns() -> None:
    endpoints = admitted(("p-edge", "e1:1"), ("p-edge", "e2:1"), ("p-edge", "e3:1"))
    used = []
    for _ in range(6):
        address = endpoints.pick("p-edge")[0]
        endpoints.begin([address])
        endpoints.end([address])
        used.append(address)
    assert used == ["e1:1", "e2:1", "e3:1"] * 2


def test_an_endpoint_is_admitted_only_after_it_answered_a_health_check() -> None:
    changes: list[int] = []
    endpoints = Endpoints(lambda: changes.append(1))
    endpoints.update(Pod("a", "p-edge", "a:1", ready=True))
    assert endpoints.ready("p-edge") == 0
    (endpoint,) = endpoints.take_due(0.0)
    assert endpoints.take_due(0.1) == []
    endpoints.checked(endpoint, healthy=False, now=0.2)
    assert endpoints.ready("p-edge") == 0
    (endpoint,) = endpoints.take_due(1.0)
    endpoints.checked(endpoint, healthy=True, now=1.0)
    assert endpoints.ready("p-edge") == 1
    assert changes == [1]


@pytest.mark.parametrize("leave", ["deleted", "not ready", "not in the list", "without an address"])
def test_an_endpoint_is_gone_at_once_when_its_pod_is(leave: str) -> None:
    endpoints = admitted(("p-edge", "e1:1"))
    match leave:
        case "deleted":
            endpoints.delete("e1:1")
        case "not ready":
            endpoints.update(Pod("e1:1", "p-edge", "e1:1", ready=False))
        case "without an address":
            endpoints.update(Pod("e1:1", "p-edge", ":9000", ready=False))
        case _:
            endpoints.replace([])
    assert endpoints.pick("p-edge") == ()


def test_a_pod_that_takes_over_an_address_has_to_be_checked_anew() -> None:
    endpoints = admitted(("p-edge", "e1:1"))
    endpoints.update(Pod("successor", "p-edge", "e1:1", ready=True))
    assert endpoints.ready("p-edge") == 0


def test_failures_that_follow_each_other_eject_for_longer_and_success_forgives() -> None:
    endpoints = admitted(("p-edge", "e1:1"))
    now, pauses = 0.0, []
    for _ in range(8):
        endpoints.failed("e1:1", now)
        assert endpoints.pick("p-edge") == ()
        pauses.append(endpoints.next_check() - now)
        now = endpoints.next_check()
        (endpoint,) = endpoints.take_due(now)
        endpoints.checked(endpoint, healthy=True, now=now)
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_EJECTION_SECONDS
    endpoints.succeeded("e1:1")
    endpoints.failed("e1:1", now)
    assert endpoints.next_check() - now == pytest.approx(pauses[0])


def test_an_endpoint_that_may_have_failed_is_used_less_and_ejected_the_third_time() -> None:
    endpoints = admitted(("p-edge", "e1:1"), ("p-edge", "e2:1"))
    endpoints.doubted("e1:1", 0.0)
    assert endpoints.pick("p-edge")[0] == "e2:1"
    endpoints.doubted("e1:1", 0.0)
    assert endpoints.ready("p-edge") == 2
    endpoints.doubted("e1:1", 0.0)
    assert endpoints.ready("p-edge") == 1


def test_a_table_without_routes_makes_requests_wait() -> None:
    empty: Table = parse_table(table_object(routes=[]))
    answer = Chooser(Endpoints()).choose(empty, 0.0)
    assert isinstance(answer, Wait)
    assert "no routes" in answer.why

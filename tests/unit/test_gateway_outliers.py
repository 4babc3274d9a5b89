"""A replica that is much slower than the others is left out for a while, and never too many of them."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.runtime.gateway import attempts
from splitplane.runtime.gateway.choosing import Choice, Chooser
from splitplane.runtime.gateway.endpoints import SLOW_SECONDS, Endpoints, Pod
from splitplane.runtime.gateway.outliers import FEWEST_REQUESTS, INTERVAL_SECONDS, Outliers
from splitplane.runtime.gateway.tables import parse_table
from splitplane.runtime.inference import InferRequest
from splitplane.runtime.routes import HopTrace
from splitplane.runtime.tensors import from_array
from tests.support.gateway_rig import (
    PIPELINE,
    SPLIT,
    MemoryCluster,
    StageProcess,
    frames,
    gateway,
    route,
    stages,
    table,
    until,
)


def slow_ones(seconds: dict[str, float], *, requests: int = FEWEST_REQUESTS, queued: float = 0.0) -> list[str]:
    outliers = Outliers()
    assert outliers.judge(0.0) == []
    for address, each in seconds.items():
        for _ in range(requests):
            outliers.observe("w", address, each, each, queued)
    assert outliers.judge(INTERVAL_SECONDS - 0.1) == []
    return [verdict.address for verdict in outliers.judge(INTERVAL_SECONDS) if verdict.slow]


def test_a_replica_stands_out_by_far_and_for_long_or_not_at_all() -> None:
    assert slow_ones({"a": 0.1, "b": 0.1, "c": 0.31}) == ["c"]
    assert slow_ones({"a": 0.1, "b": 0.1, "c": 0.29}) == []
    assert slow_ones({"a": 0.001, "b": 0.001, "c": 0.02}) == []
    assert slow_ones({"a": 0.1, "b": 0.1, "c": 0.31, "d": 0.5}) == ["d", "c"]


def test_of_two_replicas_one_has_to_be_slower_by_more() -> None:
    assert slow_ones({"a": 0.1, "b": 0.51}) == ["b"]
    assert slow_ones({"a": 0.1, "b": 0.49}) == []
    assert slow_ones({"a": 0.001, "b": 0.02}) == []


def test_of_two_replicas_the_slow_one_stays_where_the_other_has_no_time_to_spare() -> None:
    assert slow_ones({"a": 0.1, "b": 0.9}, queued=0.09) == ["b"]
    assert slow_ones({"a": 0.1, "b": 0.9}, queued=0.11) == []
    assert slow_ones({"a": 0.1, "b": 0.1, "c": 0.9}, queued=0.5) == ["c"], "of three the others take it between them"


def test_a_replica_that_is_held_up_before_it_reads_a_request_stands_out_as_well() -> None:
    """But not where the others have no time to spare: it may be the way there that is slow."""
    for queued, found in ((0.1, ["c"]), (0.2, [])):
        outliers = Outliers()
        outliers.judge(0.0)
        for address, called in (("a", 0.12), ("b", 0.1), ("c", 0.6)):
            for _ in range(FEWEST_REQUESTS):
                outliers.observe("w", address, 0.05, called, queued)
        assert [each.address for each in outliers.judge(INTERVAL_SECONDS) if each.slow] == found


def over_two_stages(endpoints: Endpoints, requests: int, late: dict[str, float]) -> list[str]:
    """Requests, one after the other; ``late``: by so much a replica reads late what it is sent, and what it asked for.

    Who is found slow.
    """
    outliers, chooser, routes = Outliers(), Chooser(endpoints), parse_table(table(1, SPLIT))
    outliers.judge(0.0)
    for _ in range(requests):
        choice = chooser.choose(routes, 0.0)
        assert isinstance(choice, Choice)
        first, second = choice.addresses
        hop = 0.02 + late.get(second, 0.0) + late.get(first, 0.0)
        trace = (
            HopTrace(
                "small-edge", "edge", 0, 1, queue=0.0, decode=0.0, compute=0.01, encode=0.0, server=hop + 0.01, hop=hop
            ),
            HopTrace("small-cloud", "cloud", 1, 3, queue=0.0, decode=0.0, compute=0.01, encode=0.0, server=0.01),
        )
        with endpoints.in_use(choice.addresses):
            outliers.answered(choice.addresses, trace, hop + 0.02 + late.get(first, 0.0), ())
    return [verdict.address for verdict in outliers.judge(INTERVAL_SECONDS) if verdict.slow]


STAGES = "small-edge", "small-cloud"


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("late", ["e1:1", "c1:1"], ids=["the caller", "the one that is called"])
def test_a_replica_is_not_blamed_for_being_called_by_one_that_reads_answers_late(count: int, late: str) -> None:
    """Though there are as many of either stage, which would else take turns in step."""
    pods = [Pod(f"{stage[6]}{n}", stage, f"{stage[6]}{n}:1", ready=True) for n in range(count) for stage in STAGES]
    endpoints = Endpoints()
    endpoints.replace(pods)
    for endpoint in endpoints.take_due(0.0):
        endpoints.checked(endpoint, healthy=True, now=0.0)
    assert over_two_stages(endpoints, 40 * count, {late: 0.3}) == [late]


def test_nothing_is_said_of_one_replica_or_from_few_requests() -> None:
    assert slow_ones({"c": 9.0}) == []
    assert slow_ones({"a": 0.1, "c": 9.0}, requests=FEWEST_REQUESTS - 1) == []
    assert slow_ones({"a": 0.1, "b": 0.1, "c": 9.0}, requests=FEWEST_REQUESTS - 1) == []


def test_only_equal_work_is_compared_and_an_interval_knows_nothing_of_the_last() -> None:
    outliers = Outliers()
    outliers.judge(0.0)
    for work, seconds in (("first half", 0.01), ("second half", 1.0)):
        for address in ("a", "b", "c"):
            for _ in range(9):
                outliers.observe(f"{work}", f"{address} {work}", seconds, seconds, 0.0)
    verdicts = outliers.judge(INTERVAL_SECONDS)
    assert len(verdicts) == 6
    assert not any(verdict.slow for verdict in verdicts)
    assert outliers.judge(2 * INTERVAL_SECONDS) == []


def admitted(count: int) -> Endpoints:
    endpoints = Endpoints()
    endpoints.replace([Pod(f"pod-{n}", "stage", f"{n}", ready=True) for n in range(count)])
    for endpoint in endpoints.take_due(0.0):
        endpoints.checked(endpoint, healthy=True, now=0.0)
    return endpoints


@given(count=st.integers(1, 12), slow=st.lists(st.integers(0, 11), max_size=20))
def test_two_thirds_of_the_replicas_or_one_of_two_stay_whatever_is_found_slow(count: int, slow: list[int]) -> None:
    endpoints = admitted(count)
    for number in slow:
        endpoints.judged(f"{number}", 0.0, slow=True)
    assert endpoints.ready("stage") >= (1 if count == 2 else count * 2 / 3)


def test_a_slow_replica_is_away_for_longer_each_time_until_it_has_been_well_again() -> None:
    endpoints, now = admitted(3), 0.0
    for pause in (SLOW_SECONDS, 2 * SLOW_SECONDS):
        assert endpoints.judged("1", now, slow=True) == pause
        assert endpoints.judged("2", now, slow=True) == 0.0, "one of three is away already"
        assert "1" not in endpoints.pick("stage")
        assert endpoints.healthy("stage") == 3, "a switch that needs three does not wait for it"
        assert endpoints.take_due(now + pause - 1) == []
        now += pause
        (back,) = endpoints.take_due(now)
        endpoints.checked(back, healthy=True, now=now)
    assert endpoints.judged("1", now, slow=False) == 0.0
    assert endpoints.judged("1", now, slow=True) == 2 * SLOW_SECONDS


def test_a_slow_replica_that_does_not_answer_is_no_longer_counted() -> None:
    endpoints = admitted(2)
    assert endpoints.judged("1", 0.0, slow=True) == SLOW_SECONDS
    (back,) = endpoints.take_due(SLOW_SECONDS)
    endpoints.checked(back, healthy=False, now=SLOW_SECONDS)
    assert endpoints.healthy("stage") == 1


def test_the_slow_one_of_two_comes_back_at_once_when_the_other_is_lost() -> None:
    endpoints = admitted(2)
    assert endpoints.judged("1", 0.0, slow=True) == SLOW_SECONDS
    assert endpoints.judged("0", 0.0, slow=True) == 0.0, "it is all that is left"
    assert endpoints.pick("stage") == ("0",)
    endpoints.failed("0", 1.0)
    (back,) = endpoints.take_due(1.0)
    endpoints.checked(back, healthy=True, now=1.0)
    assert endpoints.pick("stage") == ("1",)


@pytest.mark.parametrize("times", [(0.005, 0.005, 0.15), (0.01, 0.1)], ids=["three", "two"])
async def test_a_gateway_leaves_out_the_slow_one_of_several_replicas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: tuple[float, ...]
) -> None:
    monkeypatch.setattr(attempts, "Outliers", lambda: Outliers(interval_seconds=1.0))
    replicas = [StageProcess("small-edge", "edge", (0, 3), seconds=seconds) for seconds in times]
    cluster = MemoryCluster()
    with stages(*replicas):
        for replica in replicas:
            cluster.put(POD, replica.pod)
        cluster.put(ROUTE_TABLE, table(1, route(("small-edge", "edge", 0, 3)), stages=["small-edge"]))
        async with gateway(cluster, tmp_path) as running:
            endpoints = running.router.endpoints
            await until(lambda: endpoints.ready("small-edge") == len(times))
            async with asyncio.timeout(60):
                while endpoints.ready("small-edge") == len(times):
                    await running.forwarder.infer(InferRequest(PIPELINE, (from_array("frames", frames()),)))
            assert endpoints.pick("small-edge") != ()
            assert replicas[-1].address not in endpoints.pick("small-edge")
            assert "left out for 30 s" in caplog.text

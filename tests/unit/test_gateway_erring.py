"""A replica that answers requests with errors which other replicas do not have is left out for a while."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from splitplane.adapters.kinds import ROUTE_TABLE
from splitplane.runtime.gateway.endpoints import ERRORS, SLOW_SECONDS, Endpoints, Pod
from tests.support.gateway_rig import (
    SPLIT,
    MemoryCluster,
    StageProcess,
    expected,
    gateway,
    infer,
    put_all,
    serving,
    stages,
    table,
    until,
)
from tests.support.gateway_stage import POISON


def admitted(count: int) -> Endpoints:
    endpoints = Endpoints()
    endpoints.replace([Pod(f"pod-{n}", "stage", f"{n}", ready=True) for n in range(count)])
    for endpoint in endpoints.take_due(0.0):
        endpoints.checked(endpoint, healthy=True, now=0.0)
    return endpoints


def err(endpoints: Endpoints, address: str, times: int, now: float = 0.0) -> list[float]:
    return [endpoints.erred(address, now) for _ in range(times)]


def test_a_replica_is_left_out_for_errors_in_a_row_or_for_a_fifth_of_its_requests_or_more() -> None:
    assert err(admitted(2), "0", int(ERRORS)) == [0.0] * 4 + [SLOW_SECONDS]
    for answers, out in ((2, True), (5, False)):
        endpoints = admitted(3)
        for _ in range(50):
            endpoints.erred("0", 0.0)
            for _ in range(answers):
                endpoints.succeeded("0")
        assert ("0" not in endpoints.pick("stage")) is out


def test_it_is_back_when_its_time_is_up_and_away_again_for_longer_with_the_next_error() -> None:
    endpoints = admitted(2)
    err(endpoints, "0", 5)
    endpoint = endpoints.get("0")
    assert endpoint is not None
    endpoints.checked(endpoint, healthy=True, now=SLOW_SECONDS - 1)
    assert endpoints.pick("stage") == ("1",), "what it says of its health tells nothing"
    endpoints.checked(endpoint, healthy=True, now=SLOW_SECONDS)
    assert "0" in endpoints.pick("stage")
    assert endpoints.erred("0", SLOW_SECONDS) == 2 * SLOW_SECONDS
    endpoints.checked(endpoint, healthy=True, now=3 * SLOW_SECONDS)
    for _ in range(20):
        endpoints.succeeded("0")
    assert err(endpoints, "0", 5, 200.0) == [0.0] * 4 + [SLOW_SECONDS], "it has been well meanwhile"


def test_it_is_asked_at_once_when_no_other_is_left() -> None:
    endpoints = admitted(2)
    err(endpoints, "0", 5)
    assert endpoints.take_due(1.0) == []
    endpoints.failed("1", 1.0)
    (back,) = endpoints.take_due(1.0)
    endpoints.checked(back, healthy=True, now=1.0)
    assert endpoints.pick("stage") == ("0",)


@given(count=st.integers(1, 12), erring=st.lists(st.integers(0, 11), max_size=20))
def test_two_thirds_of_the_replicas_stay_or_one_of_two(count: int, erring: list[int]) -> None:
    endpoints = admitted(count)
    for number in erring:
        err(endpoints, f"{number}", 5)
    assert endpoints.ready("stage") >= (1 if count <= 2 else count * 2 / 3)


async def test_a_gateway_leaves_out_the_one_of_two_that_only_errs_and_nobody_notices(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The broken one is the second stage of a route: the first, which passes its errors on, is not to blame."""
    edge, well = StageProcess("small-edge", "edge", (0, 3)), StageProcess("small-cloud", "cloud", (1, 3))
    broken = StageProcess("small-cloud", "cloud", (1, 3), broken=True)
    cluster = MemoryCluster()
    with stages(edge, well, broken), caplog.at_level(logging.WARNING):
        put_all(cluster, edge, well, broken)
        cluster.put(ROUTE_TABLE, table(1, SPLIT))
        async with gateway(cluster, tmp_path) as running:
            endpoints = running.router.endpoints
            await until(lambda: endpoints.ready("small-cloud") == 2 and running.forwarder.ready())
            client = triton_grpc.InferenceServerClient(f"{running.settings.pod_ip}:9000")
            for _ in range(20):
                answer = await infer(client)
                np.testing.assert_allclose(answer.as_numpy("output_0"), expected())
            await client.close()
            assert endpoints.pick("small-cloud") == (well.address,)
            (seen,) = [e for a in (edge.address,) if (e := endpoints.get(a)) is not None]
            assert seen.errors == 0
            assert f"{broken.address} answers with errors where other replicas do not: left out" in caplog.text


async def test_inputs_on_which_the_model_raises_speak_against_no_replica_and_name_no_pod_to_the_client(
    tmp_path: Path,
) -> None:
    edges = [StageProcess("small-edge", "edge", (0, 3)) for _ in range(2)]
    cluster = MemoryCluster()
    async with serving(cluster, tmp_path, *edges) as running:
        endpoints = running.router.endpoints
        client = triton_grpc.InferenceServerClient(f"{running.settings.pod_ip}:9000")
        for _ in range(12):
            with pytest.raises(InferenceServerException) as failure:
                await infer(client, value=POISON)
            assert failure.value.status() == "StatusCode.INTERNAL"
            cause = failure.value.__cause__ or failure.value.__context__
            assert not [key for key, _ in cause.trailing_metadata() or () if key.startswith("splitplane")]
        await client.close()
        assert endpoints.ready("small-edge") == 2

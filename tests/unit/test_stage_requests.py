"""What a stage does with one request, over real gRPC between real stages of a small program, in one process."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from splitplane.api.routes import QueueSpec
from splitplane.domain.codecs import encoded_bytes
from splitplane.domain.defences import Defence
from splitplane.domain.profiles import CODECS, Cut, TensorSpec
from splitplane.runtime import codecs, oip_grpc
from splitplane.runtime.gateway.pacing import RETRYABLE
from splitplane.runtime.hops import RETIRE_SECONDS, UNREACHED, Channels, call
from splitplane.runtime.inference import Failure, InferenceError, InferRequest, Tensor
from splitplane.runtime.metrics import StageMetrics
from splitplane.runtime.routes import GENERATION, ROUTE, SCHEMA, TRACE, Hop, decode_trace, encode_route
from splitplane.runtime.stage.server import warm_up
from splitplane.runtime.stage.serving import StageModel
from splitplane.runtime.stage.shielding import Shield
from splitplane.runtime.stage.worker import Worker
from splitplane.runtime.tensors import from_torch, to_torch

SPEC = TensorSpec("x", "FP32", (2,))


class Doubling:
    """Three segments, each of which doubles what it gets."""

    def __init__(self) -> None:
        self.ran: list[tuple[int, int]] = []
        self.seconds = 0.0

        @dataclass(frozen=True)
        class Graph:
            cuts = tuple(
                Cut(index, f"cut{index}", (SPEC,), {codec: encoded_bytes(SPEC, codec) for codec in CODECS}, f"h{index}")
                for index in range(4)
            )

        self.graph = Graph()

    def run(self, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        self.ran.append((first, last))
        time.sleep(self.seconds)
        return {"x": tensors["x"] * 2 ** (last - first)}


@dataclass
class Running:
    model: StageModel
    partition: Doubling
    registry: CollectorRegistry
    server: oip_grpc.Server
    address: str


@asynccontextmanager
async def running(
    tier: str = "edge", *, resident: tuple[int, int] = (0, 3), capacity: int = 10, shield: Shield | None = None
) -> AsyncIterator[Running]:
    registry, worker, channels, partition = CollectorRegistry(), Worker(capacity), Channels(), Doubling()
    model = StageModel(
        name="p",
        stage=f"p-{tier}",
        tier=tier,
        resident=resident,
        worker=worker,
        channels=channels,
        metrics=StageMetrics(registry, namespace="n", pipeline="p", tier=tier),
        pace=lambda _core, _wall: 0.0,
        shield=shield,
    )
    model.serve(partition)
    server = oip_grpc.Server(model)
    port = server.bind("127.0.0.1", 0)
    await server.start()
    yield Running(model, partition, registry, server, f"127.0.0.1:{port}")
    await server.stop(None)
    await channels.close()
    await worker.close(5)


X = from_torch("x", torch.tensor([[1.0, 3.0]]))


def request(*hops: Hop, **changes: Any) -> InferRequest:
    parameters: dict[str, Any] = {ROUTE: encode_route(hops), GENERATION: 5} if hops else {}
    return replace(InferRequest(model_name="p", inputs=(X,), parameters=parameters), **changes)


async def send(address: str, message: InferRequest) -> list[float]:
    channels = Channels()
    try:
        return to_torch((await call(channels, (address,), message)).response.outputs[0]).flatten().tolist()
    finally:
        await channels.close()


async def refused(address: str, message: InferRequest) -> InferenceError:
    with pytest.raises(InferenceError) as caught:
        await send(address, message)
    return caught.value


def hop(stage: Running, first: int, last: int, codec: str = "", *, tier: str = "edge") -> Hop:
    return Hop(f"s-{first}", tier, first, last, (stage.address,), codec)


async def test_a_request_without_a_route_runs_the_resident_range():
    async with running(resident=(1, 3)) as stage:
        assert await send(stage.address, request()) == [4, 12]
        assert stage.partition.ran == [(1, 3)]


async def test_a_route_may_end_before_the_last_cut():
    async with running() as stage:
        assert await send(stage.address, request(hop(stage, 0, 2))) == [4, 12]


@pytest.mark.parametrize("codec", CODECS)
async def test_a_route_of_three_stages_is_run_in_order_and_traced(codec):
    async with running("edge") as edge, running("fog") as fog, running("cloud") as cloud:
        hops = [hop(edge, 0, 1, codec), hop(fog, 1, 2, codec, tier="fog"), hop(cloud, 2, 3, tier="cloud")]
        channels = Channels()
        response = (await call(channels, (edge.address,), request(*hops, id="7"))).response
        await channels.close()
        assert to_torch(response.outputs[0]).flatten().tolist() == [8, 24]
        assert (response.model_name, response.id) == ("p", "7")
        trace = decode_trace(str(response.parameters[TRACE]))
        assert [(record.stage, record.tier, record.first, record.last) for record in trace] == [
            ("s-0", "edge", 0, 1),
            ("s-1", "fog", 1, 2),
            ("s-2", "cloud", 2, 3),
        ]
        for near, far in pairwise(trace):
            assert near.server > near.hop > far.server > 0
            assert min(near.sent, near.received) > 0
        transferred = edge.registry.get_sample_value(
            "splitplane_link_bytes_total", {"namespace": "n", "pipeline": "p", "source": "edge", "target": "fog"}
        )
        assert transferred == trace[0].sent + trace[0].received


async def test_a_range_that_is_not_resident_is_refused():
    async with running(resident=(1, 3)) as stage:
        error = await refused(stage.address, request(hop(stage, 0, 2)))
        assert error.failure is Failure.FAILED_PRECONDITION
        assert error.message == "stage p-edge keeps cuts 1 to 3 resident and cannot run 0 to 2"
        assert stage.partition.ran == []


async def test_tensors_of_another_model_are_refused():
    async with running() as stage:
        message = request(hop(stage, 1, 2))
        error = await refused(stage.address, replace(message, parameters={**message.parameters, SCHEMA: "h9"}))
        assert error.failure is Failure.FAILED_PRECONDITION
        assert "have schema h9, but cut 1 (cut1) of stage p-edge has h1" in error.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "parameter splitplane_route: the route is empty"),
        ("nonsense", "parameter splitplane_route: Invalid JSON"),
        (
            encode_route([Hop("a", "edge", 0, 1, ("x",), "zip"), Hop("b", "edge", 1, 2, ("x",))]),
            "codec 'zip' is unknown; use one of fp32, fp32+zstd, fp16",
        ),
    ],
)
async def test_a_malformed_route_is_refused(text, says):
    async with running() as stage:
        error = await refused(stage.address, request(parameters={ROUTE: text}))
        assert error.failure is Failure.INVALID_ARGUMENT
        assert says in error.message


async def test_wrong_tensors_are_refused_before_they_are_queued():
    async with running() as stage:
        wrong = Tensor("x", "FP32", (1, 3), bytes(12))
        error = await refused(stage.address, request(inputs=(wrong,)))
        assert error.message == "input 'x' has shape [1, 3]; expected [-1, 2] (-1 is any size)"


@pytest.mark.parametrize("first", [None, 0])
async def test_what_comes_from_a_client_is_not_unpacked_by_it(first: int | None):
    """A few bytes would stand for as many as the client names, and for other shapes than the gateway has checked."""
    packed = codecs.encode({"x": torch.zeros(512, 2)}, "fp32+zstd")
    async with running() as stage:
        hops = () if first is None else (hop(stage, first, 2),)
        error = await refused(stage.address, request(*hops, inputs=packed))
        assert error.failure is Failure.INVALID_ARGUMENT
        assert "input 'x' has the parameter splitplane_zstd" in error.message
        assert stage.partition.ran == []
        assert await send(stage.address, request(hop(stage, 1, 2), inputs=packed)) == [0.0] * 1024


async def test_the_last_stages_own_error_comes_back_to_the_client():
    async with running("edge") as edge, running("cloud", resident=(0, 2)) as cloud:
        error = await refused(edge.address, request(hop(edge, 0, 1, "fp32"), hop(cloud, 1, 3)))
        assert error.failure is Failure.FAILED_PRECONDITION
        assert error.message.startswith("stage p-cloud keeps cuts 0 to 2 resident")


async def test_a_dead_replica_is_retried_on_one_alternate_and_no_more():
    async with running("edge") as edge, running("cloud") as cloud:
        dead = "127.0.0.1:1"
        alternates = Hop("c", "cloud", 1, 3, (dead, cloud.address))
        assert await send(edge.address, request(hop(edge, 0, 1, "fp32"), alternates)) == [8, 24]
        both_dead = Hop("c", "cloud", 1, 3, (dead, dead, cloud.address))
        error = await refused(edge.address, request(hop(edge, 0, 1, "fp32"), both_dead))
        assert error.failure is Failure.UNAVAILABLE


async def test_a_deadline_travels_to_the_last_stage():
    async with running("edge") as edge, running("cloud") as cloud:
        cloud.partition.seconds = 1.0
        message = request(hop(edge, 0, 1, "fp32"), hop(cloud, 1, 3), deadline=time.monotonic() + 0.5)
        assert (await refused(edge.address, message)).failure is Failure.DEADLINE_EXCEEDED
        # The second request waits behind the first at the cloud stage and must never be computed there.
        message = request(hop(edge, 0, 1, "fp32"), hop(cloud, 1, 3), deadline=time.monotonic() + 0.2)
        assert (await refused(edge.address, message)).failure is Failure.DEADLINE_EXCEEDED
        cloud.partition.seconds = 0.0
        assert await send(cloud.address, request()) == [8, 24]
        assert cloud.partition.ran == [(1, 3), (0, 3)]


async def test_a_stage_is_told_how_long_a_request_was_at_the_stages_before():
    async with running("edge") as edge, running("fog") as fog, running("cloud") as cloud:
        edge.partition.seconds, fog.partition.seconds = 0.2, 0.1
        await send(edge.address, request(hop(edge, 0, 1, "fp32"), hop(fog, 1, 2, "fp32"), hop(cloud, 2, 3)))
        assert edge.model.ages.longest == 0.0
        assert 0.2 <= fog.model.ages.longest < cloud.model.ages.longest - 0.1


async def test_overload_is_answered_by_a_clear_error():
    async with running(capacity=1) as stage:
        stage.partition.seconds = 0.3
        channels = Channels()
        calls = [asyncio.ensure_future(call(channels, (stage.address,), request())) for _ in range(8)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        await channels.close()
        errors = [result for result in results if isinstance(result, InferenceError)]
        assert len(errors) == 6
        assert {error.failure for error in errors} == {Failure.RESOURCE_EXHAUSTED}
        assert errors[0].message == "overloaded: 1 requests wait already; retry later or elsewhere"


@pytest.mark.parametrize("hands_on", [True, False])
async def test_what_is_too_large_to_hand_on_or_to_answer_is_called_so_and_not_an_overload(monkeypatch, hands_on):
    async with running() as edge, running("cloud") as cloud:
        monkeypatch.setattr(edge.partition, "run", lambda *given: {"x": given[2]["x"].repeat(1, 1000)})
        monkeypatch.setattr(oip_grpc, "MAX_POD_MESSAGE_BYTES", 4_000)
        hops = (hop(edge, 0, 1, "fp32"), hop(cloud, 1, 3, tier="cloud")) if hands_on else ()
        error = await refused(edge.address, request(*hops))
        assert error.failure is Failure.OUT_OF_RANGE
        assert error.failure not in RETRYABLE
        assert error.failure.http_status == 413
        assert "and a message 4000 at most: send fewer samples" in error.message
        assert cloud.partition.ran == []


async def test_a_stage_that_drains_is_not_ready_but_answers():
    async with running() as stage:
        assert stage.model.ready()
        stage.model.drain()
        assert not stage.model.ready()
        assert await send(stage.address, request()) == [8, 24]


async def test_emulated_slowness_counts_as_compute():
    async with running() as stage:

        def slow(_core: float, _wall: float) -> float:
            time.sleep(0.05)
            return 0.05

        stage.model._computer.pace = slow
        await send(stage.address, request())
        labels = {"namespace": "n", "pipeline": "p", "tier": "edge", "range": "0-3"}
        seconds = stage.registry.get_sample_value("splitplane_stage_duration_seconds_sum", labels)
        assert seconds is not None
        assert seconds >= 0.05
        squared = stage.registry.get_sample_value("splitplane_stage_squared_seconds_total", labels)
        assert squared == pytest.approx(seconds**2)


async def test_an_unforeseen_failure_is_an_internal_error_that_tells_no_details(caplog, monkeypatch):
    async with running() as stage:
        monkeypatch.setattr(stage.partition, "run", lambda *_: 1 // 0)
        error = await refused(stage.address, request())
        assert (error.failure, error.message) == (Failure.INTERNAL, "ZeroDivisionError; the server's log says more")
        assert "integer division" in caplog.text


def test_warm_up_runs_the_whole_and_the_parts_that_a_resplit_uses():
    partition = Doubling()
    warm_up(partition, 0, 3)
    assert set(partition.ran) == {(0, 3), (0, 1), (1, 3), (0, 2), (2, 3)}
    partition = Doubling()
    warm_up(partition, 0, 3, budget_seconds=0.0)
    assert set(partition.ran) == {(0, 3)}


async def test_closing_a_channel_under_a_call_is_no_cancelling_of_the_caller():
    async with running("edge") as edge, running("cloud") as cloud:
        edge.partition.seconds = 0.5
        channels = Channels()
        waiting = asyncio.ensure_future(call(channels, (edge.address, cloud.address), request()))
        alone = asyncio.ensure_future(call(channels, (edge.address,), request()))
        await asyncio.sleep(0.1)
        await channels.get(edge.address).close(None)
        assert (await waiting).address == cloud.address
        with pytest.raises(InferenceError, match="is gone") as caught:
            await alone
        assert edge.address not in caught.value.message, "which goes to the client"
        assert edge.address in str(caught.value), "which goes to the log"
        await channels.close()


async def test_a_stage_that_cannot_be_reached_is_named_to_logs_and_not_to_clients():
    channels = Channels()
    with pytest.raises(InferenceError) as caught:
        await call(channels, ("127.0.0.1:1",), request())
    assert (caught.value.failure, caught.value.message) == (Failure.UNAVAILABLE, UNREACHED)
    assert "127.0.0.1:1" in str(caught.value)
    await channels.close()


async def test_a_next_stage_that_does_not_answer_is_named_in_the_log_once_until_it_does(caplog):
    caplog.set_level(logging.INFO, logger="splitplane.runtime.hops")
    async with running("edge") as edge, running("cloud") as cloud:
        dead = "127.0.0.1:1"
        over = request(hop(edge, 0, 1, "fp32"), Hop("c", "cloud", 1, 3, (dead, cloud.address)))
        for _ in range(3):
            assert await send(edge.address, over) == [8, 24]
        assert [record.getMessage().split(" (")[0] for record in caplog.records] == [f"{dead} does not answer"]
        channels = Channels()
        for _ in range(2):
            channels.lost(cloud.address, "of a test")
            await call(channels, (cloud.address,), request(hop(cloud, 1, 3)))
        channels.lost(cloud.address, "of a test")
        with pytest.raises(InferenceError):
            await call(channels, (cloud.address,), request(model_name="another"))
        await channels.close()
        assert [record.getMessage() for record in caplog.records[2::2]] == 3 * [f"{cloud.address} answers again"]


def test_a_connection_with_an_older_certificate_may_be_used_for_as_long_as_any_request_may_take():
    longest = QueueSpec.model_json_schema()["properties"]["timeoutMilliseconds"]["maximum"]
    assert longest <= 1000 * RETIRE_SECONDS


async def test_what_is_still_under_way_over_a_retired_channel_goes_on_and_ends_with_all_channels():
    async with running() as stage:
        stage.partition.seconds = 0.3
        channels = Channels()
        first = asyncio.ensure_future(call(channels, (stage.address,), request()))
        await asyncio.sleep(0.1)
        channels.drop(stage.address, grace_seconds=RETIRE_SECONDS)
        assert (await first).response.outputs
        stage.partition.seconds = 3.0
        second = asyncio.ensure_future(call(channels, (stage.address,), request()))
        await asyncio.sleep(0.1)
        channels.drop(stage.address, grace_seconds=RETIRE_SECONDS)
        started = time.perf_counter()
        await channels.close()
        assert time.perf_counter() - started < 2.0
        with pytest.raises(InferenceError):
            await second


async def test_a_caller_that_is_cancelled_stays_cancelled():
    async with running() as stage:
        stage.partition.seconds = 0.3
        channels = Channels()
        waiting = asyncio.ensure_future(call(channels, (stage.address, stage.address), request()))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await channels.close()
    assert len(stage.partition.ran) == 1


async def test_channels_are_kept_and_the_least_used_is_closed_when_there_are_too_many():
    channels = Channels(limit=2)
    first, second = channels.get("127.0.0.1:1"), channels.get("127.0.0.1:2")
    assert channels.get("127.0.0.1:1") is first
    channels.get("127.0.0.1:3")
    assert channels.get("127.0.0.1:1") is first
    assert channels.get("127.0.0.1:2") is not second
    await channels.close()


async def test_what_goes_to_an_untrusted_tier_is_defended_and_nothing_else() -> None:
    shield = Shield.from_json('{"noise": 0.0, "dropout": 0.5, "tiers": ["cloud"]}')
    async with running("edge", shield=shield) as edge, running("fog") as fog, running("cloud") as cloud:
        trusted = request(hop(edge, 0, 1, "fp32"), hop(fog, 1, 3, tier="fog"))
        untrusted = request(hop(edge, 0, 1, "fp32"), hop(cloud, 1, 3, tier="cloud"))
        assert await send(edge.address, request(hop(edge, 0, 3))) == [8, 24]
        assert await send(edge.address, trusted) == [8, 24]
        got = {tuple(await send(edge.address, untrusted)) for _ in range(40)}
        assert got == {(0, 0), (16, 0), (0, 48), (16, 48)}  # each kept or not by itself, and doubled where it is


def test_noise_is_a_samples_own_and_begins_anew_in_each_process() -> None:
    value = torch.randn(400, 3, 64)
    together = Shield(Defence(noise=0.5), frozenset({"cloud"}))({"x": value, "ids": torch.arange(400)})
    added = (together["x"] - value).flatten(1)
    assert added.std(1).mean() == pytest.approx(0.5, rel=0.05)
    scaled = torch.cat([value[:1], 100 * value[1:2]])
    noisy = Shield(Defence(noise=0.5))({"x": scaled})["x"] - scaled
    assert float(noisy[1].std() / noisy[0].std()) == pytest.approx(100, rel=0.4)
    assert torch.equal(together["ids"], torch.arange(400))
    assert not torch.equal(Shield(Defence(noise=0.5))({"x": value})["x"], Shield(Defence(noise=0.5))({"x": value})["x"])


@pytest.mark.parametrize("text", ["{", "{}", '{"noise": -1, "dropout": 0}', '{"noise": 0, "dropout": 1}'])
def test_a_defence_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Shield.from_json(text)

"""Requests that a stage computes together: which, how many, how long they wait, and that each gets its own answer."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from splitplane.domain.codecs import encoded_bytes
from splitplane.domain.profiles import CODECS, Cut, TensorSpec, Timing
from splitplane.model import load_partition
from splitplane.runtime import codecs, oip_grpc
from splitplane.runtime.hops import Channels, call
from splitplane.runtime.inference import InferenceError, InferRequest, invalid
from splitplane.runtime.metrics import StageMetrics
from splitplane.runtime.profiling import usable_timings
from splitplane.runtime.routes import ROUTE, Hop, Limits, encode_route
from splitplane.runtime.stage.batching import TRIES, Sizes, keeps_samples_apart
from splitplane.runtime.stage.serving import StageModel
from splitplane.runtime.stage.worker import Worker
from splitplane.runtime.tensors import from_torch, to_torch
from tests.support.model_zoo import HAND_MADE


@dataclass
class Together:
    """A batch of texts; keeps what was run, and can be held."""

    key: Hashable = "same"
    size: int = 8
    worth: int = 1
    wait: float = 0.0
    runs: list[list[Any]] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)

    def most(self) -> int:
        return self.size

    def patience(self) -> tuple[int, float]:
        return self.worth, self.wait

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        assert self.held.wait(30)
        self.runs.append(list(items))
        if any(item == "poison" for item in items):
            raise ValueError("poison")
        return [f"{item}!" for item in items]


@asynccontextmanager
async def busy() -> AsyncIterator[tuple[Worker, threading.Event]]:
    """A worker whose thread is held by other work until the event is set."""
    worker, gate = Worker(100), threading.Event()
    holding = asyncio.ensure_future(worker.run(lambda: gate.wait(30)))
    await asyncio.sleep(0.02)
    try:
        yield worker, gate
    finally:
        gate.set()
        await holding
        assert await worker.close(5)


async def test_what_waits_and_may_be_done_together_is_and_the_rest_keeps_its_order():
    same, other = Together("same", size=3), Together("other")
    same.held.set()
    other.held = same.held
    other.runs = same.runs
    async with busy() as (worker, gate):
        order = [(same, "a"), (other, "x"), (same, "b"), (same, "c"), (same, "d"), (other, "y")]
        waiting = [asyncio.ensure_future(worker.join(batch, item, 1)) for batch, item in order]
        await asyncio.sleep(0.02)
        gate.set()
        results = [done.result for done in await asyncio.gather(*waiting)]
    assert results == ["a!", "x!", "b!", "c!", "d!", "y!"]
    assert same.runs == [["a", "b", "c"], ["x", "y"], ["d"]]


async def test_a_batch_counts_samples_and_leaves_out_what_would_be_too_many():
    batch = Together(size=4)
    batch.held.set()
    async with busy() as (worker, gate):
        waiting = [
            asyncio.ensure_future(worker.join(batch, item, samples)) for item, samples in (("a", 3), ("b", 2), ("c", 1))
        ]
        await asyncio.sleep(0.02)
        gate.set()
        await asyncio.gather(*waiting)
    assert batch.runs == [["a", "c"], ["b"]]


async def test_a_failure_of_a_batch_is_only_that_requests_that_causes_it():
    batch = Together()
    batch.held.set()
    async with busy() as (worker, gate):
        waiting = [asyncio.ensure_future(worker.join(batch, item, 1)) for item in ("a", "poison", "b")]
        await asyncio.sleep(0.02)
        gate.set()
        first, second, third = await asyncio.gather(*waiting, return_exceptions=True)
    assert (first.result, third.result) == ("a!", "b!")
    assert isinstance(second, ValueError)


async def test_what_was_cancelled_or_is_late_is_left_out_of_its_batch():
    batch = Together()
    batch.held.set()
    async with busy() as (worker, gate):
        a = asyncio.ensure_future(worker.join(batch, "a", 1))
        cancelled = asyncio.ensure_future(worker.join(batch, "cancelled", 1))
        late = asyncio.ensure_future(worker.join(batch, "late", 1, deadline=time.monotonic() + 0.01))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.sleep(0)
        gate.set()
        assert (await a).result == "a!"
        with pytest.raises(InferenceError, match="time was up"):
            await late
    assert batch.runs == [["a"]]
    assert worker.depth == 0


async def test_a_batch_that_expects_more_waits_for_them_no_longer_than_it_may():
    worker, batch = Worker(10), Together(worth=3, wait=20.0)
    batch.held.set()
    started = time.perf_counter()
    first = asyncio.ensure_future(worker.join(batch, "a", 1))
    await asyncio.sleep(0.02)
    await asyncio.gather(worker.join(batch, "b", 1), worker.join(batch, "c", 1), first)
    assert time.perf_counter() - started < 10.0  # as soon as the three were there
    assert batch.runs == [["a", "b", "c"]]
    short = Together(worth=3, wait=0.2)
    short.held.set()
    started = time.perf_counter()
    await worker.join(short, "d", 1)
    assert time.perf_counter() - started >= 0.2
    assert await worker.close(5)


# What a stage learns


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def learnt(times: Mapping[int, float]) -> tuple[Sizes, Clock]:
    clock = Clock()
    sizes = Sizes(clock)
    for samples, seconds in times.items():
        for _ in range(TRIES):
            sizes.ran(samples, seconds, requests=samples)
    return sizes, clock


@pytest.mark.parametrize(
    ("times", "most"),
    [
        ({}, 1),  # a single one comes first, to compare with
        ({1: 0.010}, 2),  # then one step beyond what is known
        ({1: 0.010, 2: 0.012}, 4),
        ({1: 0.010, 2: 0.012, 4: 0.016, 8: 0.020}, 16),
        ({1: 0.010, 2: 0.012, 4: 0.023}, 8),  # 4 save little beyond 2, 8 may
        ({1: 0.010, 2: 0.012, 4: 0.023, 8: 0.046}, 2),
        ({1: 0.010, 2: 0.012, 4: 0.023, 8: 0.026, 16: 0.030}, 16),
        ({1: 0.010, 2: 0.019, 4: 0.038}, 1),  # batching does not pay
    ],
)
def test_a_stage_takes_the_largest_size_that_has_paid_or_tries_the_next(times, most):
    assert learnt(times)[0].most(Limits(samples=16)) == most


def test_a_slow_first_run_of_a_size_does_not_speak_against_it():
    sizes, _ = learnt({1: 0.010})
    sizes.ran(2, 0.100, requests=2)
    assert sizes.most(Limits(samples=16)) == 2
    for _ in range(2):
        sizes.ran(2, 0.012, requests=2)
    assert sizes.most(Limits(samples=16)) == 4


def test_no_batch_is_larger_or_expected_to_take_longer_than_the_route_allows():
    sizes, _ = learnt({1: 0.010, 2: 0.012, 4: 0.016, 8: 0.020})
    assert sizes.most(Limits(samples=6)) == 6
    assert sizes.most(Limits(samples=1)) == 1
    assert sizes.most(Limits(samples=16, seconds=0.017)) == 4
    assert learnt({1: 0.010})[0].most(Limits(samples=16, seconds=0.015)) == 1  # two could take 0.020


@pytest.mark.parametrize(
    ("times", "most"),
    [
        ({}, 1),  # a single one still comes first
        ({1: 0.010}, 8),  # then what the profile says, whatever it seems to take
        ({1: 0.010, 4: 0.030}, 8),
        ({1: 0.010, 8: 0.020}, 16),
        ({1: 0.010, 8: 0.070}, 2),  # here it does not pay: all sizes are tried in order
        ({1: 0.010, 2: 0.012, 8: 0.070}, 4),
        ({1: 0.010, 2: 0.019, 4: 0.038}, 1),
    ],
)
def test_a_stage_begins_at_the_size_that_its_route_names_and_believes_what_it_measures(times, most):
    assert learnt(times)[0].most(Limits(samples=16, seconds=0.060, first=8)) == most


def test_a_sample_alone_takes_no_longer_than_a_batch_of_it_and_others():
    assert learnt({1: 0.010, 4: 0.020})[0].gain(4) == pytest.approx(2)
    assert learnt({1: 0.100, 4: 0.020})[0].gain(4) == 4  # something else slowed the single one down


def test_what_did_not_pay_is_tried_again_after_a_minute():
    sizes, clock = learnt({1: 0.010, 2: 0.020, 4: 0.040})
    assert sizes.most(Limits(samples=16)) == 1
    clock.now = 61.0
    sizes.ran(1, 0.010, requests=1)
    assert sizes.most(Limits(samples=16)) == 2


def test_nothing_waits_while_requests_come_one_by_one():
    sizes, clock = learnt({2: 0.012, 1: 0.010})
    assert sizes.patience(Limits(samples=16)) == (1, 0.0)
    sizes.ran(4, 0.016, requests=4)
    assert sizes.patience(Limits(samples=16)) == (4, 0.0025)
    assert sizes.patience(Limits(samples=16, wait_seconds=0.3)) == (4, 0.3)
    clock.now = 0.05
    assert sizes.patience(Limits(samples=16)) == (1, 0.0)


# Whether a model may be batched at all

CUT = Cut(0, "x", (TensorSpec("x", "FP32", (4,)),), {}, "h")


class Model:
    def __init__(self, function: Any) -> None:
        self.function = function

    def run(self, _first: int, _last: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {"y": self.function(tensors["x"])}


@pytest.mark.parametrize(
    ("function", "apart"),
    [
        (lambda x: x.exp() @ torch.ones(4, 2), True),
        (lambda x: x / x.norm(dim=1, keepdim=True), True),
        (lambda x: x / x.norm(), False),  # a norm over the batch
        (lambda x: x.sum(0), False),  # no batch comes out
        (lambda x: x * 2 if x.sum() > 0 else x, False),  # a condition on all of it
        (lambda x: x.flip(0), False),  # samples change places
    ],
)
def test_a_model_that_looks_at_its_whole_batch_is_found_out(function, apart):
    assert keeps_samples_apart(Model(function), (CUT,), 0, 1) is apart


def test_a_size_that_crosses_a_cut_as_a_number_is_the_same_for_all_samples(tmp_path):
    lengths = next(each for each in HAND_MADE if each.name == "Lengths")
    partition = load_partition(lengths.source(tmp_path), 0, None)
    cuts = [cut for cut in partition.graph.cuts if any(spec.name == "size_tokens" for spec in cut.tensors)]
    assert cuts
    for cut in cuts:
        assert keeps_samples_apart(partition, partition.graph.cuts, cut.index, partition.last)


@pytest.mark.parametrize(("function", "usable"), [(lambda x: 2 * x, (4, 1)), (lambda x: x - x.mean(0), (1,))])
def test_a_profile_has_no_batches_of_a_model_that_looks_at_its_whole_batch(function, usable):
    timings = [Timing(batch, 2, (0.0, 0.1 * batch), 0.0) for batch in (4, 1)]
    assert tuple(each.batch for each in usable_timings(Model(function), (CUT, CUT), timings)) == usable


# A stage as a whole

FREE = TensorSpec("x", "FP32", (3,), ("n",))


class Scaling:
    """Multiplies by 2; takes as long for many samples as for one. Keeps the shapes that it ran, and what they took.

    ``busy``: the time is one that torch computes for, and not slept.
    """

    def __init__(self, seconds: float, *, busy: bool = False) -> None:
        self.seconds, self.busy = seconds, busy
        self.shapes: list[tuple[int, ...]] = []
        self.took: list[float] = []

        @dataclass(frozen=True)
        class Graph:
            cuts = tuple(
                Cut(i, f"c{i}", (FREE,), {codec: encoded_bytes(FREE, codec) for codec in CODECS}, f"h{i}")
                for i in range(2)
            )

        self.graph = Graph()

    def run(self, _first: int, _last: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        self.shapes.append(tuple(tensors["x"].shape))
        started = time.perf_counter()
        until, square = time.thread_time() + self.seconds, torch.ones(256, 256)
        while self.busy and time.thread_time() < until:
            square = square @ square / 256
        time.sleep(0.0 if self.busy else self.seconds)
        self.took.append(time.perf_counter() - started)
        if bool((tensors["x"] == -13).any()):
            raise invalid("-13 is unlucky")
        return {"x": tensors["x"] * 2}


@dataclass
class Served:
    partition: Scaling
    registry: CollectorRegistry
    address: str
    channels: Channels

    async def send(self, value: float, width: int, limits: Limits | None, samples: int = 1) -> torch.Tensor:
        hop = Hop("s", "edge", 0, 1, (self.address,), batch=limits)
        tensor = from_torch("x", torch.full((samples, width), value))
        request = InferRequest("p", (tensor,), parameters={ROUTE: encode_route((hop,))})
        return to_torch((await call(self.channels, (self.address,), request)).response.outputs[0])


@asynccontextmanager
async def serving(seconds: float, *, together: bool = True, busy: bool = False) -> AsyncIterator[Served]:
    registry, worker, channels = CollectorRegistry(), Worker(128), Channels()
    partition = Scaling(seconds, busy=busy)
    model = StageModel(
        name="p", stage="s", tier="edge", resident=(0, 1), worker=worker, channels=channels,
        metrics=StageMetrics(registry, namespace="n", pipeline="p", tier="edge"), pace=lambda _core, _wall: 0.0,
    )  # fmt: skip
    model.serve(partition, together=together)
    server = oip_grpc.Server(model)
    port = server.bind("127.0.0.1", 0)
    await server.start()
    try:
        yield Served(partition, registry, f"127.0.0.1:{port}", channels)
    finally:
        await server.stop(None)
        await channels.close()
        await worker.close(5)


async def test_every_request_of_a_batch_gets_its_own_answer_and_shapes_are_never_mixed():
    async with serving(0.005) as stage:

        async def client(number: int) -> None:
            for turn in range(20):
                value, width, samples = number + turn / 100, 1 + number % 3, 1 + number % 2
                answer = await stage.send(value, width, Limits(samples=16), samples)
                assert torch.equal(answer, 2 * torch.full((samples, width), value))

        await asyncio.gather(*(client(number) for number in range(24)))
        assert max(samples for samples, _ in stage.partition.shapes) > 4
        assert len(stage.partition.shapes) < 24 * 20 / 2
        common = {"namespace": "n", "pipeline": "p", "tier": "edge"}
        sample = stage.registry.get_sample_value
        assert sample("splitplane_stage_batch_samples_count", common) == len(stage.partition.shapes)
        assert sample("splitplane_stage_duration_seconds_count", {**common, "range": "0-1"}) == 24 * 20
        # The planner hears what a request takes by itself, batched or not: here about as long as its batch did.
        runs = zip(stage.partition.took, stage.partition.shapes, strict=True)
        usual = sum(took * samples for took, (samples, _) in runs) / sum(s for s, _ in stage.partition.shapes)
        seconds = sample("splitplane_stage_duration_seconds_sum", {**common, "range": "0-1"})
        assert seconds is not None
        assert 0.5 * usual < seconds / (24 * 20) < 3 * usual


@pytest.mark.parametrize(("limits", "together"), [(None, True), (Limits(samples=1), True), (Limits(samples=8), False)])
async def test_without_leave_each_request_is_computed_by_itself(limits, together):
    async with serving(0.002, together=together) as stage:
        await asyncio.gather(*(stage.send(1.0, 3, limits) for _ in range(20)))
        assert stage.partition.shapes == [(1, 3)] * 20


async def test_an_unlucky_request_fails_alone():
    async with serving(0.002) as stage:
        for _ in range(3):
            answers = await asyncio.gather(
                *(stage.send(value, 3, Limits(samples=16)) for value in (1.0, 2.0, -13.0, 4.0)), return_exceptions=True
            )
            assert isinstance(answers[2], InferenceError)
            assert [float(answer[0, 0]) for answer in answers if isinstance(answer, torch.Tensor)] == [2, 4, 8]


async def test_a_codec_of_one_request_does_not_depend_on_the_others_in_its_batch():
    values = [torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(seed)) * 10**seed for seed in range(3)]
    whole = torch.cat(values)
    apart = [codecs.decode(codecs.encode({"x": value}, "int8"))["x"] for value in values]
    pieces = [codecs.decode(codecs.encode({"x": piece}, "int8"))["x"] for piece in whole.split(1)]
    assert all(torch.equal(one, other) for one, other in zip(apart, pieces, strict=True))


async def test_the_event_loop_goes_on_while_torch_computes():
    """Counted in turns, and in the loop's own CPU time: that another process has the core says nothing."""
    async with serving(0.1, busy=True) as stage:
        sending = [asyncio.ensure_future(stage.send(1.0, 3, None)) for _ in range(5)]
        longest, turns = 0.0, 0
        while not all(each.done() for each in sending):
            started = time.thread_time()
            await asyncio.sleep(0.001)
            longest, turns = max(longest, time.thread_time() - started), turns + 1
        await asyncio.gather(*sending)
        assert longest < 0.01
        assert turns > 30, "the loop stood still while a range was computed"

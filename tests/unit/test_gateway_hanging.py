"""A replica whose compute hangs answers health checks: it is left out all the same; a slow link is not taken for it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc.aio as triton
from prometheus_client import CollectorRegistry

from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.runtime.gateway.checking import Checker
from splitplane.runtime.gateway.choosing import Choice
from splitplane.runtime.gateway.endpoints import Endpoints, Pod
from splitplane.runtime.gateway.hedging import Hedging, Race
from splitplane.runtime.gateway.pacing import Patience
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.gateway.waiting import Waiting
from splitplane.runtime.hops import Channels
from splitplane.runtime.inference import InferRequest, InferResponse, ModelMetadata
from splitplane.runtime.metrics import GatewayMetrics
from splitplane.runtime.oip_grpc import Server
from splitplane.runtime.stage import progress as progress_
from splitplane.runtime.stage.progress import STUCK_FACTOR, STUCK_SECONDS, Progress
from splitplane.runtime.stage.server import WARM_UP_RUNS, warm_up
from splitplane.runtime.stage.worker import Worker
from splitplane.runtime.tensors import from_array
from tests.support.forking import FORKED
from tests.support.gateway_rig import (
    ALONE,
    MemoryCluster,
    StageProcess,
    expected,
    frames,
    free_address,
    gateway,
    infer,
    pod_object,
    put_all,
    route,
    serving,
    stages,
    table,
    until,
)
from tests.support.gateway_stage import Partition


async def test_a_replica_that_only_takes_long_once_is_back_when_it_is_done(tmp_path: Path) -> None:
    release, cluster = FORKED.Event(), MemoryCluster()
    quick, long = (
        StageProcess("small-edge", "edge", (0, 3)),
        StageProcess("small-edge", "edge", (0, 3), release=release),
    )
    with stages(long):
        async with serving(cluster, tmp_path, quick) as running:
            endpoints = running.router.endpoints
            async with triton.InferenceServerClient(f"{running.settings.pod_ip}:9000") as client:
                for _ in range(3):  # they tell how long requests take
                    await infer(client)
                put_all(cluster, long)
                await until(lambda: endpoints.pick("small-edge") == (long.address, quick.address))
                answer = await infer(client)
                np.testing.assert_allclose(answer.as_numpy("output_0"), expected())
                assert endpoints.ready("small-edge") == 1
                release.set()
                await until(lambda: endpoints.ready("small-edge") == 2)


class Dead(Checker):
    """Finds every endpoint dead."""

    def __init__(self) -> None: ...

    async def suspect(self, addresses: Sequence[str]) -> frozenset[str]:
        return frozenset(addresses)


async def test_a_second_attempt_that_is_not_made_for_its_link_is_down_takes_nothing_from_a_fallbacks_rate() -> None:
    router = Router(tier="edge", metrics=GatewayMetrics(CollectorRegistry(), namespace="n", pipeline="p"), clock=float)
    assert router.apply(table(1, ALONE, route(("small-cloud", "cloud", 0, 3), rate="1")))
    pods = Pod("e:1", "small-edge", "e:1", ready=True), Pod("c:1", "small-cloud", "c:1", ready=True)
    router.endpoints.replace(pods)
    for endpoint in router.endpoints.take_due(0.0):
        router.endpoints.checked(endpoint, healthy=True, now=0.0)
    router.links.down["edge", "cloud"] = 0.0
    asked = []

    async def attempt(choice: Choice) -> InferResponse:
        asked.append(choice.route.name)
        await asyncio.sleep(0.1)
        return InferResponse("small", ())

    first = router.choose()
    assert isinstance(first, Choice)
    race = Race(router.endpoints, attempt, lambda *_: None, size=1, seconds=0.03)
    await Hedging(router, Waiting(router, Dead())).answer(first, race)
    assert asked == [first.route.name]
    router.links.down.clear()
    assert isinstance(router.choose(frozenset({"e:1"})), Choice), "the one a second that it bears"
    assert not isinstance(router.choose(frozenset({"e:1"})), Choice)


class Held:
    """A stage of the test's own that answers when it is let."""

    def __init__(self, *, leaves: bool = False) -> None:
        """``leaves``: it says that it is not ready once it has a request, as one that drains."""
        self.asked, self.answered, self.release = 0, 0, asyncio.Event()
        self._leaves = leaves

    def metadata(self) -> ModelMetadata:
        return ModelMetadata("small", inputs=(), outputs=())

    def ready(self) -> bool:
        return not (self._leaves and self.asked)

    async def infer(self, request: InferRequest) -> InferResponse:
        self.asked += 1
        await self.release.wait()
        self.answered += 1
        return InferResponse("small", (from_array("output_0", expected()),))

    @contextlib.asynccontextmanager
    async def among(self, cluster: MemoryCluster, name: str) -> AsyncIterator[None]:
        """Serving as one of the pods of ``small-edge``."""
        address, server = free_address(), Server(self)
        server.bind(address, 9000)
        await server.start()
        cluster.put(POD, pod_object(name, "small-edge", address))
        try:
            yield
        finally:
            await server.stop(0)


async def test_the_first_requests_that_come_in_together_have_a_replica_each(tmp_path: Path) -> None:
    cluster, one, two = MemoryCluster(), Held(), Held()
    async with one.among(cluster, "one"), two.among(cluster, "two"), gateway(cluster, tmp_path) as running:
        cluster.put(ROUTE_TABLE, table(1, ALONE))
        await until(lambda: running.router.endpoints.ready("small-edge") == 2 and running.forwarder.ready())
        request = InferRequest("small", (from_array("frames", frames()),))
        asked = [asyncio.create_task(running.forwarder.infer(request)) for _ in range(2)]
        await until(lambda: one.asked + two.asked == 2)
        assert (one.asked, two.asked) == (1, 1)
        for stage in (one, two):
            stage.release.set()
        await asyncio.gather(*asked)


async def test_a_stage_that_says_it_is_not_ready_finishes_what_it_has_and_gets_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = Channels.drop
    monkeypatch.setattr(Channels, "drop", lambda self, address: drop(self, address, grace_seconds=0.1))
    leaving, cluster = Held(leaves=True), MemoryCluster()
    async with serving(cluster, tmp_path, StageProcess("small-edge", "edge", (0, 3))) as running:
        endpoints = running.router.endpoints
        async with (
            leaving.among(cluster, "leaving"),
            triton.InferenceServerClient(f"{running.settings.pod_ip}:9000") as client,
        ):
            await until(lambda: endpoints.ready("small-edge") == 2)
            asked = [asyncio.create_task(infer(client)) for _ in range(2)]  # one for each of them
            await until(lambda: endpoints.ready("small-edge") == 1)
            await infer(client)
            assert leaving.answered == 0
            leaving.release.set()
            for answer in await asyncio.gather(*asked):
                np.testing.assert_allclose(answer.as_numpy("output_0"), expected())
            assert (leaving.asked, leaving.answered) == (1, 1)


def test_work_counts_as_hanging_only_against_what_requests_of_its_size_take() -> None:
    patience = Patience()
    assert patience.hanging_seconds(1000) == inf
    patience.completed(0.01, 1000)
    assert patience.hanging_seconds(1000) == 1.0
    assert patience.hanging_seconds(64 * 1000) == pytest.approx(5 * 0.64), "a large batch takes longer"
    for _ in range(200):
        patience.completed(40.0, 1000)
    assert patience.seconds() == 10.0, "they are asked"
    assert patience.hanging_seconds(10) == pytest.approx(200.0), "but have no less time than they need"


def test_the_last_of_a_stage_is_never_left_out_and_is_asked_again_when_the_others_are_gone() -> None:
    endpoints = Endpoints()
    endpoints.replace([Pod(name, "stage", name, ready=True) for name in "abc"])
    for endpoint in endpoints.take_due(0.0):
        endpoints.checked(endpoint, healthy=True, now=0.0)
        endpoint.busy_seconds = 5.0
    assert [endpoints.overdue(name, 1.0, 10.0) for name in "abc"] == [True] * 3
    assert endpoints.pick("stage") == ("c",)
    assert not endpoints.overdue("c", 6.0, 10.0), "what it computes may take as long"
    (a, b) = endpoints.take_due(11.0)
    a.busy_seconds = 0.1
    for endpoint in (a, b):
        endpoints.checked(endpoint, healthy=True, now=11.0)
    assert set(endpoints.pick("stage")) == {"a", "c"}, "it got on"
    for name in "ac":
        endpoints.failed(name, 12.0)
    assert b in endpoints.take_due(12.0)
    endpoints.checked(b, healthy=True, now=12.0)
    assert endpoints.pick("stage") == ("b",), "one that hangs, perhaps, is better than none"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def ran(progress: Progress, clock: Clock, samples: int, seconds: float) -> list[bool]:
    """One piece of work: whether it passed for stuck at each second of it."""
    progress.begin(samples)
    verdicts = []
    while seconds > 0:
        clock.now += min(1.0, seconds)
        seconds -= 1.0
        verdicts.append(progress.is_stuck())
    progress.end(samples)
    return verdicts


def test_work_counts_as_stuck_only_far_beyond_what_was_seen() -> None:
    clock = Clock()
    progress = Progress(clock)
    assert not any(ran(progress, clock, 1, STUCK_SECONDS - 1)), "a first call may take long"
    assert not any(ran(progress, clock, 1, STUCK_FACTOR * (STUCK_SECONDS - 1) - 1))
    assert not progress.is_stuck()
    assert progress.busy_seconds() == 0

    progress = Progress(clock)
    ran(progress, clock, 1, 2.0)
    assert not any(ran(progress, clock, 64, STUCK_FACTOR * 64 * 2.0 - 1)), "so do many samples"

    progress = Progress(clock)
    ran(progress, clock, 1, 0.01)
    verdicts = ran(progress, clock, 8, 300.0)
    assert verdicts.index(True) == pytest.approx(STUCK_SECONDS, abs=2)

    progress = Progress(clock)
    progress.begin(1, given_seconds=240.0)
    clock.now += 239.0
    assert not progress.is_stuck(), "somebody waits for it still"
    clock.now += 2.0
    assert progress.is_stuck()


def test_what_a_stage_was_warmed_up_with_tells_how_long_its_first_requests_may_take() -> None:
    clock = Clock()
    progress = Progress(clock)

    class Slow(Partition):
        def run(self, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            runs.append((first, last))
            time.sleep(0.02)
            return super().run(first, last, tensors)

    runs: list[tuple[int, int]] = []
    seen: list[float] = []
    warm_up(Slow(), 0, 3, took=seen.append)
    assert len(seen) == WARM_UP_RUNS < len(runs)
    assert min(seen) >= 0.02
    progress.took(1, 40.0)
    assert not any(ran(progress, clock, 1, STUCK_FACTOR * 40 - 1))
    assert not progress.is_stuck()


async def test_work_that_somebody_waits_for_does_not_count_as_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_, "STUCK_SECONDS", 0.1)
    worker, ending = Worker(1), threading.Event()

    class Waits:
        key = "waits"

        def most(self) -> int:
            return 1

        def patience(self) -> tuple[int, float]:
            return 1, 0.0

        def run(self, items: Sequence[object]) -> Sequence[object]:
            ending.wait(60)
            return items

    for given, is_stuck in ((600.0, False), (0.2, True)):
        ending.clear()
        doing = asyncio.create_task(worker.join(Waits(), None, 1, deadline=time.monotonic() + given))
        if is_stuck:
            await until(worker.progress.is_stuck)
        else:
            await until(lambda: worker.progress.busy_seconds() > 0.3)
            assert not worker.progress.is_stuck()
        ending.set()
        await doing
        worker.progress = Progress()
    assert await worker.close(5)

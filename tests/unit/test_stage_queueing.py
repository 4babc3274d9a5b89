"""The compute worker's queue: bounded, in order, and nothing computed that nobody waits for."""

import asyncio
import threading
import time
from functools import partial

import pytest

from splitplane.runtime.inference import Failure, InferenceError
from splitplane.runtime.stage.worker import Worker


class Gate:
    """Work that holds the worker until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.entered = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self._open.wait(30)
        return "gate"

    def open(self) -> None:
        self._open.set()


async def waiting(worker: Worker, depth: int) -> None:
    async with asyncio.timeout(30):
        while True:
            if worker.depth == depth:
                return
            await asyncio.sleep(0.001)


async def test_work_is_done_in_order_on_another_thread():
    worker = Worker(10)
    order: list[int] = []

    def work(number: int) -> str:
        order.append(number)
        return threading.current_thread().name

    results = await asyncio.gather(*(worker.run(partial(work, number)) for number in range(10)))
    assert order == list(range(10))
    assert {done.result for done in results} == {"compute"}
    assert worker.depth == 0
    assert await worker.close(5)


async def test_the_wait_in_the_queue_is_told():
    worker, gate = Worker(10), Gate()
    first = asyncio.ensure_future(worker.run(gate))
    second = asyncio.ensure_future(worker.run(lambda: None))
    await waiting(worker, 2)
    await asyncio.sleep(0.05)
    gate.open()
    assert (await second).queue_seconds >= 0.05
    await first
    await worker.close(5)


async def test_more_than_the_queue_holds_is_turned_away_at_once_and_the_rest_is_served():
    worker, gate = Worker(2), Gate()
    accepted = [asyncio.ensure_future(worker.run(gate)) for _ in range(3)]  # one runs, two wait
    await waiting(worker, 3)
    with pytest.raises(InferenceError, match="overloaded: 2 requests wait already") as caught:
        await worker.run(gate)
    assert caught.value.failure is Failure.RESOURCE_EXHAUSTED
    gate.open()
    assert [done.result for done in await asyncio.gather(*accepted)] == ["gate"] * 3
    assert (await worker.run(gate)).result == "gate"
    await worker.close(5)


async def test_work_whose_time_is_up_is_not_done():
    worker, gate, late = Worker(10), Gate(), []
    first = asyncio.ensure_future(worker.run(gate))
    second = asyncio.ensure_future(worker.run(lambda: late.append(1), deadline=time.monotonic() + 0.02))
    await waiting(worker, 2)
    await asyncio.sleep(0.05)
    gate.open()
    with pytest.raises(InferenceError, match=r"time was up after .* in the queue") as caught:
        await second
    assert caught.value.failure is Failure.DEADLINE_EXCEEDED
    await first
    assert late == []
    await worker.close(5)


async def test_cancelled_work_is_not_done_and_leaves_the_queue():
    worker, gate, done = Worker(10), Gate(), []
    first = asyncio.ensure_future(worker.run(gate))
    second = asyncio.ensure_future(worker.run(lambda: done.append(1)))
    await waiting(worker, 2)
    second.cancel()
    await waiting(worker, 1)  # while the first still runs
    gate.open()
    await first
    await waiting(worker, 0)
    assert done == []
    assert (await worker.run(lambda: 3)).result == 3
    await worker.close(5)


async def test_cancelled_work_that_runs_keeps_its_place_until_it_ends():
    worker, gate = Worker(10), Gate()
    running = asyncio.ensure_future(worker.run(gate))
    await asyncio.to_thread(gate.entered.wait, 5)
    running.cancel()
    await asyncio.sleep(0.05)
    assert worker.depth == 1
    gate.open()
    await waiting(worker, 0)
    await worker.close(5)


async def test_what_the_work_raises_reaches_who_waits_and_the_worker_goes_on():
    worker = Worker(10)
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)
    assert (await worker.run(lambda: 3)).result == 3
    await worker.close(5)

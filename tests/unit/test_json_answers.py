"""JSON in answers: bounded as in requests, and what writing it takes is lent from the budget."""

import asyncio
import contextlib
import json
import math
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from splitplane.runtime import oip_json, oip_rest, oip_v1, rest_serving
from splitplane.runtime.bodies import Bodies, Body
from splitplane.runtime.budgets import Budget
from splitplane.runtime.inference import (
    Failure,
    InferenceError,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Tensor,
    TensorMetadata,
)
from splitplane.runtime.json_sizes import MAX_VALUES, footprint_known, footprint_written
from splitplane.runtime.tensors import from_array, from_elements
from tests.support.forking import FORKED
from tests.support.fronts import Echo
from tests.support.gateway_rig import until

COUNT = 1 << 17
FLAT = np.random.default_rng(1).standard_normal(COUNT) * 1e-200
OUTPUTS = {
    "numbers": (from_array("y", FLAT), False),
    "rows of one": (from_array("y", FLAT.reshape(COUNT, 1)), True),
    "lists in lists": (from_array("y", FLAT.reshape(COUNT, 1, 1)), True),
    "texts": (from_elements("y", COUNT * [b"abcd"], (COUNT,)), False),
    "escaped texts": (from_elements("y", (COUNT // 8) * [100 * b"\1"], (COUNT // 8,)), False),
}


def growth(pipe: Any, kind: str) -> None:
    """A process's whole life: write an answer, and tell the growth of its memory at most."""

    def status(name: str) -> int:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(lines[name].split()[0])

    Path("/proc/self/clear_refs").write_text("5")
    tensor, nested = OUTPUTS[kind]
    before, response = status("VmRSS"), InferResponse("m", (tensor,))
    if nested:
        oip_v1.write_response(response, by_rows=True)
    else:
        oip_json.write_response(response, oip_json.BinaryOutputs(default=False, named={}))
    pipe.send(status("VmHWM") - before)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_writing_takes_no_more_memory_than_is_lent_for_it(kind):
    tensor, nested = OUTPUTS[kind]
    ours, theirs = FORKED.Pipe()
    process = FORKED.Process(target=growth, args=(theirs, kind), daemon=True)
    process.start()
    theirs.close()
    grown, estimate = ours.recv(), footprint_written((tensor,), nested=nested)
    process.join()
    assert 0 < grown < estimate + (4 << 20)
    assert estimate < 8 * grown


def asked(batch: int) -> tuple[Tensor, ...]:
    return Tensor("x", "FP32", (batch, 3), b""), Tensor("mask", "FP32", (batch + 1, 3), b"")


def test_an_answer_of_known_size_is_refused_before_it_is_computed_with_what_to_do():
    image = TensorMetadata("y", "FP32", (-1, 1024, 1024))
    footprint_known(asked(2), (image,))
    for batch, nested in (3, False), (2, True):
        with pytest.raises(InferenceError, match="binary_data_output") as refused:
            footprint_known(asked(batch), (image,), nested=nested)
        assert refused.value.failure is Failure.OUT_OF_RANGE
    assert not footprint_known(asked(3), (TensorMetadata("free", "FP32", (-1, -1, 1 << 30)),))


def test_an_answer_of_more_values_than_are_written_is_refused_and_lists_count_over_v1():
    def tensor(*shape: int) -> Tensor:
        return Tensor("y", "BOOL", shape, bytes(math.prod(shape)))

    assert footprint_written((tensor(MAX_VALUES),)) > 0
    for shapes, nested in ([(MAX_VALUES, 1)], True), ([(MAX_VALUES,), (1,)], False):
        with pytest.raises(InferenceError, match="values"):
            footprint_written([tensor(*shape) for shape in shapes], nested=nested)


def read(size: int, budget: Budget) -> Body:
    """A body of so many bytes of JSON that has come."""
    body = Body(budget)
    body.data += b"[" + b"1," * (size // 2) + b"1]"
    return body


async def test_large_answers_are_written_one_at_a_time_within_the_budget_which_has_it_back():
    budget = Budget(10_000_000)
    bodies, free = Bodies(budget), []

    def work(*, fails: bool = False) -> None:
        free.append(budget.free)
        time.sleep(0.02)
        if fails:
            raise ValueError("failed")

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(bodies.written(100_000, 6_000_000, work))
    with pytest.raises(ValueError, match="failed"):
        await bodies.written(100_000, 6_000_000, lambda: work(fails=True))
    assert free == 4 * [4_000_000]
    assert budget.free == budget.capacity
    left = asyncio.ensure_future(bodies.written(100_000, 6_000_000, work))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait((left,))
    assert budget.free == budget.capacity


async def test_an_answer_that_is_binary_but_for_a_little_waits_for_no_json():
    bodies, going = Bodies(Budget(10_000_000)), threading.Event()
    large = asyncio.ensure_future(bodies.written(100_000, 6_000_000, lambda: going.wait(60)))
    assert await asyncio.wait_for(bodies.written(4_000_000, 900, lambda: "written"), 30) == "written"
    going.set()
    assert await large


async def test_an_answer_that_waits_for_much_holds_no_requests_up() -> None:
    budget = Budget(128 << 20, patience_seconds=60.0)
    await budget.take(45 << 20)
    written = asyncio.create_task(Bodies(budget).written(1, 90 << 20, lambda: "written"))
    await until(lambda: bool(budget._waiting))
    async with asyncio.timeout(10):
        await budget.take(4 << 20)
        async with budget.lending(4 << 20, "peer"):
            pass
    assert not written.done()
    budget.give(49 << 20)
    assert await written == "written"


async def test_an_answer_waits_for_memory_and_json_that_needs_less_does_not_wait_for_it():
    budget = Budget(256_000_000, patience_seconds=60.0)
    bodies, order = Bodies(budget), []
    await budget.take(251_000_000)
    tasks = [asyncio.ensure_future(bodies.written(0, 6_000_000, lambda: order.append("large"))) for _ in range(2)]
    await until(lambda: bool(budget._waiting))
    await bodies.parsed(read(70_000, budget), lambda: order.append("text"))
    assert order == ["text"]
    with pytest.raises(InferenceError) as late:  # the first of them is before it
        await bodies.written(0, 6_000_000, lambda: None, deadline=time.monotonic() + 0.05)
    assert late.value.failure is Failure.DEADLINE_EXCEEDED
    tasks.pop(0).cancel()
    budget.give(251_000_000)
    await asyncio.gather(*tasks)
    assert order == ["text", "large"]
    assert budget.free == budget.capacity


async def test_an_answer_for_which_memory_does_not_come_is_given_up_and_the_next_has_its_chance():
    refused: list[int] = []
    budget = Budget(64_000_000, patience_seconds=0.05, on_refusal=lambda: refused.append(1))
    bodies = Bodies(budget)
    await budget.take(60_000_000)
    for _ in range(2):
        with pytest.raises(InferenceError) as late:
            await bodies.written(0, 6_000_000, lambda: None)
        assert late.value.failure is Failure.RESOURCE_EXHAUSTED
    assert len(refused) == 2
    assert budget.free == 4_000_000
    await bodies.written(0, 3_000_000, lambda: None)


@dataclass
class Painter(Echo):
    """Answers with as many numbers as it was asked for by the first size of its input, in lists of one."""

    knows: bool = True

    def metadata(self) -> ModelMetadata:
        size = 10_000 if self.knows else -1
        spec = TensorMetadata("x", "UINT8", (-1, -1))
        return ModelMetadata(self.name, (spec,), (TensorMetadata("y", "FP32", (-1, size, 1)),))

    async def infer(self, request: InferRequest) -> InferResponse:
        self.seen.append(request)
        shape = (request.inputs[0].shape[0], 10_000, 1)
        return InferResponse(self.name, (Tensor("y", "FP32", shape, bytes(4 * math.prod(shape))),))


class Watched(Bodies):
    """Tells what of the budget was free when an answer was to be written."""

    def __init__(self, budget: Budget) -> None:
        super().__init__(budget)
        self.free: list[int] = []

    async def written(self, *arguments: Any, **named: Any) -> Any:
        self.free.append(self._budget.free)
        return await super().written(*arguments, **named)


@contextlib.asynccontextmanager
async def painting(budget: Budget, model: Painter, invalid: list[int]) -> AsyncIterator[tuple[Watched, Any]]:
    """What asks for a batch over a version of the protocol, and gives the status."""
    bodies = Watched(budget)
    app = oip_rest.make_app(model, CollectorRegistry(), bodies=bodies, on_invalid=lambda: invalid.append(1))
    server = await rest_serving.serve(app, "127.0.0.1", 0)
    at = "http://{}:{}".format(*server.address)

    async def ask(batch: int, version: int, **headers: str) -> int:
        described = {"name": "x", "datatype": "UINT8", "shape": [batch, 1], "parameters": {"binary_data_size": batch}}
        data, path = json.dumps({"inputs": [described]}).encode(), f"{at}/v2/models/echo/infer"
        headers["Inference-Header-Content-Length"] = str(len(data))
        if version == 1:
            path, body = f"{at}/v1/models/echo:predict", json.dumps({"instances": batch * [[1]]}).encode()
        else:
            body = data + bytes(batch)
        async with session.post(path, data=body, headers=headers) as answer:
            await answer.read()
            return answer.status

    try:
        async with aiohttp.ClientSession() as session:
            yield bodies, ask
    finally:
        await server.stop(0)


@pytest.mark.parametrize("version", [1, 2])
async def test_what_cannot_be_written_is_not_computed_and_is_counted_as_what_nobody_can_answer(version):
    budget, model, invalid = Budget(12_000_000), Painter(), list[int]()
    async with painting(budget, model, invalid) as (bodies, ask):
        assert await ask(6, version) == 200
        assert bodies.free == [budget.capacity], "its inputs are needed no longer"
        assert await ask(210, version) == 413
        assert await ask(14, version) == 413
        assert await ask(1, version, **{"Grpc-Timeout": "x"}) == 400
        assert (len(model.seen), len(invalid)) == (1, 3)
        model.knows = False
        assert await ask(14, version) == 413
        assert (len(model.seen), len(invalid)) == (2, 3)
    assert budget.free == budget.capacity

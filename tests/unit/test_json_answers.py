"""JSON in answers: bounded as in requests, and what writing it takes is lent from the budget."""

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitplane.runtime import oip_json, oip_v1
from splitplane.runtime.bodies import Bodies
from splitplane.runtime.budgets import Budget
from splitplane.runtime.inference import Failure, InferenceError, InferRequest, InferResponse, Tensor, TensorMetadata
from splitplane.runtime.json_sizes import MAX_VALUES, footprint_written, require_known_writable
from splitplane.runtime.tensors import from_array, from_elements
from tests.support.forking import FORKED

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


def asked(batch: int) -> InferRequest:
    return InferRequest("m", (Tensor("x", "FP32", (batch, 3), b""), Tensor("mask", "FP32", (batch + 1, 3), b"")))


def test_an_answer_of_known_size_is_refused_before_it_is_computed_with_what_to_do():
    image = TensorMetadata("y", "FP32", (-1, 1024, 1024))
    require_known_writable(asked(2), (image,))
    with pytest.raises(InferenceError, match="binary_data_output") as refused:
        require_known_writable(asked(3), (image,))
    assert refused.value.failure is Failure.OUT_OF_RANGE
    require_known_writable(asked(3), (TensorMetadata("free", "FP32", (-1, -1, 1 << 30)),))


def test_an_answer_of_more_values_than_are_written_is_refused_and_lists_count_over_v1():
    def tensor(*shape: int) -> Tensor:
        return Tensor("y", "BOOL", shape, bytes(math.prod(shape)))

    assert footprint_written((tensor(MAX_VALUES),)) > 0
    for shapes, nested in ([(MAX_VALUES, 1)], True), ([(MAX_VALUES,), (1,)], False):
        with pytest.raises(InferenceError, match="values"):
            footprint_written([tensor(*shape) for shape in shapes], nested=nested)


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
    await bodies.written(100_000, 0, work)  # all binary
    assert free == 4 * [4_000_000] + [10_000_000]
    assert budget.free == budget.capacity
    left = asyncio.ensure_future(bodies.written(100_000, 6_000_000, work))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait((left,))
    assert budget.free == budget.capacity
    with pytest.raises(InferenceError, match="binary_data_output") as refused:
        await bodies.written(100_000, 10_000_001, work)
    assert refused.value.failure is Failure.OUT_OF_RANGE

"""JSON in bodies: what it takes in memory while it is parsed is counted before it is, and is bounded."""

import asyncio
import ctypes
import gc
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitplane.runtime import oip_v1
from splitplane.runtime.bodies import Bodies, Body
from splitplane.runtime.budgets import Budget
from splitplane.runtime.inference import (
    Failure,
    InferenceError,
    InferResponse,
    ModelMetadata,
    TensorMetadata,
)
from splitplane.runtime.json_sizes import MAX_TEXT_BYTES, MAX_VALUES, footprint
from splitplane.runtime.tensors import from_array
from tests.support.forking import FORKED
from tests.support.gateway_rig import until

MODEL = ModelMetadata("echo", (TensorMetadata("x", "FP64", (-1,)),), ())
TEXTS = ModelMetadata("echo", (TensorMetadata("x", "BYTES", (-1,)),), ())
SIZE = 1 << 20
GREEDY = {
    "numbers": "1.5,",
    "digits": "1,",
    "lists": "[],",
    "lists in lists": "[[]],",
    "objects": '{"a":1},',
    "names": '{"%d":[]},',
    "entries": '"%d":1,',
    "short texts": '"ab",',
    "long texts": '"' + 500 * "ab" + '",',
    "wide texts": '"' + 500 * "a" + "\N{GRINNING FACE}" + '",',
    "escaped texts": '"' + 500 * "a" + '\\ud83d\\ude00",',
}


def body_of(part: str, size: int) -> bytes:
    """Of about ``size`` bytes, for the V1 protocol."""
    count = size // len(part.encode())
    parts = "".join(part % index for index in range(count)) if "%d" in part else count * part
    opening, closing = "{}" if part == GREEDY["entries"] else "[]"
    return f'{{"inputs":{opening}{parts}{part.replace("%d", "0").rstrip(",")}{closing}}}'.encode()


def growth(pipe: Any, part: str, size: int, model: ModelMetadata) -> None:
    """A process's whole life: read a body, and tell the growth of its memory at most beside the estimate of it."""

    def peak() -> int:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])

    oip_v1.read_request(b'{"inputs":[1.0]}', MODEL)
    body = bytearray(body_of(part, size))
    estimate = footprint(body)
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide what is taken
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    try:
        oip_v1.read_request(body, model)
    except InferenceError as error:
        pipe.send((peak() - before, estimate, str(error)))
    else:
        pipe.send((peak() - before, estimate, ""))


@pytest.mark.parametrize("kind", GREEDY)
def test_json_takes_no_more_memory_than_was_said_before_it_was_parsed(kind):
    ours, theirs = FORKED.Pipe()
    model = TEXTS if "texts" in kind else MODEL
    process = FORKED.Process(target=growth, args=(theirs, GREEDY[kind], SIZE, model), daemon=True)
    process.start()
    theirs.close()
    grown, estimate, _ = ours.recv()
    process.join()
    print(f"{kind}: {grown / SIZE:.1f} times its text, {estimate / SIZE:.1f} by the estimate")
    assert 0 < grown < estimate + (2 << 20)
    assert estimate < 8 * grown, "what is taken for sure is no reason to refuse what there is room for"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" + b"1," * MAX_VALUES + b"1]", f"JSON of {MAX_VALUES + 1} values"),
        (b'["' + bytes(MAX_TEXT_BYTES) + b'"]', f"there are {MAX_TEXT_BYTES + 4} bytes of JSON"),
    ],
)
def test_more_json_than_is_taken_is_refused_with_what_to_do(text, words):
    with pytest.raises(InferenceError, match=words) as refused:
        footprint(text)
    assert refused.value.failure is Failure.OUT_OF_RANGE
    assert "binary_data_size" in refused.value.message


def read(size: int, budget: Budget) -> Body:
    """A body of so many bytes of JSON that has come."""
    body = Body(budget)
    body.data += b"[" + b"1," * (size // 2) + b"1]"
    return body


async def test_large_json_is_parsed_one_at_a_time_within_the_budget_which_has_it_back():
    budget = Budget(64 << 20)
    bodies, inside, most, least = Bodies(budget), 0, 0, budget.free

    def work() -> str:
        nonlocal inside, most, least
        inside += 1
        most, least = max(most, inside), min(least, budget.free)
        time.sleep(0.05)
        inside -= 1
        return "done"

    texts = [read(200_000, budget) for _ in range(4)]
    assert await asyncio.gather(*(bodies.parsed(body, work) for body in texts)) == ["done"] * 4
    assert most == 1
    assert least == budget.capacity - footprint(texts[0].data)
    assert budget.free == budget.capacity
    # What follows a small header is no JSON, and is read beside others.
    assert await asyncio.gather(*(bodies.parsed(body, work, text_size=10) for body in texts)) == ["done"] * 4
    assert most > 1


async def test_many_lists_are_parsed_without_a_look_for_garbage_and_gone_at_once_where_they_are_refused():
    budget = Budget(256 << 20)
    body, looks = Body(budget), []
    body.data += b'{"inputs":[' + b"[]," * (MAX_VALUES // 2 - 10) + b"1]}"

    def looked(phase: str, _told: dict[str, int]) -> None:
        looks.append(phase)

    gc.collect()
    gc.callbacks.append(looked)
    try:
        with pytest.raises(InferenceError, match="ragged"):
            await Bodies(budget).parsed(body, lambda: oip_v1.read_request(body.data, MODEL))
        lists = sum(type(each) is list for each in gc.get_objects())
    finally:
        gc.callbacks.remove(looked)
    assert len(looks) < 20
    assert lists < MAX_VALUES // 4
    assert gc.isenabled()


async def test_json_for_which_there_is_no_room_is_not_parsed():
    def work() -> None:
        raise AssertionError("parsed")

    for capacity, taken, failure in (
        (1 << 20, 0, Failure.OUT_OF_RANGE),
        (32 << 20, 31 << 20, Failure.RESOURCE_EXHAUSTED),
    ):
        budget = Budget(capacity)
        await budget.take(taken)
        with pytest.raises(InferenceError) as refused:
            await Bodies(budget).parsed(read(200_000, budget), work)
        assert refused.value.failure is failure


async def test_json_whose_turn_does_not_come_in_time_is_given_up_and_who_goes_away_holds_its_turn_to_the_end():
    budget = Budget(64 << 20)
    bodies, begun, ending, ended = Bodies(budget), threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        ended.append(ending.wait(60))

    first = asyncio.ensure_future(bodies.parsed(read(200_000, budget), work))
    await until(begun.is_set)
    with pytest.raises(InferenceError) as late:
        await bodies.parsed(read(200_000, budget), work, deadline=time.monotonic() + 0.1)
    assert late.value.failure is Failure.DEADLINE_EXCEEDED
    first.cancel()
    asyncio.get_running_loop().call_later(0.1, ending.set)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert ended == [True]
    assert budget.free == budget.capacity


@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 3), (0, 3), (2, 1, 3), (4,), (1, 2, 3, 2)])
@pytest.mark.parametrize("by_rows", [False, True])
def test_nested_values_have_the_shape_of_the_tensor_where_it_holds_nothing_too(shape, by_rows):
    values = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    body = oip_v1.write_response(InferResponse("echo", (from_array("y", values),)), by_rows=by_rows)
    assert json.loads(body) == {"predictions" if by_rows else "outputs": values.tolist()}

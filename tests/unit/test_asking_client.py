"""The client behind "0 failed requests" of the operator's and kind's tests, before gateways that deserve a failure."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.support import operator_cases as cases
from tests.support.operator_requests import AT_ONCE, LEAST_ANSWERS, Asking, asking, expected

Answer = Callable[[], Awaitable[np.ndarray]]
SECONDS = 1.0
"""The client's patience here."""


class _Gateway(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient is untyped
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def ModelInfer(self, request, context):  # noqa: N802 - gRPC's own name
        try:
            answer = await self._answer()
        except InterruptedError:
            await context.abort(grpc.StatusCode.CANCELLED, "stopping")
        output = service_pb2.ModelInferResponse.InferOutputTensor(name="y", datatype="FP32", shape=answer.shape)
        return service_pb2.ModelInferResponse(outputs=[output], raw_output_contents=[answer.tobytes()])


@contextlib.asynccontextmanager
async def gateway(answer: Answer) -> AsyncIterator[str]:
    """The address of one that answers so."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Gateway(answer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def right() -> np.ndarray:
    return expected()


async def zeros() -> np.ndarray:
    return np.zeros_like(expected())


async def nothing() -> np.ndarray:
    await asyncio.sleep(60)
    return expected()


async def enough(found: Asking) -> None:
    await asyncio.to_thread(cases.wait, lambda: found.answered >= LEAST_ANSWERS, seconds=60, what="answers", every=0.05)


async def test_a_gateway_that_answers_right_has_no_failure() -> None:
    async with gateway(right) as address, asking(address, "first", seconds=SECONDS) as found:
        await enough(found)
    assert found.failures == []
    assert found.resent == 0


async def test_an_answer_of_the_right_shape_and_another_value_is_a_failure() -> None:
    async with gateway(zeros) as address, asking(address, "first", seconds=SECONDS) as found:
        await asyncio.sleep(0.5)
    assert found.answered == 0
    assert len(found.failures) > AT_ONCE
    assert "a wrong answer" in found.failures[0]


async def test_each_of_several_right_answers_counts() -> None:
    async with (
        gateway(zeros) as address,
        asking(address, "first", right=(expected(), await zeros()), seconds=SECONDS) as found,
    ):
        await enough(found)
    assert found.failures == []


async def test_a_gateway_that_hangs_at_the_end_has_failed_every_request_that_it_holds() -> None:
    hanging = asyncio.Event()

    async def answer() -> np.ndarray:
        return await (nothing() if hanging.is_set() else right())

    async with gateway(answer) as address, asking(address, "first", seconds=SECONDS) as found:
        await enough(found)
        hanging.set()
        await asyncio.sleep(0.5)  # the end of the block finds requests under way
    assert len(found.failures) == AT_ONCE
    assert all("Deadline" in words for words in found.failures)


async def test_requests_under_way_at_the_end_are_waited_for_and_count() -> None:
    async def slow() -> np.ndarray:
        await asyncio.sleep(0.3)
        return expected()

    async with gateway(slow) as address, asking(address, "first", seconds=SECONDS) as found:
        await asyncio.sleep(0.15)
        assert found.answered == 0
    assert found.answered == AT_ONCE


async def test_too_few_answers_are_a_failure_though_none_was_wrong() -> None:
    async with gateway(right) as address, asking(address, "first", seconds=SECONDS) as found:
        await asyncio.sleep(0.05)
    assert 0 < found.answered < LEAST_ANSWERS
    assert found.failures == [f"only {found.answered} requests were answered"]


@pytest.mark.parametrize(
    ("stops", "failures"), [(AT_ONCE, []), (AT_ONCE + 1, [f"{AT_ONCE + 1} requests had to be sent again"])]
)
async def test_a_request_that_meets_a_gateways_end_is_sent_again_and_only_few_may(
    stops: int, failures: list[str]
) -> None:
    asked = 0

    async def stopping() -> np.ndarray:
        nonlocal asked
        asked += 1
        if asked % (AT_ONCE + 1) == 0 and asked <= stops * (AT_ONCE + 1):  # never the same request twice
            raise InterruptedError
        return expected()

    async with gateway(stopping) as address, asking(address, "first", seconds=SECONDS) as found:
        await enough(found)
    assert found.failures == failures


async def test_what_fails_in_the_block_is_told_at_once_and_as_it_is() -> None:
    with pytest.raises(AssertionError, match="mine"):
        async with gateway(nothing) as address, asking(address, "first") as found:
            raise AssertionError(f"mine, not {found.failures}")

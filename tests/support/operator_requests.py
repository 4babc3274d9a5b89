"""Requests to the small model's pipelines, as an ordinary client sends them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import torch
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.support import operator_cases as cases

FEATURES = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


AT_ONCE = 3
"""Requests that a client has under way at most."""

ANSWER_SECONDS = 20.0
"""How long a request may take; one that takes longer has failed."""

LEAST_ANSWERS = 20
"""As many as tell that a pipeline served all the while: two to three seconds of one that does."""

TOLERANCE = 1e-5
"""By which a split model's answer may differ from the whole one's, both in float32."""


@contextlib.asynccontextmanager
async def client_of(address: str) -> AsyncIterator[InferenceServerClient]:
    client = InferenceServerClient(address, channel_args=[("grpc.enable_http_proxy", 0)])
    try:
        yield client
    finally:
        await client.close()


async def ask(address: str, name: str) -> np.ndarray[Any, Any]:
    async with client_of(address) as client:
        return await _infer(client, name)


async def _infer(client: InferenceServerClient, name: str, seconds: float = ANSWER_SECONDS) -> np.ndarray[Any, Any]:
    tensor = InferInput("features", list(FEATURES.shape), "FP32")
    tensor.set_data_from_numpy(FEATURES)
    result = await client.infer(name, [tensor], client_timeout=seconds)
    answer: np.ndarray[Any, Any] = result.as_numpy(result.get_response().outputs[0].name)
    return answer


def expected(wide: bool = False) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        answer: np.ndarray[Any, Any] = cases.module(wide)(torch.from_numpy(FEATURES)).numpy()
    return answer


class Asking:
    """What became of the requests of a client."""

    def __init__(self, right: Sequence[np.ndarray[Any, Any]]) -> None:
        self.answered = self.resent = 0
        """``answered`` counts right answers only."""
        self.failures: list[str] = []
        """One line for each request without a right answer, and at the end for what all of them together lack."""
        self._right = right

    def take(self, answer: np.ndarray[Any, Any]) -> None:
        if any(answer.shape == each.shape and np.abs(answer - each).max() <= TOLERANCE for each in self._right):
            self.answered += 1
        else:
            self.failures.append(f"a wrong answer: {answer}")

    def end(self) -> None:
        if self.resent > AT_ONCE:
            self.failures.append(f"{self.resent} requests had to be sent again")
        if self.answered < LEAST_ANSWERS:
            self.failures.append(f"only {self.answered} requests were answered")


@contextlib.asynccontextmanager
async def asking(
    address: str, name: str, *, right: Sequence[np.ndarray[Any, Any]] = (), seconds: float = ANSWER_SECONDS
) -> AsyncIterator[Asking]:
    """A client that keeps one connection, as clients do, and may have ``AT_ONCE`` requests on it.

    At the end of the block it sends no more and waits for what is under way; then ``failures`` is complete. It is
    empty only if there were ``LEAST_ANSWERS``, and each was one of ``right``, which is :func:`expected` by default.
    What reaches a gateway in the instant in which it stops is cancelled, and sent again as clients do; those are
    ``AT_ONCE`` at most, or it is a failure.
    """
    found = Asking(right or [expected()])
    over = asyncio.Event()

    async def send(client: InferenceServerClient) -> np.ndarray[Any, Any]:
        try:
            return await _infer(client, name, seconds)
        except InferenceServerException as error:
            if error.status() != "StatusCode.CANCELLED":
                raise
            found.resent += 1
            return await _infer(client, name, seconds)

    async def run(client: InferenceServerClient) -> None:
        while not over.is_set():
            try:
                found.take(await send(client))
            except Exception as error:
                found.failures.append(str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 0.1 * AT_ONCE)

    async with client_of(address) as client:
        tasks = [asyncio.create_task(run(client)) for _ in range(AT_ONCE)]
        try:
            yield found
            over.set()
            await asyncio.gather(*tasks)
            found.end()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

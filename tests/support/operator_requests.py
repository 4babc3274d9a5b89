"""Requests to the small model's pipelines, as an ordinary client sends them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
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


async def _infer(client: InferenceServerClient, name: str) -> np.ndarray[Any, Any]:
    tensor = InferInput("features", list(FEATURES.shape), "FP32")
    tensor.set_data_from_numpy(FEATURES)
    result = await client.infer(name, [tensor], client_timeout=20)
    answer: np.ndarray[Any, Any] = result.as_numpy(result.get_response().outputs[0].name)
    return answer


def expected(wide: bool = False) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        answer: np.ndarray[Any, Any] = cases.module(wide)(torch.from_numpy(FEATURES)).numpy()
    return answer


class Asking:
    """What became of the requests of a client."""

    def __init__(self) -> None:
        self.answered = self.resent = 0
        self.failures: list[str] = []


@contextlib.asynccontextmanager
async def asking(address: str, name: str) -> AsyncIterator[Asking]:
    """A client that keeps one connection, as clients do, and may have ``AT_ONCE`` requests on it.

    What reaches a gateway in the instant in which it stops is cancelled, and sent again as clients do; those are
    ``AT_ONCE`` at most, or it is a failure.
    """
    found = Asking()

    async def send(client: InferenceServerClient) -> None:
        try:
            await _infer(client, name)
        except InferenceServerException as error:
            if error.status() != "StatusCode.CANCELLED":
                raise
            found.resent += 1
            await _infer(client, name)

    async def run(client: InferenceServerClient) -> None:
        while True:
            try:
                await send(client)
                found.answered += 1
            except Exception as error:
                found.failures.append(str(error))
            await asyncio.sleep(0.1 * AT_ONCE)

    async with client_of(address) as client:
        tasks = [asyncio.create_task(run(client)) for _ in range(AT_ONCE)]
        try:
            yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if found.resent > AT_ONCE:
                found.failures.append(f"{found.resent} requests had to be sent again")

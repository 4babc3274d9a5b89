"""Requests to the small model's pipelines, as an ordinary client sends them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import torch
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from tests.support import operator_cases as cases

FEATURES = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


async def ask(address: str, name: str) -> np.ndarray[Any, Any]:
    client = InferenceServerClient(address)
    try:
        tensor = InferInput("features", list(FEATURES.shape), "FP32")
        tensor.set_data_from_numpy(FEATURES)
        result = await client.infer(name, [tensor], client_timeout=20)
        answer: np.ndarray[Any, Any] = result.as_numpy(result.get_response().outputs[0].name)
        return answer
    finally:
        await client.close()


def expected(wide: bool = False) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        answer: np.ndarray[Any, Any] = cases.module(wide)(torch.from_numpy(FEATURES)).numpy()
    return answer


class Asking:
    """Requests one after another, and what became of them."""

    def __init__(self) -> None:
        self.answered = 0
        self.failures: list[str] = []


@contextlib.asynccontextmanager
async def asking(address: str, name: str) -> AsyncIterator[Asking]:
    found = Asking()

    async def run() -> None:
        while True:
            try:
                await ask(address, name)
                found.answered += 1
            except Exception as error:
                found.failures.append(str(error))
            await asyncio.sleep(0.1)

    task = asyncio.create_task(run())
    try:
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

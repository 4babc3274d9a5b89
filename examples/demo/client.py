"""A constant-rate client of its own process that counts every request, by the Open Inference Protocol alone.

Commands come on standard input, one a line: ``rate 3.5`` (requests per second; 0 pauses) and ``stop``. Each answered
request is a JSON line in the log: when it was due and sent, how long it took, and how near the answer is to the unsplit
model's.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient


class ConstantRate:
    """Sends at a fixed pace whatever the answers do (an open loop), so that slow answers can't hide demand."""

    def __init__(self, *, client: Any, model: str, frames: np.ndarray, expected: np.ndarray, log: IO[str]) -> None:
        self._client, self._model, self._log = client, model, log
        self._frames, self._expected = frames, expected
        self._rate = 0.0
        self._changed = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()

    def set_rate(self, rate: float) -> None:
        self._rate = rate
        self._changed.set()

    async def run(self, stopped: asyncio.Event) -> None:
        due, number = time.time(), 0
        while not stopped.is_set():
            if self._rate <= 0:
                self._changed.clear()
                await self._changed.wait()
                due = time.time()
                continue
            await asyncio.sleep(max(0.0, due - time.time()))
            task = asyncio.create_task(self._request(number, due))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            number += 1
            due += 1.0 / self._rate if self._rate > 0 else 0.0
        await asyncio.gather(*self._open)

    async def _request(self, number: int, due: float) -> None:
        which = number % len(self._frames)
        tensor = InferInput("frames", [1, self._frames.shape[1]], "FP32")
        tensor.set_data_from_numpy(self._frames[which : which + 1])
        sent = time.time()
        record: dict[str, Any] = {"number": number, "due": due, "sent": sent}
        try:
            result = await self._client.infer(self._model, [tensor], request_id=str(number), client_timeout=60.0)
        except Exception as error:  # whatever it is: the request has failed, and is counted
            record |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:300]}
        else:
            answer = result.as_numpy(result.get_response().outputs[0].name)[0].astype(np.float64)
            expected = self._expected[which].astype(np.float64)
            cosine = float(answer @ expected / (np.linalg.norm(answer) * np.linalg.norm(expected)))
            record |= {"ok": True, "cosine": cosine}
        record["seconds"] = time.time() - sent
        self._log.write(json.dumps(record) + "\n")
        self._log.flush()


async def main(options: argparse.Namespace) -> None:
    data = np.load(options.data)
    stopped = asyncio.Event()
    with Path(options.log).open("a") as log:  # noqa: ASYNC230 - one short line a request
        client = InferenceServerClient(options.url, channel_args=[("grpc.enable_http_proxy", 0)])
        try:
            pace = ConstantRate(
                client=client, model=options.model, frames=data["frames"], expected=data["expected"], log=log
            )
            sending = asyncio.create_task(pace.run(stopped))
            reader = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
            while line := (await reader.readline()).decode().split():
                if line[0] == "rate":
                    pace.set_rate(float(line[1]))
                else:
                    break
            stopped.set()
            pace.set_rate(max(pace._rate, 1.0))
            await sending
        finally:
            await client.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--url", "--model", "--data", "--log"):
        parser.add_argument(name, required=True)
    asyncio.run(main(parser.parse_args()))

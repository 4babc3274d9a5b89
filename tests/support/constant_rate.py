"""A client that sends at a constant rate, whatever comes back, and counts what does."""

import asyncio
import json
import time

import aiohttp


class Client:
    """Sends at a constant rate from an address of its own; counts what came within the deadline.

    ``tells``: the requests carry it, else only the client knows it.
    """

    def __init__(self, url: str, source: str, *, deadline: float, width: int, tells: bool = True) -> None:
        self._url, self._source, self._deadline = url, source, deadline
        # Binary, so that reading it costs the gateway little beside what the stage takes.
        size = {"binary_data_size": 4 * width}
        frames = {"name": "frames", "datatype": "FP32", "shape": [1, width], "parameters": size}
        timeout = {"timeout": int(deadline * 1e6)} if tells else {}
        header = json.dumps({"inputs": [frames], "parameters": timeout}).encode()
        self._headers = {"Inference-Header-Content-Length": str(len(header))}
        self._body = header + bytes(4 * width)
        self.sent = self.good = self.late = 0
        self.refused: list[float] = []
        self.others: list[tuple[int, str]] = []

    async def run(self, rate: float, seconds: float) -> None:
        connector = aiohttp.TCPConnector(local_addr=(self._source, 0), limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            began, tasks = time.monotonic(), []
            while (now := time.monotonic() - began) < seconds:
                while self.sent < now * rate:
                    self.sent += 1
                    tasks.append(asyncio.create_task(self._one(session)))
                await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)

    async def _one(self, session: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        async with session.post(self._url, data=self._body, headers=self._headers) as answer:
            await answer.read()
            took = time.monotonic() - began
            if answer.status == 200:
                self.good += took <= self._deadline
                self.late += took > self._deadline
            elif answer.status == 429:
                assert int(answer.headers["Retry-After"]) >= 1
                self.refused.append(took)
            else:
                self.others.append((answer.status, await answer.text()))

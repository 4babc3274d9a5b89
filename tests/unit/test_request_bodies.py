"""Bodies of REST requests before they are whole: bounded together in memory, each in time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from splitplane.runtime import bodies as request_bodies
from splitplane.runtime import memory, oip_rest
from splitplane.runtime.bodies import Bodies
from splitplane.runtime.oip_grpc import MAX_MESSAGE_BYTES
from tests.support.fronts import Echo
from tests.support.gateway_rig import until

PATH = "/v2/models/echo/infer"
BODY = json.dumps({"inputs": [{"name": "fp32", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()


@asynccontextmanager
async def serving(bodies: Bodies) -> AsyncIterator[tuple[str, int]]:
    app = oip_rest.make_app(Echo(), CollectorRegistry(), bodies=bodies)
    runner = await oip_rest.serve(app, "127.0.0.1", 0, drain_seconds=0.1)
    try:
        yield runner.addresses[0][:2]
    finally:
        await runner.cleanup()


async def unfinished(address: tuple[str, int], sent: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request of which all but one byte has been sent."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {sent + 1}\r\n\r\n".encode() + bytes(sent))
    await writer.drain()
    return reader, writer


async def post(address: tuple[str, int], path: str = PATH, body: bytes = BODY) -> tuple[int, str | None]:
    async with (
        aiohttp.ClientSession() as session,
        session.post("http://{}:{}{}".format(*address, path), data=body) as answer,
    ):
        assert ("error" in await answer.json()) == (answer.status != 200)
        return answer.status, answer.headers.get("Retry-After")


@pytest.mark.parametrize("path", [PATH, "/v1/models/echo:predict"])
async def test_bodies_that_are_not_whole_yet_take_no_more_memory_than_there_is_for_all(path):
    bodies = Bodies(300_000)
    async with serving(bodies) as address:
        held = [await unfinished(address, 100_000) for _ in range(3)]
        await until(lambda: bodies._free == 0)
        assert await post(address, path) == (503, "1")
        for _, writer in held:
            writer.close()
        await until(lambda: bodies._free == 300_000)
        assert await post(address) == (200, None)
        assert bodies._free == 300_000


async def test_a_body_of_which_nothing_comes_any_more_is_given_up(tmp_path):
    bodies = Bodies(300_000, idle_seconds=0.2)
    async with serving(bodies) as address:
        reader, writer = await unfinished(address, 100_000)
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408")
        await until(lambda: bodies._free == 300_000)
        writer.close()


async def test_a_body_that_trickles_is_given_up_in_the_end():
    bodies = Bodies(300_000, idle_seconds=5.0, total_seconds=0.5)
    async with serving(bodies) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
        answered = asyncio.ensure_future(reader.readline())
        async with asyncio.timeout(4):
            while not answered.done():
                writer.write(b" ")
                await asyncio.wait((answered,), timeout=0.05)
        assert answered.result().startswith(b"HTTP/1.1 408")
        writer.close()


@pytest.mark.parametrize(
    ("files", "budget"),
    [
        ({"memory.max": "1073741824\n"}, 256 << 20),
        ({"memory.max": "67108864\n"}, MAX_MESSAGE_BYTES),
        ({"memory/memory.limit_in_bytes": "1073741824\n"}, 256 << 20),
        ({"memory.max": "max\n"}, request_bodies.MOST_BYTES),
        ({}, request_bodies.MOST_BYTES),
    ],
)
def test_the_budget_is_a_quarter_of_the_containers_memory_within_bounds(tmp_path, monkeypatch, files, budget):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_machine_bytes", lambda: 64 << 30)
    assert request_bodies.budget_bytes() == budget

"""Emulated links, measured with a real gRPC client through the real proxy process."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from splitplane.local.addresses import PROXY_PORT
from splitplane.local.config import parse_rate
from splitplane.local.files import write_json
from splitplane.local.shaping import Bucket, Link

TOLERANCE = 0.15
TRANSFERS = 5
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Call = Callable[[bytes], Awaitable[bytes]]


def method(channel: grpc.aio.Channel, path: str) -> Call:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    return call


class Emulation:
    """Two edge nodes and a cloud node on subnets of this test process, and the link between their tiers."""

    def __init__(self, folder: Path) -> None:
        first = 64 + os.getpid() % 60 * 3
        self.edge, self.other_edge, self.cloud = (f"127.{first + i}" for i in range(3))
        self._links = folder / "links.json"
        self.config = folder / "uplink.json"
        self.set()
        nodes = [("edge-1", "edge", self.edge), ("edge-2", "edge", self.other_edge), ("cloud-1", "cloud", self.cloud)]
        write_json(self.config, {
            "port": PROXY_PORT, "links": str(self._links),
            "nodes": [{"name": n, "tier": t, "address": f"{a}.0.1", "cidr": f"{a}.0.0/16"} for n, t, a in nodes],
        })  # fmt: skip

    @property
    def proxy(self) -> str:
        return f"http://{self.edge}.0.1:{PROXY_PORT}"

    def set(self, rate: str = "unlimited", delay: str = "0ms", *, down: bool = False) -> None:
        write_json(self._links, [{"between": ["edge", "cloud"], "rate": rate, "delay": delay, "down": down}])

    async def change(self, *args: Any, **kwargs: Any) -> None:
        self.set(*args, **kwargs)
        await asyncio.sleep(0.5)  # the promised time


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulation]:
    emulation = Emulation(tmp_path_factory.mktemp("uplink"))
    log = emulation.config.with_suffix(".log")
    with log.open("wb") as output:
        proxy = subprocess.Popen(
            [sys.executable, "-m", "splitplane.local.uplink", "--config", str(emulation.config)], stderr=output
        )
    yield emulation
    proxy.terminate()
    assert proxy.wait(10) == 0, log.read_text()


async def _size(request: bytes, context: object) -> bytes:
    return len(request).to_bytes(8, "big")


async def _bytes(request: bytes, context: object) -> bytes:
    return bytes(int.from_bytes(request, "big"))


@pytest.fixture
async def cloud(emulation: Emulation) -> AsyncIterator[str]:
    """A gRPC server in the cloud that is also reachable at an address of the edge."""
    server = grpc.aio.server(options=UNLIMITED)
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(f) for name, f in (("Up", _size), ("Down", _bytes))
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    port = server.add_insecure_port(f"{emulation.cloud}.0.9:0")
    server.add_insecure_port(f"{emulation.other_edge}.0.9:{port}")
    await server.start()
    yield f"{emulation.cloud}.0.9:{port}"
    await server.stop(0)


@pytest.fixture
async def channel(emulation: Emulation, cloud: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of a pod on ``edge-1``, whose environment is what its agent gives it."""
    monkeypatch.setenv("grpc_proxy", emulation.proxy)
    monkeypatch.setenv("no_grpc_proxy", f"127.0.0.1/32,{emulation.edge}.0.0/16,{emulation.other_edge}.0.0/16")
    await emulation.change()
    async with grpc.aio.insecure_channel(cloud, options=UNLIMITED) as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)
        yield channel


async def round_trip(call: Call, times: int = 40) -> float:
    """The shortest of several: what disturbs a small message only adds to the link's delay."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        await call(b"x")
        taken.append(time.perf_counter() - started)
    return min(taken)


async def within_tolerance(measure: Callable[[], Awaitable[float]], wanted: float) -> None:
    """The fastest of several transfers has the rate: a busy machine only slows one down, and none may be faster."""
    measured = [await measure() for _ in range(TRANSFERS)]
    assert max(measured) == pytest.approx(wanted, rel=TOLERANCE), measured


@pytest.mark.parametrize(
    ("rate", "delay", "size"),
    [
        ("3Mbit", "5ms", 300_000),
        ("20Mbit", "5ms", 1_500_000),
        ("80Mbit", "5ms", 5_000_000),
        ("50Mbit", "25ms", 4_000_000),
    ],
)
async def test_a_link_has_its_rate_and_delay_in_both_directions(
    emulation: Emulation, channel: grpc.aio.Channel, rate: str, delay: str, size: int
) -> None:
    up: Call = method(channel, "/test/Up")
    down: Call = method(channel, "/test/Down")
    bare = await round_trip(up)
    await emulation.change(rate, delay)
    one_way = float(delay.removesuffix("ms")) / 1e3
    bits_per_second = parse_rate(rate) or 0.0
    frames = 2 * 80 * 8 / bits_per_second  # an empty call and its answer are some bytes too
    delay_each_way = (await round_trip(up) - bare - frames) / 2

    async def transfer(call: Call, request: bytes) -> float:
        started = time.perf_counter()
        await call(request)
        return size * 8 / (time.perf_counter() - started - 2 * one_way - bare)

    assert delay_each_way == pytest.approx(one_way, rel=TOLERANCE)
    await within_tolerance(lambda: transfer(up, bytes(size)), bits_per_second)
    await within_tolerance(lambda: transfer(down, size.to_bytes(8, "big")), bits_per_second)


async def test_all_connections_of_all_nodes_of_a_tier_share_its_link(
    emulation: Emulation, channel: grpc.aio.Channel, cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("grpc_proxy", f"http://{emulation.other_edge}.0.1:{PROXY_PORT}")
    async with grpc.aio.insecure_channel(cloud, options=[*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]) as other:
        await asyncio.wait_for(other.channel_ready(), 20)
        await emulation.change("10Mbit")
        calls: list[Call] = [method(one, "/test/Up") for one in (channel, other)]

        async def four_at_once() -> float:
            started = time.perf_counter()
            await asyncio.gather(*(call(bytes(200_000)) for call in calls * 2))
            return 4 * 200_000 * 8 / (time.perf_counter() - started)

        await within_tolerance(four_at_once, 10e6)


async def test_a_message_that_meets_an_idle_link_gets_no_burst(emulation: Emulation, channel: grpc.aio.Channel) -> None:
    up: Call = method(channel, "/test/Up")
    bare = await round_trip(up)
    await emulation.change("3Mbit")

    async def after_a_rest() -> float:
        await asyncio.sleep(0.05)
        started = time.perf_counter()
        await up(bytes(33_000))
        return 33_000 * 8 / (time.perf_counter() - started - bare)

    await within_tolerance(after_a_rest, 3e6)


async def test_the_own_tier_is_reached_without_the_proxy(
    emulation: Emulation, channel: grpc.aio.Channel, cloud: str
) -> None:
    await emulation.change("100kbit", "200ms")
    near = f"{emulation.other_edge}.0.9:{cloud.rsplit(':', 1)[1]}"
    async with grpc.aio.insecure_channel(near, options=UNLIMITED) as direct:
        call: Call = method(direct, "/test/Up")
        assert await asyncio.wait_for(call(bytes(1_000_000)), 10) == (1_000_000).to_bytes(8, "big")  # 80 s by the link


async def test_a_cut_link_holds_open_connections_and_a_mended_one_delivers(
    emulation: Emulation, channel: grpc.aio.Channel
) -> None:
    up: Call = method(channel, "/test/Up")
    await emulation.change(down=True)
    waiting = asyncio.ensure_future(up(b"patience"))
    done, _ = await asyncio.wait([waiting], timeout=1.0)
    assert not done
    await emulation.change()
    assert await asyncio.wait_for(waiting, 10) == (8).to_bytes(8, "big")


async def test_plain_http_is_forwarded_too_and_shaped(emulation: Emulation) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = head.split(b"\r\n")[0]
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    await emulation.change(delay="50ms")
    server = await asyncio.start_server(answer, f"{emulation.cloud}.0.10", 0)
    url = f"http://{emulation.cloud}.0.10:{server.sockets[0].getsockname()[1]}/v2/health?a=b"
    started = time.perf_counter()
    async with server, aiohttp.ClientSession() as session, session.get(url, proxy=emulation.proxy) as response:
        assert await response.text() == "GET /v2/health?a=b HTTP/1.1"
    assert time.perf_counter() - started > 0.2  # a round trip to connect, one to ask


async def test_an_unreachable_target_is_a_bad_gateway(emulation: Emulation) -> None:
    await emulation.change()
    url = f"http://{emulation.cloud}.0.11:9/"
    async with aiohttp.ClientSession() as session, session.get(url, proxy=emulation.proxy) as response:
        assert response.status == 502
        assert f"{emulation.cloud}.0.11:9" in await response.text()


def test_a_late_timer_does_not_lower_the_rate_of_queued_bytes() -> None:
    bucket = Bucket(Link(rate=8e6))
    now, sent = 0.0, 0
    bucket.departure(1000, now, queued=False)
    for _ in range(1000):
        now = max(bucket.departure(4000, now, queued=True), now) + 0.001  # every wake-up a millisecond late
        sent += 4000
    assert sent * 8 / now == pytest.approx(8e6, rel=0.01)


def test_an_idle_link_saves_nothing_up() -> None:
    bucket = Bucket(Link(rate=8e6))
    assert bucket.departure(1000, 100.0, queued=False) == pytest.approx(100.001)

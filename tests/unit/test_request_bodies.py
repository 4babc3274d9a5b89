"""Messages of requests over both protocols: bounded together in memory until they are answered, each in time."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
import grpc.aio
import psutil
import pytest
from prometheus_client import CollectorRegistry

from splitplane import freed_memory
from splitplane.runtime import bodies, grpc_receiving, memory, oip_grpc, oip_pb2, oip_rest, rest_serving
from splitplane.runtime.bodies import Bodies
from splitplane.runtime.budgets import MAX_POD_MESSAGE_BYTES, MOST_BYTES, Budget, budget_bytes
from splitplane.runtime.grpc_receiving import Receiving
from splitplane.runtime.inference import Failure, InferenceError, InferRequest, InferResponse
from splitplane.runtime.unpacking import Unpacker
from tests.support.forking import FORKED
from tests.support.fronts import Echo
from tests.support.gateway_rig import until

PATH = "/v2/models/echo/infer"
BODY = json.dumps({"inputs": [{"name": "fp32", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()


@asynccontextmanager
async def serving(bodies: Bodies, model: Echo | None = None) -> AsyncIterator[tuple[str, int]]:
    app = oip_rest.make_app(model or Echo(), CollectorRegistry(), bodies=bodies)
    server = await rest_serving.serve(app, "127.0.0.1", 0)
    try:
        yield server.address
    finally:
        await server.stop(0)


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
    budget = Budget(300_000)
    async with serving(Bodies(budget)) as address:
        held = [await unfinished(address, 100_000) for _ in range(3)]
        await until(lambda: budget.free == 0)
        assert await post(address, path) == (503, "1")
        for _, writer in held:
            writer.close()
        await until(lambda: budget.free == 300_000)
        assert await post(address) == (200, None)
        assert budget.free == 300_000


async def test_a_body_of_which_nothing_comes_any_more_is_given_up(tmp_path):
    budget = Budget(300_000)
    async with serving(Bodies(budget, idle_seconds=0.2)) as address:
        reader, writer = await unfinished(address, 100_000)
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408")
        await until(lambda: budget.free == 300_000)
        writer.close()


async def test_a_body_that_trickles_is_given_up_in_the_end():
    async with serving(Bodies(Budget(300_000), idle_seconds=5.0, total_seconds=0.5)) as address:
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
        ({"memory.max": "67108864\n"}, MAX_POD_MESSAGE_BYTES),
        ({"memory/memory.limit_in_bytes": "1073741824\n"}, 256 << 20),
        ({"memory.max": "max\n"}, MOST_BYTES),
        ({}, MOST_BYTES),
        ({memory.VARIABLE: "1073741824"}, 256 << 20),
    ],
)
def test_the_budget_is_a_quarter_of_the_containers_memory_within_bounds(tmp_path, monkeypatch, files, budget):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        monkeypatch.setenv(name, text)  # one of them is a variable
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_machine_bytes", lambda: 64 << 30)
    assert budget_bytes() == budget


@dataclass
class Slow(Echo):
    """Answers in few bytes, when it is let to."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    inside: int = 0

    async def infer(self, request: InferRequest) -> InferResponse:
        self.inside += 1
        try:
            await self.go.wait()
        finally:
            self.inside -= 1
        return InferResponse(self.name, ())


def message(size: int) -> bytes:
    made: Any = oip_pb2.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(size)])
    made.inputs.add(name="fp32", datatype="FP32", shape=[1, size // 4])
    return bytes(made.SerializeToString())


@asynccontextmanager
async def both(model: Echo, budget: Budget, **seconds: float) -> AsyncIterator[tuple[str, tuple[str, int]]]:
    """The fronts over one budget, as gateways and stages have them: addresses of gRPC and of REST."""
    server = oip_grpc.Server(model, receiving=Receiving(budget, **seconds))
    port = server.bind("127.0.0.1", 0)
    await server.start()
    try:
        async with serving(Bodies(budget), model) as address:
            yield f"127.0.0.1:{port}", address
    finally:
        await server.stop(0)


def method(channel: Any, name: str = "inference.GRPCInferenceService/ModelInfer") -> Any:
    return channel.unary_unary(f"/{name}")


async def refusal(call: Any) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), dict(caught.value.trailing_metadata() or ()).get("grpc-retry-pushback-ms")


async def test_messages_over_grpc_share_the_budget_with_bodies_until_they_are_answered(monkeypatch):
    monkeypatch.setattr(grpc_receiving, "LEAST_BYTES", 1)
    monkeypatch.setattr(grpc_receiving, "FIRST_SHARE", 1 << 20)
    model, budget, data = Slow(), Budget(350_000), message(100_000)
    async with both(model, budget) as (grpc_address, address), grpc.aio.insecure_channel(grpc_address) as channel:
        held = [asyncio.ensure_future(method(channel)(data)) for _ in range(3)]
        await until(lambda: model.inside == 3)
        assert budget.free == 350_000 - 3 * len(data)
        assert await refusal(method(channel)(data)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "1000")
        assert await post(address, body=bytes(100_000)) == (503, "1")
        # Questions of health are still answered, and a client that goes away takes its message along.
        await method(channel, "grpc.health.v1.Health/Check")(b"")
        held.pop().cancel()
        await until(lambda: budget.free > 100_000)
        again = asyncio.ensure_future(method(channel)(data))
        await until(lambda: model.inside == 3)
        model.go.set()
        await asyncio.gather(*held, again)
        await until(lambda: budget.free == 350_000)


class Watched(Budget):
    """Knows how little was free."""

    least = 1 << 62

    @property
    def free(self) -> int:
        return self._free

    @free.setter
    def free(self, size: int) -> None:
        self._free = size
        self.least = min(self.least, size)


async def test_messages_on_their_way_wait_for_each_other_where_those_before_were_large():
    model, budget, data = Slow(), Watched(3_000_000), message(2_000_000)
    model.go.set()
    async with both(model, budget) as (grpc_address, address), grpc.aio.insecure_channel(grpc_address) as channel:
        await method(channel)(data)
        await until(lambda: budget.free == 3_000_000)
        budget.least = budget.free
        await asyncio.gather(*(method(channel)(data) for _ in range(8)), *(post(address) for _ in range(8)))
        assert 3_000_000 - 2 * len(data) < budget.least <= 3_000_000 - len(data)
        await until(lambda: budget.free == 3_000_000)


def streamed(channel: Any) -> Any:
    """The method as gRPC has it for many messages: a call of it may send none."""
    return channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")


@pytest.mark.parametrize("seconds", [{"idle_seconds": 0.3}, {"total_seconds": 0.3}])
async def test_a_message_that_does_not_come_is_given_up_and_what_is_no_message_is_refused(seconds):
    budget = Budget(3_000_000)
    async with both(Echo(), budget, **seconds) as (grpc_address, _), grpc.aio.insecure_channel(grpc_address) as channel:
        assert (await refusal(streamed(channel)()))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await refusal(streamed(channel)(iter(()))))[0] is grpc.StatusCode.INVALID_ARGUMENT
        await until(lambda: budget.free == 3_000_000)


@asynccontextmanager
async def slowly(address: str, bytes_per_second: float) -> AsyncIterator[str]:
    """A way to the address that passes no more than that to it."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, step: int) -> None:
        with suppress(OSError):
            while data := await reader.read(step):
                writer.write(data)
                await writer.drain()
                if step < 1 << 16:
                    await asyncio.sleep(len(data) / bytes_per_second)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = address.rsplit(":", 1)
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pass_on(reader, back, int(bytes_per_second / 20)), pass_on(there, writer, 1 << 16))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 16) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_message_that_comes_slowly_may_take_longer_than_one_that_does_not_come():
    data = message(1_000_000)
    async with (
        both(Echo(), Budget(9_000_000), idle_seconds=1.0) as (grpc_address, _),
        slowly(grpc_address, 250_000) as slow,
        grpc.aio.insecure_channel(slow) as channel,
    ):
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert len(await method(channel)(data)) > 1_000_000
        assert loop.time() - started > 3 * 1.0


async def test_calls_that_send_nothing_leave_room_for_others_and_end_soon():
    budget = Budget(8 << 20, lent_share=4)
    async with (
        both(Echo(), budget, idle_seconds=1.0) as (grpc_address, address),
        grpc.aio.insecure_channel(grpc_address) as channel,
        grpc.aio.insecure_channel(grpc_address) as other,
    ):
        idle = [streamed(channel)() for _ in range(12)]
        await until(lambda: budget.free < 8 << 20)
        await asyncio.sleep(0.2)
        assert budget.free >= 6 << 20
        assert await post(address) == (200, None)
        async with asyncio.timeout(10):
            await method(other)(message(4_000))
            assert {await call.code() for call in idle} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        await until(lambda: budget.free == 8 << 20)


async def test_every_message_teaches_how_large_those_of_its_address_are():
    budget, data = Budget(64 << 20), message(2_000_000)
    unknown = data.replace(b"echo", b"ohce", 1)
    async with both(Echo(), budget) as (grpc_address, _), grpc.aio.insecure_channel(grpc_address) as channel:

        async def lent() -> int:
            idle = streamed(channel)()
            await until(lambda: budget.free < 64 << 20)
            found = (64 << 20) - budget.free
            idle.cancel()
            await until(lambda: budget.free == 64 << 20)
            return found

        assert await lent() == 4 << 20
        assert (await refusal(method(channel)(unknown)))[0] is grpc.StatusCode.NOT_FOUND
        await until(lambda: budget.free == 64 << 20)
        assert await lent() == len(data)
        await method(channel)(message(4_000))
        await until(lambda: budget.free == 64 << 20)
        assert await lent() == round(0.9 * len(data))


APART = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
"""Options of a channel that sends any size, over a connection of its own."""


@asynccontextmanager
async def apart(serve: Callable[[Any, int], None], budget_bytes: int) -> AsyncIterator[tuple[str, psutil.Process]]:
    """A server in a process of its own, with a budget: its address, and the process."""
    ours, theirs = FORKED.Pipe()
    process = FORKED.Process(target=serve, args=(theirs, budget_bytes), daemon=True)
    process.start()
    try:
        yield await asyncio.to_thread(ours.recv), psutil.Process(process.pid)
    finally:
        with suppress(OSError):
            ours.send("end")
        await asyncio.to_thread(process.join, 30)
        process.kill()


def refuse_all(pipe: Any, capacity: int) -> None:
    """A server process's whole life, which knows no model but one, with a budget."""

    async def run() -> None:
        async with both(Echo(), Budget(capacity, lent_share=4)) as (address, _):
            pipe.send(address)
            await asyncio.to_thread(pipe.recv)

    asyncio.run(run())


async def test_large_messages_for_which_there_is_no_room_are_given_back_to_the_kernel_too(monkeypatch):
    given: list[int] = []
    monkeypatch.setattr(freed_memory, "give_back", lambda: given.append(1))
    monkeypatch.setattr(freed_memory, "LARGE_BYTES", 100_000)
    monkeypatch.setattr(freed_memory, "FREED_BYTES", 100_000)
    async with both(Echo(), Budget(100_000)) as (grpc_address, _), grpc.aio.insecure_channel(grpc_address) as channel:
        assert (await refusal(method(channel)(message(110_000))))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: bool(given))


async def test_a_flood_of_large_messages_that_are_refused_takes_little_and_not_more_each_time():
    async with apart(refuse_all, 128 << 20) as (address, server):
        data = message(24 << 20).replace(b"echo", b"ohce", 1)
        start, most = server.memory_info().rss, []
        for _ in range(3):
            channels = [grpc.aio.insecure_channel(address, options=APART) for _ in range(16)]
            calls = asyncio.gather(*(refusal(method(channel)(data)) for channel in channels))
            most.append(0)
            while not calls.done():
                most[-1] = max(most[-1], server.memory_info().rss - start)
                await asyncio.sleep(0.01)
            assert {code for code, _ in calls.result()} == {grpc.StatusCode.NOT_FOUND}
            for channel in channels:
                await channel.close()
        assert max(most) < 10 * len(data), [size >> 20 for size in most]


async def test_a_budget_gives_in_turn_waits_for_what_is_lent_only_and_loses_nothing():
    budget = Budget(6400, patience_seconds=0.5)
    await budget.borrow(5200, "a")
    with pytest.raises(InferenceError) as refused:
        await budget.take(6401)
    assert (refused.value.failure, refused.value.retry_seconds) == (Failure.RESOURCE_EXHAUSTED, 1.0)
    large = asyncio.ensure_future(budget.take(4000))
    await asyncio.sleep(0.05)
    middle, small = asyncio.ensure_future(budget.take(700)), asyncio.ensure_future(budget.borrow(100, "b"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert small.done(), "it keeps the large one from nothing"
    assert not middle.done(), "the large one came first"
    budget.settle(100, 0, "b")
    with pytest.raises(InferenceError):
        await large
    await middle
    assert budget.free == 500
    waiting = [asyncio.ensure_future(budget.take(2000)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    budget.settle(5200, 1500, "a")
    await asyncio.gather(*waiting[1:])
    assert budget.free == 200
    with pytest.raises(InferenceError):
        await budget.take(201)
    for size in (700, 1500, 2000, 2000):
        budget.give(size)
    await budget.borrow(1000, "a")
    with pytest.raises(InferenceError):
        budget.settle(1000, 6401, "a")
    assert budget.free == 6400


async def test_one_peer_is_lent_a_part_of_the_budget_and_others_do_not_wait_for_it():
    refused = []
    budget = Budget(6400, patience_seconds=0.5, lent_share=4, on_refusal=lambda: refused.append(1))
    await budget.borrow(1000, "a")
    more = asyncio.ensure_future(budget.borrow(1000, "a"))
    await asyncio.sleep(0.05)
    await budget.borrow(3000, "b")
    assert not more.done()
    with pytest.raises(InferenceError, match="from this address") as crowded:
        await more
    assert crowded.value.failure is Failure.RESOURCE_EXHAUSTED
    assert not refused, "there was memory: that is no demand for more of it"
    more = asyncio.ensure_future(budget.borrow(1000, "a"))
    await asyncio.sleep(0)
    budget.settle(1000, 10, "a")
    await more
    with pytest.raises(InferenceError):
        await budget.borrow(6400, "c")
    assert refused
    budget.settle(1000, 0, "a")
    budget.settle(3000, 0, "b")
    assert budget.free == 6390


async def test_who_has_the_time_may_wait_longer_for_room_and_only_some_of_one_peer():
    budget = Budget(6400, patience_seconds=0.1, most_patient=1)
    await budget.borrow(6400, "elsewhere")
    patient, too_many = (asyncio.ensure_future(budget.borrow(1000, "a", time_seconds=30.0)) for _ in range(2))
    with pytest.raises(InferenceError):
        await too_many
    assert not patient.done()
    budget.settle(6400, 0, "elsewhere")
    await patient


async def test_who_has_the_time_waits_for_what_requests_under_way_hold_as_long_as_it_is_of_use():
    refused = []
    budget = Budget(6400, patience_seconds=0.05, most_patient=2, on_refusal=lambda: refused.append(1))
    await budget.take(6400)
    with pytest.raises(InferenceError):
        await asyncio.wait_for(budget.borrow(1000, "a", time_seconds=1.0), 1.0)
    assert refused == [1], "told before its time is up, and counted"
    patient = asyncio.ensure_future(budget.borrow(1000, "a", time_seconds=30.0))
    await asyncio.sleep(0)
    with pytest.raises(InferenceError):
        await budget.borrow(1000, "a")
    budget.give(6400)
    await patient


async def test_who_waits_long_keeps_others_from_nothing():
    budget = Budget(6400, patience_seconds=0.05, most_patient=2)
    await budget.take(3000)
    large, other = (
        asyncio.ensure_future(budget.borrow(*what, time_seconds=30.0)) for what in [(6000, "a"), (1000, "b")]
    )
    await asyncio.sleep(0)
    assert not other.done(), "the large one came first"
    await other
    await budget.take(1000)
    await budget.borrow(1000, "a", time_seconds=30.0)
    assert not large.done()
    budget.give(4000)
    budget.settle(1000, 0, "a")
    budget.settle(1000, 0, "b")
    await large


async def test_what_has_given_up_does_not_count_among_those_that_wait():
    budget = Budget(6400, patience_seconds=0.05, most_patient=2)
    await budget.borrow(6400, "elsewhere")
    first = asyncio.ensure_future(budget.borrow(6400, "a", time_seconds=30.0))
    await asyncio.sleep(0)
    for _ in range(3):
        with pytest.raises(InferenceError):
            await budget.borrow(1000, "a")
    budget.settle(6400, 6400, "elsewhere")
    second = asyncio.ensure_future(budget.borrow(1000, "a", time_seconds=30.0))
    await asyncio.sleep(0)
    assert not second.done()
    budget.give(6400)
    await first
    budget.settle(6400, 0, "a")
    await second


async def test_a_body_is_unpacked_in_small_pieces_and_no_further_than_it_may_come(monkeypatch):
    """So that it holds up no other request: 64 kB of it may be 64 MB."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    sizes, add = [], bodies._add

    async def watched(data: bytes, body: bodies.Body) -> None:
        sizes.append(len(data))
        await add(data, body)

    monkeypatch.setattr(bodies, "_add", watched)
    async with serving(Bodies(Budget(512 << 20))) as address, aiohttp.ClientSession() as session:
        url = "http://{}:{}".format(*address)
        async with session.post(url + PATH, data=bomb, headers={"Content-Encoding": "gzip"}) as answer:
            assert answer.status == 413
    assert max(sizes) <= 1 << 20
    assert sum(sizes) < 66 << 20


async def unpacked(body: bytes, step: int) -> bytes:
    unpacker, out = Unpacker("gzip"), b""
    for start in range(0, len(body), step):
        unpacker.feed(body[start : start + step])
        while piece := await unpacker.piece():
            out += piece
    unpacker.end()
    return out


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
async def test_a_gzip_body_may_have_several_members(step):
    """As files have that were joined, appended to or written in blocks; some of them end with an empty one."""
    members = [bytes(200_000), b"", b"end", b""]
    assert await unpacked(b"".join(map(gzip.compress, members)), step) == b"".join(members)


async def test_members_of_a_gzip_body_are_bounded():
    with pytest.raises(InferenceError, match="2048 members"):
        await unpacked(2049 * gzip.compress(b""), 1 << 20)


async def test_a_body_that_waits_for_room_in_vain_is_refused_and_not_said_to_be_late():
    budget = Budget(300_000, patience_seconds=0.5)
    await budget.borrow(299_990, "elsewhere")
    async with serving(Bodies(budget, idle_seconds=0.2)) as address:
        assert await post(address) == (503, "1")
        assert await post(address, body=bytes(1_000_000)) == (503, "1")
    assert budget.free == 10


@pytest.mark.parametrize("path", [PATH, "/v1/models/echo:predict"])
async def test_a_body_may_come_no_longer_than_its_requests_deadline(path):
    budget = Budget(300_000)
    async with serving(Bodies(budget)) as address:
        reader, writer = await asyncio.open_connection(*address)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nGrpc-Timeout: 300m\r\nContent-Length: 1000\r\n\r\n"
        writer.write(head.encode() + bytes(10))
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 504")
        await until(lambda: budget.free == 300_000)
        writer.close()


def serve_small(pipe: Any, budget_bytes: int) -> None:
    """A process's whole life: the gRPC front of a model that answers nothing while requests wait for memory."""

    async def run() -> None:
        model = Slow()
        asyncio.get_running_loop().call_later(14.0, model.go.set)
        async with both(model, Budget(budget_bytes)) as (address, _):
            pipe.send(address)
            await asyncio.to_thread(pipe.recv)

    asyncio.run(run())


async def test_many_clients_with_large_messages_do_not_make_a_server_grow_without_bound():
    async with apart(serve_small, 64 << 20) as (address, server):
        data, most = message(24 << 20), 0
        channels: list[Any] = [grpc.aio.insecure_channel(address, options=APART) for _ in range(20)]
        # What is expected of a message follows those before it, the first of which this one is.
        start = server.memory_info().rss
        first = asyncio.ensure_future(method(channels[0])(data))
        await until(lambda: server.memory_info().rss > start + len(data))
        await asyncio.sleep(0.5)
        before = server.memory_info().rss
        calls = asyncio.gather(*(method(channel)(data) for channel in channels), return_exceptions=True)
        while not calls.done():
            most = max(most, server.memory_info().rss)
            await asyncio.sleep(0.01)
        refused = [each.code() for each in calls.result() if isinstance(each, grpc.aio.AioRpcError)]
        assert len(refused) == len(channels) - 1
        assert set(refused) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        await first
        for channel in channels:
            await channel.close()
        # One more is held, and had come in one at a time, into gRPC's own memory first.
        assert most - before < 6 * len(data)

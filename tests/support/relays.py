"""A link between two addresses, with a rate and a delay, as a relay that is slow on purpose."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass
class Link:
    """Bytes per second and seconds from end to end; changed while it is used.

    A ``shared`` one has one queue for all connections over it, first come, first served, in each direction, as a
    router has it: a small message waits for all that came before. Otherwise each connection has the rate by itself.
    ``is_cut``: nothing passes; what would have waits. ``strands``: for good, as with TCP, whose next try is as far away
    again as the cut is old; connections that are made later pass.
    """

    rate: float
    delay: float
    shared: bool = False
    is_cut: bool = False
    strands: bool = False
    departures: dict[bool, float] = field(default_factory=dict)
    """When the queue of a direction will be empty."""


@contextlib.asynccontextmanager
async def relay(address: str, target: str, link: Link) -> AsyncIterator[None]:
    """Passes connections to ``address`` on to ``target`` with the link's rate and delay in each direction."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: bool) -> None:
        departure = loop.time()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.create_task(deliver(queue, writer))
        try:
            while data := await reader.read(2_000):
                if link.shared:
                    departure = link.departures.get(there, 0.0)
                departure = max(departure, loop.time() - 0.004) + len(data) / link.rate
                link.departures[there] = departure
                queue.put_nowait((max(departure, loop.time()) + link.delay, data))
                if not link.shared:
                    await asyncio.sleep(departure - loop.time())
            await queue.join()
        finally:
            delivering.cancel()
            writer.close()

    async def deliver(queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - loop.time())
            while link.is_cut:
                await asyncio.sleep(0.02)
                if link.strands:
                    await asyncio.Event().wait()
            writer.write(data)
            queue.task_done()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = target.split(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        for one, other, there in ((reader, far_writer, True), (far_reader, writer, False)):
            task = asyncio.create_task(pump(one, other, there))
            tasks.add(task)

    host, port = address.split(":")
    server = await asyncio.start_server(accept, host, int(port))
    try:
        yield
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

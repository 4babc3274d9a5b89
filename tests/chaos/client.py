"""Clients in a process of their own that send at a constant rate, count every request, and check every answer.

There is one over gRPC and one over REST. They find the gateways as clients of a headless Service do: they know the pods
that are ready and not leaving. What breaks off because its gateway died is sent again, and the log says so: it tells
requests that their clients had to send again from those that were answered at first. The process ends when its
standard input does, after the last answer.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from splitplane.adapters.connecting import connect
from splitplane.adapters.kinds import POD
from splitplane.runtime.gateway.watching import read_pod
from tests.chaos.senders import BrokenOffError, FailedError, Gateways, OverGrpc, OverRest, Sender

DEADLINE_SECONDS = 20.0
PAUSE_SECONDS = 0.1


class Pods:
    """Addresses of the pipeline's gateways that take requests now; the last known ones while the API is away."""

    def __init__(self, namespace: str, pipeline: str) -> None:
        self._namespace = namespace
        self._labels = f"splitplane.dev/pipeline={pipeline},app.kubernetes.io/component=gateway"
        self._pods: dict[str, str] = {}
        self.known = asyncio.Event()

    async def follow(self) -> None:
        cluster = await connect(component="chaos-client")
        try:
            async for change in cluster.watch(POD, self._namespace, labels=self._labels):
                if change.type == "SYNCED":
                    continue
                pod = read_pod(change.object)
                if pod.ready and change.type != "DELETED":
                    self._pods[pod.name] = pod.address
                    self.known.set()
                elif len(self._pods) > 1:
                    self._pods.pop(pod.name, None)
        finally:
            await cluster.close()

    @property
    def grpc(self) -> list[str]:
        return list(self._pods.values())

    @property
    def rest(self) -> list[tuple[str, int]]:
        return [(address.rpartition(":")[0].strip("[]"), 8080) for address in self._pods.values()]


class Services:
    """In place of pods, where they cannot be reached from here: ``host:port`` of a Service by protocol."""

    def __init__(self, grpc: str, rest: str) -> None:
        host, _, port = rest.rpartition(":")
        self.grpc, self.rest = [grpc], [(host, int(port))]
        self.known = asyncio.Event()
        self.known.set()

    async def follow(self) -> None: ...


class ConstantRate:
    """An open loop: slow answers do not hold requests back. The log has each request when it is sent, and its end."""

    def __init__(self, sender: Sender, log: IO[str]) -> None:
        self._sender, self._log = sender, log
        self._count = 0

    async def run(self, rate: float, stopped: asyncio.Event) -> None:
        due, tasks = time.time(), set()
        while not stopped.is_set():
            await asyncio.sleep(max(0.0, due - time.time()))
            task = asyncio.create_task(self._one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += 1 / rate
        await asyncio.gather(*tasks)
        await self._sender.close()

    async def _one(self) -> None:
        sent = time.time()
        self._count += 1
        number = self._count
        request = {"number": number, "sent": sent, "over": self._sender.name}
        self._write(request)
        record: dict[str, Any] = {**request, "again": 0, "ok": False}
        while (left := sent + DEADLINE_SECONDS - time.time()) > 0:
            try:
                record |= {"plan": await self._sender.send(number, left), "ok": True}
                break
            except FailedError as error:
                record["error"] = str(error)[:300]
                break
            except BrokenOffError as error:
                record["error"] = str(error)[:300]
            except Exception as error:
                record["error"] = f"{type(error).__name__}: {error}"[:300]
                break
            record["again"] += 1
            await asyncio.sleep(PAUSE_SECONDS)
        self._write({**record, "seconds": time.time() - sent})

    def _write(self, line: dict[str, Any]) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


async def main(options: argparse.Namespace) -> None:
    data = np.load(options.data)
    known = Services(options.grpc, options.rest) if options.grpc else Pods(options.namespace, options.pipeline)
    stopped = asyncio.Event()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with Path(options.log).open("a") as log:  # noqa: ASYNC230 - one short line a request
        following = asyncio.create_task(known.follow())
        await known.known.wait()
        gateways: Gateways = known
        over_grpc, over_rest = zip(*(np.split(data[name], 2) for name in ("features", "expected")), strict=True)
        senders: list[Sender] = [
            OverGrpc(gateways, options.pipeline, *over_grpc),
            OverRest(gateways, options.pipeline, *over_rest),
        ]
        paces = [ConstantRate(sender, log) for sender in senders]
        sending = [asyncio.create_task(pace.run(options.rate, stopped)) for pace in paces]
        await reader.read()
        stopped.set()
        await asyncio.gather(*sending)
        following.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--namespace", "--pipeline", "--data", "--log"):
        parser.add_argument(name, required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests per second over each protocol")
    for name in ("--grpc", "--rest"):
        parser.add_argument(name, help="of all gateways together; default: those of their pods, as they come and go")
    asyncio.run(main(parser.parse_args()))

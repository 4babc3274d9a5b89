"""A client of its own process that sends at a constant rate, counts every request, and checks every answer.

It finds the gateways as clients of a headless Service do: it knows the pods that are ready and not leaving, and gRPC's
own `round_robin` takes those of them that are connected, in turn. A call that breaks off because its gateway died is
sent again, and the log says so. It ends when its standard input does, after the last answer.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import IO, Any

import grpc
import grpc.aio
import numpy as np

from splitplane.adapters.connecting import connect
from splitplane.adapters.kinds import POD
from splitplane.runtime import oip_pb2
from splitplane.runtime.gateway.watching import read_pod
from splitplane.runtime.hops import Method
from splitplane.runtime.oip_grpc import MODEL_INFER

BROKEN_OFF = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
DEADLINE_SECONDS = 20.0
PAUSE_SECONDS = 0.1
OPTIONS = (
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class Gateways:
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
    def target(self) -> str:
        return "ipv4:" + ",".join(sorted(self._pods.values()))


class OneAddress:
    """In place of pods, where they cannot be reached from here: a Service's."""

    def __init__(self, address: str) -> None:
        self.target = f"ipv4:{address}"
        self.known = asyncio.Event()
        self.known.set()

    async def follow(self) -> None: ...


class ConstantRate:
    """An open loop: slow answers do not hold requests back."""

    def __init__(
        self, gateways: Gateways | OneAddress, request: bytes, expected: np.ndarray[Any, Any], log: IO[str]
    ) -> None:
        self._gateways, self._request, self._expected, self._log = gateways, request, expected, log
        self._channels: dict[str, grpc.aio.Channel] = {}
        """By target; those of earlier targets too, for what is under way on them."""

    async def run(self, rate: float, stopped: asyncio.Event) -> None:
        await self._gateways.known.wait()
        due, tasks = time.time(), set()
        while not stopped.is_set():
            await asyncio.sleep(max(0.0, due - time.time()))
            task = asyncio.create_task(self._one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += 1 / rate
        await asyncio.gather(*tasks)
        for channel in self._channels.values():
            await channel.close()

    async def _one(self) -> None:
        sent = time.time()
        record: dict[str, Any] = {"sent": sent, "again": 0, "ok": False}
        while (left := sent + DEADLINE_SECONDS - time.time()) > 0:
            target = self._gateways.target
            try:
                method: Method = self._channel(target).unary_unary(MODEL_INFER)
                answer = await method(self._request, timeout=left)
            except grpc.aio.AioRpcError as error:
                record["error"] = f"{target}: {error.code().name}: {error.details()}"[:300]
                if error.code() not in BROKEN_OFF:
                    break
                record["again"] += 1
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            record |= self._read(answer)
            break
        record["seconds"] = time.time() - sent
        self._log.write(json.dumps(record) + "\n")
        self._log.flush()

    def _channel(self, target: str) -> grpc.aio.Channel:
        if target not in self._channels:
            self._channels[target] = grpc.aio.insecure_channel(target, options=OPTIONS)
        return self._channels[target]

    def _read(self, answer: bytes) -> dict[str, Any]:
        response = oip_pb2.ModelInferResponse.FromString(answer)
        values = np.frombuffer(response.raw_output_contents[0], np.float32)
        right = values.size == self._expected.size and bool(np.abs(values - self._expected.ravel()).max() < 1e-4)
        found = {"ok": right, "plan": response.parameters["splitplane_plan"].string_param}
        return found if right else {**found, "error": "the answer is wrong"}


def request(model: str, features: np.ndarray[Any, Any]) -> bytes:
    message = oip_pb2.ModelInferRequest(model_name=model, raw_input_contents=[features.tobytes()])
    message.inputs.add(name="features", datatype="FP32", shape=features.shape)
    return bytes(message.SerializeToString())


async def main(options: argparse.Namespace) -> None:
    data = np.load(options.data)
    gateways = OneAddress(options.address) if options.address else Gateways(options.namespace, options.pipeline)
    stopped = asyncio.Event()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with Path(options.log).open("a") as log:  # noqa: ASYNC230 - one short line a request
        pace = ConstantRate(gateways, request(options.pipeline, data["features"]), data["expected"], log)
        following = asyncio.create_task(gateways.follow())
        sending = asyncio.create_task(pace.run(options.rate, stopped))
        await reader.read()
        stopped.set()
        await sending
        following.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--namespace", "--pipeline", "--data", "--log"):
        parser.add_argument(name, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--address", help="of all gateways together; default: those of their pods, as they come and go")
    asyncio.run(main(parser.parse_args()))

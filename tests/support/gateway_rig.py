"""What the gateway's tests share: stage processes on loopback addresses, and a cluster in memory for its one port."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from splitplane.adapters.cluster import Change, Object, Unavailable
from splitplane.adapters.kinds import POD, ROUTE_TABLE, Kind
from splitplane.runtime import oip_pb2
from splitplane.runtime.gateway.app import Gateway
from splitplane.runtime.gateway.settings import Settings
from tests.support import gateway_stage
from tests.support.forking import FORKED

WIDTH = gateway_stage.WIDTH
PIPELINE = "small"
GATEWAY = "small-gateway-0"


def free_address() -> str:
    """A loopback address on which the ports of a pod are free."""
    while True:
        address = f"127.{random.randint(130, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as two:
            one.bind((address, 9000))
            two.bind((address, 8080))
            return address


class StageProcess:
    """A stage server in a process of its own. ``pod`` is its Pod object."""

    def __init__(self, stage: str, tier: str, resident: tuple[int, int], **more: Any) -> None:
        self.stage, self.tier, self.ip = stage, tier, free_address()
        self.name = f"{stage}-{self.ip.replace('.', '-')}"
        argument = {
            "ip": self.ip,
            "name": self.name,
            "pipeline": PIPELINE,
            "tier": tier,
            "resident": resident,
            **more,
        }
        self._process = FORKED.Process(target=gateway_stage.serve, args=(argument,), daemon=True)
        self._process.start()

    @property
    def address(self) -> str:
        return f"{self.ip}:9000"

    @property
    def pod(self) -> Object:
        return pod_object(self.name, self.stage, self.ip)

    def wait_ready(self) -> None:
        ready = None
        deadline = time.monotonic() + 180
        with grpc.insecure_channel(self.address) as channel:
            method = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerReady",
                request_serializer=oip_pb2.ServerReadyRequest.SerializeToString,
                response_deserializer=oip_pb2.ServerReadyResponse.FromString,
            )
            while not ready:
                if not self._process.is_alive() or time.monotonic() > deadline:
                    raise RuntimeError(f"stage {self.name} does not come up")
                with contextlib.suppress(grpc.RpcError):
                    ready = method(oip_pb2.ServerReadyRequest(), timeout=5).ready
                time.sleep(0.05)

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def pause(self) -> None:
        """As a node that hangs: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def leave(self) -> None:
        """As a pod that is deleted."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    close = kill

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


@contextlib.contextmanager
def stages(*processes: StageProcess) -> Iterator[tuple[StageProcess, ...]]:
    try:
        for process in processes:
            process.wait_ready()
        yield processes
    finally:
        for process in processes:
            process.kill()


def pod_object(name: str, stage: str, ip: str, *, ready: bool = True, deleting: bool = False) -> Object:
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"splitplane.dev/stage": stage},
            **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {}),
        },
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def route(*stops: tuple[str, str, int, int], codec: str = "fp32", rate: str = "1000") -> dict[str, Any]:
    text = "|".join(f"{tier}:{first}-{last}" for _, tier, first, last in stops)
    codecs = [codec] * (len(stops) - 1)
    return {
        "name": " ".join((text, *codecs)),
        "stages": [{"stage": stage, "tier": tier, "first": first, "last": last} for stage, tier, first, last in stops],
        "codecs": codecs,
        "maxRatePerSecond": rate,
    }


SPLIT = route(("small-edge", "edge", 0, 1), ("small-cloud", "cloud", 1, 3))
ALONE = route(("small-edge", "edge", 0, 3))


def table(generation: int, *routes: dict[str, Any], uid: str = "uid-1", **spec: Any) -> Object:
    return {
        "apiVersion": ROUTE_TABLE.api_version,
        "kind": ROUTE_TABLE.name,
        "metadata": {"name": PIPELINE, "namespace": "default", "uid": uid},
        "spec": {
            "generation": generation,
            "model": {
                "name": PIPELINE,
                "inputs": [{"name": "frames", "datatype": "FP32", "shape": [-1, WIDTH]}],
                "outputs": [{"name": "output_0", "datatype": "FP32", "shape": [-1, 2]}],
            },
            "routes": list(routes),
            "stages": ["small-edge", "small-cloud"],
            "queue": {"maxInFlight": 512, "timeoutMilliseconds": 20_000},
            **spec,
        },
    }


class MemoryCluster:
    """The part of the cluster port that a gateway uses, in memory. ``offline`` is an API server that is away."""

    def __init__(self) -> None:
        self.offline = False
        self.statuses: list[Mapping[str, Any]] = []
        self._objects: dict[tuple[str, str], Object] = {}
        self._watchers: list[tuple[str, asyncio.Queue[Change]]] = []

    def put(self, kind: Kind, body: Object) -> None:
        known = (kind.name, body["metadata"]["name"]) in self._objects
        self._objects[(kind.name, body["metadata"]["name"])] = body
        self._tell(kind, Change("MODIFIED" if known else "ADDED", body))

    def remove(self, kind: Kind, name: str) -> None:
        self._tell(kind, Change("DELETED", self._objects.pop((kind.name, name))))

    @property
    def status(self) -> Mapping[str, Any]:
        return self.statuses[-1] if self.statuses else {}

    async def watch(
        self, kind: Kind, _namespace: str = "", *, labels: str = "", name: str = ""
    ) -> AsyncIterator[Change]:
        queue: asyncio.Queue[Change] = asyncio.Queue()
        while self.offline:  # noqa: ASYNC110 - a flag that a test sets
            await asyncio.sleep(0.02)
        for (known_kind, _), body in list(self._objects.items()):
            if known_kind == kind.name:
                yield Change("ADDED", body)
        self._watchers.append((kind.name, queue))
        yield Change("SYNCED")
        while True:
            yield await queue.get()

    async def patch_status(
        self, _kind: Kind, _name: str, _namespace: str, status: Mapping[str, Any], *, resource_version: str = ""
    ) -> Object:
        if self.offline:
            raise Unavailable("the API server is away")
        self.statuses.append(status["gateways"][GATEWAY])
        return {}

    def _tell(self, kind: Kind, change: Change) -> None:
        for watched, queue in self._watchers:
            if watched == kind.name:
                queue.put_nowait(change)


@contextlib.asynccontextmanager
async def gateway(cluster: Any, state_dir: Path, **more: Any) -> AsyncIterator[Gateway]:
    settings = Settings(
        namespace="default",
        pipeline=PIPELINE,
        tier="edge",
        pod_name=GATEWAY,
        pod_ip=free_address(),
        route_table=PIPELINE,
        state_dir=state_dir,
        **{"drain_pause_seconds": 0.2, **more},
    )
    running = Gateway(settings, cluster)
    async with running.serving():
        yield running


async def until(condition: Any, *, seconds: float = 60.0) -> None:
    """Wait until a condition holds. The time is a bound for a stuck test, not an expectation."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there are as many kinds of conditions as tests
            await asyncio.sleep(0.02)


def frames(batch: int = 1, value: float = 1.0) -> npt.NDArray[np.float32]:
    return np.full((batch, WIDTH), value, np.float32)


def expected(batch: int = 1, value: float = 1.0) -> npt.NDArray[np.float32]:
    return np.full((batch, 2), value * 2 + 1, np.float32)


def put_all(cluster: MemoryCluster, *processes: StageProcess) -> None:
    for process in processes:
        cluster.put(POD, process.pod)


@contextlib.asynccontextmanager
async def serving(
    cluster: MemoryCluster, state_dir: Path, *processes: StageProcess, over: dict[str, Any] = ALONE
) -> AsyncIterator[Gateway]:
    """A gateway with one route over stage processes, once it has found all of them ready; they end with it."""
    with stages(*processes):
        put_all(cluster, *processes)
        cluster.put(ROUTE_TABLE, table(1, over))
        async with gateway(cluster, state_dir) as running:
            counts = Counter(process.stage for process in processes)
            endpoints = running.router.endpoints
            await until(lambda: all(endpoints.ready(stage) == count for stage, count in counts.items()))
            await until(running.forwarder.ready)
            yield running


async def infer(client: Any, *, timeout: float = 15.0, batch: int = 1, value: float = 1.0) -> Any:
    tensor = triton.InferInput("frames", [batch, WIDTH], "FP32")
    tensor.set_data_from_numpy(frames(batch, value))
    return await client.infer(PIPELINE, [tensor], client_timeout=timeout)


@dataclass(frozen=True, slots=True)
class Answer:
    """A request that was answered rightly: when it was sent, how long it took, and the route that served it."""

    sent: float
    seconds: float
    plan: str


class Load:
    """Requests over gRPC at a constant rate, whatever comes back, which is kept."""

    def __init__(self, running: Gateway, *, rate: float = 50.0, timeout: float = 15.0) -> None:
        self._running, self._rate, self._timeout = running, rate, timeout
        self.answers: list[Answer] = []
        self.errors: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._client = triton.InferenceServerClient(f"{self._running.settings.pod_ip}:9000")
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sending.cancel()
        await asyncio.gather(*self._tasks)
        await self._client.close()

    @property
    def plans(self) -> list[str]:
        return [answer.plan for answer in self.answers]

    def between(self, start: float, end: float) -> list[Answer]:
        """In the order of sending; times are ``time.monotonic``'s."""
        return sorted((a for a in self.answers if start <= a.sent < end), key=lambda answer: answer.sent)

    async def _send(self) -> None:
        while True:
            self._tasks.append(asyncio.create_task(self._one()))
            await asyncio.sleep(1 / self._rate)

    async def _one(self) -> None:
        sent = time.monotonic()
        try:
            answer = await infer(self._client, timeout=self._timeout)
            np.testing.assert_allclose(answer.as_numpy("output_0"), expected())
        except (InferenceServerException, AssertionError) as error:
            self.errors.append(str(error))
            return
        plan = answer.get_response().parameters["splitplane_plan"].string_param
        self.answers.append(Answer(sent, time.monotonic() - sent, plan))

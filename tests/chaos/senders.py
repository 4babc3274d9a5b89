"""The two clients of a pipeline, each as users have it: gRPC's own balancing, and HTTP connections that are kept.

None of the two sends anything twice; that a client does so is for :mod:`tests.chaos.client` to do and to tell.
"""

import json
import random
import socket
from typing import Any, Protocol

import aiohttp
import grpc
import grpc.aio
import numpy as np
from aiohttp.abc import AbstractResolver, ResolveResult

from splitplane.runtime import oip_pb2
from splitplane.runtime.hops import Method
from splitplane.runtime.oip_grpc import MODEL_INFER

BROKEN_OFF = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
OPTIONS = (
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.max_reconnect_backoff_ms", 500),
)
CONNECTIONS = 60
"""HTTP clients that take turns: each is idle for seconds in between, as most are, and keeps its connection."""


class BrokenOffError(Exception):
    """No answer, but whoever sent the request may send it again: the server was not there or went away."""


class FailedError(Exception):
    """Another error, a wrong answer, or none in time."""


class Gateways(Protocol):
    """Where the pipeline's gateways are now."""

    @property
    def grpc(self) -> list[str]:
        """``host:port`` of each."""

    @property
    def rest(self) -> list[tuple[str, int]]: ...


class Sender(Protocol):
    name: str

    async def send(self, number: int, seconds: float) -> str:
        """The request of this number: the plan that served it.

        Each has its own of the inputs in turn, so that the answer to another request would be a wrong one. Raises
        :class:`BrokenOffError` or :class:`FailedError`.
        """

    async def close(self) -> None: ...


class OverGrpc:
    """``round_robin`` over the gateways that are known. ``features`` and ``expected`` are those of several requests."""

    name = "gRPC"

    def __init__(self, gateways: Gateways, model: str, features: Any, expected: Any) -> None:
        self._gateways, self._expected = gateways, expected
        self._requests = []
        for each in features:
            message = oip_pb2.ModelInferRequest(model_name=model, raw_input_contents=[each.tobytes()])
            message.inputs.add(name="features", datatype="FP32", shape=each.shape)
            self._requests.append(bytes(message.SerializeToString()))
        self._channels: dict[str, grpc.aio.Channel] = {}
        """By target; those of earlier targets too, for what is under way on them."""

    async def send(self, number: int, seconds: float) -> str:
        which = number % len(self._requests)
        target = "ipv4:" + ",".join(sorted(self._gateways.grpc))
        if target not in self._channels:
            self._channels[target] = grpc.aio.insecure_channel(target, options=OPTIONS)
        method: Method = self._channels[target].unary_unary(MODEL_INFER)
        try:
            answer = await method(self._requests[which], timeout=seconds)
        except grpc.aio.AioRpcError as error:
            kind = BrokenOffError if error.code() in BROKEN_OFF else FailedError
            raise kind(f"{target}: {error.code().name}: {error.details()}") from error
        response = oip_pb2.ModelInferResponse.FromString(answer)
        check(np.frombuffer(response.raw_output_contents[0], np.float32), self._expected[which])
        return str(response.parameters["splitplane_plan"].string_param)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


class OverRest:
    """Clients of aiohttp with its defaults, to which the gateways are the addresses of one name."""

    name = "REST"

    def __init__(self, gateways: Gateways, model: str, features: Any, expected: Any) -> None:
        self._expected = expected
        form = {"name": "features", "datatype": "FP32", "shape": features[0].shape}
        self._bodies = [json.dumps({"inputs": [{**form, "data": each.ravel().tolist()}]}).encode() for each in features]
        self._url = f"http://gateways:8080/v2/models/{model}/infer"
        self._sessions = [
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=_OneName(gateways)))
            for _ in range(CONNECTIONS)
        ]
        self._sent = 0

    async def send(self, number: int, seconds: float) -> str:
        which = number % len(self._bodies)
        session = self._sessions[self._sent % CONNECTIONS]
        self._sent += 1
        try:
            async with session.post(
                self._url,
                data=self._bodies[which],
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as answer:
                text = await answer.text()
        except TimeoutError as error:
            raise FailedError("no answer in time") from error
        except aiohttp.ClientError as error:
            raise BrokenOffError(f"{type(error).__name__}: {error}") from error
        if answer.status != 200:
            raise (BrokenOffError if answer.status == 503 else FailedError)(f"{answer.status}: {text}")
        response = json.loads(text)
        check(np.asarray(response["outputs"][0]["data"], np.float32), self._expected[which])
        return str(response["parameters"]["splitplane_plan"])

    async def close(self) -> None:
        for session in self._sessions:
            await session.close()


class _OneName(AbstractResolver):
    """What DNS says of a headless Service: the pods' addresses, in any order."""

    def __init__(self, gateways: Gateways) -> None:
        self._gateways = gateways

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = self._gateways.rest
        return [
            ResolveResult(
                hostname=host, host=address, port=number, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
            for address, number in random.sample(found, len(found))
        ]

    async def close(self) -> None: ...


def check(values: Any, expected: Any) -> None:
    """Raises :class:`FailedError` for an answer that is not the unsplit model's."""
    if values.size != expected.size or not np.abs(values.ravel() - expected.ravel()).max() < 1e-4:  # nor a NaN
        raise FailedError("the answer is wrong")

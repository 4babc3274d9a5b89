"""When a link is probed, and what is found: real link target and gRPC, and a relay between that has the link's rate."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from splitplane.runtime import link_probe_pb2, link_target
from splitplane.runtime.gateway.linkbook import LinkName
from splitplane.runtime.gateway.probing import Prober
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.hops import Call
from splitplane.runtime.inference import InferResponse
from splitplane.runtime.link_target import make_grpc_server
from splitplane.runtime.metrics import GatewayMetrics
from splitplane.runtime.routes import HopTrace
from tests.support.gateway_rig import ALONE, free_address, table, until
from tests.support.relays import Link, relay

EDGE_CLOUD: LinkName = ("edge", "cloud")


async def target_at(address: str) -> grpc.aio.Server:
    server = make_grpc_server()
    server.add_insecure_port(address)
    await server.start()
    return server


async def test_an_idle_link_is_measured_followed_and_reported_down() -> None:
    registry = CollectorRegistry()
    router = Router(tier="edge", metrics=GatewayMetrics(registry, namespace="default", pipeline="small"))
    near, far = f"{free_address()}:9000", f"{free_address()}:9000"
    router.apply(table(1, ALONE, links=[{"source": "edge", "target": "cloud", "probes": [near]}]))
    link = Link(rate=2e6, delay=0.02)

    def bandwidth_is(expected: float) -> bool:
        value = router.links.estimates(router.clock())[EDGE_CLOUD].bandwidth_bytes_per_second
        return value is not None and expected / 1.5 < value < expected * 1.5

    server = await target_at(far)
    async with relay(near, far, link):
        probing = asyncio.create_task(Prober(router, round_seconds=0.3).run())
        await until(lambda: EDGE_CLOUD in router.links.estimates(router.clock()))
        await until(lambda: bandwidth_is(2e6), seconds=60)
        delay = router.links.estimates(router.clock())[EDGE_CLOUD].delay_seconds
        assert delay is not None
        assert 0.02 <= delay < 0.04
        link.rate = 2e5
        await until(lambda: bandwidth_is(2e5), seconds=60)
        link.rate = 2e6
        await until(lambda: bandwidth_is(2e6), seconds=60)
        router.links.publish(router.clock())
        assert b'splitplane_link_bandwidth_bytes_per_second{namespace="default"' in generate_latest(registry)

        await server.stop(0)
        await until(lambda: EDGE_CLOUD in router.links.down, seconds=60)
        router.links.publish(router.clock())
        assert b"splitplane_link_bandwidth_bytes_per_second{" not in generate_latest(registry)
        server = await target_at(far)
        await until(lambda: EDGE_CLOUD not in router.links.down, seconds=60)
        # However slow a first probe over the new connection is: the second is sent at once, and is believed.
        await until(lambda: bandwidth_is(2e6), seconds=8)
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
    await server.stop(0)


async def test_an_idle_link_whose_cut_caught_a_payload_is_measured_again_as_soon_as_it_is_back() -> None:
    """What was on its way when the link was cut tells nothing of it, and nobody waits for it."""
    router = Router(tier="edge", metrics=GatewayMetrics(CollectorRegistry(), namespace="default", pipeline="small"))
    near, far = f"{free_address()}:9000", f"{free_address()}:9000"
    router.apply(table(1, ALONE, links=[{"source": "edge", "target": "cloud", "probes": [near]}]))
    link, rate, loop = Link(rate=1e5, delay=0.005, shared=True, strands=True), 1e5, asyncio.get_running_loop()

    def bandwidth() -> float | None:
        return router.links.bandwidth(EDGE_CLOUD, router.clock())

    def payload_crosses() -> bool:
        return link.departures.get(True, 0.0) > loop.time() + 0.08

    server = await target_at(far)
    async with relay(near, far, link):
        probing = asyncio.create_task(Prober(router).run())
        for _ in range(2):
            await until(lambda: bandwidth() is not None)
            await until(payload_crosses, seconds=60)
            link.is_cut = True
            await until(lambda: EDGE_CLOUD in router.links.down)
            await asyncio.sleep(1.0)
            link.is_cut = False
            await until(lambda: EDGE_CLOUD not in router.links.down)
            await until(lambda: bandwidth() is not None, seconds=3)
            assert bandwidth() == pytest.approx(rate, rel=0.5)
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
    await server.stop(0)


@dataclass
class Probes:
    """What reaches the link target: bytes of each payload."""

    payloads: list[int] = field(default_factory=list)

    async def answer(self, message: bytes, _context: Any) -> bytes:
        self.payloads.append(len(link_probe_pb2.ProbeRequest.FromString(message).payload))
        return bytes(link_probe_pb2.ProbeResponse(server_seconds=1e-6).SerializeToString())

    async def during(self, seconds: float) -> tuple[int, int]:
        """Echoes and payloads of the next ``seconds``."""
        before = len(self.payloads)
        await asyncio.sleep(seconds)
        found = self.payloads[before:]
        return found.count(0), len(found) - found.count(0)


async def answers(router: Router, size: int, seconds: float) -> None:
    """Requests over the link that are answered 50 times a second, each in the same time."""
    call = Call(InferResponse("small", ()), "address", seconds, size, 0)
    trace = (HopTrace("small-cloud", "cloud", 0, 3, queue=0.0, decode=0.0, compute=0.0, encode=0.0, server=0.0),)
    while True:
        router.links.observe(call, trace, router.clock())
        await asyncio.sleep(0.02)


async def test_traffic_that_tells_rate_and_delay_takes_the_place_of_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = Probes()
    monkeypatch.setattr(link_target, "_probe", probes.answer)
    address = f"{free_address()}:9000"
    router = Router(tier="edge", metrics=GatewayMetrics(CollectorRegistry(), namespace="default", pipeline="small"))
    router.apply(table(1, ALONE, links=[{"source": "edge", "target": "cloud", "probes": [address]}]))
    server = await target_at(address)
    round_seconds = 0.3
    slack = 2  # a machine with other work holds answers up until the link seems idle

    def is_told() -> bool:
        return not router.links.estimator(EDGE_CLOUD).needs_echo(router.clock(), round_seconds)

    probing = asyncio.create_task(Prober(router, round_seconds=round_seconds).run())
    traffic = asyncio.create_task(answers(router, 262_144, 0.1))
    await until(is_told, seconds=30)
    await asyncio.sleep(round_seconds)
    echoes, payloads = await probes.during(10 * round_seconds)
    assert echoes <= slack
    assert payloads == 0
    estimate = router.links.estimates(router.clock())[EDGE_CLOUD]
    assert estimate.bandwidth_bytes_per_second == pytest.approx(2.6e6, rel=0.1)
    assert estimate.delay_seconds is not None

    traffic.cancel()
    echoes, payloads = await probes.during(2.0)
    assert echoes >= 4, "an idle link is asked for signs of life"
    assert payloads >= 1

    traffic = asyncio.create_task(answers(router, 1_000, 0.01))
    await asyncio.sleep(2 * round_seconds)
    echoes, payloads = await probes.during(10 * round_seconds)
    assert echoes <= slack
    assert payloads >= 1, "small messages tell no rate"
    await until(lambda: router.links.estimates(router.clock())[EDGE_CLOUD].delay_seconds == pytest.approx(0.005))

    for task in (traffic, probing):
        task.cancel()
    await asyncio.gather(traffic, probing, return_exceptions=True)
    await server.stop(0)

"""How much of a link probes take, and how soon they find that it has changed: the prober itself, in simulated time."""

import asyncio
import contextlib
import random
import selectors
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from splitplane.runtime.gateway.links import CHANGE_FACTOR
from splitplane.runtime.gateway.probing import LONGEST_SECONDS, OWED_SECONDS, SAVED_SECONDS, SHARE, Prober, _LinkProber
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.hops import Call
from splitplane.runtime.inference import InferResponse
from splitplane.runtime.metrics import GatewayMetrics
from splitplane.runtime.routes import HopTrace
from tests.support.gateway_rig import ALONE, table, until

EDGE_CLOUD = "edge", "cloud"
DELAY_SECONDS = 0.01
STEP_SECONDS = 0.05
TRACE = (HopTrace("small-cloud", "cloud", 0, 3, queue=0.0, decode=0.0, compute=0.0, encode=0.0, server=0.0),)


class SimulatedTime(asyncio.SelectorEventLoop):
    """Whoever sleeps is woken at once, and the clock says that it has slept."""

    def __init__(self) -> None:
        self.now = 1_000.0
        loop = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                events = super().select(0)
                if not events:
                    loop.now += timeout or 0.0
                return events

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


@dataclass
class Link:
    """One queue, first come, first served; ``rate`` of a moment in bytes per second."""

    rate: Callable[[float], float]
    busy_seconds: float = 0.0
    """How much longer each answer takes, at most: what a far end that is busy adds without a word."""
    free_at: float = 0.0
    payload_seconds: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def cross(self, now: float, size: int, *, is_payload: bool = False) -> float:
        """When the answer is back."""
        begun, left = max(self.free_at, now), float(size)
        self.free_at = begun
        while left > 0:
            passed = min(left, STEP_SECONDS * (rate := self.rate(self.free_at)))
            self.free_at, left = self.free_at + passed / rate, left - passed
        self.payload_seconds += is_payload * (self.free_at - begun)
        return self.free_at + 2 * DELAY_SECONDS + self.chance.uniform(0.0, self.busy_seconds)


def jittering(low: float, high: float) -> Callable[[float], float]:
    rates = [random.Random(n).uniform(low, high) for n in range(4_000)]
    return lambda now: rates[int(2 * now) % len(rates)]


class Site:
    """A gateway that probes a link and sends ``rate`` messages a second of so many bytes over it."""

    def __init__(self, link: Link, rate: float, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.link, self.rate, self.sizes = link, rate, sizes
        self.clock = asyncio.get_running_loop().time
        metrics = GatewayMetrics(CollectorRegistry(), namespace="default", pipeline="small")
        self.router = Router(tier="edge", metrics=metrics, clock=self.clock)
        self.router.apply(table(1, ALONE, links=[{"source": "edge", "target": "cloud", "probes": ["far:1"]}]))

        async def send(_: _LinkProber, payload: bytes, timeout: float) -> float | None:
            began = self.clock()
            seconds = link.cross(began, len(payload) + 60, is_payload=bool(payload)) - began
            await asyncio.sleep(min(seconds, timeout))
            return seconds if seconds <= timeout else None

        monkeypatch.setattr(_LinkProber, "_send", send)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(Prober(self.router).run())
            while True:
                await asyncio.sleep(self.link.chance.expovariate(self.rate))
                group.create_task(self.message(self.link.chance.randint(*self.sizes)))

    async def message(self, size: int) -> None:
        began, links = self.clock(), self.router.links
        with links.carrying([EDGE_CLOUD], began, size):
            await asyncio.sleep(self.link.cross(began, size) - began)
        links.observe(Call(InferResponse("small", ()), "far:2", self.clock() - began, size, 0), TRACE, self.clock())

    def knows(self) -> bool:
        """Whether the link's rate is told as what it is."""
        told, rate = self.router.links.bandwidth(EDGE_CLOUD, self.clock()), self.link.rate(self.clock())
        return told is not None and rate / CHANGE_FACTOR < told < rate * CHANGE_FACTOR


def simulated(case: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=SimulatedTime) as runner:
        runner.run(case())


@contextlib.asynccontextmanager
async def running(site: Site) -> Any:
    task = asyncio.create_task(site.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("rate", "sizes", "busy_seconds"),
    [(0.01, (100, 200), 0.0), (2.0, (2_100, 6_000), 0.05), (0.5, (20_000, 30_000), 0.0)],
    ids=["without traffic", "small messages to a busy far end", "larger ones"],
)
def test_payloads_take_no_more_than_their_share_of_a_thin_link_whose_rate_jitters(
    monkeypatch: pytest.MonkeyPatch, rate: float, sizes: tuple[int, int], busy_seconds: float
) -> None:
    link, seconds = Link(jittering(20e3, 50e3), busy_seconds), 400.0

    async def case() -> None:
        site = Site(link, rate, sizes, monkeypatch)
        async with running(site):
            await asyncio.sleep(seconds)

    simulated(case)
    assert link.payload_seconds >= SHARE * seconds / 2
    assert link.payload_seconds <= SHARE * seconds + SAVED_SECONDS / 2 + OWED_SECONDS + LONGEST_SECONDS


def alternating(fast: float, slow: float, seconds: float) -> Callable[[float], float]:
    return lambda now: (fast, slow)[int(now / seconds) % 2]


@pytest.mark.parametrize(("fast", "slow"), [(10e6, 200e3), (50e6, 1e6)])
def test_small_messages_are_enough_to_know_in_seconds_that_a_link_is_fifty_times_slower_and_that_it_has_healed(
    monkeypatch: pytest.MonkeyPatch, fast: float, slow: float
) -> None:
    found: list[float] = []

    async def case() -> None:
        site = Site(Link(alternating(fast, slow, 20.0)), 8.0, (4_000, 12_000), monkeypatch)
        async with running(site):
            for _ in range(10):
                await asyncio.sleep(20.001 - site.clock() % 20.0)
                changed = site.clock()
                await until(site.knows)
                found.append(site.clock() - changed)

    simulated(case)
    slower, healed = found[0::2], found[1::2]
    assert max(slower) <= 4.0
    assert max(healed) <= 4.0
    assert sorted(slower)[2] <= 2.0
    print(f"slower known after {slower}, healed after {healed}")


def test_a_link_is_known_to_have_become_slow_in_seconds_where_three_times_more_is_sent_than_it_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything waits for longer and longer, what is to tell of it as well."""
    slow = 62.5e3

    async def case() -> None:
        site = Site(Link(alternating(3e6, slow, 20.0)), 20.0, (4_000, 16_000), monkeypatch)
        async with running(site):
            await asyncio.sleep(20.001)
            changed = site.clock()
            await until(lambda: (site.router.links.bandwidth(EDGE_CLOUD, site.clock()) or 0.0) < 2 * slow)
            assert site.clock() - changed <= 6.0

    simulated(case)

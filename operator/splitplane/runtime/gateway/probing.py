"""Measures links that carry too little traffic to tell anything, so that an edge-only plan can leave itself again.

Where no answer has crossed for a moment, the far end's link target is asked for a tiny echo: so a link that is cut is
known within two seconds, and one that heals soon after. Under traffic an echo is sent once a round, for the delay, and
only as long as what crosses leaves that in doubt. If ordinary traffic told no bandwidth in a round, a payload is sent
that takes about 45 ms at the present estimate. What payloads may take in all is budgeted: 2 % of the time, saved up to
two seconds for when a link has become much slower. On credit goes one where nothing is known at all, and, up to a
second, what is in doubt: one, after echoes, as soon as traffic puts the estimate in doubt, and a second one at once
where the first is the only one or notably differs from the others: it may have been slow for any reason, and would be
believed, or a change would not be, until the budget allows the next. A doubt that a payload refutes is not raised by
traffic again for a while. So payloads take no more than their share of a link whose rate jitters, either, or that ends
in a busy process; but for links below 20 kB/s, where nothing would be known for most of the time.
"""

import asyncio
import logging
import os
import time
from math import inf
from typing import Any

import grpc
import grpc.aio

from splitplane.runtime import link_probe_pb2
from splitplane.runtime.gateway.links import CHANGE_FACTOR, CONVINCING_SECONDS, FLOOR_SECONDS
from splitplane.runtime.gateway.pulses import TICK_SECONDS
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.gateway.tables import LinkSpec
from splitplane.runtime.hops import Channels

logger = logging.getLogger(__name__)

PROBE = "/splitplane.LinkProbe/Probe"
ROUND_SECONDS = 3.0
FIRST_ROUNDS = 2
PULSE_SECONDS = 0.25
"""Between two signs of life of a link."""
SMALLEST_BYTES = 12_288
"""TCP sends that at once, so it waits only once where a link is full: a connection's first flight is ten segments."""
LARGEST_BYTES = 98_304
PAYLOAD_SECONDS = 0.045
SHARE = 0.02
SAVED_SECONDS = 2.0
OWED_SECONDS = 1.0
"""How far a doubt may overdraw the budget, and by one payload more."""
LONGEST_SECONDS = SMALLEST_BYTES / 20_000
"""What a payload counts as at most: beyond that it has probably waited in a queue, which was no time of the link's."""
DEAF_SECONDS = 30.0
"""How long traffic puts nothing in doubt after a payload has refuted it."""
ECHO_TIMEOUT_SECONDS = 3.0
RETURN_TIMEOUT_SECONDS = 1.0
"""Of echoes over a link that is down. Each goes over a connection of its own: an old one may wait, once the link is
back, for about as long as it was away."""
PAYLOAD_TIMEOUT_SECONDS = 10.0
DOUBT_TIMEOUT_SECONDS = 0.7
"""Of a payload that is to remove a doubt, beyond what an echo took right before it."""
MOST_ADDRESSES_PER_ROUND = 3
ECHOES_IN_DOUBT = 2


def payload_bytes(bandwidth_bytes_per_second: float | None) -> int:
    """Size of the next payload; the smallest while nothing is known."""
    if bandwidth_bytes_per_second is None:
        return SMALLEST_BYTES
    return int(min(max(bandwidth_bytes_per_second * PAYLOAD_SECONDS, SMALLEST_BYTES), LARGEST_BYTES))


class ProbeBudget:
    """Seconds of a link that payloads may use: ``SHARE`` of the time, saved up to ``SAVED_SECONDS``."""

    def __init__(self, now: float) -> None:
        self._credit = SAVED_SECONDS / 2
        self._at = now

    def allows(self, now: float, *, in_doubt: bool = False) -> bool:
        """Whether a payload may be sent now; a payload that turns out long is paid back by waiting."""
        self._credit = min(SAVED_SECONDS, self._credit + (now - self._at) * SHARE)
        self._at = now
        return self._credit > (-OWED_SECONDS if in_doubt else 0.0)

    def spend(self, size: int, seconds: float) -> None:
        """A payload of so many bytes occupied the link for so long.

        It counts as one that fits the rate that it tells: what has just changed was sized by the rate before.
        """
        rate = size / max(seconds, FLOOR_SECONDS)
        self._credit -= min(seconds, payload_bytes(rate) / rate, LONGEST_SECONDS)


class Prober:
    """Probes every link of the table in force, each in a task of its own."""

    def __init__(self, router: Router, *, round_seconds: float = ROUND_SECONDS) -> None:
        self._router = router
        self._round_seconds = round_seconds
        self._channels = Channels()
        self._tasks: dict[LinkSpec, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follow the table, for ever."""
        try:
            while True:
                wanted = {link for link in self._router.table.links if link.probes} if self._router.table else set()
                for link in self._tasks.keys() - wanted:
                    self._tasks.pop(link).cancel()
                    if not any((link.source, link.target) == (other.source, other.target) for other in wanted):
                        self._router.links.forsake((link.source, link.target))
                for link in wanted - self._tasks.keys():
                    prober = _LinkProber(self._router, self._channels, link, self._round_seconds)
                    self._tasks[link] = asyncio.create_task(prober.run())
                await self._router.changed.wait(ROUND_SECONDS)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            await self._channels.close()


class _LinkProber:
    def __init__(self, router: Router, channels: Channels, link: LinkSpec, round_seconds: float) -> None:
        self._router = router
        self._round_seconds = round_seconds
        self._channels = channels
        self._link = link
        self._name = (link.source, link.target)
        self._addresses = list(link.probes)
        self._budget = ProbeBudget(router.clock())
        self._payload = os.urandom(LARGEST_BYTES)
        self._shortest: float | None = None
        """Seconds of the shortest echo in this round."""
        self._usual = 0.0
        """Seconds of the shortest echo in the last round that had one."""
        self._deaf_until = -inf
        """Till then traffic puts nothing in doubt: a payload has refuted the last doubt."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for run in (self._listen, self._judge, self._measure):
                group.create_task(run())

    async def _judge(self) -> None:
        while True:
            now = self._router.clock()
            # An echo of late may have waited behind large messages, which is allowed for by what these are.
            delay = self._router.links.estimator(self._name).estimate(now).delay_seconds
            round_trip = self._usual if delay is None else min(self._usual, 2 * delay)
            self._router.links.tick(self._name, now, round_trip)
            await asyncio.sleep(TICK_SECONDS)

    async def _listen(self) -> None:
        """Ask for a sign of life where there has been none for a moment."""
        pulse = self._router.links.pulse(self._name, self._router.clock())
        # A connection's set-up is in the first echo's time, and is not to be taken for the link's delay.
        await self._echo(telling=False)
        while True:
            quiet = self._router.clock() - pulse.heard_at
            await asyncio.sleep(PULSE_SECONDS if pulse.down else max(PULSE_SECONDS - quiet, TICK_SECONDS))
            quiet = self._router.clock() - pulse.heard_at
            if pulse.down or quiet >= PULSE_SECONDS or (self._shortest is None and self._delay_is_in_doubt()):
                await self._echo()

    def _delay_is_in_doubt(self) -> bool:
        return self._router.links.estimator(self._name).needs_echo(self._router.clock(), self._round_seconds)

    async def _echo(self, *, telling: bool = True) -> None:
        """The link target that answers is asked first from now on."""
        links = self._router.links
        pulse = links.pulse(self._name, self._router.clock())
        for _ in range(min(len(self._addresses), MOST_ADDRESSES_PER_ROUND)):
            behind = pulse.asked(links.backlog_seconds(self._name, self._router.clock()))
            timeout = max(RETURN_TIMEOUT_SECONDS, 6 * self._usual) if pulse.down else ECHO_TIMEOUT_SECONDS + behind
            seconds = await self._send(b"", timeout)
            if seconds is not None:
                pulse.answered(self._router.clock())
                if telling:
                    self._shortest = min(seconds, self._shortest or seconds)
                return
            self._channels.drop(self._addresses[0])
            self._addresses.append(self._addresses.pop(0))

    async def _measure(self) -> None:
        """Tell the estimator of each round's shortest echo, and send a payload where traffic tells nothing."""
        estimator, rounds = self._router.links.estimator(self._name), 0
        while True:
            # The first rounds are short: what starts, and what heals, should soon be known.
            pause = min(PULSE_SECONDS, self._round_seconds) if rounds < FIRST_ROUNDS else self._round_seconds
            await self._pause(pause)
            if self._name in self._router.links.down:
                rounds = 0
                continue
            if self._shortest is not None:
                self._usual = self._shortest
                estimator.round_trip(self._router.clock(), self._shortest)
                self._shortest = None
            elif not self._delay_is_in_doubt():
                self._usual = 2 * (estimator.estimate(self._router.clock()).delay_seconds or 0.0)
            else:
                continue  # no echo has come back
            rounds += 1
            await self._send_payloads()

    async def _pause(self, seconds: float) -> None:
        """Until then, or until the link falls. What traffic puts in doubt meanwhile is asked for."""
        router = self._router
        until = router.clock() + seconds
        while (left := until - router.clock()) > 0:
            await asyncio.wait({router.links.fall()}, timeout=min(left, TICK_SECONDS))
            if self._name in router.links.down:
                return
            if self._seems_slower():
                await self._send_payloads()

    def _seems_slower(self) -> bool:
        now = self._router.clock()
        return now >= self._deaf_until and self._router.links.estimator(self._name).seems_slower

    async def _send_payloads(self) -> None:
        links, clock = self._router.links, self._router.clock
        estimator, before = links.estimator(self._name), links.bandwidth(self._name, clock())
        was_asked, echoes = self._seems_slower(), ECHOES_IN_DOUBT if estimator.seems_slower else 0
        if not await self._send_payload(echoes):
            return
        if estimator.doubtful(clock()):
            await self._send_payload(echoes)
        after = links.bandwidth(self._name, clock())
        is_slower = before is None or after is None or after * CHANGE_FACTOR < before or estimator.doubtful(clock())
        if was_asked and not is_slower:
            self._deaf_until = clock() + DEAF_SECONDS

    async def _send_payload(self, echoes: int) -> bool:
        """After so many echoes. Says whether one was sent, and has crossed."""
        links, now = self._router.links, self._router.clock()
        estimator = links.estimator(self._name)
        # Where answers are long in coming, what was sent may be on the link all the same.
        if (
            estimator.idle_seconds(now) < self._round_seconds
            or links.backlog_seconds(self._name, now) > PAYLOAD_SECONDS
        ):
            return False
        is_known = estimator.estimate(now).bandwidth_bytes_per_second is not None
        is_in_doubt = estimator.doubtful(now) or self._seems_slower()
        if not self._budget.allows(now, in_doubt=is_in_doubt) and is_known:
            return False
        size = payload_bytes(estimator.possible(now))
        sending = asyncio.create_task(self._exchange(self._payload[:size], echoes))
        try:
            while not sending.done():
                awaited: set[asyncio.Future[Any]] = {sending, links.fall()}
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if self._name in links.down:
                    # It tells nothing, and TCP tries again about as much later as the link has been away.
                    return False
        finally:
            sending.cancel()
        # A payload that does not arrive, over a link that echoes, still says that the rate is no higher than this.
        seconds, echo_seconds = sending.result()
        # The round trip occupies nobody: only the time that the payload itself takes is the link's.
        self._budget.spend(size, links.probed(self._name, self._router.clock(), size, seconds, echo_seconds))
        return True

    async def _exchange(self, payload: bytes, echoes: int) -> tuple[float, float | None]:
        """Seconds that a payload took, or was given, and before it the shortest of so many echoes, one after the other.

        In doubt it gets little more than an echo: where more is sent than the link passes, each waits for longer.
        """
        shortest: float | None = None
        for _ in range(echoes):
            seconds = await self._send(b"", ECHO_TIMEOUT_SECONDS)
            if seconds is None:
                break
            shortest = min(seconds, shortest or seconds)
            if seconds > CONVINCING_SECONDS:
                break
        timeout = (shortest or 0.0) + DOUBT_TIMEOUT_SECONDS if echoes else PAYLOAD_TIMEOUT_SECONDS
        return await self._send(payload, timeout) or timeout, shortest

    async def _send(self, payload: bytes, timeout: float) -> float | None:
        """Seconds that the round trip took, the link target's own taken off; ``None`` when it failed."""
        method = self._channels.get(self._addresses[0]).unary_unary(
            PROBE,
            request_serializer=link_probe_pb2.ProbeRequest.SerializeToString,
            response_deserializer=link_probe_pb2.ProbeResponse.FromString,
        )
        started = time.perf_counter()
        try:
            answer = await method(link_probe_pb2.ProbeRequest(payload=payload), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            logger.debug("probe of %s: %s", self._addresses[0], error.code())
            return None
        return max(time.perf_counter() - started - answer.server_seconds, 1e-6)

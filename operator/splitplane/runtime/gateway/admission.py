"""Who comes in, and in which order: a bound, deadlines that can be kept, and turns that clients share fairly.

Requests wait here rather than before the stages, whose queues are first come, first served: a client that floods the
gateway then waits for its own requests and not others for them. So only a *window* of requests is under way at a time.
It widens while the stages have none waiting and somebody waits here, and narrows when requests wait there.

What a new request would take is told from how fast answers came lately, as BBR (Cardwell et al., "BBR:
Congestion-Based Congestion Control", 2016) tells the rate of a path: answers since a request was admitted over its time
in the gateway. Pure but for futures; times come in as arguments.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from splitplane.runtime.budgets import SMALL_SHARE
from splitplane.runtime.inference import Failure, InferenceError
from splitplane.runtime.unsent import Unsent

SAMPLES = 32
STALE_SECONDS = 10.0
"""Older answers tell nothing: a request that seems hopeless is let in again to see."""
STALE_ANSWERS = 16
"""Where so many answers, one after another, take longer than that, they may be so old: else what is slow would never
have given enough of them to tell how many there can be."""
TELLING = 8
"""So many answers to requests that were not alone tell how many there can be; the first after a stall tell of that."""
MARGIN = 1.25
"""A request is let in when it makes its deadline also if those before it take so many times what is expected."""
NARROWEST, WIDEST = 8, 128
"""Bounds of the window for each replica of a route's narrowest stage; the widest is what a stage lets wait."""
LONGEST_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    rate: float
    unqueued: float
    alone: bool
    """No other request was under way: its rate is what there can be at least, not at most."""

    @property
    def fresh_seconds(self) -> float:
        return max(STALE_SECONDS, STALE_ANSWERS * self.unqueued)


@dataclass(frozen=True, slots=True)
class Mark:
    """When a request came in, how many had been answered by then, and whether no other was under way."""

    at: float
    answered: int
    alone: bool


class Throughput:
    """How many answers per second the routes give, and what the quickest of late would have taken alone."""

    def __init__(self) -> None:
        self._answered = 0
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)

    def begin(self, now: float, *, alone: bool) -> Mark:
        return Mark(now, self._answered, alone)

    def answered(self, mark: Mark, now: float, unqueued_seconds: float) -> None:
        """A request was served; without waiting for others it would have taken ``unqueued_seconds``."""
        self._answered += 1
        rate = (self._answered - mark.answered) / max(now - mark.at, 1e-6)
        self._samples.append(_Sample(now, rate, unqueued_seconds, mark.alone))

    def expected_seconds(self, ahead: int, now: float, margin: float = 1.0) -> float | None:
        """What a request will take that has ``ahead`` others before it; ``None`` when nothing was answered lately."""
        recent = [sample for sample in self._samples if now - sample.at <= sample.fresh_seconds]
        if not recent or (ahead == 0 and now - recent[-1].at > STALE_SECONDS):
            return None
        enough = sum(not sample.alone for sample in recent) >= TELLING
        rate = max(sample.rate for sample in recent) if enough else inf
        # What one takes is told by late ones alone: a slow answer is known for longer than quick ones after it.
        lately = (sample.unqueued for sample in recent if now - sample.at <= STALE_SECONDS)
        return max((margin * ahead + 1) / rate, min(lately, default=0.0))

    def check(self, ahead: int, remaining: float, now: float, *, margin: float = MARGIN) -> None:
        """Raises :class:`InferenceError` when a request cannot be answered within ``remaining`` seconds."""
        expected = self.expected_seconds(ahead, now, margin)
        if expected is not None and expected > remaining:
            raise overloaded(
                f"an answer takes about {expected:.3g} s with {ahead} requests before it, and this request has "
                f"{max(remaining, 0.0):.3g} s left; try again shortly",
                expected - remaining,
            )

    def retry_seconds(self, inside: int, now: float) -> float:
        """When a client that finds the queue full may come again: when half of it has gone."""
        return (self.expected_seconds(inside, now) or 2.0) / 2


def overloaded(message: str, retry_seconds: float) -> InferenceError:
    return InferenceError(
        Failure.RESOURCE_EXHAUSTED, message, retry_seconds=min(max(retry_seconds, 0.0), LONGEST_RETRY_SECONDS)
    )


@dataclass(frozen=True, slots=True)
class Load:
    """Bytes of requests' inputs, and of as much of their answers as is known before."""

    inputs: int = 0
    known: int = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(self.inputs + other.inputs, self.known + other.known)

    def __sub__(self, other: "Load") -> "Load":
        return Load(self.inputs - other.inputs, self.known - other.known)


@dataclass(slots=True, eq=False)
class _Waiter:
    load: Load
    come: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Lane(NamedTuple):
    """Where a client's requests wait: those with small answers do not wait behind its others."""

    client: str
    is_small: bool


class Line:
    """Turns to be under way. Clients with requests waiting take turns; each client's own go in order, small and large.

    ``replicas`` tells how many pods the narrowest stage of the widest route has. No more are under way than their
    answers fit into ``room_bytes`` beside what is ``unsent``, but for one: by what is known of these, and what late
    ones took, beside their inputs and at most. Who has answers coming waits for these where there is no room, and
    others go past it. Neither what is small nor the first answer of a client waits for others that are slow to take
    theirs: there is as much room again for such first ones.
    """

    def __init__(self, replicas: Callable[[], int], *, room_bytes: float = inf, unsent: Unsent | None = None) -> None:
        self._replicas = replicas
        self._room_bytes, self._unsent = room_bytes, unsent or Unsent()
        self._unsent.on_less = self.advance
        self._answers: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=SAMPLES)
        """Bytes of late answers, for one of inputs and all."""
        self._waiting: OrderedDict[_Lane, deque[_Waiter]] = OrderedDict()
        self._under_way, self._load = 0, Load()
        self._inside: Counter[str] = Counter()
        """How many each client has under way."""
        self._window = float(NARROWEST)
        """For each replica."""

    @property
    def under_way(self) -> int:
        return self._under_way

    @property
    def window(self) -> int:
        return int(self._window * max(1, self._replicas()))

    def learn(self, input_bytes: int, answer_bytes: int) -> None:
        """An answer has come, of so many bytes to so many."""
        self._answers.append((answer_bytes / max(1, input_bytes), answer_bytes))

    def ahead(self, client: str) -> int:
        """How many requests are under way, or will be before one more of this client."""
        own = self._own(client)
        others = (min(len(queue), own + (lane.client != client)) for lane, queue in self._waiting.items())
        return self._under_way + sum(others)

    def has_room(self, client: str, load: Load) -> bool:
        """Whether a request that comes now is under way at once."""
        return not self._waiting and self._under_way < self.window and self._fits(client, load)

    @contextlib.asynccontextmanager
    async def turn(self, client: str, load: Load) -> AsyncIterator[None]:
        """While a request is under way. The caller bounds the wait; raises what :meth:`make_room` says."""
        if self.has_room(client, load):
            self._enter(client, load)
        else:
            await self._wait(client, load)
        try:
            yield
        finally:
            self._leave(client, load)
            # Not before the caller has counted the answer as unsent: else one more than fits would come in.
            asyncio.get_running_loop().call_soon(self.advance)

    @contextlib.contextmanager
    def aside(self, client: str, load: Load) -> Iterator[None]:
        """While a request that is under way only waits, another may be instead. Comes back without a turn."""
        self._leave(client, load)
        self.advance()
        try:
            yield
        finally:
            self._enter(client, load)

    def advance(self) -> None:
        """Let in as many as there is room for."""
        while (lane := self._next()) is not None:
            queue = self._waiting[lane]
            waiter = queue.popleft()
            if queue:
                self._waiting.move_to_end(lane)
            else:
                del self._waiting[lane]
            if not waiter.come.done():
                self._enter(lane.client, waiter.load)
                waiter.come.set_result(None)

    def make_room(self, client: str, error: InferenceError) -> bool:
        """Turn out the newest request of the client that has most of them waiting, if this one has notably fewer."""
        if not self._waiting:
            return False
        heaviest, queue = max(self._waiting.items(), key=lambda item: len(item[1]))
        if len(queue) <= self._own(client) + 1:
            return False
        future = queue.pop().come
        if not queue:
            del self._waiting[heaviest]
        if not future.done():
            future.set_exception(error)
        return True

    def feedback(self, *, waited: bool) -> None:
        """A request came back; ``waited`` says whether it had to wait before a stage longer than it was computed."""
        if waited:
            self._window = max(self._window - 1 / max(1, self._replicas()), float(NARROWEST))
        elif self._waiting:
            self._window = min(self._window + 1 / max(1, self._replicas()), float(WIDEST))

    def _own(self, client: str) -> int:
        return sum(len(queue) for lane, queue in self._waiting.items() if lane.client == client)

    def _next(self) -> _Lane | None:
        """Whose turn it is, if there is room. Who has nothing under way or unsent is passed by small ones alone, and
        by these only while it waits for clients to take what is unsent, which may be long."""
        if self._under_way >= self.window:
            return None
        only_small = False
        for lane, queue in self._waiting.items():
            if queue[0].come.done() or (self._fits(lane.client, queue[0].load) and (lane.is_small or not only_small)):
                return lane
            if not self._has_some(lane.client):
                if lane.is_small or not self._unsent.bytes:
                    return None
                only_small = True
        return None

    def _has_some(self, client: str) -> bool:
        """Whether something of it is under way or unsent."""
        return client in self._inside or self._unsent.of(client) > 0

    def _is_small(self, load: Load) -> bool:
        return self._expected(load, 1) <= self._room_bytes / SMALL_SHARE

    def _fits(self, client: str, load: Load) -> bool:
        unsent: float = 0 if self._is_small(load) else self._unsent.bytes
        if not self._under_way and not unsent:
            return True
        if not self._has_some(client):  # others fill one room at most, however slowly they read
            unsent = max(0, unsent - self._room_bytes)
        return self._expected(load + self._load, self._under_way + 1) + unsent <= self._room_bytes

    def _expected(self, load: Load, count: int) -> float:
        """Bytes of the answers of so many requests."""
        largest = count * max(size for _, size in self._answers)
        return max(load.known, min(largest, load.inputs * max(ratio for ratio, _ in self._answers)))

    def _enter(self, client: str, load: Load) -> None:
        self._under_way += 1
        self._load += load
        self._inside[client] += 1

    def _leave(self, client: str, load: Load) -> None:
        self._under_way -= 1
        self._load -= load
        self._inside[client] -= 1
        if not self._inside[client]:
            del self._inside[client]

    async def _wait(self, client: str, load: Load) -> None:
        lane, waiter = _Lane(client, self._is_small(load)), _Waiter(load)
        self._waiting.setdefault(lane, deque()).append(waiter)
        self.advance()  # it may go past those that wait
        try:
            await waiter.come
        except asyncio.CancelledError:
            future = waiter.come
            if future.done() and not future.cancelled() and future.exception() is None:
                self._leave(client, load)  # its turn had come in the same moment
                self.advance()
            else:
                self._forget(lane, waiter)
            raise

    def _forget(self, lane: _Lane, waiter: _Waiter) -> None:
        queue = self._waiting.get(lane)
        if queue is not None:
            with contextlib.suppress(ValueError):
                queue.remove(waiter)
            if not queue:
                del self._waiting[lane]
        self.advance()  # others may have waited behind it

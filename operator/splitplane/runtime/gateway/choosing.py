"""Which route a request takes: the best at the link's bandwidth now, or else the first of the table that can serve it.

Pure; times come in as arguments.
"""

from collections.abc import Collection
from dataclasses import dataclass

from splitplane.runtime.gateway.endpoints import Endpoints
from splitplane.runtime.gateway.tables import Route, Table
from splitplane.runtime.routes import Limits


@dataclass(frozen=True, slots=True)
class Choice:
    """A route with its endpoints: ``hops[i]`` are the addresses of stop ``i``, first choice first."""

    generation: int
    route: Route
    hops: tuple[tuple[str, ...], ...]
    batching: Limits | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoint that each stop uses first."""
        return tuple(hop[0] for hop in self.hops)


@dataclass(frozen=True, slots=True)
class Wait:
    """No route can take a request now: wait ``seconds`` for a fallback's rate (``None``: until something changes)."""

    seconds: float | None
    why: str


class TokenBucket:
    """At most ``rate`` per second in the long run, at most ``burst`` at once."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at: float | None = None

    def wait(self, now: float) -> float:
        """Seconds until a token is there; 0 when one is. Takes none."""
        if self._at is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens >= 1:
            return 0.0
        return (1 - self._tokens) / self.rate if self.rate > 0 else 3600.0

    def take(self, now: float) -> bool:
        if self.wait(now) > 0:
            return False
        self._tokens -= 1
        return True


HYSTERESIS = 0.1
"""How far, relatively, the bandwidth must be beyond where a route is the best before another is taken: more than an
estimate wanders."""


class Chooser:
    """Picks routes of a table. The plan's own carries whatever comes, every other no more than its rate."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._buckets: dict[str, TokenBucket] = {}
        self._preferred = ""

    def prefer(self, table: Table, bandwidth: float | None) -> int | None:
        """The place of the route that is best at this bandwidth, or was just now; ``None``: nothing is known."""
        if bandwidth is None:
            return None
        routes = table.routes
        for place, route in enumerate(routes):
            if route.name == self._preferred and route.best_at(bandwidth, slack=HYSTERESIS):
                return place
        best = next((place for place, route in enumerate(routes) if route.best_at(bandwidth)), None)
        self._preferred = "" if best is None else routes[best].name
        return best

    def choose(
        self,
        table: Table,
        now: float,
        *,
        source_tier: str = "",
        avoid: Collection[str] = (),
        down: Collection[tuple[str, str]] = (),
        bandwidth: float | None = None,
        take: bool = True,
    ) -> Choice | Wait:
        """The first route whose every stage has an admitted endpoint outside ``avoid`` and whose rate is not used up.

        The one that is best at ``bandwidth`` (bytes per second of the table's link) comes before the table's order.
        ``take=False`` only looks, and leaves a fallback's rate as it is. Routes over a link in ``down`` come last, but
        they come: it may be the link target that is broken.
        """
        over_down = [any(link in down for link in route.crossings(source_tier)) for route in table.routes]
        preferred = self.prefer(table, bandwidth)
        order = sorted(range(len(table.routes)), key=lambda index: (over_down[index], index != preferred))
        shortest: float | None = None
        for index in order:
            route = table.routes[index]
            hops = tuple(self._endpoints.pick(stop.stage, avoid) for stop in route.stops)
            if not all(hops):
                continue
            if index > 0 and route.max_rate_per_second is not None:
                bucket = self._bucket(route.name, route.max_rate_per_second)
                seconds = bucket.wait(now)
                if seconds == 0 and take:
                    bucket.take(now)
                if seconds > 0:
                    shortest = seconds if shortest is None else min(shortest, seconds)
                    continue
            return Choice(table.generation, route, hops, table.batching)
        if shortest is not None:
            return Wait(shortest, "every route that can serve is at its highest rate")
        if not table.routes:
            return Wait(None, f"generation {table.generation} has no routes yet")
        return Wait(None, "no route has an endpoint for each of its stages")

    def can_serve(self, table: Table) -> bool:
        """Whether some route has an admitted endpoint for each of its stages."""
        return any(all(self._endpoints.ready(stop.stage) for stop in route.stops) for route in table.routes)

    def _bucket(self, name: str, rate: float) -> TokenBucket:
        bucket = self._buckets.get(name)
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[name] = TokenBucket(rate=rate, burst=max(1.0, rate / 2))
        return bucket

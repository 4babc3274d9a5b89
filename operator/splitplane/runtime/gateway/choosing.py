"""Which route a request takes: the best at the link's bandwidth now, or else the first of the table that can serve it.

Routes run on the same pods, so what each bears at that bandwidth is kept by stage: a request on a route that bears
``r`` a second is ``1 / r`` seconds of work for each of its stages, which is what the busiest has at most. Routes that
have no stage in common bear the sum of both. Pure; times come in as arguments.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from splitplane.runtime.gateway.endpoints import Endpoints
from splitplane.runtime.gateway.tables import Route, Table
from splitplane.runtime.routes import Hop, Limits


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

    def wire(self) -> list[Hop]:
        """The route as its stages read it."""
        return [
            Hop(stop.stage, stop.tier, stop.first, stop.last, addresses, codec, self.batching)
            for stop, addresses, codec in zip(self.route.stops, self.hops, (*self.route.codecs, ""), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Wait:
    """No route can take a request now: wait ``seconds`` for a fallback's rate (``None``: until something changes)."""

    seconds: float | None
    why: str


class Work:
    """Seconds of work that each stage was sent and that it cannot have done yet."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def ahead(self, stages: Iterable[str], now: float) -> float:
        """Of the stage that has most."""
        return max(0.0, *(self._until.get(stage, now) - now for stage in stages))

    def send(self, stages: Iterable[str], seconds: float, now: float, *, most: float = math.inf) -> None:
        """Add to each; none has more than ``most`` by that."""
        self._until = {stage: until for stage, until in self._until.items() if until > now}
        for stage in stages:
            ahead = self._until.get(stage, now) - now
            self._until[stage] = now + min(ahead + seconds, max(ahead, most))


HYSTERESIS = 0.1
"""How far, relatively, the bandwidth must be beyond where a route is the best before another is taken, and how much
more than the plan's own another must bear to carry the rest: more than an estimate wanders."""

PATIENCE, HASTE = 2.0, 0.5
"""How many seconds of work a stage may have ahead of it before a request for it takes another route, if its own is the
best and if it is not: bursts of arrivals stay on the best, a load that lasts does not."""

_MOST_AHEAD = 2.0 * PATIENCE
"""Seconds: what the route that carries the rest adds to at most, so that an overload is soon forgotten."""

_LONGEST = 3600.0
"""Seconds to wait for a route that bears nothing, until something changes."""


class Chooser:
    """Picks routes of a table. One carries whatever comes, every other no more than it bears: the plan's own does, or
    the one that bears notably more than that at the link's bandwidth."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._work, self._limited = Work(), Work()
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
        """The first route whose every stage has an admitted endpoint outside ``avoid`` and that bears another request.

        The one that is best at ``bandwidth`` (bytes per second of the table's link) comes before the table's order.
        ``take=False`` only looks, and counts no work. Routes over a link in ``down`` come last, but they come: it may
        be the link target that is broken.
        """
        routes = table.routes
        over_down = [any(link in down for link in route.crossings(source_tier)) for route in routes]
        preferred = self.prefer(table, bandwidth)
        picked: dict[int, tuple[tuple[str, ...], ...]] = {}

        def hops(place: int) -> tuple[tuple[str, ...], ...]:
            if place not in picked:
                found: list[tuple[str, ...]] = []
                for stop in routes[place].stops:
                    found.append(self._endpoints.pick(stop.stage, avoid, found[-1][0] if found and found[-1] else ""))
                picked[place] = tuple(found)
            return picked[place]

        rates = [route.bears(bandwidth) for route in routes]
        notable = rates[0] * (1.0 + HYSTERESIS) if routes and bandwidth is not None else math.inf
        more = [place for place, rate in enumerate(rates) if rate > notable and over_down[place] == over_down[0]]
        more.sort(key=lambda place: -rates[place])
        carrier = None
        if routes and all(hops(0)):
            carrier = next((place for place in more if all(hops(place))), 0)
        # Without the plan's own route its work is gone as well, and what is left serves at once.
        known = self._limited if carrier is None or over_down[carrier] else self._work
        shortest: float | None = None
        for place in sorted(range(len(routes)), key=lambda place: (over_down[place], place != preferred)):
            if not all(hops(place)):
                continue
            bears, stages = rates[place], [stop.stage for stop in routes[place].stops]
            if place != carrier:
                patience = PATIENCE if place == (preferred or 0) else HASTE
                seconds = known.ahead(stages, now) - patience if bears > 0.0 else _LONGEST
                if seconds >= 0.0:
                    shortest = seconds if shortest is None else min(shortest, seconds)
                    continue
            if take:
                work = 1.0 / bears if bears > 0.0 else math.inf
                self._work.send(stages, work, now, most=_MOST_AHEAD if place == carrier else math.inf)
                if place != carrier:
                    self._limited.send(stages, work, now)
            return Choice(table.generation, routes[place], hops(place), table.batching)
        if shortest is not None:
            return Wait(shortest, "every route that can serve is at its highest rate")
        if not table.routes:
            return Wait(None, f"generation {table.generation} has no routes yet")
        return Wait(None, "no route has an endpoint for each of its stages")

    def can_serve(self, table: Table) -> bool:
        """Whether some route has an admitted endpoint for each of its stages."""
        return any(all(self._endpoints.ready(stop.stage) for stop in route.stops) for route in table.routes)

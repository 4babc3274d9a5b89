"""What the gateway knows at this moment: the table in force, the endpoints, the requests inside, the links."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from splitplane.runtime.gateway.changes import Latch, Signal
from splitplane.runtime.gateway.choosing import Choice, Chooser, Wait
from splitplane.runtime.gateway.endpoints import Endpoints
from splitplane.runtime.gateway.flights import Flights
from splitplane.runtime.gateway.linkbook import LinkBook
from splitplane.runtime.gateway.pulses import MOST_BEHIND_SECONDS
from splitplane.runtime.gateway.tables import Route, Table, TableError, parse_table
from splitplane.runtime.metrics import GatewayMetrics

logger = logging.getLogger(__name__)


class Router:
    """Everything lives on one event loop; a table is replaced between two requests, never within one's choice.

    ``changed`` fires when a waiting request may have become servable; ``reportable`` when the status should be
    written at once; ``checks_due`` when an endpoint wants a health check.
    """

    def __init__(self, *, tier: str, metrics: GatewayMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.tier = tier
        self.clock = clock
        self.metrics = metrics
        self.changed = Signal()
        self.reportable = Latch()
        self.checks_due = Latch()
        self.endpoints = Endpoints(self._endpoints_changed, self._check_due)
        self.flights = Flights(self._drained)
        self.links = LinkBook(tier=tier, metrics=metrics, on_change=self.changed.notify)
        self.table: Table | None = None
        self._chooser = Chooser(self.endpoints)
        self._replicas: int | None = None

    def apply(self, obj: Mapping[str, Any]) -> bool:
        """Put a RouteTable object in force, unless it is malformed or of a lower generation. Says whether it is now."""
        try:
            table = parse_table(obj)
        except TableError as error:
            logger.error("ignoring the route table: %s", error)
            return False
        if not table.supersedes(self.table):
            logger.warning("ignoring generation %d: %d is in force", table.generation, self.table.generation)  # type: ignore[union-attr]
            return False
        if table == self.table:
            return True
        if self.table is None or table.generation != self.table.generation:
            logger.info("generation %d: %s", table.generation, ", ".join(r.name for r in table.routes) or "no routes")
        self.table = table
        self._replicas = None
        self.metrics.set_generation(table.generation)
        self.metrics.serves(table.model.name)
        self._report()
        self.changed.notify()
        return True

    def choose(self, avoid: frozenset[str] = frozenset()) -> Choice | Wait:
        """A route for one request now, from the table in force."""
        return self._choose(avoid, take=True)

    def peek(self, avoid: frozenset[str]) -> Choice | Wait:
        """As ``choose``, but takes nothing from a fallback's rate."""
        return self._choose(avoid, take=False)

    def _choose(self, avoid: frozenset[str], *, take: bool) -> Choice | Wait:
        if self.table is None:
            return Wait(None, "the gateway has no route table yet")
        now = self.clock()
        bandwidth = None if self.table.link is None else self.links.bandwidth(self.table.link, now)
        return self._chooser.choose(
            self.table, now, source_tier=self.tier, avoid=avoid, down=self.links.down, bandwidth=bandwidth, take=take
        )

    def cut_off(self, route: Route) -> bool:
        """Whether the route crosses a link that is down."""
        return any(link in self.links.down for link in route.crossings(self.tier))

    def behind_seconds(self, stage: str) -> float:
        """How much later a pod of a stage may answer because its link is full, at most."""
        routes = self.table.routes if self.table else ()
        tier = next((stop.tier for route in routes for stop in route.stops if stop.stage == stage), self.tier)
        return min(self.links.backlog_seconds((self.tier, tier), self.clock()), MOST_BEHIND_SECONDS)

    def can_serve(self) -> bool:
        return self.table is not None and self._chooser.can_serve(self.table)

    def replicas(self) -> int:
        """Admitted pods of the narrowest stage, in the route that has most."""
        if self._replicas is None:
            routes = self.table.routes if self.table else ()
            ready = self.endpoints.ready
            self._replicas = max((min(ready(stop.stage) for stop in route.stops) for route in routes), default=0)
        return self._replicas

    def _endpoints_changed(self) -> None:
        self._replicas = None
        self._report()
        self.changed.notify()

    def _drained(self, generation: int) -> None:
        # What operators wait for is that an *old* generation is empty; the one in force empties all the time.
        if self.table is not None and generation != self.table.generation:
            self._report()

    def _check_due(self) -> None:
        self.checks_due.notify()

    def _report(self) -> None:
        self.reportable.notify()

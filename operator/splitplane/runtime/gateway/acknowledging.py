"""Tells the operator, in its own entry of the RouteTable's status, what the gateway routes by and what it sees."""

import asyncio
import logging
from typing import Any

from splitplane.adapters.cluster import Cluster, ClusterError
from splitplane.adapters.kinds import ROUTE_TABLE
from splitplane.runtime.gateway.choosing import Choice
from splitplane.runtime.gateway.links import CHANGE_FACTOR
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.gateway.settings import Settings

logger = logging.getLogger(__name__)

ROUTINE_SECONDS = 5.0
"""Between looks at what changes all the time: estimates, requests on their way."""
SPACING_SECONDS = 0.2
"""At least so long between two writes, so that a burst of changes is one write."""
RETRY_SECONDS = 1.0
SHORTEST_DELAY_MICROSECONDS = 1000
"""Shorter delays are reported, but count as alike: they wander with the machine's load."""
MOST_LINKS = 16
MOST_GENERATIONS = 64


def build_status(router: Router) -> dict[str, Any]:
    """The report as ``api.routes.GatewayReport`` has it. A link just gone down is listed without numbers."""
    table = router.table
    choice = router.peek(frozenset())
    links = []
    for (source, target), estimate in router.links.estimates(router.clock()).items():
        entry: dict[str, Any] = {"source": source, "target": target}
        if estimate.bandwidth_bytes_per_second is not None:
            entry["bandwidthBytesPerSecond"] = str(round(estimate.bandwidth_bytes_per_second))
        if estimate.delay_seconds is not None:
            entry["delayMicroseconds"] = round(estimate.delay_seconds * 1e6)
        if len(entry) > 2 or (source, target) in router.links.down:
            links.append(entry)
    return {
        "acknowledgedGeneration": table.generation if table else -1,
        "stages": [{"name": name, "ready": router.endpoints.healthy(name)} for name in (table.stages if table else ())],
        "inFlight": [
            {"generation": generation, "requests": requests}
            for generation, requests in sorted(router.flights.by_generation.items())[-MOST_GENERATIONS:]
        ],
        "links": links[:MOST_LINKS],
        # What is no longer true has to be taken away: a merge patch leaves alone what it does not name.
        "route": choice.route.name if isinstance(choice, Choice) else None,
    }


def settled(status: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """The status with links as they were written last, where nothing notable has changed about them.

    Estimates wander; a write for each step would cost the API server, and everybody who watches, for nothing.
    """
    before = {(link["source"], link["target"]): link for link in written["links"]}
    links = []
    for link in status["links"]:
        old = before.get((link["source"], link["target"]))
        links.append(old if old is not None and _alike(old, link) else link)
    return {**status, "links": links}


def _alike(old: dict[str, Any], new: dict[str, Any]) -> bool:
    floors = {"bandwidthBytesPerSecond": 1, "delayMicroseconds": SHORTEST_DELAY_MICROSECONDS}
    for name, floor in floors.items():
        if (name in old) != (name in new):
            return False
        low, high = sorted(max(floor, int(link.get(name, 0))) for link in (old, new))
        if high > CHANGE_FACTOR * low:
            return False
    return True


class Acknowledger:
    """Writes the status: at once for a new table, other admitted endpoints, a drained generation; else now and then."""

    def __init__(self, router: Router, cluster: Cluster, settings: Settings) -> None:
        self._router = router
        self._cluster = cluster
        self._settings = settings
        self._written: tuple[str, dict[str, Any]] | None = None

    async def run(self) -> None:
        """Write what has changed, for ever."""
        while True:
            pause = ROUTINE_SECONDS
            self._router.reportable.clear()
            if self._router.table is not None and not await self._write(self._router.table.uid):
                pause = RETRY_SECONDS
            await asyncio.sleep(SPACING_SECONDS)
            await self._router.reportable.wait(pause)

    async def _write(self, uid: str) -> bool:
        status = build_status(self._router)
        if self._written is not None and self._written[0] == uid:
            status = settled(status, self._written[1])
            if status == self._written[1]:
                return True
        try:
            report = {"gateways": {self._settings.pod_name: status}}
            await self._cluster.patch_status(ROUTE_TABLE, self._settings.route_table, self._settings.namespace, report)
        except ClusterError as error:
            logger.info("the status is not written: %s", error)
            return False
        self._written = (uid, status)
        return True

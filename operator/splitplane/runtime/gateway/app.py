"""The gateway as a whole: what runs beside each other in its process, in which order it starts and how it leaves."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry

from splitplane.adapters.cluster import Cluster
from splitplane.runtime.gateway.acknowledging import Acknowledger
from splitplane.runtime.gateway.checking import Checker
from splitplane.runtime.gateway.forwarding import Forwarder
from splitplane.runtime.gateway.fronts import Fronts, serve
from splitplane.runtime.gateway.probing import Prober
from splitplane.runtime.gateway.router import Router
from splitplane.runtime.gateway.settings import Settings
from splitplane.runtime.gateway.store import Store
from splitplane.runtime.gateway.watching import Watcher
from splitplane.runtime.hops import Channels
from splitplane.runtime.metrics import GatewayMetrics
from splitplane.runtime.mtls import Identity

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 1.0


class Gateway:
    """One gateway over a cluster port. ``serving`` is its running state; ``drain`` its end."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        self.settings = settings
        self._registry = CollectorRegistry()
        metrics = GatewayMetrics(
            self._registry,
            namespace=settings.namespace,
            pipeline=settings.pipeline,
            kserve=settings.kserve_metrics,
        )
        self.router = Router(tier=settings.tier, metrics=metrics)
        identity = None
        if settings.tls_dir is not None:
            named = settings.peers or settings.pipeline
            identity = Identity(settings.tls_dir, pipeline=named, namespace=settings.namespace)
        self._channels = Channels(identity=identity)
        self._checker = Checker(self.router, self._channels, Channels(identity=identity))
        self.forwarder = Forwarder(self.router, self._channels, self._checker, settings.proxies)
        self._watcher = Watcher(self.router, cluster, Store(settings.state_dir), settings)
        self._acknowledger = Acknowledger(self.router, cluster, settings)
        self._prober = Prober(self.router)
        self._fronts: Fronts | None = None

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the context is open. A background task that dies takes the gateway with it: it restarts."""
        self._watcher.restore()
        metrics = self.router.metrics
        self._fronts = await serve(
            self.forwarder,
            self._registry,
            self.settings,
            on_refusal=metrics.turned_away,
            on_invalid=metrics.unanswerable,
            unsent=self.forwarder.unsent,
        )
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(run())
                    for run in (
                        self._watcher.run,
                        self._checker.run,
                        self._acknowledger.run,
                        self._prober.run,
                        self._publish,
                    )
                ]
                try:
                    yield
                finally:
                    for task in tasks:
                        task.cancel()
        finally:
            await self._fronts.stop(0)
            await self._checker.close()
            await self._channels.close()

    async def drain(self) -> None:
        """Leave politely: not ready first, then no new connections, then the end of what is inside."""
        if self._fronts is None:
            return
        self.forwarder.draining = True
        self._fronts.leave()
        await asyncio.sleep(self.settings.drain_pause_seconds)
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                await self._fronts.stop(self.settings.drain_seconds)
        except TimeoutError:
            logger.warning("leaving with %d requests inside", self.router.flights.inside)

    async def _publish(self) -> None:
        while True:
            self.router.links.publish(self.router.clock())
            await asyncio.sleep(PUBLISH_SECONDS)

"""The planning loop: one task that looks after all pipelines, woken by events, never by a timer per object."""

import asyncio
import contextlib
import logging
import time

from splitplane.adapters.clock import Clock
from splitplane.adapters.cluster import ClusterError, Conflict
from splitplane.adapters.metrics import Metrics, MetricsSnapshot
from splitplane.controller.objects import key_of
from splitplane.controller.reconciling import Reconciler
from splitplane.controller.telemetry import Telemetry
from splitplane.controller.view import View

_log = logging.getLogger(__name__)

# Between two rounds there is at least this much time, whatever wakes the loop: events come in bursts.
_LEAST_PAUSE_SECONDS = 0.2
_METRICS_EVERY_SECONDS = 5.0
_METRICS_FRESH_SECONDS = 1.0
_STALL_SECONDS = 120.0


class PlanningLoop:
    """Reconciles every pipeline once per round."""

    def __init__(
        self, *, view: View, reconciler: Reconciler, metrics: Metrics, clock: Clock, telemetry: Telemetry,
        tick_seconds: float,
    ) -> None:  # fmt: skip
        self._view = view
        self._reconciler = reconciler
        self._metrics = metrics
        self._clock = clock
        self._telemetry = telemetry
        self._tick = tick_seconds
        self._woken = asyncio.Event()
        self._primed = asyncio.Event()
        self._latest = MetricsSnapshot(time=0.0, failure="Prometheus has not been asked yet")
        self._finished_at = time.monotonic()

    def wake(self) -> None:
        """Something has changed. The first call also says that the indexes are complete."""
        self._primed.set()
        self._woken.set()

    def stalled(self) -> str:
        """Why this process should be restarted; empty while rounds come to an end."""
        age = time.monotonic() - self._finished_at
        if age <= _STALL_SECONDS:
            return ""
        if not self._primed.is_set():  # every cluster has nodes, so something must have been seen
            return f"nothing has been seen of the cluster for {age:.0f} s"
        return f"the planning loop has not finished a round for {age:.0f} s"

    async def run(self) -> None:
        """Go round until cancelled."""
        await self._primed.wait()
        self._finished_at = time.monotonic()
        while True:
            self._woken.clear()
            with self._telemetry.ticks.time():
                await self._round()
            self._finished_at = time.monotonic()
            await asyncio.sleep(_LEAST_PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tick):
                    await self._woken.wait()

    async def _round(self) -> None:
        keys = [key_of(body) for body in self._view.pipelines()]
        self._reconciler.keep_only(set(keys))
        self._telemetry.pipelines.set(len(keys))
        if not keys:
            return
        now = self._clock.now()
        age = now - self._latest.time
        due = any(self._reconciler.is_due(key, now) for key in keys)
        if age >= _METRICS_EVERY_SECONDS or (due and age >= _METRICS_FRESH_SECONDS):
            self._latest = await self._metrics.read(now)
        try:
            await self._reconciler.arbitrate()
        except Exception:
            # Without it, whoever comes first is served first.
            self._telemetry.errors.labels("Unexpected").inc()
            _log.exception("settling between pipelines failed")
        for key in keys:
            try:
                await self._reconciler.reconcile(key, self._latest)
            except Conflict as error:
                self._telemetry.lost_races.inc()
                _log.info("%s/%s: %s; reading again", *key, error)
            except ClusterError as error:
                self._telemetry.errors.labels(type(error).__name__).inc()
                _log.warning("%s/%s: %s; trying again", *key, error)
            except Exception:
                # One pipeline's trouble must not stop the others; it is counted, and seen in the log.
                self._telemetry.errors.labels("Unexpected").inc()
                _log.exception("%s/%s: reconciling failed", *key)

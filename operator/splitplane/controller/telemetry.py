"""The operator's own metrics, and the two pages it serves: ``/metrics`` and ``/healthz``."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST


class Telemetry:
    """Counters of what the operator decides and of what goes wrong."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = Counter(
            "splitplane_decisions", "Decisions of the planner.", ["action", "reason"], registry=self.registry
        )
        self.holds = Counter(
            "splitplane_holds", "Decisions to keep a plan although another is better, by gate.", ["gate"],
            registry=self.registry,
        )  # fmt: skip
        self.errors = Counter(
            "splitplane_reconcile_errors", "Reconciliations that failed, by kind of error.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self.lost_races = Counter(
            "splitplane_lost_races", "Writes refused because somebody else was faster.", registry=self.registry
        )
        self.ticks = Histogram(
            "splitplane_tick_seconds", "Time of one round over all pipelines.", registry=self.registry,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        )  # fmt: skip
        self.planning = Histogram(
            "splitplane_planning_seconds", "Time of one call to the planner.", registry=self.registry,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        )  # fmt: skip
        self.arbitration = Histogram(
            "splitplane_arbitration_seconds", "Time to settle who gets how much of shared nodes.",
            registry=self.registry, buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        )  # fmt: skip
        self.arbitration_gap = Gauge(
            "splitplane_arbitration_gap", "How much more the last settlement might be worth at most, as a share.",
            registry=self.registry,
        )  # fmt: skip
        self.pipelines = Gauge("splitplane_pipelines", "Pipelines that are looked after.", registry=self.registry)
        self.site_ready = Gauge(
            "splitplane_site_ready", "1 where a site of a pipeline is ready, by the names of pipeline and site.",
            ["pipeline_namespace", "pipeline_name", "site", "site_pipeline"], registry=self.registry,
        )  # fmt: skip


async def serve(telemetry: Telemetry, *, host: str, port: int, stalled: Callable[[], str]) -> web.AppRunner:
    """Start serving; ``stalled`` says why the operator should be restarted, or nothing. Clean the runner up when done.

    Raises ``OSError`` when the port is taken.
    """

    async def health(_: web.Request) -> web.Response:
        why = stalled()
        return web.Response(status=503, text=f"{why}\n") if why else web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(telemetry.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", health)
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner

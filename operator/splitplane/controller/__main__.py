"""``python -m splitplane.controller``: the operator as it runs in its pod."""

from splitplane.starting import importing

with importing():
    import asyncio
    import datetime as dt
    import logging
    import sys
    import time
    from typing import Any

    import kopf

    from splitplane.adapters.clock import SystemClock
    from splitplane.adapters.cluster import Cluster, ClusterError, NotFound, Unavailable
    from splitplane.adapters.connecting import connect
    from splitplane.adapters.kinds import MODEL_PROFILE, PIPELINE, ROUTE_TABLE, Kind
    from splitplane.adapters.metrics import PrometheusMetrics, Queries
    from splitplane.controller import handlers
    from splitplane.controller.loop import PlanningLoop
    from splitplane.controller.reconciling import Reconciler
    from splitplane.controller.settings import AUTHORITY, Settings
    from splitplane.controller.telemetry import Telemetry, serve
    from splitplane.controller.view import INDEXES, View
    from splitplane.freed_memory import SEARCH_BYTES, keep_freed

_log = logging.getLogger("splitplane.controller")

_CRD_PATIENCE_SECONDS = 30.0


def main() -> int:
    """Run until stopped by a signal. Returns the exit status."""
    keep_freed(SEARCH_BYTES)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        settings = Settings.from_environment()
        asyncio.run(_run(settings))
    except (ValueError, ClusterError, OSError) as error:
        _log.error("%s", error)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    return 0


async def _run(settings: Settings) -> None:
    telemetry = Telemetry()
    cluster = await connect(component="splitplane-operator")
    metrics = PrometheusMetrics(
        settings.prometheus_url, queries=Queries(demand_window=settings.demand_window, window=settings.window)
    )
    try:
        for kind in (PIPELINE, MODEL_PROFILE, ROUTE_TABLE):
            await _require(cluster, kind)
        certificates = None
        if settings.mtls == AUTHORITY:
            from splitplane.controller.certificates import Certificates

            certificates = Certificates(cluster, settings.namespace, now=_utc)
            await certificates.load()
        registry, kopf_settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
        running: list[Any] = []

        def wake() -> None:
            for loop in running:
                loop.wake()

        handlers.register(registry, kopf_settings, wake)
        _configure(kopf_settings)

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            # Kopf's own ways in know no rotated token files; one user for reads and writes is simpler to reason about.
            known = await cluster.credentials()
            return kopf.ConnectionInfo(
                server=known.server,
                ca_path=known.ca_path or None,
                token=known.token or None,
                certificate_path=known.certificate_path or None,
                private_key_path=known.private_key_path or None,
            )

        @kopf.on.startup(registry=registry)
        async def start(**kwargs: Any) -> None:
            clock = SystemClock()
            view = View({name: kwargs[name] for name in INDEXES})
            reconciler = Reconciler(
                cluster=cluster, view=view, clock=clock, settings=settings, telemetry=telemetry,
                certificates=certificates,
            )  # fmt: skip
            loop = PlanningLoop(
                view=view, reconciler=reconciler, metrics=metrics, clock=clock, telemetry=telemetry,
                tick_seconds=settings.tick,
            )  # fmt: skip
            running.append(loop)
            tasks.append(asyncio.create_task(loop.run(), name="planning loop"))
            runners.append(await serve(telemetry, host=settings.pod_ip, port=settings.http_port, stalled=loop.stalled))
            _log.info("started; Prometheus at %s", settings.prometheus_url)

        tasks: list[asyncio.Task[None]] = []
        runners: list[Any] = []
        try:
            await kopf.operator(registry=registry, settings=kopf_settings, standalone=True, clusterwide=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for runner in runners:
                await runner.cleanup()
    finally:
        metrics.close()
        await cluster.close()


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


async def _require(cluster: Cluster, kind: Kind) -> None:
    """Wait until a custom resource is served: right after its installation the API server needs a moment."""
    deadline = time.monotonic() + _CRD_PATIENCE_SECONDS
    while True:
        try:
            await cluster.list(kind)
        except (NotFound, Unavailable) as error:
            if time.monotonic() > deadline:
                if isinstance(error, Unavailable):
                    raise
                raise NotFound(f"{kind.plural}.{kind.group} is not installed: install the chart's CRDs") from error
            await asyncio.sleep(1.0)
        else:
            return


def _configure(settings: kopf.OperatorSettings) -> None:
    """Kopf reads; writes are the reconciler's alone."""
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.watching.connect_timeout = 10
    settings.execution.max_workers = 2
    settings.process.ultimate_exiting_timeout = 30


if __name__ == "__main__":
    sys.exit(main())

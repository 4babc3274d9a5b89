"""``python -m splitplane.runtime.gateway``: the gateway pod's command."""

from splitplane.starting import importing

with importing():
    import asyncio
    import logging
    import os
    import signal
    import sys

    from splitplane.adapters.cluster import ClusterError
    from splitplane.adapters.connecting import connect
    from splitplane.freed_memory import MESSAGES_BYTES, keep_freed
    from splitplane.runtime import tracing
    from splitplane.runtime.environment import SettingsError
    from splitplane.runtime.gateway.app import Gateway
    from splitplane.runtime.gateway.settings import Settings

logger = logging.getLogger("splitplane.gateway")


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    cluster = await connect(component="splitplane-gateway")
    try:
        gateway = Gateway(settings, cluster)
        async with gateway.serving():
            logger.info("serving %s on %s", settings.pipeline, settings.pod_ip)
            await stop.wait()
            logger.info("leaving: no new requests, %d inside", gateway.router.flights.inside)
            await gateway.drain()
    finally:
        await cluster.close()


def main() -> int:
    """Exit code 0 after SIGTERM, 1 when the gateway cannot serve, 2 when its environment is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        logger.error("%s", error)
        return 2
    try:
        keep_freed(MESSAGES_BYTES)
        tracing.begin(os.environ, service="splitplane-gateway", **settings.described())
        asyncio.run(_run(settings))
        tracing.end()
    except (ClusterError, OSError, RuntimeError, SettingsError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

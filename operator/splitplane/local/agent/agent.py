"""The agent as a whole: brings its parts up in order, runs them, and takes them down again."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from aiohttp import web

from splitplane.local.agent import memory, metrics, server
from splitplane.local.agent.addresses import AddressPool
from splitplane.local.agent.api import Api, retrying
from splitplane.local.agent.cluster import ClusterReader
from splitplane.local.agent.config import AgentConfig
from splitplane.local.agent.errors import ApiError
from splitplane.local.agent.events import Events
from splitplane.local.agent.following import ObjectFollower
from splitplane.local.agent.guard import Guard
from splitplane.local.agent.manager import PodManager, take_over
from splitplane.local.agent.node import NodeRegistration
from splitplane.local.agent.services import Services
from splitplane.local.agent.starts import Turns

log = logging.getLogger(__name__)

STOP_SECONDS = 4.0
"""How long pods have to end when the agent is asked to stop."""


async def run(config: AgentConfig) -> None:
    """Run the node until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    records = take_over(config.pods_dir)
    own = str(config.node_address)
    addresses = AddressPool(config.pod_cidr, [r.ip for r in records.values() if r.ip and r.ip != own])
    guard = Guard()
    api = await Api.connect(config.kubeconfig)
    try:
        events = Events(api, config.node)
        services = Services(
            config=config,
            api=api,
            reader=ClusterReader(api),
            events=events,
            guard=guard,
            addresses=addresses,
            follower=ObjectFollower(api),
            turns=Turns(config.starts_dir),
        )
        manager = PodManager(services, records)
        node = NodeRegistration(api, config)
        async with _serving(config, manager):
            await _until(stopped, retrying(node.register, until=120.0))
            if not stopped.is_set():
                log.info("node %s is registered", config.node)
                events.node("Starting", "the node agent runs pods as processes")
                await _attend(stopped, manager, node, events, guard)
            await _wind_down(manager, node)
            services.follower.close()
    finally:
        await api.close()
        guard.close()


async def _until(stopped: asyncio.Event, work: Coroutine[Any, Any, object]) -> None:
    """Await `work`, or the order to stop."""
    task = asyncio.create_task(work)
    waiter = asyncio.create_task(stopped.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if task.done():
        task.result()
    else:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _attend(
    stopped: asyncio.Event, manager: PodManager, node: NodeRegistration, events: Events, guard: Guard
) -> None:
    """Run the loops until the order to stop. A loop that breaks breaks the agent."""

    async def parts() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(node.heartbeat())
            group.create_task(manager.run())
            group.create_task(events.run())
            group.create_task(memory.enforce(manager))
            await guard.lost()

    await _until(stopped, parts())


async def _wind_down(manager: PodManager, node: NodeRegistration) -> None:
    began = time.monotonic()
    log.info("ending %d pods", len(manager.workers))
    await manager.shut_down(STOP_SECONDS)
    with contextlib.suppress(ApiError, TimeoutError):
        async with asyncio.timeout(1):
            await node.report({}, ready=False)
    log.info("stopped after %.1f s", time.monotonic() - began)


@contextlib.asynccontextmanager
async def _serving(config: AgentConfig, manager: PodManager) -> AsyncIterator[None]:
    """Both HTTP servers."""
    host = str(config.node_address)
    secure = web.AppRunner(server.application(manager), access_log=None, handler_cancellation=True)
    plain = web.AppRunner(metrics.application(config, manager), access_log=None)
    try:
        await secure.setup()
        await web.TCPSite(secure, host, config.kubelet_port, ssl_context=server.tls(config), shutdown_timeout=1).start()
        await plain.setup()
        await web.TCPSite(plain, host, config.metrics_port, shutdown_timeout=1).start()
        yield
    finally:
        await secure.cleanup()
        await plain.cleanup()

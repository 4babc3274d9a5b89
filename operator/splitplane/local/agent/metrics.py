"""The node's figures for Prometheus: its price, and what its pods use."""

import logging

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from splitplane.local.agent.config import AgentConfig
from splitplane.local.agent.manager import PodManager
from splitplane.local.agent.process import sessions

log = logging.getLogger(__name__)


def price(config: AgentConfig) -> float | None:
    """The node's price per hour: the file's while there is one, else the configuration's; None if it is no number."""
    try:
        text = config.price_file.read_text().strip()
    except FileNotFoundError:
        return config.price_per_hour
    try:
        return float(text)
    except ValueError:
        # No number is better than a wrong one: a missing price holds the plan, a price of zero would change it.
        log.warning("%s holds %r, not a number: no price is exported", config.price_file, text)
        return None


class NodeCollector(Collector):
    """Reads everything at the moment of the scrape."""

    def __init__(self, config: AgentConfig, manager: PodManager) -> None:
        self._config = config
        self._manager = manager

    def collect(self) -> list[Metric]:
        """The metric families."""
        node = self._config.node
        cost = GaugeMetricFamily("node_total_hourly_cost", "Price of the node per hour.", labels=["node"])
        amount = price(self._config)
        if amount is not None:
            cost.add_metric([node], amount)
        speed = GaugeMetricFamily(
            "splitplane_local_node_speed_factor", "How many times slower the node is made to be.", labels=["node"]
        )
        speed.add_metric([node], self._config.speed_factor)
        labels = ["namespace", "pod", "container", "node"]
        memory = GaugeMetricFamily(
            "container_memory_working_set_bytes", "Resident memory of the container's processes.", labels=labels
        )
        cpu = CounterMetricFamily(
            "container_cpu_usage_seconds", "CPU time of the container's processes.", labels=labels
        )
        pods = GaugeMetricFamily("splitplane_local_node_pods", "Pods on the node by phase.", labels=["node", "phase"])
        phases: dict[str, int] = {}
        table = sessions()
        for worker in list(self._manager.workers.values()):
            phases[worker.record.phase] = phases.get(worker.record.phase, 0) + 1
            for name, runner in worker.runners.items():
                processes = table.get(runner.process.pid, [])
                values = [worker.record.namespace, worker.record.name, name, node]
                memory.add_metric(values, sum(p.resident for p in processes))
                cpu.add_metric(values, sum(p.cpu_seconds for p in processes))
        for phase, count in sorted(phases.items()):
            pods.add_metric([node, phase], count)
        return [cost, speed, memory, cpu, pods]


def application(config: AgentConfig, manager: PodManager) -> web.Application:
    """GET /metrics."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(config, manager))

    async def scrape(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", scrape)
    return app

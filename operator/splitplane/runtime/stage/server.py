"""A stage's life: live at once, ready when its partition is loaded and warm, drained before it ends."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Mapping

import torch
from prometheus_client import CollectorRegistry

from splitplane.domain.leaving import pause_and_drain
from splitplane.domain.profiles import BASE_CODECS
from splitplane.runtime import codecs, oip_grpc, oip_rest, rest_serving
from splitplane.runtime.bodies import Bodies
from splitplane.runtime.budgets import Budget
from splitplane.runtime.grpc_receiving import Receiving
from splitplane.runtime.hops import Channels
from splitplane.runtime.metrics import StageMetrics
from splitplane.runtime.mtls import Identity
from splitplane.runtime.stage.batching import keeps_samples_apart
from splitplane.runtime.stage.computing import Pace, Runnable
from splitplane.runtime.stage.serving import Routeless, StageModel
from splitplane.runtime.stage.settings import Settings
from splitplane.runtime.stage.worker import Worker
from splitplane.runtime.tensors import torch_dtype
from splitplane.runtime.vitals import Condition

LOG = logging.getLogger(__name__)
WARM_UP_RUNS = 3
WARM_UP_SECONDS = 20.0
END_SECONDS = 1.0

Load = Callable[[], Runnable]
"""Loads the resident range; runs on the compute thread. What it raises ends the stage."""


async def run(settings: Settings, load: Load, pace: Pace, registry: CollectorRegistry) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises what ``load`` raises, and ``OSError`` if a port is taken."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    identity = None
    if settings.tls_dir is not None:
        named = settings.peers or settings.pipeline
        identity = Identity(settings.tls_dir, pipeline=named, namespace=settings.namespace)
    worker, channels = Worker(settings.queue_capacity), Channels(identity=identity)
    model = StageModel(
        name=settings.model_name or settings.pipeline,
        stage=settings.pod_name,
        tier=settings.tier,
        resident=(settings.resident_first, settings.resident_last),
        worker=worker,
        channels=channels,
        metrics=StageMetrics(registry, namespace=settings.namespace, pipeline=settings.pipeline, tier=settings.tier),
        pace=pace,
        identity=identity,
        shield=settings.shield,
    )
    budget = Budget()
    condition = Condition(busy_seconds=worker.progress.busy_seconds, is_stuck=worker.progress.is_stuck)
    server = oip_grpc.Server(model, receiving=Receiving(budget), condition=condition)
    server.bind(settings.pod_ip, settings.grpc_port, identity=identity)
    await server.start()
    http = await rest_serving.serve(
        # HTTP stays in clear text, for kubelet and Prometheus: with mutual TLS it takes no requests.
        oip_rest.make_app(
            Routeless(model), registry, inference=identity is None, bodies=Bodies(budget), condition=condition
        ),
        settings.pod_ip,
        settings.http_port,
    )
    drain = settings.drain_seconds
    try:
        if await _load(settings, load, worker, model, stopping):
            await stopping.wait()
            model.drain()
            http.leave()
            pause, drain = pause_and_drain(model.ages.longest, settings.drain_pause_seconds, drain)
            LOG.info("draining: %d requests wait or run, more are taken for %.0f s", worker.depth, pause)
            await asyncio.sleep(pause)
    finally:
        await asyncio.gather(server.stop(drain), http.stop(drain))
        await channels.close()
        await worker.close(END_SECONDS)


async def _load(settings: Settings, load: Load, worker: Worker, model: StageModel, stopping: asyncio.Event) -> bool:
    """Load, warm up, begin to serve. False when the stage was told to stop meanwhile."""
    started = time.perf_counter()

    first, last = settings.resident_first, settings.resident_last

    def prepare() -> tuple[Runnable, bool, float]:
        partition = load()
        loaded = time.perf_counter()
        warm_up(partition, first, last, took=lambda seconds: worker.progress.took(1, seconds))
        return partition, keeps_samples_apart(partition, partition.graph.cuts, first, last), loaded

    loading = asyncio.ensure_future(worker.run(prepare))
    told = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((loading, told), return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not loading.done():
        loading.cancel()
        return False
    partition, together, loaded = loading.result().result
    if not together:
        LOG.warning("requests are never computed together: this range gives a sample other results beside others")
    model.serve(partition, together=together)
    LOG.info(
        "ready: cuts %d to %d of %s; built, cut and read in %.2f s, first runs in %.2f s",
        first,
        last,
        settings.pipeline,
        loaded - started,
        time.perf_counter() - loaded,
    )
    return True


def warm_up(
    partition: Runnable,
    first: int,
    last: int,
    *,
    took: Callable[[float], None] = lambda _: None,
    budget_seconds: float = WARM_UP_SECONDS,
) -> None:
    """Run the range and every base codec on zeros: first calls allocate and choose kernels; no request should pay that.

    A re-split inside the resident range runs a part of it, from its start or to its end; these parts are run too, as
    far as the budget allows. ``took`` is told the seconds of each run of the whole: what a request may take later.
    """
    started = time.perf_counter()
    for _ in range(WARM_UP_RUNS):
        began = time.perf_counter()
        _run(partition, first, last, _zeros(partition, first))
        took(time.perf_counter() - began)
    for cut in range(first + 1, last):
        if time.perf_counter() - started > budget_seconds:
            return
        crossing = _run(partition, first, cut, _zeros(partition, first))
        _run(partition, cut, last, crossing)


def _run(partition: Runnable, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    outputs = partition.run(first, last, tensors)
    for codec in BASE_CODECS:
        codecs.decode(codecs.encode(outputs, codec))
    return outputs


def _zeros(partition: Runnable, cut: int) -> dict[str, torch.Tensor]:
    specs = partition.graph.cuts[cut].tensors
    return {spec.name: torch.zeros((1, *spec.shape), dtype=torch_dtype(spec.datatype)) for spec in specs}

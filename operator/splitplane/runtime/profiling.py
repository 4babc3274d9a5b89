"""A model's profile: what ``model.profile`` measures, with the data plane's own codecs and stage server around it."""

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry

from splitplane.domain.profiles import CODECS, Cut, DeviceProfile, Profile, Timing, held_bytes
from splitplane.domain.profiles_io import ProfileResult
from splitplane.model import ModelSource, Partition, export, load_weights
from splitplane.model.memory import resident_bytes
from splitplane.model.profile import BATCHES, BUDGET_SECONDS, Codec, Measured, Progress, measure
from splitplane.runtime import codecs, hops, oip_grpc
from splitplane.runtime.inference import InferRequest
from splitplane.runtime.metrics import StageMetrics
from splitplane.runtime.routes import ROUTE, TRACE, Hop, decode_trace, encode_route
from splitplane.runtime.stage.batching import Runnable, keeps_samples_apart
from splitplane.runtime.stage.serving import StageModel
from splitplane.runtime.stage.worker import Worker
from splitplane.runtime.tensors import nbytes

OVERHEAD_CALLS, OVERHEAD_WARM_UP = 40, 10
MUCH_SPREAD = 0.25
"""Where times vary by more, that is said: something else ran, or threads waited for each other."""


def profile_model(
    source: ModelSource, device_class: str, *, say: Callable[[str], None], progress: Progress, slowdown: float = 1.0,
    budget_seconds: float = BUDGET_SECONDS, batches: tuple[int, ...] = BATCHES,
) -> ProfileResult:  # fmt: skip
    """Build, load and measure a model on torch's threads of this process. Raises :class:`ModelError` of any kind.

    ``say`` is told what is done and found, ``progress`` how far the measuring is.
    """
    started = time.perf_counter()
    graph = export(source)
    # By now the process holds all that a stage holds besides weights: torch, the graph, the servers' libraries.
    base = resident_bytes()
    if graph.verdict is not None:
        say(f"{source.factory} {graph.verdict}")
    say(f"{source.factory}: {len(graph.segments)} segments ({', '.join(graph.segments)})")
    partition = load_weights(graph, 0, None)
    held = held_bytes(graph.weight_bytes, graph.tied, 0, len(graph.segments))
    say(f"loaded {held / 1e6:.0f} MB of weights in {time.perf_counter() - started:.1f} s")
    measured = measure(
        partition,
        codecs=wire_codecs(),
        slowdown=slowdown,
        budget_seconds=budget_seconds,
        batches=batches,
        progress=progress,
    )
    timings = usable_timings(partition, measured.cuts, measured.timings)
    if len(timings) < len(measured.timings):
        say("samples of one batch influence each other, so each will be computed by itself")
    overhead = asyncio.run(stage_overhead(partition, measured))
    say(
        f"{measured.rounds} rounds: {measured.prefix_seconds[-1] * 1000:.1f} ms for the whole model "
        f"(variation {measured.time_cv:.1%}), {overhead * 1000:.2f} ms more per stage, "
        f"{base / 1e6:.0f} MB without weights"
    )
    if measured.time_cv > MUCH_SPREAD:
        fewer = f", or on fewer threads than {measured.threads}" if measured.threads > 1 else ""
        say(f"times vary by {measured.time_cv:.0%}, too much to plan by: measure while nothing else runs{fewer}")
    return ProfileResult(
        model=source.name,
        inputs=graph.inputs,
        outputs=graph.outputs,
        segment_names=graph.segments,
        profile=Profile(
            fingerprint=graph.fingerprint,
            cuts=measured.cuts,
            weight_bytes=graph.weight_bytes,
            activation_bytes=measured.activation_bytes,
            devices={
                device_class: DeviceProfile(
                    device_class=device_class,
                    prefix_seconds=measured.prefix_seconds,
                    time_cv=measured.time_cv,
                    overhead_seconds=overhead,
                    codec_times=measured.codec_times,
                    base_memory_bytes=base,
                    threads=measured.threads,
                    timings=timings,
                )
            },
            work=graph.work(),
            tied=graph.tied,
        ),
    )


def usable_timings(partition: Runnable, cuts: Sequence[Cut], timings: Sequence[Timing]) -> tuple[Timing, ...]:
    """Without those of batches where stages will compute none: plans must not count on them."""
    if keeps_samples_apart(partition, cuts, 0, len(cuts) - 1):
        return tuple(timings)
    return tuple(timing for timing in timings if timing.batch == 1)


def wire_codecs() -> dict[str, Codec]:
    """The data plane's own encoders, for ``model.profile`` to measure."""

    def codec(name: str) -> Codec:
        return Codec(
            encode=lambda tensors: codecs.encode(tensors, name),
            decode=codecs.decode,
            size=lambda wire: sum(map(nbytes, wire)),
        )

    return {name: codec(name) for name in CODECS}


async def stage_overhead(partition: Partition, measured: Measured) -> float:
    """Median seconds that a real stage server adds to a request besides compute and codecs, over loopback.

    The cheapest segment is asked for, so that compute, which is taken off by the stage's own trace, disturbs least.
    """
    seconds = measured.prefix_seconds
    first = min(range(partition.last), key=lambda cut: (seconds[cut + 1] - seconds[cut], cut))
    tensors = partition.run(0, first, measured.inputs) if first else measured.inputs
    worker, channels = Worker(1), hops.Channels()
    stage = StageModel(
        name="profile",
        stage="profile",
        tier="profile",
        resident=(0, partition.last),
        worker=worker,
        channels=channels,
        metrics=StageMetrics(CollectorRegistry(), namespace="profile", pipeline="profile", tier="profile"),
        pace=lambda _core, _wall: 0.0,
    )
    stage.serve(partition)
    server = oip_grpc.Server(stage)
    port = server.bind("127.0.0.1", 0)
    # An emulated node's uplink proxy is for other nodes.
    os.environ["no_grpc_proxy"] = "127.0.0.1"  # noqa: SIM112 - gRPC reads it so
    await server.start()
    try:
        address = f"127.0.0.1:{port}"
        hop = Hop(stage="profile", tier="profile", first=first, last=first + 1, addresses=(address,))
        parameters = {ROUTE: encode_route((hop,))}
        overheads = []
        for _ in range(OVERHEAD_WARM_UP + OVERHEAD_CALLS):
            request = InferRequest(model_name="profile", inputs=codecs.encode(tensors, "fp32"), parameters=parameters)
            call = await hops.call(channels, (address,), request)
            (trace,) = decode_trace(str(call.response.parameters[TRACE]))
            overheads.append(call.seconds - trace.decode - trace.compute - trace.encode)
        return statistics.median(overheads[OVERHEAD_WARM_UP:])
    finally:
        await asyncio.gather(server.stop(None), channels.close())
        await worker.close(5.0)

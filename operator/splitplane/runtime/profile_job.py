"""``python -m splitplane.runtime.profile_job``: measure a model on the node that this pod runs on.

The result goes to key ``result.json`` of the ConfigMap that the operator made for it (``domain.profiles_io`` is its
form). Exit codes: 0 measured and written; 2 a variable is missing or malformed; 3 the factory, 4 the weights are
wrong; 6 the result could not be written; 1 anything else. When it fails, the last line of the log says why and what to
do.
"""

import asyncio
import json
import logging
import os
import statistics
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from splitplane.adapters.cluster import ClusterError
from splitplane.adapters.connecting import connect
from splitplane.adapters.kinds import CONFIG_MAP
from splitplane.domain.profiles import CODECS, DeviceProfile, Profile
from splitplane.domain.profiles_io import ProfileResult, to_dict
from splitplane.model import (
    FactoryError,
    ModelSource,
    Partition,
    WeightsError,
    export,
    libraries,
    load_weights,
)
from splitplane.model.memory import resident_bytes
from splitplane.model.profile import Codec, Measured, measure
from splitplane.model.samples import sample
from splitplane.runtime import codecs, emulation, hops, oip_grpc
from splitplane.runtime.environment import SettingsError, required, threads
from splitplane.runtime.inference import InferRequest
from splitplane.runtime.metrics import StageMetrics
from splitplane.runtime.routes import ROUTE, TRACE, Hop, decode_trace, encode_route
from splitplane.runtime.stage.serving import StageModel
from splitplane.runtime.stage.worker import Worker

EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (FactoryError, 3),
    (WeightsError, 4),
    (ClusterError, 6),
)
OVERHEAD_CALLS, OVERHEAD_WARM_UP = 40, 10


@dataclass(frozen=True, slots=True)
class Settings:
    """The job's environment (docs/architecture.md, "Pods")."""

    namespace: str
    result_config_map: str
    device_class: str
    model: str
    threads: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises :class:`SettingsError` that names what is missing or malformed."""
        values = required(
            environment, "NAMESPACE", "RESULT_CONFIGMAP", "DEVICE_CLASS", "MODEL",
            given_by="the operator gives them to profile jobs",
        )  # fmt: skip
        return cls(
            namespace=values["NAMESPACE"],
            result_config_map=values["RESULT_CONFIGMAP"],
            device_class=values["DEVICE_CLASS"],
            model=values["MODEL"],
            threads=threads(environment),
        )


def run(settings: Settings) -> ProfileResult:
    """Build, load and measure the model. Raises :class:`ModelError` of any kind."""
    source = ModelSource.from_json(settings.model)
    libraries.use_threads(settings.threads)
    started = time.perf_counter()
    graph = export(source)
    # By now the process holds all that a stage holds besides weights: torch, the graph, the servers' libraries.
    base = resident_bytes()
    if graph.refusal is not None:
        say(f"{source.factory} is served whole, for it cannot be split: {graph.refusal}")
    say(f"{source.factory}: {len(graph.segments)} segments ({', '.join(graph.segments)})")
    partition = load_weights(graph, 0, None)
    say(f"loaded {sum(graph.weight_bytes) / 1e6:.0f} MB of weights in {time.perf_counter() - started:.1f} s")
    measured = measure(
        partition,
        codecs=wire_codecs(),
        slowdown=emulation.speed_factor(),
        progress=say,
    )
    overhead = asyncio.run(stage_overhead(partition, measured))
    say(
        f"{measured.rounds} rounds: {measured.prefix_seconds[-1] * 1000:.1f} ms for the whole model "
        f"(variation {measured.time_cv:.1%}), {overhead * 1000:.2f} ms more per stage, "
        f"{base / 1e6:.0f} MB without weights"
    )
    return ProfileResult(
        model=source.name,
        inputs=graph.inputs,
        outputs=graph.outputs,
        segment_names=graph.segments,
        profile=Profile(
            fingerprint=graph.fingerprint,
            cuts=graph.cuts,
            weight_bytes=graph.weight_bytes,
            activation_bytes=measured.activation_bytes,
            devices={
                settings.device_class: DeviceProfile(
                    device_class=settings.device_class,
                    prefix_seconds=measured.prefix_seconds,
                    time_cv=measured.time_cv,
                    overhead_seconds=overhead,
                    codec_times=measured.codec_times,
                    base_memory_bytes=base,
                )
            },
        ),
    )


def wire_codecs() -> dict[str, Codec]:
    """The data plane's own encoders, for ``model.profile`` to measure."""

    def codec(name: str) -> Codec:
        return Codec(encode=lambda tensors: codecs.encode(tensors, name), decode=codecs.decode)

    return {name: codec(name) for name in CODECS}


async def stage_overhead(partition: Partition, measured: Measured) -> float:
    """Median seconds that a real stage server adds to a request besides compute and codecs, over loopback.

    The cheapest segment is asked for, so that compute, which is taken off by the stage's own trace, disturbs least.
    """
    seconds = measured.prefix_seconds
    first = min(range(partition.last), key=lambda cut: (seconds[cut + 1] - seconds[cut], cut))
    tensors = sample(partition.graph.inputs)
    if first:
        tensors = partition.run(0, first, tensors)
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
    server = oip_grpc.make_server(stage)
    port = server.add_insecure_port("127.0.0.1:0")
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


async def publish(settings: Settings, result: ProfileResult) -> None:
    """Write the result where the operator waits for it. Raises :class:`ClusterError`."""
    cluster = await connect(component="splitplane-profile")
    try:
        # A merge touches this key alone; server-side apply would have to know all that the operator set.
        patch = {"data": {"result.json": json.dumps(to_dict(result))}}
        await cluster.merge(CONFIG_MAP, settings.result_config_map, settings.namespace, patch)
    finally:
        await cluster.close()


def say(message: str) -> None:
    sys.stderr.write(f"profile_job: {message}\n")
    sys.stderr.flush()


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="profile_job: %(message)s")
    try:
        settings = Settings.from_environment(os.environ)
        emulation.speed_factor()  # a wrong one should end the job before the model is loaded
        result = run(settings)
        asyncio.run(publish(settings, result))
    except SettingsError as error:
        return _fail(error, 2)
    except tuple(kind for kind, _ in EXIT_CODES) as error:
        return _fail(error, next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
    except Exception as error:
        traceback.print_exc()
        return _fail(error, 1)
    say(f"result written to ConfigMap {settings.namespace}/{settings.result_config_map}")
    return 0


def _fail(error: Exception, code: int) -> int:
    text = " ".join(str(error).split()) or "no reason given"
    say(text if code != 1 else f"failed: {type(error).__name__}: {text}")
    return code


if __name__ == "__main__":
    sys.exit(main())

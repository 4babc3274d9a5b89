"""What a kubelet's liveness probe finds of a server: computing is life, a stuck event loop is none."""

import asyncio
from pathlib import Path
from typing import Any

import tritonclient.grpc.aio as triton

from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.controller.children import StageKey, gateway_objects, stage_deployment
from splitplane.local.agent import probes
from tests.support.controller_cases import SETTINGS, pipeline
from tests.support.gateway_rig import ALONE, MemoryCluster, StageProcess, gateway, infer, stages, table, until


def liveness(deployment: Any) -> dict[str, Any]:
    """A container's probe, sixty times as fast."""
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    probe = container["livenessProbe"]
    return {**probe, "periodSeconds": probe["periodSeconds"] / 60, "timeoutSeconds": 1}


class Kubelet:
    """Probes a server, with the embedded agent's own probes."""

    def __init__(self, probe: dict[str, Any], address: str, folder: Path) -> None:
        self.verdicts: list[bool] = []
        self.failures: list[str] = []
        target = probes.Target(address=address, ports={}, env={}, cwd=folder, container_id="c", rewrite=str)
        self._task = asyncio.ensure_future(
            probes.follow(
                "liveness", probe, target,
                reached=lambda _kind, ok, _why: self.verdicts.append(ok),
                failed=lambda _kind, why: self.failures.append(why),
            )
        )  # fmt: skip

    def stop(self) -> None:
        self._task.cancel()


async def test_a_stage_that_computes_is_alive_and_one_whose_process_hangs_is_not(tmp_path: Path) -> None:
    probe = liveness(stage_deployment(pipeline(), StageKey("edge", 0, 3, "f"), replicas=1, settings=SETTINGS))
    with stages(StageProcess("small-edge", "edge", (0, 3), busy=1.5)) as (stage,):
        kubelet = Kubelet(probe, stage.ip, tmp_path)
        try:
            async with triton.InferenceServerClient(stage.address) as client:
                await asyncio.gather(*(infer(client) for _ in range(2)))
            assert kubelet.verdicts == [True]
            stage.pause()
            await until(lambda: kubelet.verdicts == [True, False])
            assert len(kubelet.failures) >= probe["failureThreshold"]
        finally:
            kubelet.stop()
            stage.resume()


async def test_a_gateway_that_waits_for_its_stages_is_alive(tmp_path: Path) -> None:
    [deployment] = [each for each in gateway_objects(pipeline(), SETTINGS) if each["kind"] == "Deployment"]
    cluster = MemoryCluster()
    with stages(StageProcess("small-edge", "edge", (0, 3), seconds=1.0)) as (stage,):
        async with gateway(cluster, tmp_path) as running:
            kubelet = Kubelet(liveness(deployment), running.settings.pod_ip, tmp_path)
            await until(lambda: kubelet.verdicts == [True])  # also while it has no table and is not ready
            assert not running.forwarder.ready()
            cluster.put(POD, stage.pod)
            cluster.put(ROUTE_TABLE, table(1, ALONE))
            await until(running.forwarder.ready)
            async with triton.InferenceServerClient(f"{running.settings.pod_ip}:9000") as client:
                await infer(client)
            kubelet.stop()
            assert kubelet.verdicts == [True]

"""A cluster in memory with its operator, and with stand-ins for the other controllers and the gateway."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from splitplane.adapters.metrics import MetricsSnapshot, PipelineMetrics
from splitplane.controller.reconciling import Reconciler
from splitplane.controller.telemetry import Telemetry
from splitplane.domain.calibrations import CalibrationRequest, CalibrationResult
from splitplane.domain.measurements import Value
from splitplane.domain.profiles import DeviceProfile, Profile, TensorSpec, Work
from splitplane.domain.profiles_io import ProfileResult, to_dict
from splitplane.domain.times import timestamp
from tests.support.controller_cases import SETTINGS, node, pipeline_body
from tests.support.fake_cluster import FakeCluster
from tests.support.planner_batches import shared as with_batches
from tests.support.planner_cases import crepe

KEY = ("shop", "tracker")
LINK = {("edge", "cloud"): Value(5e6)}


@dataclass
class Clock:
    time: float = 1_000_000.0

    def now(self) -> float:
        return self.time


def measured(rate: float = 3.0, bandwidth: Any = None) -> MetricsSnapshot:
    return MetricsSnapshot(
        time=0.0,
        pipelines={
            KEY: PipelineMetrics(
                arrival_rate=Value(rate), arrival_scv=Value(1.0), p95_seconds=Value(0.15),
                bandwidth=bandwidth or LINK, delay={("edge", "cloud"): Value(0.002)},
            )
        },
        node_prices={"e1": Value(0.2), "e2": Value(0.2), "c1": Value(1.2)},
    )  # fmt: skip


def result(device_class: str, factor: float, *, batches: bool = False) -> str:
    full = crepe()
    device = full.devices["edge"]
    prefix = tuple(seconds / 8 * factor for seconds in device.prefix_seconds)
    own = DeviceProfile(device_class, prefix, 0.02, 0.002, device.codec_times, 300 << 20)
    work = (Work(10**7, 10**6),) * full.segments
    profile = Profile(full.fingerprint, full.cuts, full.weight_bytes, full.activation_bytes, {device_class: own}, work)
    names = tuple(f"conv{index}" for index in range(profile.segments))
    profile = with_batches(profile) if batches else profile
    tensor = (TensorSpec("frames", "FP32", (1024,)),)
    return json.dumps(to_dict(ProfileResult("tracker", profile, tensor, (TensorSpec("out", "FP32", (360,)),), names)))


@dataclass
class World:
    """A cluster with its operator; ``step`` is one round, ``settle`` plays the other controllers and the gateway."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    clock: Clock = field(default_factory=Clock)
    metrics: MetricsSnapshot = field(default_factory=measured)
    gateway_admits: bool = True
    unmeasurable: frozenset[str] = frozenset()
    """Device classes on which profile jobs fail."""
    batches: bool = False
    """Whether profile jobs measure batches that pay."""
    busy: frozenset[str] = frozenset()
    """Device classes on which profile jobs never end."""
    calibrated: Callable[[CalibrationRequest], CalibrationResult] | None = None
    """What calibration jobs find; they never end without."""
    requests: list[tuple[str, CalibrationRequest]] = field(default_factory=list)
    """Tier and request of the calibration jobs that have ended."""

    def __post_init__(self) -> None:
        for name, where in (("e1", "edge"), ("e2", "edge"), ("c1", "cloud")):
            self.cluster.put(node(name, where))
        self.restart()

    def restart(self) -> None:
        self.operator = self.another()

    def another(self) -> Reconciler:
        self.telemetry = Telemetry()
        return Reconciler(
            cluster=self.cluster, view=self.cluster.view(), clock=self.clock, settings=SETTINGS,
            telemetry=self.telemetry,
        )  # fmt: skip

    def apply(self, key: tuple[str, str] = KEY, **spec: Any) -> None:
        known = self.cluster.objects.get(("InferencePipeline", *key))
        body = pipeline_body(**spec)
        body["metadata"] |= {"name": key[1], "uid": f"u-{key[1]}"}
        if known is not None:
            body["metadata"]["generation"] = known["metadata"]["generation"] + 1
            body["status"] = known.get("status", {})
        self.cluster.put(body)

    async def rounds(self, times: int = 1, **more: Any) -> None:
        """What the loop does: every pipeline that there is, in turn."""
        for _ in range(times):
            keys = [(key[1], key[2]) for key in sorted(self.cluster.objects) if key[0] == "InferencePipeline"]
            self.operator.keep_only(set(keys))
            await self.step(keys=keys, **more)

    async def step(
        self, times: int = 1, *, seconds: float = 1.0, settle: bool = True, keys: Sequence[tuple[str, str]] = (KEY,)
    ) -> None:
        for _ in range(times):
            await self.operator.arbitrate()
            for key in keys:
                await self.operator.reconcile(key, self.metrics)
            if settle:
                self.settle()
            self.clock.time += seconds

    def settle(self) -> None:
        for name, job in self.cluster.of("Job").items():
            if "status" not in job and job["metadata"]["labels"]["app.kubernetes.io/component"] == "calibration":
                self._calibrate(name, job)
            elif "status" not in job:
                device = job["metadata"]["labels"]["splitplane.dev/device-class"]
                if device in self.busy:
                    continue
                if device in self.unmeasurable:
                    failed = {"type": "Failed", "status": "True", "lastTransitionTime": timestamp(self.clock.time)}
                    self.cluster.put({**job, "status": {"conditions": [failed]}})
                    continue
                found = self.cluster.of("ConfigMap")[name]
                self.cluster.put(
                    {
                        **found,
                        "data": {"result.json": result(device, 1.0 if "edge" in device else 0.2, batches=self.batches)},
                    }
                )
                done = {"conditions": [{"type": "Complete", "status": "True"}]}
                self.cluster.put({**job, "status": {**done, "completionTime": timestamp(self.clock.time)}})
        for deployment in self.cluster.of("Deployment").values():
            ready = deployment["spec"]["replicas"]
            if (deployment.get("status") or {}).get("readyReplicas") != ready:
                self.cluster.put({**deployment, "status": {"readyReplicas": ready}})
        for table in list(self.cluster.of("RouteTable").values()) if self.gateway_admits else ():
            deployments = self.cluster.of("Deployment")
            status = {
                "acknowledgedGeneration": table["spec"]["generation"],
                "stages": [
                    {"name": name, "ready": deployments[name]["spec"]["replicas"]}
                    for name in table["spec"]["stages"]
                    if name in deployments
                ],
            }
            self.report(table, status)

    def _calibrate(self, name: str, job: Any) -> None:
        if self.calibrated is None:
            return
        variables = {
            each["name"]: each.get("value") for each in job["spec"]["template"]["spec"]["containers"][0]["env"]
        }
        request = CalibrationRequest.from_dict(json.loads(variables["SPLITPLANE_CALIBRATION"]))
        self.requests.append((variables["SPLITPLANE_TIER"], request))
        data = {"result.json": json.dumps(self.calibrated(request).to_dict())}
        self.cluster.put({**self.cluster.of("ConfigMap")[name], "data": data})
        self.cluster.put({**job, "status": {"conditions": [{"type": "Complete", "status": "True"}]}})

    def report(self, table: Any, status: Any) -> None:
        """What the one gateway says."""
        told = {"gateways": {"tracker-gateway-0": status}}
        if table.get("status") != told:
            self.cluster.put({**table, "status": told})

    @property
    def table(self) -> Any:
        return self.cluster.objects.get(("RouteTable", *KEY))

    @property
    def status(self) -> Any:
        return self.cluster.objects["InferencePipeline", *KEY].get("status") or {}

    def condition(self, kind: str) -> tuple[str, str]:
        found = next(c for c in self.status["conditions"] if c["type"] == kind)
        return found["status"], found["reason"]

    def stages(self) -> dict[str, int]:
        return {
            name: body["spec"]["replicas"]
            for name, body in self.cluster.of("Deployment").items()
            if not name.endswith("-gateway")
        }

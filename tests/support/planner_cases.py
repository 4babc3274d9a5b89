"""Inputs for the planner's tests: the CREPE pitch tracker as it was measured on one thread, and its scenario."""

import random
from dataclasses import replace

from splitplane.domain.measurements import Measurement, Value
from splitplane.domain.plans import Plan, Stage
from splitplane.domain.profiles import CodecTimes, Cut, DeviceProfile, Profile, TensorSpec
from splitplane.domain.snapshots import Active, Decision, Inputs, Link, Policy, Preference, Snapshot, Tier

CREPE_PREFIX_MILLISECONDS = (0.0, 3.7, 41.7, 44.0, 45.3, 46.8, 50.2)
CREPE_FP32_BYTES = (4096, 524288, 32768, 16384, 8192, 8192, 1440)
MEBIBYTE = 1 << 20

CODEC_TIMES = {
    "fp32": CodecTimes(1e-10, 1e-10),
    "fp16": CodecTimes(5e-10, 4e-10),
    "int8": CodecTimes(6e-10, 4e-10),
}


def cut(index: int, fp32_bytes: int) -> Cut:
    sizes = {"fp32": fp32_bytes, "fp16": fp32_bytes // 2, "int8": fp32_bytes // 4}
    return Cut(index, f"cut-{index}", (TensorSpec(f"x{index}", "FP32", (fp32_bytes // 4,)),), sizes, f"schema-{index}")


def device(name: str, factor: float, *, prefix: tuple[float, ...] = CREPE_PREFIX_MILLISECONDS) -> DeviceProfile:
    seconds = tuple(factor * milliseconds / 1000.0 for milliseconds in prefix)
    return DeviceProfile(name, seconds, 0.02, 0.002, CODEC_TIMES, 300 * MEBIBYTE)


def crepe(*, edge: float = 8.0, cloud: float = 1.5) -> Profile:
    return Profile(
        fingerprint="crepe-full",
        cuts=tuple(cut(index, size) for index, size in enumerate(CREPE_FP32_BYTES)),
        weight_bytes=(4 * MEBIBYTE, 32 * MEBIBYTE, 8 * MEBIBYTE, 8 * MEBIBYTE, 16 * MEBIBYTE, 20 * MEBIBYTE),
        activation_bytes=8 * MEBIBYTE,
        devices={"edge": device("edge", edge), "cloud": device("cloud", cloud)},
    )


EDGE = Tier("edge", "edge", True, 2, 8, Value(0.05), 0.0, None, 8, 2)
CLOUD = Tier("cloud", "cloud", False, 0, 4, Value(0.30), 0.09, None, 4, 1)


def links(megabits: float | Measurement, delay: float = 0.002) -> tuple[Link, ...]:
    bandwidth = Value(megabits * 125_000.0) if isinstance(megabits, float | int) else megabits
    known = Value(delay) if isinstance(bandwidth, Value) else bandwidth
    return (Link("edge", "cloud", bandwidth, known),)


SNAPSHOT = Snapshot(
    pipeline="pitch-tracker",
    time=0.0,
    profile=crepe(),
    tiers=(EDGE, CLOUD),
    links=links(50),
    arrival_rate=Value(3.5),
    arrival_scv=0.0,
)

POLICY = Policy(
    max_p95_seconds=0.6,
    max_cost_per_hour=1.0,
    raw_input_stays_trusted=True,
    prefer=Preference.LATENCY,
    codecs=("fp32", "fp16", "int8"),
    max_utilization=0.7,
    gateway_tier="edge",
)


def with_tiers(
    snapshot: Snapshot, *, edge: dict[str, object] | None = None, cloud: dict[str, object] | None = None
) -> Snapshot:
    changes = {"edge": edge or {}, "cloud": cloud or {}}
    return replace(snapshot, tiers=tuple(replace(tier, **changes[tier.name]) for tier in snapshot.tiers))  # type: ignore[arg-type]


def follow(snapshot: Snapshot, decision: Decision, now: float, *, switch_seconds: float = 5.0) -> Snapshot:
    """The snapshot after a decision was carried out at once."""
    old = snapshot.active
    if decision.target is None:
        return snapshot
    if old is not None and decision.target.plan == old.plan:
        return replace(snapshot, active=replace(old, low_demand_since=decision.low_demand_since))
    active = Active(
        plan=decision.target.plan,
        generation=old.generation + 1 if old else 1,
        since=now,
        last_switch_seconds=switch_seconds,
        low_demand_since=decision.low_demand_since,
        inputs=decision.inputs,
        left=decision.left,
    )
    return replace(snapshot, active=active)


def split(at: int, codec: str = "int8", edge: int = 2, cloud: int = 1, *, segments: int = 6) -> Plan:
    return Plan((Stage("edge", 0, at, 0, segments, edge), Stage("cloud", at, segments, 1, segments, cloud)), (codec,))


def edge_only(replicas: int = 3, *, segments: int = 6) -> Plan:
    return Plan((Stage("edge", 0, segments, 0, segments, replicas),))


def serving(plan: Plan, *, since: float = -10_000.0, inputs: Inputs | None = None, low: float | None = None) -> Active:
    return Active(plan, 1, since, 5.0, low, inputs)


def shape(plan: Plan) -> str:
    return f"{plan} x{'+'.join(str(stage.replicas) for stage in plan.stages)}"


def with_noise(rng: random.Random, snapshot: Snapshot, calm: Snapshot) -> Snapshot:
    """What is measured of ``calm``, 5 % off in each number."""

    def around(value: float) -> float:
        return value * rng.uniform(0.95, 1.05)

    def of(link: Link) -> Link:
        bandwidth = link.bandwidth_bytes_per_second
        assert isinstance(bandwidth, Value)
        return replace(link, bandwidth_bytes_per_second=Value(around(bandwidth.value)))

    rate = calm.arrival_rate
    assert isinstance(rate, Value)
    return replace(
        snapshot,
        arrival_rate=Value(around(rate.value)),
        links=tuple(of(link) for link in calm.links),
        speed_corrections={tier.name: around(calm.speed_corrections.get(tier.name, 1.0)) for tier in calm.tiers},
        offset_corrections={"edge": calm.offset_corrections.get("edge", 0.0) + around(0.02) - 0.02},
    )

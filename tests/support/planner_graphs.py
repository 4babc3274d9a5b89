"""Larger models for speed and simulations: shapes of their own, and numbers that a seed makes."""

import random

from splitplane.domain.measurements import Value
from splitplane.domain.profiles import CodecTimes, Cut, DeviceProfile, Profile, TensorSpec
from splitplane.domain.snapshots import Link, Policy, Snapshot, Tier
from tests.support.planner_cases import MEBIBYTE

CODECS = ("fp32", "fp16", "int8", "int4")
SPEEDS = {"edge": 8.0, "fog": 3.0, "cloud": 1.0}
PRICES = {"edge": 0.05, "fog": 0.12, "cloud": 0.40}
TRUSTED = {"edge": True, "fog": False, "cloud": False}


def graph(segments: int = 101, *, seed: int = 1, time_cv: float = 0.05) -> Profile:
    """A model of 500 operators whose graph has a candidate cut after every fifth: sizes fall and leap with depth."""
    rng = random.Random(seed)
    times = [rng.uniform(0.2e-3, 1.0e-3) for _ in range(segments)]
    prefix = tuple(sum(times[:count]) for count in range(segments + 1))
    return Profile(
        fingerprint=f"graph-{segments}-{seed}",
        cuts=tuple(_cut(rng, index, segments) for index in range(segments + 1)),
        weight_bytes=(2 * MEBIBYTE,) * segments,
        activation_bytes=8 * MEBIBYTE,
        devices={name: _device(name, factor, prefix, time_cv) for name, factor in SPEEDS.items()},
    )


def _cut(rng: random.Random, index: int, segments: int) -> Cut:
    elements = int(4 * max(1, round(600_000 * 0.03 ** (index / segments) * rng.uniform(0.3, 1.7) / 4)))
    leak = (1.0 - index / segments) ** 2
    return Cut(
        index, f"cut-{index}", (TensorSpec(f"x{index}", "FP32", (elements // 4,)),),
        {"fp32": elements, "fp16": elements // 2, "int8": elements // 4, "int4": elements // 8}, f"schema-{index}",
        accuracy_loss={"fp16": 0.0005, "int8": rng.uniform(0.001, 0.01), "int4": rng.uniform(0.01, 0.05)},
        leakage={codec: leak * share for codec, share in zip(CODECS, (1.0, 1.0, 0.97, 0.85), strict=True)},
    )  # fmt: skip


def _device(name: str, factor: float, prefix: tuple[float, ...], time_cv: float) -> DeviceProfile:
    encode = {"fp32": 1e-10, "fp16": 3e-10, "int8": 5e-10, "int4": 8e-10}
    codecs = {codec: CodecTimes(each * factor, 0.7 * each * factor) for codec, each in encode.items()}
    seconds = tuple(factor * each for each in prefix)
    return DeviceProfile(name, seconds, time_cv, 1e-3 * factor / 4.0, codecs, 300 * MEBIBYTE)


def three_tiers(
    profile: Profile, *, rate: float = 8.0, arrival_scv: float = 1.0, replicas: int = 16
) -> tuple[Snapshot, Policy]:
    """The model on three tiers of up to ``replicas`` each, with links between all of them."""
    wires = {("edge", "fog"): (6e6, 0.004), ("fog", "cloud"): (2.5e7, 0.010), ("edge", "cloud"): (4e6, 0.015)}
    tiers = tuple(
        Tier(name, name, TRUSTED[name], 0, replicas, Value(PRICES[name]), 0.05, None, replicas, 1) for name in SPEEDS
    )
    links = tuple(Link(*ends, Value(speed), Value(delay)) for ends, (speed, delay) in wires.items())
    snapshot = Snapshot("graph", 0.0, profile, tiers, links, Value(rate), arrival_scv)
    return snapshot, Policy(codecs=CODECS, max_partitions=3, gateway_tier="edge", max_p95_seconds=0.6)

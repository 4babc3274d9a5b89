"""Random small pipelines: few segments, one to three tiers, some without measurements, limits or links."""

import random
from dataclasses import replace

from splitplane.domain.measurements import Value
from splitplane.domain.profiles import CODECS, Cut, DeviceProfile, Profile, Tied
from splitplane.domain.snapshots import Link, Policy, Preference, Snapshot, Tier
from tests.support.planner_cases import CODEC_TIMES, MEBIBYTE, cut

TIERS = (("edge", "fog", "cloud"), ("edge", "fog", "cloud"), ("edge", "cloud"), ("cloud", "fog", "edge"))


def random_case(seed: int) -> tuple[Snapshot, Policy]:
    """A pipeline whose gateway is on tier ``edge``, without an active plan."""
    rng = random.Random(seed)
    names = rng.choice(TIERS)
    snapshot = Snapshot(
        pipeline="random",
        time=0.0,
        profile=_profile(rng, rng.choice((1, 2, 3, 4, 4, 5))),
        tiers=tuple(_tier(rng, name) for name in names),
        links=tuple(
            Link(source, target, Value(10 ** rng.uniform(5, 8)), Value(rng.uniform(0.0, 0.05)))
            for place, source in enumerate(names)
            for target in names[place + 1 :]
            if rng.random() < 0.9
        ),
        arrival_rate=Value(10 ** rng.uniform(-1.3, 1.0)),
        arrival_scv=rng.choice((0.0, 0.3, 1.0, 1.0, 1.0, 2.5)),
        speed_corrections={"edge": (slower := rng.uniform(0.5, 2.0))},
        offset_corrections={"edge": 0.02 * (1.25 - slower)},
    )
    policy = Policy(
        max_p95_seconds=rng.choice((None, rng.uniform(0.05, 1.0))),
        max_cost_per_hour=rng.choice((None, rng.uniform(0.1, 2.0))),
        raw_input_stays_trusted=rng.random() < 0.3,
        max_leak=rng.choice((None, None, None, 0.5)),
        max_accuracy_loss=rng.choice((None, None, None, 0.01)),
        prefer=rng.choice(list(Preference)),
        codecs=rng.choice((("fp32",), ("fp32", "int8"), ("int8", "fp32", "fp16"))),
        max_partitions=rng.choice((1, 2, 3, 3, 3)),
        max_utilization=0.7,
        gateway_tier="edge",
    )
    return snapshot, policy


def _profile(rng: random.Random, segments: int) -> Profile:
    measured = rng.random() < 0.6
    made = Profile(
        fingerprint="random",
        cuts=tuple(_cut(rng, index, measured) for index in range(segments + 1)),
        weight_bytes=tuple(rng.randint(1, 200) * MEBIBYTE for _ in range(segments)),
        activation_bytes=4 * MEBIBYTE,
        devices={name: _device(rng, name, segments) for name in ("edge", "fog", "cloud")},
    )
    shared = min(made.weight_bytes[0], made.weight_bytes[-1]) // 2
    return replace(made, tied=(Tied(0, segments - 1, shared),) if segments > 1 else ())


def _cut(rng: random.Random, index: int, measured: bool) -> Cut:
    made = cut(index, 4 * rng.randint(64, 1 << 16))
    if not measured:
        return made
    losses = {codec: rng.uniform(0.0, 0.02) for codec in CODECS[1:]}
    leaks = {codec: rng.random() for codec in CODECS} if rng.random() < 0.9 else {}
    return replace(made, accuracy_loss=losses, leakage=leaks)


def _device(rng: random.Random, name: str, segments: int) -> DeviceProfile:
    # Some segments take no measurable time.
    times = [0.0 if rng.random() < 0.1 else rng.uniform(1e-3, 0.1) for _ in range(segments)]
    prefix = tuple(sum(times[:count]) for count in range(segments + 1))
    return DeviceProfile(
        name, prefix, rng.choice((0.0, 0.05, 0.5, 1.2)), rng.uniform(1e-4, 5e-3), CODEC_TIMES, 100 * MEBIBYTE
    )


def _tier(rng: random.Random, name: str) -> Tier:
    return Tier(
        name=name,
        device_class=name,
        trusted=name == "edge" or rng.random() < 0.5,
        min_replicas=rng.randint(0, 1),
        max_replicas=rng.choice((2, 3, 4)),
        price_per_hour=Value(rng.choice((0.0, 0.05, 0.1, 0.3))),
        egress_price_per_gib=rng.choice((0.0, 0.09)),
        memory_limit_bytes=rng.choice((None, None, None, rng.randint(200, 900) * MEBIBYTE)),
        slots=rng.choice((2, 9)),
        ready_nodes=rng.choice((0, 1, 1, 1, 1, 1, 1, 1, 1, 1)),
    )

"""The vectorised search against a full enumeration in plain Python, on random small cases."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitplane.domain.measurements import Value
from splitplane.domain.profiles import CODECS, DeviceProfile, Profile
from splitplane.domain.snapshots import Link, Policy, Preference, Snapshot, Tier
from splitplane.planner import plan
from tests.support.planner_cases import CODEC_TIMES, MEBIBYTE, POLICY, SNAPSHOT, cut
from tests.support.planner_reference import search


@st.composite
def profiles(draw: st.DrawFn, segments: int) -> Profile:
    devices = {}
    for name in ("edge", "cloud", "fog"):
        times = draw(st.lists(st.floats(1e-3, 0.2), min_size=segments, max_size=segments))
        prefix = tuple(sum(times[:count]) for count in range(segments + 1))
        spread, overhead = draw(st.floats(0.0, 0.5)), draw(st.floats(1e-4, 5e-3))
        devices[name] = DeviceProfile(name, prefix, spread, overhead, CODEC_TIMES, 100 * MEBIBYTE)
    sizes = draw(st.lists(st.integers(256, 1 << 20), min_size=segments + 1, max_size=segments + 1))
    weights = draw(st.lists(st.integers(1, 200), min_size=segments, max_size=segments))
    return Profile(
        "random",
        tuple(cut(index, size) for index, size in enumerate(sizes)),
        tuple(weight * MEBIBYTE for weight in weights),
        4 * MEBIBYTE,
        devices,
    )


@st.composite
def tiers(draw: st.DrawFn, name: str) -> Tier:
    return Tier(
        name=name,
        device_class=name,
        trusted=draw(st.booleans()) or name == "edge",
        min_replicas=draw(st.integers(0, 2)),
        max_replicas=draw(st.integers(2, 4)),
        price_per_hour=Value(draw(st.sampled_from((0.05, 0.1, 0.3, 0.6)))),
        egress_price_per_gib=draw(st.sampled_from((0.0, 0.09))),
        memory_limit_bytes=draw(st.one_of(st.none(), st.integers(200, 900).map(lambda size: size * MEBIBYTE))),
        slots=draw(st.integers(1, 5)),
        ready_nodes=draw(st.sampled_from((0, 1, 1, 1))),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Snapshot, Policy]:
    profile = draw(profiles(draw(st.integers(1, 5))))
    names = draw(st.sampled_from((("edge", "cloud"), ("edge", "cloud", "fog"), ("cloud", "edge"))))
    snapshot = Snapshot(
        pipeline="random",
        time=0.0,
        profile=profile,
        tiers=tuple(draw(tiers(name)) for name in names),
        links=tuple(
            Link(*pair, Value(draw(st.floats(1e5, 1e8))), Value(draw(st.floats(0.0, 0.05))))
            for pair in draw(st.sampled_from(((("edge", "cloud"),), (("edge", "cloud"), ("cloud", "edge")), ())))
        ),
        arrival_rate=Value(draw(st.floats(0.05, 12.0))),
        arrival_scv=draw(st.sampled_from((0.0, 0.3, 1.0, 2.5))),
        speed_corrections={"edge": draw(st.floats(0.5, 2.0))},
    )
    policy = Policy(
        max_p95_seconds=draw(st.one_of(st.none(), st.floats(0.01, 1.0))),
        max_cost_per_hour=draw(st.one_of(st.none(), st.floats(0.05, 2.0))),
        raw_input_stays_trusted=draw(st.booleans()),
        prefer=draw(st.sampled_from(Preference)),
        codecs=draw(st.sampled_from((("fp32",), CODECS, ("int8", "fp32")))),
        max_partitions=draw(st.sampled_from((1, 2, 2, 2))),
        gateway_tier="edge",
    )
    return snapshot, policy


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases())
def test_the_search_finds_what_a_full_enumeration_finds(case: tuple[Snapshot, Policy]):
    snapshot, policy = case
    expected, decision = search(snapshot, policy), plan(snapshot, policy, 0.0)
    if expected is None:
        assert decision.target is None
        return
    found = decision.target.plan
    assert tuple((s.tier, s.first, s.last, s.replicas) for s in found.stages) == expected.stages
    assert found.codecs == expected.codecs
    assert decision.target.predicted.p95_seconds == pytest.approx(expected.p95, rel=1e-9)
    assert decision.target.predicted.cost_per_hour == pytest.approx(expected.cost, rel=1e-9)


@pytest.mark.parametrize("prefer", Preference)
@pytest.mark.parametrize("rate", [0.5, 3.5, 10.5, 40.0])
def test_the_search_is_exact_for_the_pitch_tracker(prefer: Preference, rate: float):
    snapshot, policy = replace(SNAPSHOT, arrival_rate=Value(rate), arrival_scv=1.0), replace(POLICY, prefer=prefer)
    expected, found = search(snapshot, policy), plan(snapshot, policy, 0.0).target.plan
    assert tuple((s.tier, s.first, s.last, s.replicas) for s in found.stages) == expected.stages
    assert found.codecs == expected.codecs

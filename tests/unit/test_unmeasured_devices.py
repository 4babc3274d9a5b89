"""Device classes that could not be measured: what stands in for their times, who is told, and when it ends."""

from dataclasses import replace

import pytest

from splitplane.domain.estimates import estimate, fit_rates
from splitplane.domain.profiles import CodecTimes, Cut, DeviceProfile, Profile, Work
from tests.support.controller_world import KEY, World

CUT = Cut(0, "", (), {"fp32": 4}, "")


def device(name: str, *prefix: float, base: int = 100) -> DeviceProfile:
    return DeviceProfile(name, prefix, 0.02, 0.001, {"fp32": CodecTimes(1e-9, 2e-9)}, base)


def profile(*devices: DeviceProfile, work: tuple[Work, ...], fingerprint: str = "a") -> Profile:
    cuts = tuple(replace(CUT, index=index) for index in range(len(work) + 1))
    return Profile(fingerprint, cuts, (1,) * len(work), 1, {each.device_class: each for each in devices}, work)


WORK = (Work(10**9, 10**6), Work(10**6, 10**8), Work(2 * 10**9, 10**7))


def test_another_models_measurement_tells_what_operations_and_bytes_cost_on_a_device_class() -> None:
    per_flop, per_byte = 2e-10, 5e-10
    other_work = (Work(3 * 10**9, 10**8), Work(10**7, 4 * 10**8))
    first = per_flop * 3e9 + per_byte * 1e8
    other = profile(device("pi", 0.0, first, first + per_flop * 1e7 + per_byte * 4e8, base=700), work=other_work)
    found = estimate(profile(device("x86", 0.0, 0.1, 0.2, 0.3), work=WORK), "pi", [other])
    assert found is not None
    expected = [per_flop * work.flops + per_byte * work.moved_bytes for work in WORK]
    assert found.device.prefix_seconds == pytest.approx([0.0, expected[0], sum(expected[:2]), sum(expected)])
    assert found.device.base_memory_bytes == 700
    assert "another model" in found.basis


def test_where_no_model_was_measured_the_slowest_class_that_is_known_stands_in() -> None:
    own = profile(device("x86", 0.0, 0.1, 0.2, 0.3), device("arm", 0.0, 0.2, 0.5, 0.9), work=WORK)
    found = estimate(own, "pi", [])
    assert found is not None
    assert found.device == replace(own.devices["arm"], device_class="pi")
    assert "arm" in found.basis


def test_a_model_that_was_measured_nowhere_is_not_estimated() -> None:
    assert estimate(profile(work=WORK), "pi", [profile(device("pi", 0.0, 1.0, 2.0, 3.0), work=WORK)]) is None


def test_no_rate_is_negative_whatever_was_measured() -> None:
    # Much arithmetic in little time, few bytes in much: least squares alone would pay for bytes with arithmetic.
    odd = profile(device("pi", 0.0, 0.01, 1.0, 1.01), work=(Work(10**9, 10**8), Work(10**6, 10**5), Work(10**9, 10**8)))
    rates = fit_rates([odd], "pi")
    assert rates is not None
    assert min(rates.seconds_per_flop, rates.seconds_per_byte) >= 0.0 < rates.seconds(WORK[0])
    assert fit_rates([profile(device("pi", 0.0, 1.0), work=(Work(0, 0),))], "pi") is None


async def test_a_tier_that_cannot_be_measured_is_planned_with_an_estimate_until_it_is() -> None:
    world = World(unmeasurable=frozenset({"edge-device"}))
    world.apply()
    await world.step(12)
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("ModelMeasured") == ("False", "Estimated")
    assert world.condition("Degraded") == ("True", "ProfileFailed")
    told = next(c for c in world.status["conditions"] if c["type"] == "ModelMeasured")
    assert "edge-device by the times measured on device class cloud-device" in told["message"]
    memory = world.operator._memories[KEY]
    assert memory.profile is not None
    assert (
        memory.profile[2].devices["edge-device"].prefix_seconds
        == memory.profile[2].devices["cloud-device"].prefix_seconds
    )
    world.unmeasurable = frozenset()
    await world.step(20, seconds=5)
    assert world.condition("ModelMeasured") == ("True", "Measured")
    profile = memory.profile[2]
    assert profile.devices["edge-device"].prefix_seconds[-1] > 2 * profile.devices["cloud-device"].prefix_seconds[-1]


async def test_the_first_plan_waits_for_a_measurement_under_way_but_not_for_ever() -> None:
    world = World(busy=frozenset({"cloud-device"}))
    world.apply()
    await world.step(20, seconds=5)
    assert world.condition("Ready") == ("False", "Profiling")
    assert world.condition("ModelMeasured") == ("Unknown", "Profiling")
    await world.step(20, seconds=5)
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("ModelMeasured") == ("False", "Estimated")


async def test_a_restarted_operator_keeps_the_estimate_that_the_plan_rests_on() -> None:
    world = World(busy=frozenset({"cloud-device"}))
    stages = [{"tier": "edge", "firstCut": 0, "lastCut": 2}, {"tier": "cloud", "firstCut": 2, "lastCut": 6}]
    world.apply(partitioning={"mode": "Fixed", "fixed": {"stages": stages, "codecs": ["fp32"]}})
    await world.step(40, seconds=5)
    before = world.status["plan"]["summary"]
    world.restart()
    await world.step(4)
    assert world.condition("ModelMeasured") == ("False", "Estimated")
    assert world.condition("Ready")[0] == "True"
    assert world.status["plan"]["summary"] == before

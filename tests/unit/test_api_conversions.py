"""Resources to the planner's values and back, without losing anything that the planner looks at."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from splitplane import api
from splitplane.api.policies import percent
from splitplane.api.tensors import Tensor
from splitplane.domain.measurements import Missing, Value
from splitplane.domain.plans import Plan, Prediction, Stage
from splitplane.domain.profiles import CodecTimes, Cut, DeviceProfile, Profile, TensorSpec, Tied, Timing, Work
from splitplane.domain.snapshots import FixedPlan, Mode, Preference

EXAMPLES = Path(__file__).parents[2] / "examples"


def _example(name: str = "pitch-tracker", **changes: Any) -> api.InferencePipeline:
    resource = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    resource["spec"] |= changes
    return api.InferencePipeline.parse(resource)


def test_limits_reach_the_planner_in_seconds_and_fractions() -> None:
    objectives = {"latencyP95Milliseconds": 150, "maxCostPerHour": "0.80", "rawInputStaysTrusted": True}
    replanning = {"minGainPercent": 20, "maxUtilizationPercent": 65, "cooldownSeconds": 90}
    policy = api.to_policy(_example(objectives=objectives, replanning=replanning).spec)
    assert policy.max_p95_seconds == pytest.approx(0.150)
    assert policy.max_cost_per_hour == pytest.approx(0.80)
    assert policy.raw_input_stays_trusted
    assert (policy.min_gain, policy.max_utilization, policy.cooldown_seconds) == pytest.approx((0.2, 0.65, 90))
    assert policy.gateway_tier == "edge"
    limited = api.to_policy(_example(objectives={"maxAccuracyLoss": "0.01", "maxLeakage": "0.30"}).spec)
    assert (limited.max_accuracy_loss, limited.max_leak) == (0.01, 0.3)
    assert (policy.max_accuracy_loss, policy.max_leak) == (None, None)


def test_an_absent_limit_is_no_limit_and_lossy_codecs_are_never_chosen_unasked() -> None:
    policy = api.to_policy(_example(objectives={}, partitioning={}).spec)
    assert policy.max_p95_seconds is None
    assert policy.max_cost_per_hour is None
    assert policy.codecs == ("fp32",)
    assert (policy.mode, policy.prefer) == (Mode.AUTO, Preference.COST)


@pytest.mark.parametrize("preference", Preference)
def test_every_preference_of_the_planner_can_be_asked_for(preference: Preference) -> None:
    assert api.to_policy(_example(objectives={"prefer": preference.value}).spec).prefer is preference


def test_a_fixed_split_reaches_the_planner_as_it_was_written() -> None:
    stages = [{"tier": "edge", "firstCut": 0, "lastCut": 3}, {"tier": "cloud", "firstCut": 3, "lastCut": 7}]
    policy = api.to_policy(
        _example(partitioning={"mode": "Fixed", "fixed": {"stages": stages, "codecs": ["int8"]}}).spec
    )
    assert policy.mode is Mode.FIXED
    assert policy.fixed == FixedPlan(stages=(("edge", 0, 3), ("cloud", 3, 7)), codecs=("int8",))


def test_a_tier_joins_what_the_user_wrote_with_what_the_cluster_has() -> None:
    edge = _example().spec.tiers[0]
    tier = api.to_tier(edge, price_per_hour=Value(0.25), slots=5, ready_nodes=2)
    assert tier.memory_limit_bytes == 1536 * 2**20
    assert (tier.slots, tier.ready_nodes, tier.price_per_hour) == (5, 2, Value(0.25))


def test_a_tier_without_a_price_is_missing_one_not_free() -> None:
    edge = _example().spec.tiers[0]
    assert api.spec_price(edge) == Value(float(edge.price_per_hour or "nan"))
    unpriced = api.spec_price(edge.model_copy(update={"price_per_hour": None}))
    assert isinstance(unpriced, Missing)
    assert "edge" in unpriced.why


def test_the_status_shows_a_plan_whole() -> None:
    plan = Plan(stages=(Stage("edge", 0, 3, 0, 7, 2), Stage("cloud", 3, 7, 2, 7, 1)), codecs=("int8",))
    names = [f"cut-{index}" for index in range(8)]
    status = api.from_plan(plan, generation=4, cut_names=names, deployment=lambda stage: f"p-{stage.tier}-1")
    assert api.PlanStatus.parse(status.dump()) == status
    assert (status.summary, status.generation, status.codecs) == ("edge:0-3|cloud:3-7 int8", 4, ("int8",))
    assert [(s.first_cut, s.last_cut, s.resident_first, s.resident_last, s.replicas) for s in status.stages] == [
        (0, 3, 0, 7, 2),
        (3, 7, 2, 7, 1),
    ]
    assert [(stage.cut_name, stage.deployment) for stage in status.stages] == [
        ("cut-0", "p-edge-1"),
        ("cut-3", "p-cloud-1"),
    ]


def test_a_prediction_is_shown_in_the_statuss_units() -> None:
    predicted = Prediction(p95_seconds=0.1234, mean_seconds=0.1, cost_per_hour=0.3, max_rate_per_second=13.4)
    assert api.from_prediction(predicted) == {
        "predictedP95Milliseconds": 123, "costPerHour": "0.3", "maxRatePerSecond": "13.4"
    }  # fmt: skip


def test_leak_and_loss_are_shown_where_they_were_measured() -> None:
    predicted = Prediction(0.1, 0.1, 0.3, 13.4, leak=0.31239, accuracy_loss=None)
    assert api.policies.from_shares(predicted) == {"leakage": "0.3124", "accuracyLoss": None}
    plan = api.from_plan(Plan(stages=(Stage("edge", 0, 3, 0, 7, 2),)), generation=1).dump()
    assert api.PlanStatus.parse(plan | api.policies.from_shares(predicted)).leakage == "0.3124"


@given(st.builds(Prediction, *[st.floats(0) | st.just(math.nan)] * 4))
def test_whatever_is_predicted_the_status_can_hold_it_or_leaves_it_out(predicted: Prediction) -> None:
    plan = api.from_plan(Plan(stages=(Stage("edge", 0, 3, 0, 7, 2),)), generation=1).dump()
    numbers = api.from_prediction(predicted)
    status = api.PlanStatus.parse(plan | numbers)
    assert (status.cost_per_hour is None) == (not predicted.cost_per_hour < 1e15)
    assert (status.max_rate_per_second is None) == (not predicted.max_rate_per_second < 1e15)
    assert (numbers["predictedP95Milliseconds"] is None) == (not predicted.p95_seconds * 1000 < 2**53)


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [(0.154, 15), (-1.0, -100), (math.inf, None), (-math.inf, None), (math.nan, None), (1e8, None)],
)
def test_a_gain_that_is_no_percentage_is_left_out(fraction: float, shown: int | None) -> None:
    assert percent(fraction) == shown


_seconds = st.floats(0, 1e3, allow_nan=False).map(lambda seconds: round(seconds, 9))
_bytes = st.integers(0, 2**50)
_shares = st.dictionaries(st.sampled_from(("fp32", "int8")), st.integers(0, 10_000).map(lambda parts: parts / 10_000))
_per_byte = st.floats(0, 1e-3, allow_nan=False)
_times = st.builds(CodecTimes, encode_seconds_per_byte=_per_byte, decode_seconds_per_byte=_per_byte)


@st.composite
def _profiles(draw: st.DrawFn) -> Profile:
    cuts = draw(st.integers(2, 6))
    shapes = st.lists(st.integers(0, 4096), max_size=3).map(tuple)
    return Profile(
        fingerprint="f" * 64,
        cuts=tuple(
            Cut(
                index=index,
                name=f"cut {index}",
                tensors=(TensorSpec(f"tensor_{index}", "FP32", draw(shapes)),),
                wire_bytes={"fp32": draw(_bytes), "int8": draw(_bytes)},
                schema_hash=f"{index:064x}",
                accuracy_loss=draw(_shares),
                leakage=draw(_shares),
            )
            for index in range(cuts)
        ),
        weight_bytes=tuple(draw(_bytes) for _ in range(cuts - 1)),
        activation_bytes=draw(_bytes),
        devices={
            name: DeviceProfile(
                device_class=name,
                prefix_seconds=(0.0, *(draw(_seconds) for _ in range(cuts - 1))),
                time_cv=0.125,
                overhead_seconds=draw(_seconds),
                codec_times={"int8": draw(_times)},
                base_memory_bytes=draw(_bytes),
                threads=2,
                timings=(Timing(4, 1, (0.0, *(draw(_seconds) for _ in range(cuts - 1))), 0.25),),
            )
            for name in ("edge", "cloud")
        },
        work=tuple(Work(draw(_bytes), draw(_bytes)) for _ in range(cuts - 1)),
        tied=tuple(Tied(earlier, cuts - 2, draw(_bytes)) for earlier in range(cuts - 2)),
    )


@given(_profiles())
def test_a_profile_survives_the_resource_to_the_nanosecond_and_the_byte(profile: Profile) -> None:
    tensors = tuple(Tensor.parse(tensor.dump()) for tensor in _example().spec.model.inputs)
    spec = api.from_profile(
        profile,
        factory="module:build",
        weights_sha256="0" * 64,
        inputs=tensors,
        outputs=tensors,
        segment_names=[f"segment {index}" for index in range(profile.segments)],
    )
    again = api.to_profile(api.ModelProfileSpec.parse(spec.dump()))
    assert again.cuts == profile.cuts
    assert again.weight_bytes == profile.weight_bytes
    assert again.activation_bytes == profile.activation_bytes
    assert again.work == profile.work
    assert set(again.tied) == set(profile.tied)
    for name, device in profile.devices.items():
        found = again.devices[name]
        assert found.prefix_seconds == pytest.approx(device.prefix_seconds, abs=0.6e-9)
        assert found.overhead_seconds == pytest.approx(device.overhead_seconds, abs=0.6e-9)
        assert found.base_memory_bytes == device.base_memory_bytes
        assert found.threads == device.threads
        (timing,), (kept,) = device.timings, found.timings
        assert (kept.batch, kept.threads, kept.time_cv) == (timing.batch, timing.threads, timing.time_cv)
        assert kept.prefix_seconds == pytest.approx(timing.prefix_seconds, abs=0.6e-9)
        for codec, times in device.codec_times.items():
            wanted = (times.encode_seconds_per_byte, times.decode_seconds_per_byte)
            again_times = found.codec_times[codec]
            assert (again_times.encode_seconds_per_byte, again_times.decode_seconds_per_byte) == pytest.approx(
                wanted, abs=1e-18
            )


def test_a_profile_needs_a_name_for_every_segment() -> None:
    profile = Profile("f", (Cut(0, "a", (), {}, ""), Cut(1, "b", (), {}, "")), (1,), 1)
    with pytest.raises(ValueError, match="1 segments need as many names, not 2"):
        api.from_profile(
            profile, factory="m:f", weights_sha256="0" * 64, inputs=(), outputs=(), segment_names=["x", "y"]
        )


@given(st.floats(0, 1e12, allow_nan=False))
def test_decimal_strings_are_what_the_schema_accepts_and_near_the_number(value: float) -> None:
    written = api.decimal_string(value)
    assert "e" not in written.lower()
    assert float(written) == pytest.approx(value, abs=0.6e-6, rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_numbers_that_a_resource_cannot_hold_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="a resource cannot hold it"):
        api.decimal_string(value)

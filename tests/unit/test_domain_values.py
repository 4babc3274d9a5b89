"""Domain values: what they refuse, and their arithmetic."""

import pytest

from splitplane.domain.measurements import Error, Idle, Measurement, Missing, Stale, Value, explain, known
from splitplane.domain.plans import Plan, Stage
from tests.support.planner_cases import MEBIBYTE, crepe, edge_only, split


@pytest.mark.parametrize(
    ("measurement", "number", "text"),
    [
        (Value(3.5), 3.5, "3.5"),
        (Idle(), 0.0, "no requests"),
        (Missing("no series"), None, "missing (no series)"),
        (Stale(90.0), None, "stale (last sample 90 s ago)"),
        (Error("refused"), None, "error (refused)"),
    ],
)
def test_only_a_value_or_a_proven_zero_is_a_number(measurement: Measurement, number: float | None, text: str):
    assert known(measurement) == number
    assert explain(measurement) == text


@pytest.mark.parametrize(
    "bounds", [(2, 2, 0, 6), (3, 2, 0, 6), (0, 2, 1, 6), (2, 6, 0, 5)], ids=["empty", "backwards", "before", "after"]
)
def test_an_active_range_lies_within_the_resident_one(bounds: tuple[int, int, int, int]):
    with pytest.raises(ValueError, match="active range"):
        Stage("edge", *bounds, 1)


def test_a_stage_has_at_least_one_replica():
    with pytest.raises(ValueError, match="at least one replica"):
        Stage("edge", 0, 1, 0, 1, 0)


def test_stages_meet_and_every_crossing_has_a_codec():
    near, far = Stage("edge", 0, 2, 0, 6, 1), Stage("cloud", 3, 6, 1, 6, 1)
    with pytest.raises(ValueError, match="do not meet"):
        Plan((near, far), ("fp32",))
    with pytest.raises(ValueError, match="one codec"):
        Plan((near, far))
    with pytest.raises(ValueError, match="one codec"):
        Plan(())


def test_a_plan_reads_as_its_route_and_is_named_by_everything_in_it():
    assert str(split(3)) == "edge:0-3|cloud:3-6 int8"
    assert split(3).cuts == (3,)
    assert split(3).routing == (("edge", 0, 3, "int8"), ("cloud", 3, 6, ""))
    assert (split(3, edge=4).replicas("edge"), split(3).replicas("fog")) == (4, 0)
    assert str(edge_only()) == "edge:0-6"
    names = {plan.digest for plan in (split(3), split(2), split(3, "fp16"), split(3, edge=5), edge_only())}
    assert len(names) == 5


def test_a_range_is_timed_as_a_difference_of_prefixes_and_never_negative():
    device = crepe(edge=8.0).devices["edge"]
    assert device.range_seconds(1, 2) == pytest.approx(8 * 0.038)
    assert device.range_seconds(2, 1) == 0.0


def test_resident_memory_is_runtime_weights_and_activations():
    assert crepe().resident_bytes("edge", 0, 2) == (300 + 4 + 32 + 8) * MEBIBYTE
    assert crepe().segments == 6

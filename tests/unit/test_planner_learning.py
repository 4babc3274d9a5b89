"""What is learnt of a tier's speed from what its stages take."""

import random

import pytest

from splitplane.controller.control import Control, Pending
from splitplane.controller.corrections import learnt, recalled, remembered
from splitplane.planner.learning import MOST, MOST_OFFSET, NOISE, UNKNOWN, Correction, learn
from tests.support.controller_cases import serving


def observe(ratios: list[float], *, every: float = 60.0, profiled: float = 0.1) -> float:
    """Seconds that are then told for the observed range, over those of the profile."""
    found, now = UNKNOWN, 0.0
    for ratio in ratios:
        now += every
        found = learn(found, profiled, profiled * ratio, now)
    return told(found, profiled, now) / profiled


def told(found: Correction, profiled: float, now: float) -> float:
    return found.factor(now) * profiled + found.offset(now)


def test_a_lasting_change_is_believed_within_a_few_observations():
    assert observe([1.0] * 30 + [1.6] * 4) == pytest.approx(1.6, rel=0.05)
    assert 1.05 < observe([1.0] * 30 + [1.6]) < 1.6


def test_noise_moves_less_than_it_measures():
    rng = random.Random(1)
    ratios = [rng.lognormvariate(0.0, NOISE) for _ in range(400)]
    after = [observe(ratios[:count]) for count in range(20, 400)]
    spread, seen = ((max(each) - min(each)) for each in (after, ratios[20:]))
    assert spread < 0.8 * seen


def test_what_is_absurd_is_bounded():
    assert observe([50.0] * 20) <= MOST + MOST_OFFSET / 0.1


def test_a_slower_device_is_told_from_the_time_of_a_long_range():
    assert observe([1.6] * 4, profiled=0.5) == pytest.approx(1.6, rel=0.05)
    slow = learn(UNKNOWN, 0.5, 0.8, 60.0)
    assert slow.factor(60.0) == pytest.approx(1.55, abs=0.05)


def test_what_a_request_saves_on_a_short_range_is_not_promised_of_a_long_one():
    quota = UNKNOWN
    for minute in range(1, 6):
        quota = learn(quota, 0.059, 0.040, 60.0 * minute)
    assert told(quota, 0.059, 300.0) == pytest.approx(0.040, rel=0.05)
    assert told(quota, 0.500, 300.0) == pytest.approx(0.481, rel=0.06)


def test_two_ranges_tell_the_factor_from_the_offset():
    found = UNKNOWN
    for minute in range(1, 9):
        profiled = 0.06 if minute <= 4 else 0.5
        found = learn(found, profiled, 1.2 * profiled - 0.02, 60.0 * minute)
    assert found.factor(480.0) == pytest.approx(1.2, abs=0.03)
    assert found.offset(480.0) == pytest.approx(-0.02, abs=0.004)


def test_a_tier_that_is_left_is_forgotten_over_hours_and_not_at_once():
    slow = learn(learn(UNKNOWN, 1.0, 1.8, 60.0), 1.0, 1.8, 120.0)
    assert slow.factor(180.0) > 1.6
    assert slow.factor(120.0 + 6 * 3600.0) == pytest.approx(1.0, abs=0.01)
    assert slow.variance < slow.later(3720.0).variance < slow.later(7320.0).variance


def test_nothing_is_learnt_while_a_switch_is_on():
    known = learnt({}, {"edge": (1.0, 1.5)}, Control(active=serving()), 60.0)
    assert known["edge"].factor(60.0) > 1.3
    pending = Control(active=serving(), pending=Pending(serving(2), "x", 1, 0.0, 100.0))
    for control in (pending, Control(active=serving(), switching_since=50.0)):
        assert learnt(known, {"edge": (1.0, 0.5), "cloud": (1.0, 0.5)}, control, 120.0) == known


def test_what_is_written_is_of_the_model_it_was_learnt_of_also_where_nothing_else_differs():
    known = {"edge": Correction(1.2, 0.0, 0.01, 1e-6, 0.0, 60.0)}
    first = remembered((), known, {"edge": ("old weights", None)}, 60.0)
    assert remembered(first, known, {"edge": ("old weights", None)}, 70.0) is first
    again = remembered(first, known, {"edge": ("new weights", None)}, 70.0)
    assert recalled(Control(learnt=again), {"edge": ("new weights", None)}) == known

"""What is learnt of a tier's speed from what its stages take."""

import random

import pytest

from splitplane.controller.control import Control, Pending
from splitplane.controller.snapshots import learnt
from splitplane.planner.learning import MOST, NOISE, UNKNOWN, learn
from tests.support.controller_cases import serving


def observe(ratios: list[float], *, every: float = 60.0) -> float:
    found, now = UNKNOWN, 0.0
    for ratio in ratios:
        now += every
        found = learn(found, ratio, now)
    return found.factor(now)


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
    assert observe([50.0] * 20) <= MOST


def test_a_tier_that_is_left_is_forgotten_over_hours_and_not_at_once():
    slow = learn(learn(UNKNOWN, 1.8, 60.0), 1.8, 120.0)
    assert slow.factor(180.0) > 1.6
    assert slow.factor(120.0 + 6 * 3600.0) == pytest.approx(1.0, abs=0.01)
    assert slow.variance < slow.later(3720.0).variance < slow.later(7320.0).variance


def test_nothing_is_learnt_while_a_switch_is_on():
    known = learnt({}, {"edge": 1.5}, Control(active=serving()), 60.0)
    assert known["edge"].factor(60.0) > 1.3
    pending = Control(active=serving(), pending=Pending(serving(2), "x", 1, 0.0, 100.0))
    for control in (pending, Control(active=serving(), switching_since=50.0)):
        assert learnt(known, {"edge": 0.5, "cloud": 0.5}, control, 120.0) == known

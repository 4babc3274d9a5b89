"""How repeated timings become a profile."""

import random
import statistics

import pytest

from splitplane.model.profile import levelled_medians, non_decreasing, variation


def test_a_slow_round_does_not_move_the_medians() -> None:
    true = [1.0, 2.0, 4.0]
    levels = [1.0, 1.1, 3.0, 0.9, 1.0]
    times = [[seconds * level for level in levels] for seconds in true]
    assert levelled_medians(times) == pytest.approx(true)


def test_prefixes_that_noise_put_out_of_order_share_their_mean() -> None:
    assert non_decreasing([1.0, 3.0, 2.0, 4.0]) == pytest.approx([1.0, 2.5, 2.5, 4.0])
    assert non_decreasing([3.0, 2.0, 1.0]) == pytest.approx([2.0, 2.0, 2.0])


def test_a_growing_sequence_is_left_alone() -> None:
    assert non_decreasing([1.0, 2.0, 3.0]) == pytest.approx([1.0, 2.0, 3.0])


def test_variation_estimates_the_spread_whatever_outliers_do() -> None:
    generator = random.Random(4)
    series = [generator.gauss(1.0, 0.05) for _ in range(400)]
    assert variation([series]) == pytest.approx(0.05, rel=0.2)
    assert variation([[*series, *(50.0 for _ in range(20))]]) == pytest.approx(0.05, rel=0.3)
    assert statistics.stdev([*series, *(50.0 for _ in range(20))]) > 1.0

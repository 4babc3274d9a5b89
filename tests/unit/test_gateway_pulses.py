"""When a link counts as cut, and when it is trusted again: soon, but never for a hiccup."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from splitplane.runtime.gateway.probing import PULSE_SECONDS
from splitplane.runtime.gateway.pulses import (
    LONGEST_TRUST_SECONDS,
    MOST_BEHIND_SECONDS,
    SILENT_SECONDS,
    TICK_SECONDS,
    TRUST_SECONDS,
    Pulse,
)


class Link:
    """A link that is asked each :data:`PULSE_SECONDS`; while it is cut, what was asked waits."""

    def __init__(self) -> None:
        self.now, self.pulse, self.cut, self.asked = 0.0, Pulse(0.0), False, False

    def run(self, seconds: float) -> float:
        """For so many seconds; returns how long it took until the verdict changed, or infinity."""
        began, before = self.now, self.pulse.down
        while self.now < began + seconds - 1e-9:
            self.now += TICK_SECONDS
            if self.now - self.pulse.heard_at >= PULSE_SECONDS or self.asked:
                self.pulse.asked()
                self.asked = self.cut
                if not self.cut:
                    self.pulse.answered(self.now)
            self.pulse.tick(self.now)
            if self.pulse.down != before:
                return self.now - began
        return float("inf")


def test_a_cut_is_known_within_two_seconds_and_the_healing_after_a_second_of_answers() -> None:
    link = Link()
    link.run(5.0)
    link.cut = True
    assert SILENT_SECONDS <= link.run(5.0) < 2.0
    link.run(8.0)
    link.cut = False
    assert TRUST_SECONDS <= link.run(5.0) < 2.0


@given(cuts=st.lists(st.floats(min_value=0.1, max_value=1.0), min_size=1, max_size=60), seed=st.integers(0, 10**6))
def test_a_link_that_flaps_by_the_second_is_never_called_down(cuts: list[float], seed: int) -> None:
    link, pauses = Link(), random.Random(seed)
    for seconds in cuts:
        link.cut = True
        assert link.run(seconds) == float("inf")
        link.cut = False
        assert link.run(pauses.uniform(0.5, 1.5)) == float("inf")


def test_a_link_that_falls_again_and_again_is_trusted_later_each_time_but_not_for_ever() -> None:
    link = Link()
    waits = []
    for _ in range(6):
        link.cut = True
        link.run(3.0)
        link.cut = False
        waits.append(link.run(60.0))
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(waits[:4]))
    assert waits[-1] <= LONGEST_TRUST_SECONDS + 1.0
    link.run(120.0)
    link.cut = True
    link.run(3.0)
    link.cut = False
    assert link.run(60.0) < 2.0


def test_a_link_over_which_nothing_was_asked_is_not_down() -> None:
    pulse = Pulse(0.0)
    for tick in range(1000):
        pulse.tick(tick * TICK_SECONDS)
    assert not pulse.down


def test_a_gateway_that_was_held_up_itself_does_not_blame_the_link() -> None:
    pulse = Pulse(0.0)
    pulse.asked()
    pulse.tick(0.1)
    pulse.tick(9.0)
    pulse.heard(9.1)
    pulse.tick(9.2)
    assert not pulse.down


def test_a_link_with_long_round_trips_is_given_a_few_of_them() -> None:
    pulse = Pulse(0.0)
    pulse.asked()
    for tick in range(1, 24):
        pulse.tick(tick * TICK_SECONDS, 0.6)
        assert not pulse.down
    for tick in range(24, 30):
        pulse.tick(tick * TICK_SECONDS, 0.6)
    assert pulse.down


def silence(pulse: Pulse, now: float = 0.0) -> float:
    """How long nothing may come back until the link counts as down."""
    began = now
    while not pulse.down:
        now += TICK_SECONDS
        pulse.tick(now)
        assert now - began < 60
    return now - began


@given(behind=st.floats(min_value=0.0, max_value=100.0))
def test_an_answer_may_be_later_by_what_was_sent_before_the_question_but_not_without_end(behind: float) -> None:
    pulse = Pulse(0.0)
    allowed = pulse.asked(behind)
    assert allowed == min(behind, MOST_BEHIND_SECONDS)
    assert SILENT_SECONDS + allowed <= silence(pulse) + 1e-6 <= SILENT_SECONDS + allowed + 2 * TICK_SECONDS


def test_what_is_sent_into_a_link_that_may_be_cut_allows_no_more_silence() -> None:
    pulse = Pulse(0.0)
    pulse.asked(0.0)
    pulse.tick(TICK_SECONDS)
    pulse.asked(3.0)
    assert silence(pulse, TICK_SECONDS) < SILENT_SECONDS + 2 * TICK_SECONDS


def test_a_question_that_waits_behind_what_crosses_is_still_one_without_an_answer() -> None:
    pulse = Pulse(0.0)
    pulse.asked(2.0)
    for tick in range(1, 20):
        pulse.tick(tick * TICK_SECONDS)
    pulse.heard(2.0)
    assert SILENT_SECONDS <= silence(pulse, 2.0) <= SILENT_SECONDS + 2.0 + 2 * TICK_SECONDS

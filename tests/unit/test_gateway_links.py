"""Link estimates: how close they come, how fast they follow a change, and what they leave unknown."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from splitplane.runtime.gateway.linkbook import DOWN_TOLD_SECONDS, LinkBook
from splitplane.runtime.gateway.linkqueues import LinkQueue
from splitplane.runtime.gateway.links import (
    CONVINCING_SECONDS,
    DOUBTS,
    FLOOR_SECONDS,
    JITTER_SECONDS,
    ROUND_TRIPS,
    STALE_SECONDS,
    LinkEstimate,
    LinkEstimator,
)
from splitplane.runtime.gateway.probing import (
    LARGEST_BYTES,
    LONGEST_SECONDS,
    OWED_SECONDS,
    ROUND_SECONDS,
    SAVED_SECONDS,
    SHARE,
    SMALLEST_BYTES,
    ProbeBudget,
    payload_bytes,
)
from splitplane.runtime.gateway.pulses import TICK_SECONDS, TRUST_SECONDS
from splitplane.runtime.hops import Call
from splitplane.runtime.inference import InferResponse
from splitplane.runtime.metrics import GatewayMetrics
from splitplane.runtime.routes import HopTrace

RATES = st.floats(min_value=20e3, max_value=50e6)
DELAYS = st.floats(min_value=1e-4, max_value=0.05)
NOISE = st.floats(min_value=1.0, max_value=1.2)
SIZE = 262_144


def link_seconds(rate: float, delay: float, size: int) -> float:
    return 2 * delay + size / rate


def feed(estimator: LinkEstimator, rate: float, delay: float, noises: Sequence[float], *, start: float = 0.0) -> float:
    """A small and a large message each half second; noise stretches the large one's time on the link."""
    now = start
    for noise in noises:
        now += 0.5
        estimator.round_trip(now, 2 * delay)
        estimator.transfer(now, SIZE, 2 * delay + noise * SIZE / rate)
    return now


@given(rate=RATES, delay=DELAYS, noises=st.lists(NOISE, min_size=1, max_size=30))
def test_a_steady_link_is_estimated_within_the_noise(rate: float, delay: float, noises: list[float]) -> None:
    estimator = LinkEstimator()
    now = feed(estimator, rate, delay, noises)
    estimate = estimator.estimate(now)
    assert estimate.bandwidth_bytes_per_second is not None
    on_link = SIZE / rate
    if on_link > 0.3 * delay:  # otherwise the time on the link is too small a part of the whole to be told
        assert rate / 1.2 <= estimate.bandwidth_bytes_per_second * 1.0001
        assert estimate.bandwidth_bytes_per_second <= rate * 1.0001
    assert estimate.delay_seconds == pytest.approx(delay)


@given(
    rate=st.floats(min_value=50e3, max_value=5e6),
    factor=st.sampled_from([0.1, 10.0]),
    before=st.lists(NOISE, min_size=3, max_size=30),
    after=st.lists(NOISE, min_size=3, max_size=3),
)
def test_three_transfers_are_enough_to_follow_a_tenfold_change(
    rate: float, factor: float, before: list[float], after: list[float]
) -> None:
    estimator = LinkEstimator()
    now = feed(estimator, rate, 0.005, before)
    now = feed(estimator, rate * factor, 0.005, after, start=now)
    bandwidth = estimator.estimate(now).bandwidth_bytes_per_second
    assert bandwidth is not None
    assert rate * factor / 1.25 <= bandwidth <= rate * factor * 1.05


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_two_probes_are_enough_to_follow_a_tenfold_change(factor: float) -> None:
    estimator = LinkEstimator()
    rate, delay, now = 1e6, 0.005, 0.0
    for index in range(20):
        now += 3.0
        if index == 18:
            rate *= factor
        estimator.round_trip(now, 2 * delay)
        size = payload_bytes(estimator.estimate(now).bandwidth_bytes_per_second)
        estimator.probe(now, size, link_seconds(rate, delay, size))
    assert estimator.estimate(now).bandwidth_bytes_per_second == pytest.approx(rate, rel=0.05)


@given(position=st.integers(min_value=0, max_value=9), factor=st.sampled_from([0.02, 0.2, 5.0, 50.0]))
def test_one_wild_sample_among_ten_changes_nothing(position: int, factor: float) -> None:
    estimator = LinkEstimator()
    for index in range(10):
        rate = 1e6 * factor if index == position else 1e6
        estimator.transfer(index * 0.5, SIZE, SIZE / rate)
    if position > 0:  # the very first sample has nothing to be compared with
        assert estimator.estimate(5.0).bandwidth_bytes_per_second == pytest.approx(1e6, rel=0.01)


@given(rate=RATES, slowed=st.floats(min_value=1.0, max_value=1000.0), grown=st.integers(min_value=1, max_value=16))
def test_a_first_sample_that_was_slow_is_over_with_the_second(rate: float, slowed: float, grown: int) -> None:
    estimator = LinkEstimator()
    estimator.probe(0.0, 16_384, slowed * 16_384 / rate)
    assert estimator.doubtful(0.0)
    size = 16_384 * grown
    estimator.probe(1.0, size, size / rate)
    assert not estimator.doubtful(1.0)
    bandwidth = estimator.estimate(1.0).bandwidth_bytes_per_second
    assert bandwidth == pytest.approx(min(rate, size / FLOOR_SECONDS), rel=0.01)


def test_a_single_sample_is_in_doubt_only_while_it_counts() -> None:
    estimator = LinkEstimator()
    assert not estimator.doubtful(0.0)
    estimator.transfer(0.0, SIZE, 0.1)
    assert estimator.doubtful(STALE_SECONDS)
    assert not estimator.doubtful(STALE_SECONDS + 1)


def test_nothing_is_known_before_the_first_sample_and_after_the_last_one_is_stale() -> None:
    estimator = LinkEstimator()
    assert estimator.estimate(0.0).bandwidth_bytes_per_second is None
    assert estimator.estimate(0.0).delay_seconds is None
    now = feed(estimator, 1e6, 0.01, [1.0])
    assert estimator.estimate(now + STALE_SECONDS).bandwidth_bytes_per_second is not None
    assert estimator.estimate(now + STALE_SECONDS + 1).bandwidth_bytes_per_second is None
    assert estimator.estimate(now + STALE_SECONDS + 1).delay_seconds is None


def test_traffic_too_small_to_tell_leaves_the_link_idle() -> None:
    estimator = LinkEstimator()
    estimator.transfer(10.0, 1_000, 0.01)
    assert estimator.estimate(10.0).bandwidth_bytes_per_second is None
    assert estimator.idle_seconds(10.0) > 1e9
    estimator.transfer(11.0, SIZE, 0.1)
    assert estimator.idle_seconds(12.0) == 1.0


def large_messages(estimator: LinkEstimator, now: float, seconds: float, *, rate: float, delay: float) -> int:
    """Ordinary traffic of large messages alone, and an echo whenever a round leaves the delay in doubt: how many."""
    asked = 0
    for moment in range(1, round(seconds * 10) + 1):
        at = now + moment / 10
        estimator.transfer(at, SIZE, link_seconds(rate, delay, SIZE))
        if moment % (10 * ROUND_SECONDS) == 0 and estimator.needs_echo(at, ROUND_SECONDS):
            estimator.round_trip(at, 2 * delay)
            asked += 1
    return asked


def test_small_messages_tell_the_delay_so_that_no_echo_is_needed_until_they_stop() -> None:
    estimator = LinkEstimator()
    assert estimator.needs_echo(10.0, ROUND_SECONDS)
    estimator.transfer(10.0, 1_000, 0.01)
    assert estimator.estimate(10.0).delay_seconds == pytest.approx(0.005)
    assert not estimator.needs_echo(10.0 + ROUND_SECONDS - 0.1, ROUND_SECONDS)
    assert estimator.needs_echo(10.0 + ROUND_SECONDS, ROUND_SECONDS)


def test_at_a_steady_rate_a_delay_that_was_measured_often_enough_is_not_asked_for_again() -> None:
    estimator = LinkEstimator()
    assert large_messages(estimator, 0.0, 60.0, rate=2e6, delay=0.02) <= ROUND_TRIPS + 1
    assert large_messages(estimator, 60.0, 600.0, rate=2e6, delay=0.02) == 0
    assert estimator.estimate(660.0).delay_seconds == pytest.approx(0.02)
    assert estimator.estimate(660.0 + STALE_SECONDS + 1).delay_seconds is None
    assert estimator.needs_echo(660.0 + ROUND_SECONDS, ROUND_SECONDS), "nothing crosses any more"


@pytest.mark.parametrize(("rate", "delay"), [(5e5, 0.02), (2e6, 0.1), (1e7, 0.02), (2e6, 0.001)])
def test_what_changes_about_the_link_is_asked_for_until_it_is_known(rate: float, delay: float) -> None:
    estimator = LinkEstimator()
    large_messages(estimator, 0.0, 60.0, rate=2e6, delay=0.02)
    change = large_messages(estimator, 60.0, 30.0, rate=rate, delay=delay)
    if rate != 2e6:
        assert change >= ROUND_TRIPS
    now = estimator.estimate(90.0)
    assert now.bandwidth_bytes_per_second == pytest.approx(rate, rel=0.25)
    assert now.delay_seconds is not None
    assert abs(2 * now.delay_seconds - 2 * delay) <= 0.25 * link_seconds(rate, delay, SIZE)


@given(rate=RATES, before=DELAYS, after=DELAYS)
def test_a_delay_that_is_not_asked_for_is_wrong_by_a_quarter_of_a_transfer_at_most(
    rate: float, before: float, after: float
) -> None:
    estimator = LinkEstimator()
    large_messages(estimator, 0.0, 30.0, rate=rate, delay=before)
    large_messages(estimator, 30.0, 30.0, rate=rate, delay=after)
    delay = estimator.estimate(60.0).delay_seconds
    assert delay is not None
    assert abs(2 * delay - 2 * after) <= 0.25 * link_seconds(rate, max(before, after), SIZE) + FLOOR_SECONDS


MIDDLING, ECHO = 9_200, 0.002
"""Bytes that tell neither rate nor delay, and what an echo takes."""


def probed(rate: float) -> LinkEstimator:
    """A link of that rate that only payloads tell of."""
    estimator = LinkEstimator()
    for now in range(0, 24, 3):
        estimator.round_trip(float(now), ECHO)
        size = payload_bytes(estimator.possible(float(now)))
        estimator.probe(float(now), size, ECHO + size / rate)
    return estimator


def send(estimator: LinkEstimator, now: float, rate: float, *, times: int = DOUBTS, more: float = 0.0) -> float:
    """Middling messages in a row, ``more`` seconds slower than the link makes them; when the last is over."""
    for _ in range(times):
        now += 0.1
        estimator.transfer(now, MIDDLING, ECHO + MIDDLING / rate + more)
    return now


@given(rate=st.floats(min_value=1e6, max_value=50e6), slower=st.floats(min_value=20e3, max_value=300e3), queued=DELAYS)
def test_middling_messages_and_one_or_two_payloads_are_enough_to_follow_a_link_that_has_become_slow(
    rate: float, slower: float, queued: float
) -> None:
    estimator = probed(rate)
    known = estimator.estimate(22.0).bandwidth_bytes_per_second
    now = send(estimator, 22.0, slower)
    assert estimator.seems_slower
    size = payload_bytes(estimator.possible(now))
    assert size / slower < max(0.06, 1.1 * SMALLEST_BYTES / slower), "it is not sized by what the link once was"
    estimator.probe(now, size, queued + ECHO + size / slower, queued + ECHO)
    if SMALLEST_BYTES / slower < CONVINCING_SECONDS:
        assert estimator.doubtful(now), "whatever held up the messages may have held up one payload"
        assert estimator.estimate(now).bandwidth_bytes_per_second == known
        size = payload_bytes(estimator.possible(now))
        assert size / slower < max(0.06, 1.1 * SMALLEST_BYTES / slower), "it is not sized by what the link once was"
        estimator.probe(now, size, queued + ECHO + size / slower, queued + ECHO)
    assert estimator.estimate(now).bandwidth_bytes_per_second == pytest.approx(slower, rel=0.01)
    assert not estimator.seems_slower


@given(
    rate=st.floats(min_value=1e6, max_value=50e6), more=st.floats(min_value=0.02, max_value=1.0), longer=st.booleans()
)
def test_neither_a_far_end_that_is_busy_nor_a_longer_delay_passes_for_a_slow_link(
    rate: float, more: float, longer: bool
) -> None:
    estimator = probed(rate)
    known = estimator.estimate(21.0).bandwidth_bytes_per_second
    now = 21.0
    for _ in range(10):
        now = send(estimator, now, rate, more=more)
        assert estimator.seems_slower
        echo = ECHO + more * longer
        size = payload_bytes(estimator.possible(now))
        estimator.probe(now, size, echo + size / rate, echo)
        assert not estimator.doubtful(now)
    assert estimator.estimate(now).bandwidth_bytes_per_second == pytest.approx(known, rel=0.01)


@given(rate=RATES, more=st.floats(min_value=0.0, max_value=0.9 * JITTER_SECONDS))
def test_what_is_no_slower_than_the_rate_allows_for_puts_nothing_in_doubt(rate: float, more: float) -> None:
    estimator = probed(rate)
    now = send(estimator, 21.0, rate, times=20, more=more)
    assert not estimator.seems_slower
    now = send(estimator, now, rate / 1000, times=DOUBTS - 1)
    send(estimator, now, rate, times=1)
    now = send(estimator, now, rate / 1000, times=DOUBTS - 1)
    assert not estimator.seems_slower, "a message that was held up is not the link"


@pytest.mark.parametrize("factor", [0.02, 50.0])
def test_a_payload_that_notably_differs_is_asked_for_again_at_once(factor: float) -> None:
    estimator = probed(1e6)
    now, rate = 24.0, 1e6 * factor
    for is_in_doubt in (True, False):
        size = payload_bytes(estimator.possible(now))
        estimator.probe(now, size, ECHO + size / rate)
        assert estimator.doubtful(now) is is_in_doubt
    assert estimator.estimate(now).bandwidth_bytes_per_second == pytest.approx(rate, rel=0.01)


def test_payloads_that_a_token_bucket_lets_through_at_once_do_not_pass_for_a_fast_link() -> None:
    estimator, bucket = probed(2e5), 16_384
    for now in range(24, 120, 3):
        while True:
            size = payload_bytes(estimator.possible(float(now)))
            estimator.probe(float(now), size, ECHO + max(0, size - bucket) / 2e5)
            if not estimator.doubtful(float(now)):
                break
        assert estimator.estimate(float(now)).bandwidth_bytes_per_second == pytest.approx(2e5, rel=0.5)


def test_a_link_that_went_down_is_unknown_again() -> None:
    estimator = LinkEstimator()
    now = feed(estimator, 1e6, 0.01, [1.0] * 5)
    estimator.forget()
    assert estimator.needs_echo(now, ROUND_SECONDS)
    assert estimator.estimate(now).bandwidth_bytes_per_second is None
    assert estimator.estimate(now).delay_seconds is None


def test_a_link_that_stays_down_is_told_to_pass_nothing_until_it_answers_again() -> None:
    link = "edge", "cloud"
    book = LinkBook(tier="edge", metrics=GatewayMetrics(CollectorRegistry(), namespace="default", pipeline="small"))
    feed(book.estimator(link), 1e6, 0.01, [1.0] * 5)
    now = 100.0
    pulse = book.pulse(link, now)
    pulse.asked()
    while link not in book.down:
        now += TICK_SECONDS
        book.tick(link, now)
    before, after = now + DOWN_TOLD_SECONDS / 2, now + DOWN_TOLD_SECONDS
    assert book.estimates(before) == {link: LinkEstimate(None, None)}
    assert book.estimates(after) == {link: LinkEstimate(0.0, None)}
    pulse.answered(after)
    book.tick(link, after + TRUST_SECONDS)
    assert book.estimates(after + TRUST_SECONDS) == {link: LinkEstimate(None, None)}


def test_what_was_on_its_way_in_a_cut_tells_nothing_of_the_links_rate() -> None:
    book, now = link_book(), 100.0
    pulse = book.pulse(EDGE_CLOUD, now)
    pulse.asked()
    while EDGE_CLOUD not in book.down:
        now += TICK_SECONDS
        book.tick(EDGE_CLOUD, now)
    cut, back = now, now + 5.0
    trace = (HopTrace("c", "cloud", 0, 3, queue=0.0, decode=0.0, compute=0.0, encode=0.0, server=0.0),)

    def answered(at: float, seconds: float) -> float | None:
        book.observe(Call(InferResponse("m", ()), "a", seconds, SIZE, 10), trace, at)
        return book.estimator(EDGE_CLOUD).estimate(at).bandwidth_bytes_per_second

    assert answered(back, back - cut) is None
    book.tick(EDGE_CLOUD, back + 2 * TRUST_SECONDS)
    assert EDGE_CLOUD not in book.down
    assert answered(back + 4.0, 9.0) is None
    assert answered(back + 4.0, 0.25) == pytest.approx(SIZE / 0.25, rel=0.01)


@given(rate=st.floats(min_value=10e3, max_value=1e9))
def test_a_payload_takes_about_45_ms_within_its_bounds(rate: float) -> None:
    size = payload_bytes(rate)
    assert SMALLEST_BYTES <= size <= LARGEST_BYTES
    if SMALLEST_BYTES < size < LARGEST_BYTES:
        assert 0.03 <= size / rate <= 0.06


@given(rates=st.lists(st.floats(min_value=20e3, max_value=50e6), min_size=200, max_size=200), in_doubt=st.booleans())
def test_payloads_take_no_more_than_their_share_of_a_link_in_the_long_run(rates: list[float], in_doubt: bool) -> None:
    budget, used, now = ProbeBudget(0.0), 0.0, 0.0
    for rate in rates:
        now += 3.0
        if budget.allows(now, in_doubt=in_doubt):
            size = payload_bytes(rate)
            budget.spend(size, size / rate)
            used += size / rate
    assert used <= SHARE * now + SAVED_SECONDS / 2 + OWED_SECONDS * in_doubt + LONGEST_SECONDS


def test_a_payload_that_was_sized_by_what_a_link_was_or_waits_in_a_queue_does_not_end_probing_for_long() -> None:
    budget = ProbeBudget(0.0)
    for _ in range(2):
        budget.spend(LARGEST_BYTES, LARGEST_BYTES / 200e3)
    assert budget.allows(0.0)
    for _ in range(2):
        budget.spend(SMALLEST_BYTES, 10.0)
    assert budget.allows(30.0)


EDGE_CLOUD = "edge", "cloud"


def link_book() -> LinkBook:
    return LinkBook(tier="edge", metrics=GatewayMetrics(CollectorRegistry(), namespace="default", pipeline="small"))


def test_a_link_is_behind_by_what_was_sent_less_what_it_has_passed_since() -> None:
    book = link_book()
    with book.carrying([EDGE_CLOUD], 0.0, 600_000):
        assert book.backlog_seconds(EDGE_CLOUD, 0.0) == 0, "nobody knows the rate"
    now = feed(book.estimator(EDGE_CLOUD), 1e6, 0.01, [1.0] * 5)
    with book.carrying([EDGE_CLOUD], now, 600_000):
        assert book.backlog_seconds(EDGE_CLOUD, now) == pytest.approx(0.6, rel=0.1)
        with book.carrying([EDGE_CLOUD], now + 0.2, 600_000):
            assert book.backlog_seconds(EDGE_CLOUD, now + 0.2) == pytest.approx(1.0, rel=0.1)
            assert book.backlog_seconds(EDGE_CLOUD, now + 0.9) == pytest.approx(0.3, rel=0.1)
            assert book.backlog_seconds(EDGE_CLOUD, now + 1.3) == 0, "both wait for the stage"
    assert book.backlog_seconds(EDGE_CLOUD, now) == 0


def two_stages(*, hop: float, after: float) -> tuple[HopTrace, ...]:
    """What an edge stage handed on to a cloud stage, 500 kB both ways, which took so long to answer it."""
    return (
        HopTrace("e", "edge", 0, 1, queue=0.0, decode=0.0, compute=0.0, encode=0.0, server=0.3 + hop, hop=hop,
                 sent=499_000, received=1_000),
        HopTrace("c", "cloud", 1, 3, queue=0.0, decode=0.0, compute=0.0, encode=0.0, server=after),
    )  # fmt: skip


def test_what_crosses_between_stages_is_told_from_what_crossed_before() -> None:
    book = link_book()
    for now in range(5):
        with book.carrying([EDGE_CLOUD], float(now)):
            pass
        trace = two_stages(hop=2.55, after=2.05)
        book.observe(Call(InferResponse("m", ()), "a", 2.85, 2_000_000, 10), trace, now + 2.85)
    with book.carrying([EDGE_CLOUD], 10.0), book.carrying([EDGE_CLOUD], 10.0):
        assert book.backlog_seconds(EDGE_CLOUD, 10.2) == 0, "the first stage has them"
        assert book.backlog_seconds(EDGE_CLOUD, 10.31) == pytest.approx(1.0, rel=0.1)
        assert book.backlog_seconds(EDGE_CLOUD, 10.8) == pytest.approx(0.5, rel=0.1)
        assert book.backlog_seconds(EDGE_CLOUD, 11.4) == 0, "the second has them"


def test_what_a_stage_sends_counts_until_its_answer_while_nothing_is_known_of_the_stages() -> None:
    queue = LinkQueue()
    queue.passed(0.0, 0.5, 500_000)
    message = queue.begin(1.0)
    assert queue.backlog_seconds(100.0, 1e6) == pytest.approx(0.5)
    queue.end(message)
    assert queue.backlog_seconds(100.0, 1e6) == 0


@given(wrong=st.floats(min_value=1.0, max_value=3.0), waiting=st.integers(min_value=1, max_value=12))
def test_a_rate_that_is_taken_for_too_high_does_not_empty_a_full_link_in_the_course_of_time(
    wrong: float, waiting: int
) -> None:
    """A second each, one after the other, for minutes: what is answered has passed, and nothing else has."""
    queue, size, rate, now = LinkQueue(), 100_000, 100_000.0, 0.0
    messages = [queue.begin(now, size) for _ in range(waiting)]
    for _ in range(300):
        now += size / rate
        message = messages.pop(0)
        queue.end(message)
        queue.passed(message.at, now, size)
        messages.append(queue.begin(now, size))
        assert queue.backlog_seconds(now, wrong * rate) == pytest.approx(waiting / wrong)


@pytest.mark.parametrize("in_turn", [True, False], ids=["one after the other", "side by side"])
def test_a_dozen_that_share_a_link_do_not_make_it_pass_for_a_slow_one(in_turn: bool) -> None:
    """They passed it in 2.4 s, and then wait for a stage, which answers the first of them."""
    queue, size, rate = LinkQueue(), 200_000, 1e6
    queue.told(rate, -2.0, -1.0, size)
    first, *_ = [queue.begin(0.0, size) for _ in range(12)]
    passed = 0.2 if in_turn else 2.4
    queue.end(first)
    queue.passed(0.0, passed, size)
    queue.told(size / passed, 0.0, passed, size)
    assert queue.backlog_seconds(1.0, size / passed) == pytest.approx(1.4 if in_turn else 2.2)
    assert queue.backlog_seconds(4.7, size / passed) == 0


@given(slower=st.floats(min_value=1.0, max_value=20.0), waiting=st.integers(min_value=1, max_value=12))
def test_a_full_link_that_has_become_slower_is_known_to_be(slower: float, waiting: int) -> None:
    """By what it would have passed in the time; of what was sent meanwhile some may have passed as well."""
    queue, size, rate, now = LinkQueue(), 100_000, 100_000.0, 0.0
    queue.told(slower * rate, -2.0, -1.0, size)
    messages = [queue.begin(now, size) for _ in range(waiting)]
    for _ in range(3 * waiting):
        now += size / rate
        message = messages.pop(0)
        messages.append(queue.begin(now, size))
        queue.end(message)
        queue.passed(message.at, now, size)
        queue.told(size / (now - message.at), message.at, now, size)
    assert waiting / 2 <= queue.backlog_seconds(now, 1.0) <= waiting + 1e-6

"""Who comes in and in which order: deadlines that can be kept, clients that share, and what overload leaves over."""

import asyncio
import contextlib

import pytest

from splitplane.runtime.gateway.admission import NARROWEST, STALE_SECONDS, TELLING, Line, Load, Throughput, overloaded
from splitplane.runtime.inference import Failure, InferenceError
from splitplane.runtime.unsent import Answer, Unsent


def steady(*, servers: int, seconds: float, requests: int) -> Throughput:
    """As many requests at once as there are servers, again and again."""
    throughput = Throughput()
    for turn in range(requests):
        now = turn * seconds
        marks = [throughput.begin(now, alone=False) for _ in range(servers)]
        for mark in marks:
            throughput.answered(mark, now + seconds, seconds)
    return throughput


@pytest.mark.parametrize(("inside", "expected"), [(0, 0.1), (3, 0.1), (39, 1.0)])
def test_the_expected_duration_grows_with_what_is_inside_beyond_what_is_served_at_once(inside: int, expected: float):
    throughput = steady(servers=4, seconds=0.1, requests=20)
    assert throughput.expected_seconds(inside, 2.0) == pytest.approx(expected)


def test_nothing_is_expected_of_what_has_not_answered_lately():
    throughput = steady(servers=1, seconds=0.1, requests=20)
    assert Throughput().expected_seconds(5, 0.0) is None
    assert throughput.expected_seconds(5, 2.1 + STALE_SECONDS) is None


def test_a_request_that_cannot_make_its_deadline_is_told_when_to_come_again():
    throughput = steady(servers=1, seconds=0.1, requests=20)
    throughput.check(3, 0.6, 2.0)
    with pytest.raises(InferenceError, match=r"has 0\.4 s left") as caught:
        throughput.check(3, 0.4, 2.0)
    assert caught.value.failure is Failure.RESOURCE_EXHAUSTED
    assert caught.value.retry_seconds == pytest.approx(0.075)


def test_what_is_slow_also_tells_how_many_there_can_be_and_is_asked_again_when_nothing_is_under_way():
    throughput = steady(servers=1, seconds=15.0, requests=TELLING)
    now = 15.0 * TELLING + 1.0
    assert throughput.expected_seconds(3, now) == pytest.approx(60.0)
    with pytest.raises(InferenceError):
        throughput.check(4, 60.0, now)
    throughput.check(0, 15.0, now)
    assert throughput.expected_seconds(0, now + STALE_SECONDS) is None


def test_a_model_that_takes_nearly_all_the_time_there_is_is_asked_again():
    throughput = steady(servers=1, seconds=50.0, requests=TELLING)
    throughput.check(0, 60.0, 50.0 * TELLING + 1.0)


def test_neither_requests_that_were_alone_nor_the_first_after_a_stall_tell_how_many_there_can_be():
    throughput = Throughput()
    for turn in range(20):
        throughput.answered(throughput.begin(turn / 2, alone=True), turn / 2 + 0.4, 0.4)
    assert throughput.expected_seconds(50, 10.0) == pytest.approx(0.4)
    stalled = [throughput.begin(10.0, alone=False) for _ in range(20)]
    for number, mark in enumerate(stalled):
        throughput.answered(mark, 12.0 + number / 1000, 0.4)
        assert (throughput.expected_seconds(50, 12.1) or 0.0) <= 1.01 * 51 * 2.0 / TELLING
    assert throughput.expected_seconds(50, 12.1) == pytest.approx(51 / 10, rel=0.02)


class Turns:
    """Requests that stay under way until they are told to end. ``order`` is in which they came to be."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.order: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, load: Load | None = None) -> None:
        self._ends[name] = asyncio.Event()

        async def go() -> None:
            async with self.line.turn(name[0], load or Load()):
                self.order.append(name)
                await self._ends[name].wait()

        self.tasks[name] = asyncio.create_task(go())
        await asyncio.sleep(0)

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await self.tasks[name]
            await asyncio.sleep(0)


def test_a_queue_that_has_built_up_does_not_make_every_deadline_hopeless():
    throughput = Throughput()
    marks = [throughput.begin(0.0, alone=False) for _ in range(50)]
    for position, mark in enumerate(marks, start=1):
        throughput.answered(mark, 0.1 * position, 0.1)
    throughput.check(0, 0.2, 5.0)


async def test_clients_take_turns_and_each_ones_requests_keep_their_order():
    turns = Turns(Line(lambda: 1))
    first = [f"x{n}" for n in range(NARROWEST)]
    for name in (*first, "a0", "a1", "a2", "a3", "b0", "b1"):
        await turns.ask(name)
    assert turns.order == first
    await turns.end(*first[:6])
    assert turns.order[NARROWEST:] == ["a0", "b0", "a1", "b1", "a2", "a3"]


async def test_who_goes_while_waiting_or_as_its_turn_comes_leaves_its_place_to_the_next():
    turns = Turns(Line(lambda: 1))
    first = [f"x{n}" for n in range(NARROWEST)]
    for name in (*first, "a0", "b0", "c0"):
        await turns.ask(name)
    turns.tasks["a0"].cancel()
    await asyncio.sleep(0)
    turns.line.feedback(waited=False)
    turns.line.advance()
    turns.tasks["b0"].cancel()  # it has its turn, but has not woken yet
    with contextlib.suppress(asyncio.CancelledError):
        await turns.tasks["b0"]
    await asyncio.sleep(0)
    assert turns.order[NARROWEST:] == ["c0"]
    assert turns.line.under_way == NARROWEST + 1
    await turns.end(*first, "c0")
    assert turns.line.under_way == 0


async def test_a_full_line_makes_room_at_the_cost_of_who_has_most_waiting():
    turns = Turns(Line(lambda: 1))
    for name in (*(f"x{n}" for n in range(NARROWEST)), "a0", "a1", "a2"):
        await turns.ask(name)
    full = overloaded("full", 1.0)
    assert [turns.line.ahead(client) for client in "ab"] == [NARROWEST + 3, NARROWEST + 1]
    assert not turns.line.make_room("a", full), "its own requests are the many"
    assert turns.line.make_room("b", full)
    with pytest.raises(InferenceError, match="full"):
        await turns.tasks["a2"]
    for task in turns.tasks.values():
        task.cancel()


async def test_the_window_widens_while_stages_want_more_and_narrows_when_requests_wait_there():
    line = Line(lambda: 2)
    turns = Turns(line)
    narrowest = line.window
    assert narrowest == 2 * NARROWEST
    line.feedback(waited=False)
    assert line.window == narrowest, "nobody waits here"
    for n in range(narrowest + 3):
        await turns.ask(f"a{n}")
    line.feedback(waited=False)
    line.feedback(waited=False)
    assert line.window == narrowest + 2
    for _ in range(10):
        line.feedback(waited=True)
    assert line.window == narrowest
    for task in turns.tasks.values():
        task.cancel()


async def test_no_more_are_under_way_than_their_answers_fit_into_memory():
    turns, image = Turns(Line(lambda: 1, room_bytes=30)), Load(inputs=1, known=12)
    for name in ("a", "b", "c"):
        await turns.ask(name, image)
    assert turns.order == ["a", "b"]
    await turns.end("a")
    assert turns.order == ["a", "b", "c"]
    await turns.end("b", "c")
    await turns.ask("d", Load(known=64))
    assert turns.order[-1] == "d", "an answer larger than all there is goes by itself"
    await turns.ask("e")
    assert turns.order[-1] == "d"
    await turns.end("d", "e")
    assert turns.line.under_way == 0


async def test_answers_of_unknown_size_are_as_large_as_late_ones_beside_their_inputs_and_at_most():
    turns = Turns(Line(lambda: 1, room_bytes=30))
    turns.line.learn(10, 20)
    for name in ("a", "b", "c"):
        await turns.ask(name, Load(inputs=6))
    assert turns.order == ["a", "b"]
    await turns.end("a", "b", "c")
    await turns.ask("d", Load(inputs=1000))
    await turns.ask("e", Load(inputs=1000))
    assert turns.order[-1] == "d", "two of the largest are more than there is room for"
    for _ in range(32):
        turns.line.learn(10, 1)
    await turns.ask("f", Load(inputs=1000))
    await asyncio.sleep(0)
    assert set(turns.order[-2:]) == {"e", "f"}
    await turns.end("d", "e", "f")


async def test_who_has_large_answers_coming_waits_for_these_and_others_go_past_it():
    turns, large, small = Turns(Line(lambda: 1, room_bytes=100)), Load(known=60), Load(known=10)
    for name in ("a0", "a1", "b0", "b1"):
        await turns.ask(name, large if name[0] == "a" else small)
    assert turns.order == ["a0", "b0", "b1"]
    for name in ("c0", "d0"):
        await turns.ask(name, large if name == "c0" else small)
    assert turns.order == ["a0", "b0", "b1"], "who has nothing under way is not passed"
    await turns.end("a0")
    assert turns.order[3:] == ["a1"]
    await turns.end("a1")
    assert turns.order[4:] == ["c0", "d0"]
    await turns.end("b0", "b1", "c0", "d0")
    assert turns.line.under_way == 0


async def test_who_stops_waiting_frees_those_behind_it():
    turns = Turns(Line(lambda: 1, room_bytes=100))
    for name, known in (("a", 60), ("b", 60), ("c", 10)):
        await turns.ask(name, Load(known=known))
    assert turns.order == ["a"]
    turns.tasks["b"].cancel()
    await asyncio.wait((turns.tasks["b"],))
    await asyncio.sleep(0)
    assert turns.order == ["a", "c"]
    await turns.end("a", "c")


async def test_answers_that_clients_have_not_taken_keep_large_ones_back_and_small_ones_not():
    unsent = Unsent()
    turns = Turns(Line(lambda: 1, room_bytes=100 << 20, unsent=unsent))
    first, second = Answer(unsent, 160 << 20, "x"), Answer(unsent, 30 << 20, "x")
    second.sending(139 << 20)
    large, medium, small = Load(known=64 << 20), Load(known=20 << 20), Load(known=1 << 20)
    for name, load in (("a0", large), ("b0", large), ("c0", medium), ("d0", small), ("a1", small)):
        await turns.ask(name, load)
    assert turns.order == ["d0", "a1"], "small ones alone pass who has nothing under way"
    await turns.end("d0", "a1")
    first.gone()
    await asyncio.sleep(0)
    assert turns.order[2:] == []
    second.sending(136 << 20)
    await asyncio.sleep(0)
    assert turns.order[2:] == ["a0"]
    second.gone()
    await turns.ask("e0", small)
    assert turns.order[2:] == ["a0"], "b waits for what is under way, which is not for long"
    await turns.end("a0")
    assert turns.order[3:] == ["b0", "c0", "e0"]
    await turns.end("b0", "c0", "e0")
    last = Answer(unsent, 1000 << 20)
    await turns.ask("d", small)
    assert turns.order[-1] == "d"
    await turns.end("d")
    last.gone()
    assert unsent.bytes == 0


async def test_a_client_that_reads_slowly_keeps_back_its_own_large_answers_and_not_the_first_of_another():
    unsent = Unsent()
    turns = Turns(Line(lambda: 1, room_bytes=100 << 20, unsent=unsent))
    slow, large = Answer(unsent, 80 << 20, "a"), Load(known=64 << 20)
    for name in ("a0", "b0", "b1"):
        await turns.ask(name, large)
    assert turns.order == ["b0"]
    await turns.end("b0")
    assert turns.order == ["b0", "b1"], "who takes its answers at once goes on"
    await turns.end("b1")
    slow.gone()
    await asyncio.sleep(0)
    assert turns.order == ["b0", "b1", "a0"]
    await turns.end("a0")


async def test_a_turn_that_ends_lets_nobody_in_before_its_answer_counts():
    unsent, computed = Unsent(), asyncio.Event()
    line, entered, answers = Line(lambda: 1, room_bytes=100 << 20, unsent=unsent), list[str](), list[Answer]()
    load = Load(known=64 << 20)

    async def request(name: str) -> None:
        async with line.turn("client", load):
            entered.append(name)
            await computed.wait()
        answers.append(Answer(unsent, load.known, "client"))

    requests = [asyncio.create_task(request(name)) for name in ("first", "second")]
    await asyncio.sleep(0)
    computed.set()
    await requests[0]
    await asyncio.sleep(0.01)
    assert entered == ["first"]
    answers.pop().gone()
    await requests[1]
    assert entered == ["first", "second"]

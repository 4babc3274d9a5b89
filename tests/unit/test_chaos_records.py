"""What is told of a fault from the client's log, and that no request is missing there."""

import asyncio
import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.__main__ import table
from tests.chaos.client import ConstantRate
from tests.chaos.faults import Fault
from tests.chaos.records import Record, during, longest_disturbance, measure, read
from tests.chaos.senders import FailedError, check
from tests.chaos.site import inputs


def record(sent: float, seconds: float = 0.01, *, ok: bool = True, again: int = 0, over: str = "gRPC") -> Record:
    return Record(sent, seconds, ok, again, over=over)


def test_a_disturbance_lasts_from_its_first_request_to_its_last_answer() -> None:
    calm = [record(at / 10) for at in range(100)]
    held_up = [record(3.0, 2.0), record(3.5, 1.5), record(4.0, 0.6)]
    assert longest_disturbance(sorted(calm + held_up, key=lambda r: r.sent)) == pytest.approx(2.0)


def test_calm_between_two_disturbances_is_not_part_of_either() -> None:
    assert longest_disturbance([record(1.0, 0.6), record(9.0, 0.9)]) == pytest.approx(0.9)


def test_from_a_fault_that_lasts_everything_recovers_once_it_is_over_however_its_disturbances_join() -> None:
    for second in (1.99, 2.01):
        flapping = [record(1.0, 0.9), record(second + 0.9, 0.9), record(second + 1.5, 0.01)]
        assert measure("x", flapping, ended=second + 1.5).recovered_seconds == pytest.approx(0.3)
    assert measure("x", [record(1.0, 0.9)], ended=5.0).recovered_seconds == 0
    assert measure("x", [record(1.0)], ended=0.5).recovered_seconds == 0


def test_p99_is_that_of_the_requests_of_the_fault_and_of_what_it_still_disturbed_after_its_end() -> None:
    calm = [record(at) for at in range(100)]
    fault = [record(50.1, 0.4), record(50.2, 0.7), record(50.8, 0.3)]
    records = sorted(calm + fault, key=lambda r: r.sent)
    assert during(records, [(50.0, 50.3)]) == [record(50), *fault]
    assert measure("x", records, spans=[(50.0, 50.3)]).p99_milliseconds > 600
    assert measure("x", records).p99_milliseconds < 500


def test_a_fault_that_fails_leaves_no_earlier_row_in_the_table() -> None:
    good = measure("cut", [record(0.0)])
    faults = tuple(Fault(key, f"link {key}", lambda *_: "") for key in ("cut", "flapping", "slow"))
    before = table({fault.key: good for fault in faults}, faults)
    after = table({"cut": None, "slow": good}, faults, before).splitlines()[2:]
    assert [("FAILED" in row, row.split("|")[1].strip()) for row in after] == [
        (True, "link cut"),
        (False, "link flapping"),
        (False, "link slow"),
    ]


def test_a_request_that_never_got_an_answer_is_disturbed_and_failed() -> None:
    measured = measure("x", [record(0.0), record(1.0, 20.0, ok=False), record(2.0)])
    assert (measured.requests, measured.failed, measured.resent_grpc) == (3, 1, 0)
    assert measured.recovered_seconds == pytest.approx(20.0)


def test_what_a_client_had_to_send_again_is_told_by_protocol_whether_it_was_answered_then() -> None:
    again = [record(0.0, again=2), record(1.0, 20.0, ok=False, again=99), record(2.0, again=1, over="REST")]
    measured = measure("x", [*again, record(3.0), record(4.0, over="REST")])
    assert (measured.requests, measured.failed, measured.resent_grpc, measured.resent_rest) == (5, 1, 2, 1)
    assert measured.recovered_seconds > 0


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"sent": 2.0, "seconds": 0.1, "ok": true, "again": 0}\n{"sent": 1.0, "sec')
    assert read(log) == [Record(2.0, 0.1, True, 0)]


class Odd:
    """A sender whose first answer is such that the client stumbles over it, and whose second one does not come."""

    name = "gRPC"

    def __init__(self) -> None:
        self._asked = 0
        self.has_asked = asyncio.Event()

    async def send(self, number: int, seconds: float) -> str:
        self._asked += 1
        if self._asked > 1:
            self.has_asked.set()
            await asyncio.sleep(seconds)
        return [][0]

    async def close(self) -> None: ...


async def test_whatever_becomes_of_a_request_it_is_in_the_log_from_the_moment_it_is_sent(tmp_path: Path) -> None:
    log, written, sender = tmp_path / "log", io.StringIO(), Odd()
    running = asyncio.create_task(ConstantRate(sender, written).run(100.0, asyncio.Event()))
    await asyncio.wait_for(sender.has_asked.wait(), 10)
    running.cancel()
    log.write_text(written.getvalue())
    odd, hanging, *_ = records = read(log)
    assert (odd.ended, odd.ok, odd.error) == (True, False, "IndexError: list index out of range")
    assert (hanging.ended, hanging.ok, hanging.disturbed) == (False, False, True)
    assert measure("x", records).failed == len(records)


def test_neither_the_answer_to_another_request_nor_one_that_is_no_number_is_right() -> None:
    _, answers = inputs()
    check(answers[0], answers[0])
    for wrong in (answers[1], np.full_like(answers[0], np.nan)):
        with pytest.raises(FailedError):
            check(wrong, answers[0])
    apart = [np.abs(one - other).max() for one, other in combinations(answers, 2)]
    assert min(apart) > 0.01

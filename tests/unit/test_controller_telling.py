"""What a user is told and how often: events about conditions, and the list of decisions."""

from typing import Any

import pytest

from splitplane.controller.announcing import QUIET_SECONDS, Announcements
from splitplane.controller.statuses import with_decision

Json = dict[str, Any]


class Told:
    """A pipeline whose condition turns, and the events about it."""

    def __init__(self) -> None:
        self.announcements = Announcements()
        self.events: list[tuple[str, str]] = []
        self.now = 0.0
        self.conditions: list[Json] = []

    def turn(self, feasible: bool, *, after: float = 0.0, reason: str = "") -> None:
        """The condition as it is ``after`` so many seconds."""
        self.now += after
        reason = reason or ("LimitsKept" if feasible else "Infeasible")
        conditions = [
            {"type": "PlanFeasible", "status": "True" if feasible else "False", "reason": reason, "message": "m"},
            {"type": "Progressing", "status": "True", "reason": f"{self.now}", "message": ""},
        ]
        for item in self.announcements.due(self.conditions, conditions, now=self.now):
            self.announcements.tell(item, now=self.now)
            self.events.append((item.reason, item.message))
        self.conditions = conditions

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.events]


def test_a_condition_that_turns_bad_and_good_is_told_both_times() -> None:
    told = Told()
    told.turn(True)
    told.turn(False, after=5)
    told.turn(False, after=5)
    told.turn(True, after=5)
    assert told.events == [("Infeasible", "m"), ("LimitsKept", "PlanFeasible is True again")]


def test_another_reason_to_be_bad_is_told() -> None:
    told = Told()
    told.turn(False)
    told.turn(False, after=5, reason="Other")
    assert told.reasons == ["Infeasible", "Other"]


def test_a_condition_that_comes_and_goes_is_told_once_in_a_while_and_how_often_it_turned() -> None:
    told = Told()
    for turn in range(120):
        told.turn(bool(turn % 2), after=QUIET_SECONDS / 40)
    assert len(told.events) == 2 * 3
    assert "turned 39 times since the last event about PlanFeasible" in told.events[2][1]


def test_what_was_left_out_is_made_good_if_it_lasts() -> None:
    told = Told()
    told.turn(False)
    told.turn(True, after=10)
    told.turn(False, after=10)
    told.turn(False, after=QUIET_SECONDS / 2)
    assert told.reasons == ["Infeasible", "LimitsKept"]
    told.turn(False, after=QUIET_SECONDS / 2)
    assert told.reasons == ["Infeasible", "LimitsKept", "Infeasible"]
    told.turn(False, after=QUIET_SECONDS)
    assert len(told.events) == 3


def test_what_was_left_out_and_passed_is_not_told_later() -> None:
    told = Told()
    told.turn(False)
    told.turn(True, after=10)
    told.turn(False, after=10)
    told.turn(True, after=10)
    told.turn(True, after=10 * QUIET_SECONDS)
    assert told.reasons == ["Infeasible", "LimitsKept"]


def test_an_event_that_could_not_be_created_stays_due() -> None:
    announcements = Announcements()
    bad = [{"type": "Degraded", "status": "True", "reason": "TierLost", "message": "m"}]
    [first] = announcements.due([], bad, now=0.0)
    [second] = announcements.due(bad, bad, now=1.0)
    assert first == second
    announcements.tell(second, now=1.0)
    assert announcements.due(bad, bad, now=2.0) == []


def decision(time: int, action: str, reason: str = "") -> Json:
    return {"time": f"{time}", "action": action, "reason": reason or action, "message": f"at {time}"}


def history(*entries: tuple[str, str]) -> list[Json]:
    found: list[Json] = []
    for time, (action, reason) in enumerate(entries):
        found = with_decision(found, decision(time, action, reason))
    return found


def test_a_hold_for_the_same_reason_is_no_news() -> None:
    start, hold = ("Start", "InitialPlan"), ("Hold", "UpToDate")
    assert history(start, hold, hold, hold) == history(start, hold)


def test_holds_that_alternate_are_one_entry_for_each_reason() -> None:
    flapping = [("Hold", "HeldByGain"), ("Hold", "UpToDate")] * 20
    listed = history(("Start", "InitialPlan"), *flapping)
    assert [entry["reason"] for entry in listed] == ["UpToDate", "HeldByGain", "InitialPlan"]
    newest = listed[0]
    assert (newest["time"], newest["lastTime"], newest["count"]) == ("2", "40", 20)
    assert newest["message"] == "at 40"


def test_a_change_begins_the_count_anew() -> None:
    listed = history(("Hold", "UpToDate"), ("Switch", "Cost"), ("Hold", "UpToDate"))
    assert [entry["reason"] for entry in listed] == ["UpToDate", "Cost", "UpToDate"]
    assert "count" not in listed[0]


@pytest.mark.parametrize("changes", [3, 9, 10, 30])
def test_changes_are_not_crowded_out_by_holds(changes: int) -> None:
    entries = [(("Switch", f"S{n}"), ("Hold", "UpToDate"), ("Hold", "HeldByCooldown")) for n in range(changes)]
    listed = history(*(entry for group in entries for entry in group))
    switches = [entry["reason"] for entry in listed if entry["action"] == "Switch"]
    assert switches == [f"S{n}" for n in range(changes - 1, -1, -1)][: min(changes, 9)]
    assert len(listed) <= 10
    assert listed[0]["reason"] == "HeldByCooldown"

"""Which turns of a pipeline's conditions become events. Pure.

A condition always says what is true now. Events are for people, and of what comes and goes they expect one line, as
Kubernetes' own event recorder gives them by joining alike events of ten minutes. So an event is not repeated within
that time; if the condition then still differs from what was told last, that is made good.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

QUIET_SECONDS = 600.0

_BAD = {
    "Degraded": "True",
    "MetricsAvailable": "False",
    "PlanFeasible": "False",
    "CapacityGranted": "False",
    "ModelMeasured": "False",
    "LimitsMeasured": "False",
    "Stalled": "True",
}

State = str
"""Why a condition is bad, empty while it is not: what events tell of it."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """An event to be created. ``condition`` and ``state`` are what it tells."""

    condition: str
    state: State
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(slots=True)
class Announcements:
    """What one pipeline's events have told of its conditions. Times are seconds since the epoch."""

    _told: dict[tuple[str, State], float] = field(default_factory=dict)
    _untold: dict[str, tuple[State, int]] = field(default_factory=dict)
    """By condition: the state that was told last, and how often it has turned since."""

    def due(
        self, before: Iterable[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], *, now: float
    ) -> list[Announcement]:
        """What to tell, now that the conditions ``before`` have become ``after``; until :meth:`tell`, it stays due."""
        known = {condition["type"]: condition for condition in before}
        found = []
        for condition in after:
            kind = condition["type"]
            if kind not in _BAD:
                continue
            old, new = _state(known.get(kind)), _state(condition)
            last, turns = self._untold.get(kind, (old, 0))
            turns += old != new
            if not turns:
                continue
            self._untold[kind] = last, turns
            if new != last and now - self._told.get((kind, new), -QUIET_SECONDS) >= QUIET_SECONDS:
                found.append(_announcement(condition, new, turns))
        return found

    def tell(self, announcement: Announcement, *, now: float) -> None:
        """The event has been created."""
        self._told[announcement.condition, announcement.state] = now
        del self._untold[announcement.condition]


def _state(condition: Mapping[str, Any] | None) -> State:
    if condition is None or condition["status"] != _BAD[condition["type"]]:
        return ""
    return str(condition["reason"])


def _announcement(condition: Mapping[str, Any], state: State, turns: int) -> Announcement:
    kind = condition["type"]
    message = condition["message"] if state else f"{kind} is {condition['status']} again"
    if turns > 1:
        message = f"{message} (turned {turns} times since the last event about {kind})"
    return Announcement(kind, state, "Warning" if state else "Normal", condition["reason"], message)

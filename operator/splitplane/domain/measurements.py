"""Measured numbers that may be absent. A missing number is never zero (docs/architecture.md, "Five ideas")."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Value:
    """A number that was measured, in the unit that its field names."""

    value: float


@dataclass(frozen=True, slots=True)
class Idle:
    """The counter exists and provably did not move: a true zero of requests."""


@dataclass(frozen=True, slots=True)
class Missing:
    """No series answers the query."""

    why: str


@dataclass(frozen=True, slots=True)
class Stale:
    """The newest sample is older than the window that the query looks at."""

    age_seconds: float


@dataclass(frozen=True, slots=True)
class Error:
    """The source could not be asked, or its answer is not a finite number."""

    why: str


Measurement = Value | Idle | Missing | Stale | Error

MOST_SCV = 25.0
"""Squared coefficient of variation, of arrivals or of service, beyond which no queueing formula means anything: what is
measured above it is taken for this much. A bound of the queue is what helps there, and no other plan."""


def known(measurement: Measurement) -> float | None:
    """The number behind a measurement: ``Idle`` is 0.0; ``None`` when nothing is known."""
    match measurement:
        case Value(value):
            return value
        case Idle():
            return 0.0
        case _:
            return None


def explain(measurement: Measurement) -> str:
    """One clause for a condition's message."""
    match measurement:
        case Value(value):
            return f"{value:g}"
        case Idle():
            return "no requests"
        case Missing(why):
            return f"missing ({why})"
        case Stale(age):
            return f"stale (last sample {age:.0f} s ago)"
        case Error(why):
            return f"error ({why})"

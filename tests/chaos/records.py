"""What the client's log says of a stretch of time. Pure but for reading the file."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SLOW_SECONDS = 0.5
"""An answer that takes longer was held up: without a fault, one takes some milliseconds."""
QUIET_SECONDS = 1.0
"""So long without a disturbed request ends a disturbance."""

Span = tuple[float, float]
"""From when to when, in Unix time."""

NOT_ENDED = {"seconds": math.inf, "ok": False, "again": 0}


@dataclass(frozen=True, slots=True)
class Record:
    """One request. ``again`` counts how often its client had to send it anew; ``plan`` is the route that served it.

    ``over`` is the protocol, ``gRPC`` or ``REST``; ``number`` counts the requests over it. One that has not ended yet
    has an infinity of ``seconds``, and counts as failed.
    """

    sent: float
    seconds: float
    ok: bool
    again: int
    plan: str = ""
    error: str = ""
    over: str = "gRPC"
    number: int = 0

    @property
    def ended(self) -> bool:
        return self.seconds < math.inf

    @property
    def disturbed(self) -> bool:
        return not self.ok or self.again > 0 or self.seconds > SLOW_SECONDS


@dataclass(frozen=True, slots=True)
class Measured:
    """One fault's row. ``resent`` are requests that their client had to send again, whether they were answered then;
    ``failed`` had no right answer; the rest were answered at first.
    """

    fault: str
    requests: int
    failed: int
    resent_grpc: int
    resent_rest: int
    recovered_seconds: float
    """Of the longest disturbance: from its first request to the answer to its last; of one that lasts, from its end."""
    p99_milliseconds: float
    """Of the requests :func:`during` the fault; of changes, which follow one another, of all."""
    note: str = ""


def read(path: Path) -> list[Record]:
    """In the order of sending, each request once: how it ended, or that it has not.

    A last line that is still being written is left out.
    """
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    told = (Record(**{**NOT_ENDED, **json.loads(line)}) for line in lines)
    return sorted({(each.over, each.number): each for each in told}.values(), key=lambda record: record.sent)


def measure(
    fault: str, records: Sequence[Record], *, note: str = "", ended: float | None = None, spans: Sequence[Span] = ()
) -> Measured:
    """``spans`` are when the fault was done; ``ended`` when one did that disturbs again and again."""
    seconds = [record.seconds for record in (during(records, spans) if spans else records) if record.ok]
    return Measured(
        fault=fault,
        requests=len(records),
        failed=sum(not record.ok for record in records),
        resent_grpc=sum(record.again > 0 for record in records if record.over == "gRPC"),
        resent_rest=sum(record.again > 0 for record in records if record.over == "REST"),
        recovered_seconds=round(longest_disturbance(records) if ended is None else recovery(records, ended), 2),
        p99_milliseconds=round(float(np.percentile(seconds, 99)) * 1e3) if seconds else float("nan"),
        note=note,
    )


def during(records: Sequence[Record], spans: Sequence[Span]) -> list[Record]:
    """What was sent from a fault's begin to its end, or until what it disturbed was answered, if that was later."""
    longer = [_until_calm(records, span) for span in spans]
    return [record for record in records if any(began <= record.sent <= until for began, until in longer)]


def _until_calm(records: Sequence[Record], span: Span) -> Span:
    began, until = span
    for record in records:
        if record.disturbed and began <= record.sent <= until + QUIET_SECONDS:
            until = max(until, record.sent + record.seconds)
    return began, until


def longest_disturbance(records: Sequence[Record]) -> float:
    """Seconds; 0 when no request was disturbed."""
    longest, began, last = 0.0, None, 0.0
    for record in records:
        if not record.disturbed:
            continue
        if began is None or record.sent - last > QUIET_SECONDS:
            began = record.sent
        last = max(last, record.sent + record.seconds)
        longest = max(longest, last - began)
    return longest


def recovery(records: Sequence[Record], ended: float) -> float:
    """Seconds from the end of a fault to the last answer to a disturbed request; 0 when none came later."""
    return max(0.0, *(record.sent + record.seconds - ended for record in records if record.disturbed), 0.0)

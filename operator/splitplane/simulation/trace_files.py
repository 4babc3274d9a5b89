"""Readers of traces in public formats: what is no number, time or count is refused with its file and line."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import numpy as np

from splitplane.planner.arrays import Array, Ints
from splitplane.simulation.traces import BIN_SECONDS, DAY_SECONDS, Trace

MOST_DAYS = 366.0
"""Of a file: what is longer counts in other units than the format's."""
MOST_PER_MINUTE = 6e10
"""Requests: what is more is no count."""

_MINUTES = [str(minute) for minute in range(1, 1441)]
_INVOCATIONS = ("app", "func", "end_timestamp", "duration")
_FOREVER = 1e300
_BYTES_PER_MEGABIT = 125_000.0

Row = tuple[int, list[str]]
"""Number of the line on which a row of a CSV ends, and its cells."""


def read_arrivals(path: Path, *, function: str = "") -> Trace:
    """Requests per second from a public format, told by its header or its name.

    Azure's LLM inference traces (CSV with ``TIMESTAMP``, a request per row; a time without a zone is in UTC), Azure's
    functions of 2019 (CSV with columns ``1`` to ``1440``: requests per minute, summed over the rows, or over those of
    the one whose ``HashFunction`` begins with ``function``) and of 2021 (CSV with ``app``, ``func``, ``end_timestamp``
    and ``duration``, both in seconds: an invocation per row, of all or of the one whose ``func`` begins so), Mooncake's
    JSONL (``timestamp`` in milliseconds). Raises ``ValueError`` for anything else.
    """
    if path.suffix == ".jsonl":
        _refuse(path, function)
        return _counted(path, _mooncake(path))
    rows = _rows(path)
    _, names = next(rows, (0, []))
    if "TIMESTAMP" in names:
        _refuse(path, function)
        column = names.index("TIMESTAMP")
        return _counted(path, (_moment(_at(path, line), row[column]) for line, row in rows))
    if set(_MINUTES) <= set(names):
        return Trace(np.repeat(_per_minute(path, names, rows, function) / 60.0, round(60.0 / BIN_SECONDS)))
    if set(_INVOCATIONS) <= set(names):
        return _counted(path, _invoked(path, names, rows, function))
    raise ValueError(
        f"{path} is none of: Azure LLM inference CSV, Azure functions CSV (of 2019 or 2021), Mooncake JSONL"
    )


def read_bandwidths(path: Path) -> Trace:
    """Bytes per second from lines of ``seconds Mbit/s``: means over bins; a bin without a line is like the one before.

    Raises ``ValueError`` for anything else.
    """
    rows: list[tuple[float, float]] = []
    for line, text in _lines(path):
        rows.append(_link(_at(path, line), text))
        if len(rows) > 1 and rows[-1][0] < rows[-2][0]:
            raise ValueError(f"{_at(path, line)} is of a time before that of the line above: {text.strip()!r}")
    seconds, megabits = np.array(rows, dtype=np.float64).reshape(-1, 2).T
    place = _bins(path, seconds)
    values = np.full(int(place.max()) + 1, np.nan)
    for each in np.unique(place):
        values[each] = megabits[place == each].mean()
    known = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return Trace(values[known] * _BYTES_PER_MEGABIT)


def _mooncake(path: Path) -> Iterator[float]:
    """The moment of each request in seconds."""
    for line, text in _lines(path):
        try:
            request = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{_at(path, line)} is no JSON: {error}") from error
        moment = request.get("timestamp") if isinstance(request, dict) else None
        if isinstance(moment, bool) or not isinstance(moment, int | float) or not abs(moment) < _FOREVER:
            raise ValueError(f"{_at(path, line)} has no timestamp, a number of milliseconds")
        yield moment / 1e3


def _moment(where: str, text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time, which may have more digits than Python keeps (microseconds)."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(f"{where} has no TIMESTAMP such as 2023-11-16 18:17:03.9799600: {text!r}") from error
    # Of this machine's zone a trace knows nothing: it would replay otherwise elsewhere.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _per_minute(path: Path, names: Sequence[str], rows: Iterable[Row], function: str) -> Array:
    """Requests in each minute of the day, of all functions or of one."""
    columns = [names.index(minute) for minute in _MINUTES]
    if function and "HashFunction" not in names:
        raise ValueError(f"{path} has no column HashFunction: leave out --function")
    name = names.index("HashFunction") if function else 0
    taken = set()
    minutes = np.zeros(len(columns))
    for line, row in rows:
        if row[name].startswith(function):
            taken.add(row[name])
            minutes += _counts(_at(path, line), [row[column] for column in columns])
    _check_one(path, "HashFunction", function, len(taken))
    if not taken:
        raise ValueError(_nothing(path))
    return minutes


def _invoked(path: Path, names: Sequence[str], rows: Iterable[Row], function: str) -> Iterator[float]:
    """The moment in seconds at which each invocation began, of all functions or of one."""
    app, name, end, duration = (names.index(column) for column in _INVOCATIONS)
    taken = set()
    for line, row in rows:
        if row[name].startswith(function):
            taken.add((row[app], row[name]))
            yield _began(_at(path, line), row[end], row[duration])
    _check_one(path, "func", function, len(taken))


def _began(where: str, end: str, duration: str) -> float:
    try:
        ended, took = float(end), float(duration)
    except ValueError as error:
        raise ValueError(f"{where} has an end_timestamp or a duration that is no number: {error}") from error
    if not (abs(ended) < _FOREVER and 0.0 <= took < _FOREVER):
        raise ValueError(f"{where} has an end_timestamp or a duration that is no number of seconds")
    return ended - took


def _check_one(path: Path, column: str, function: str, found: int) -> None:
    """Raises ``ValueError`` where a function is asked for and the file has none, or several."""
    if function and found != 1:
        many = f"{found} functions whose {column}s begin" if found else f"no function whose {column} begins"
        raise ValueError(f"{path} has {many} with {function!r}: --function takes as much of one as tells it apart")


def _counts(where: str, cells: Sequence[str]) -> Array:
    """Requests in each minute of a row; an empty cell is none."""
    try:
        counts = np.array([float(cell or 0.0) for cell in cells])
    except ValueError as error:
        raise ValueError(f"{where} has a count of requests that is no number: {error}") from error
    if not ((counts >= 0.0) & (counts <= MOST_PER_MINUTE)).all():
        raise ValueError(f"{where} has a count of requests that is not between 0 and {MOST_PER_MINUTE:g}")
    return counts


def _link(where: str, text: str) -> tuple[float, float]:
    """Seconds, and the bandwidth from then on in Mbit/s."""
    try:
        seconds, megabits = (float(cell) for cell in text.split())
    except ValueError as error:
        raise ValueError(f"{where} has not two columns of numbers, seconds and Mbit/s: {text.strip()!r}") from error
    if not (math.isfinite(seconds) and math.isfinite(megabits) and megabits >= 0.0):
        raise ValueError(f"{where} holds what is no time, or no bandwidth of at least 0 Mbit/s: {text.strip()!r}")
    return seconds, megabits


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    with _text(path) as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file, its header first; each other has as many cells."""
    with _text(path) as file:
        reader = csv.reader(file)
        width = 0
        for row in filter(None, reader):
            width = width or len(row)
            if len(row) != width:
                raise ValueError(f"{_at(path, reader.line_num)} has cells for {len(row)} columns, not {width}")
            yield reader.line_num, row


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """An open file. Raises ``ValueError`` that names it where what is read of it is no text, or no CSV."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8: {error.reason}") from error
        except csv.Error as error:
            raise ValueError(f"{path} is no CSV: {error}") from error


def _at(path: Path, line: int) -> str:
    return f"{path}:{line}"


def _nothing(path: Path) -> str:
    return f"{path} holds a header only: there is nothing to replay"


def _refuse(path: Path, function: str) -> None:
    if function:
        raise ValueError(f"{path} does not tell functions apart: leave out --function")


def _counted(path: Path, times: Iterable[float]) -> Trace:
    return Trace(np.bincount(_bins(path, np.fromiter(times, dtype=np.float64))) / BIN_SECONDS)


def _bins(path: Path, seconds: Array) -> Ints:
    """The bin of each moment, from the first on. Raises ``ValueError`` where there is none, or for too long a time."""
    if not len(seconds):
        raise ValueError(_nothing(path))
    seconds = seconds - seconds.min()
    if not seconds.max() <= MOST_DAYS * DAY_SECONDS:
        raise ValueError(f"{path} spans {seconds.max() / DAY_SECONDS:.0f} days, more than {MOST_DAYS:.0f}")
    return (seconds / BIN_SECONDS).astype(np.int64)

"""Decisions of the planner that the operator recorded in its log, each a line: ``Switch of NAMESPACE/NAME: {...}``."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner import load_call

_LINE = re.compile(r"(?:\w+ of (?P<pipeline>\S+): )?(?P<call>\{\"now\":.*)")
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a decision rested on. ``pipeline`` is ``NAMESPACE/NAME``, empty for a call that ``plan --record`` printed;
    ``now`` is in seconds since 1970 where the operator wrote it."""

    pipeline: str
    snapshot: Snapshot
    policy: Policy
    now: float


def last_recorded(path: Path, pipeline: str = "") -> tuple[Recorded, tuple[str, ...]]:
    """The last decision in a log (``-``: stdin), of one pipeline if that is named; and the names of all that have one.

    Raises ``typer.BadParameter`` if there is none.
    """
    lines = _text(path).splitlines()
    names = tuple(sorted({match["pipeline"] for match in _matches(lines) if match["pipeline"]}))
    for match in _matches(reversed(lines)):
        if pipeline and match["pipeline"] != pipeline:
            continue
        try:
            return Recorded(match["pipeline"] or "", *load_call(match["call"].strip())), names
        except ValueError:  # a line that is cut short: an earlier one may be whole
            continue
    if pipeline and names:
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        raise typer.BadParameter(
            f"{path} holds no recorded decision of {pipeline}, but of {', '.join(names[:_MOST_NAMED])}{more}"
        )
    raise typer.BadParameter(
        f"{path} holds no recorded decision: the operator's log has one at each switch and each new reason to hold"
    )


def _matches(lines: list[str] | Iterator[str]) -> Iterator[re.Match[str]]:
    return (match for match in map(_LINE.search, lines) if match is not None)


def _text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise typer.BadParameter(str(error)) from error

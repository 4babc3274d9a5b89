"""What the operator recorded in its log: decisions, sizes of what sites share, and grants on scarce nodes.

Lines such as ``Switch of NAMESPACE/NAME: {...}``, ``Pool of NAMESPACE/NAME: {...}``, ``Grants of 3 pipelines: {...}``.
"""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import typer

from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner import load_call
from splitplane.planner.shared_replay import Settling, Sizing, load_settling, load_sizing

T = TypeVar("T")

_DECISION = re.compile(r"(?:\w+ of (?P<pipeline>\S+): )?(?P<data>\{\"now\":.*)")
_POOL = re.compile(r"Pool of (?P<pipeline>\S+): (?P<data>\{.*)")
_GRANTS = re.compile(r"Grants of \d+ pipelines: (?P<data>.*)|(?P<ended>Grants are taken back.*)")
_MOST_NAMED = 10


class About(StrEnum):
    """What of a log is explained."""

    DECISION = "decision"
    POOL = "pool"
    GRANTS = "grants"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a decision rested on. ``pipeline`` is ``NAMESPACE/NAME``, empty for a call that ``plan --record`` printed;
    ``now`` is in seconds since 1970 where the operator wrote it."""

    pipeline: str
    snapshot: Snapshot
    policy: Policy
    now: float


@dataclass(frozen=True, slots=True)
class RecordedPool:
    """What the size of a pool rested on, and whose sites share it."""

    pipeline: str
    sizing: Sizing


@dataclass(frozen=True, slots=True)
class RecordedGrants:
    """What grants rested on; where the line holds no numbers, its words."""

    settling: Settling | None
    words: str = ""


class Log:
    """A file (``-``: stdin) that the operator logged to. Raises ``typer.BadParameter`` if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = _text(path).splitlines()

    def last(self, about: About | None, pipeline: str) -> Recorded | RecordedPool | RecordedGrants:
        """The last record, of one pipeline if that is named. Of all kinds, if none is asked for, decisions come first,
        then pools. Raises ``typer.BadParameter`` if there is none."""
        readers: dict[About, Callable[[str], Recorded | RecordedPool | RecordedGrants | None]] = {
            About.DECISION: self._decision, About.POOL: self._pool, About.GRANTS: self._grants
        }  # fmt: skip
        for kind, read in readers.items():
            if about in (None, kind) and (found := read(pipeline)) is not None:
                return found
        names = self.names(about)
        what = f"no recorded {about or 'decision, pool or grants'}{f' of {pipeline}' if pipeline else ''}"
        if pipeline and names:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            raise typer.BadParameter(f"{self.path} holds {what}, but of {', '.join(names[:_MOST_NAMED])}{more}")
        raise typer.BadParameter(
            f"{self.path} holds {what}: the operator's log has a line at each switch and each new reason to hold, and"
            " whenever what sites share or what scarce nodes are granted changes"
        )

    def names(self, about: About | None) -> tuple[str, ...]:
        """The pipelines that have a record of that kind: of decisions, of pools, of either."""
        patterns = {About.DECISION: [_DECISION], About.POOL: [_POOL], None: [_DECISION, _POOL]}
        found = (match for pattern in patterns.get(about, []) for match in self._matches(pattern, self._lines))
        return tuple(sorted({match["pipeline"] for match in found if match["pipeline"]}))

    def _decision(self, pipeline: str) -> Recorded | None:
        def load(match: re.Match[str]) -> Recorded:
            return Recorded(match["pipeline"] or "", *load_call(match["data"].strip()))

        return self._last(_DECISION, load, pipeline)

    def _pool(self, pipeline: str) -> RecordedPool | None:
        def load(match: re.Match[str]) -> RecordedPool:
            return RecordedPool(match["pipeline"], load_sizing(match["data"].strip()))

        return self._last(_POOL, load, pipeline)

    def _grants(self, pipeline: str) -> RecordedGrants | None:
        def load(match: re.Match[str]) -> RecordedGrants | None:
            words = match["ended"] or match["data"].strip()
            if not words.startswith("{"):
                return RecordedGrants(None, words)
            settling = load_settling(words)
            return RecordedGrants(settling) if _takes_part(settling, pipeline) else None

        return self._last(_GRANTS, load)

    def _last(
        self, pattern: re.Pattern[str], load: Callable[[re.Match[str]], T | None], pipeline: str = ""
    ) -> T | None:
        for match in self._matches(pattern, reversed(self._lines)):
            if pipeline and match["pipeline"] != pipeline:
                continue
            try:
                found = load(match)
            except ValueError:  # a line that is cut short: an earlier one may be whole
                continue
            if found is not None:
                return found
        return None

    @staticmethod
    def _matches(pattern: re.Pattern[str], lines: list[str] | Iterator[str]) -> Iterator[re.Match[str]]:
        return (match for match in map(pattern.search, lines) if match is not None)


def moment(now: float) -> str:
    """A time of the operator's clock for people."""
    try:
        return f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OSError, OverflowError, ValueError):
        return f"{now:g} s"


def _takes_part(settling: Settling, pipeline: str) -> bool:
    return not pipeline or any(claim.pipeline == pipeline for claim in settling.claims)


def _text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise typer.BadParameter(str(error)) from error

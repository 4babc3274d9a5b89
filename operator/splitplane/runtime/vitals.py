"""What a server tells of its process beside whether it is ready, in the metadata of its answers to ``ServerReady``.

The gateway tells by it a process that has died from a connection that has, and one that hangs from a link that is slow.
"""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

PROCESS = "splitplane-process"
BUSY = "splitplane-busy-milliseconds"
STUCK = "splitplane-stuck"


@dataclass(frozen=True, slots=True)
class Vitals:
    """``process`` is another one after each start, and empty where the far end tells none; ``busy_seconds`` is how long
    the piece of work that it computes has been running, 0 when it computes nothing; ``is_stuck``: for so long that only
    a restart will help."""

    process: str = ""
    busy_seconds: float = 0.0
    is_stuck: bool = False

    @classmethod
    def read(cls, metadata: Iterable[tuple[str, Any]]) -> "Vitals":
        """From an answer's trailing metadata; what is not there, or no number, is as if nothing were told."""
        found = dict(metadata)
        busy = str(found.get(BUSY, ""))
        seconds = int(busy) / 1000 if busy.isdecimal() and len(busy) < 12 else 0.0
        return cls(str(found.get(PROCESS, "")), seconds, STUCK in found)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        told = (PROCESS, self.process), (BUSY, str(round(1000 * self.busy_seconds)))
        return (*told, (STUCK, "true")) if self.is_stuck else told


class Condition:
    """The condition of this process: what its fronts answer for it."""

    def __init__(
        self, *, busy_seconds: Callable[[], float] = lambda: 0.0, is_stuck: Callable[[], bool] = lambda: False
    ) -> None:
        """``is_stuck``: whether only a restart can help it."""
        self._process = secrets.token_hex(8)
        self._busy_seconds = busy_seconds
        self._is_stuck = is_stuck

    def live(self) -> bool:
        return not self._is_stuck()

    def vitals(self) -> Vitals:
        return Vitals(self._process, self._busy_seconds(), self._is_stuck())

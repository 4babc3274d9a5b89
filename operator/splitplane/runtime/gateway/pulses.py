"""Whether a link passes anything, told from what was asked over it and what came back. Pure: times come in.

Silence counts only while an answer is awaited, and only as fast as this process itself runs: a gateway that was held up
has not listened. A link that has been called down comes back once it has answered for a while, and for longer each time
it falls again soon, as routers damp a flapping route (RFC 2439): each change of route costs more than a slow answer.
"""

from collections import deque

SILENT_SECONDS = 1.2
"""So long unanswered, a link is down. With a tick and a pulse it makes less than two seconds from the cut."""
ROUND_TRIPS = 4
"""A link with long round trips may be silent for so many of them."""
TICK_SECONDS = 0.1
MOST_PER_TICK_SECONDS = 2 * TICK_SECONDS
TRUST_SECONDS = 1.0
"""How long a link must answer again after its first fall."""
LONGEST_TRUST_SECONDS = 16.0
MEMORY_SECONDS = 60.0
"""How long a fall is held against the link."""


class Pulse:
    """One link. ``tick`` every :data:`TICK_SECONDS`; ``heard`` at every sign of life; ``asked`` when one is due."""

    def __init__(self, now: float) -> None:
        self.down = False
        self.heard_at = now
        self._ticked_at = now
        self._waiting = False
        self._silent = 0.0
        self._answering_since: float | None = None
        self._falls: deque[float] = deque(maxlen=16)

    def asked(self) -> None:
        """Something was sent that has to be answered."""
        self._waiting = True

    def heard(self, now: float) -> None:
        """Something came back."""
        self.heard_at = now
        self._waiting = False
        self._silent = 0.0
        if self._answering_since is None:
            self._answering_since = now

    def tick(self, now: float, round_trip_seconds: float = 0.0) -> None:
        """Judge anew."""
        elapsed, self._ticked_at = now - self._ticked_at, now
        if self._waiting:
            self._silent += min(elapsed, MOST_PER_TICK_SECONDS)
        if self._silent > max(SILENT_SECONDS, ROUND_TRIPS * round_trip_seconds):
            self._answering_since = None
            if not self.down:
                self.down = True
                self._falls.append(now)
        elif self.down and self._answering_since is not None and now - self._answering_since >= self._trust(now):
            self.down = False

    def _trust(self, now: float) -> float:
        recent = sum(1 for at in self._falls if now - at <= MEMORY_SECONDS)
        return float(min(TRUST_SECONDS * 2 ** max(0, recent - 1), LONGEST_TRUST_SECONDS))

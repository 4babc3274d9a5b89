"""Whether a link passes anything, told from what was asked over it and what came back. Pure: times come in.

Silence counts only while an answer is awaited, and only as fast as this process itself runs: a gateway that was held up
has not listened. A question waits in the link's queue behind what was sent before it, which on a thin link may take
seconds: that much more silence is allowed, by what was under way when the question was asked. What is sent later, into
a link that may be cut, adds nothing.

A link that has been called down comes back once it has answered for a while, and for longer each time it falls again
soon, as routers damp a flapping route (RFC 2439): each change of route costs more than a slow answer.
"""

from collections import deque

SILENT_SECONDS = 1.2
"""So long unanswered, a link is down. With a tick and a pulse it makes less than two seconds from the cut."""
MOST_BEHIND_SECONDS = 4.0
"""At most so much longer, where the question waits behind other messages. So a cut of a link that is full of them is
known within six seconds."""
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
    """One link.

    ``tick`` every :data:`TICK_SECONDS`; ``asked`` when a sign of life is due, and ``answered`` when it comes; ``heard``
    when something else has crossed.
    """

    def __init__(self, now: float) -> None:
        self.down = False
        self.heard_at = now
        self._ticked_at = now
        self._waiting = False
        self._silent = self._behind = 0.0
        self._answering_since: float | None = None
        self._falls: deque[float] = deque(maxlen=16)

    def asked(self, behind_seconds: float = 0.0) -> float:
        """Something was sent that has to be answered, behind messages that the link takes so long to pass.

        Returns how much later the answer may come for that.
        """
        self._waiting = True
        if not self._silent:
            self._behind = min(behind_seconds, MOST_BEHIND_SECONDS)
        return self._behind

    def answered(self, now: float) -> None:
        """The answer to it came."""
        self.heard(now)
        self._waiting = False

    def heard(self, now: float) -> None:
        """Something else came back; what was asked may still wait behind it."""
        self.heard_at = now
        self._silent = 0.0
        if self._answering_since is None:
            self._answering_since = now

    def tick(self, now: float, round_trip_seconds: float = 0.0) -> None:
        """Judge anew."""
        elapsed, self._ticked_at = now - self._ticked_at, now
        if self._waiting:
            self._silent += min(elapsed, MOST_PER_TICK_SECONDS)
        if self._silent > max(SILENT_SECONDS + self._behind, ROUND_TRIPS * round_trip_seconds):
            self._answering_since = None
            if not self.down:
                self.down = True
                self._falls.append(now)
        elif self.down and self._answering_since is not None and now - self._answering_since >= self._trust(now):
            self.down = False

    def _trust(self, now: float) -> float:
        recent = sum(1 for at in self._falls if now - at <= MEMORY_SECONDS)
        return float(min(TRUST_SECONDS * 2 ** max(0, recent - 1), LONGEST_TRUST_SECONDS))
